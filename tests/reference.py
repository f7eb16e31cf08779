"""Naive recurrent networks, written from the papers' equations and sharing nothing with jax_bptt.

One example per row: states are [B, H], inputs [B, I], and time is a Python loop. An equation takes
the array namespace `xp` as its first argument: with NumPy it is the reference for values (and for
finite differences), with jax.numpy it is what `jax.grad` differentiates for the gradients.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Reference(NamedTuple):
    """A cell as plain functions of a namespace: step(xp, params, state, x) -> state, and so on."""

    step: Callable[..., Any]
    readout: Callable[..., Any] = lambda xp, p, s: s
    prepare: Callable[..., Any] = lambda xp, p: p


def unroll(xp, reference, params, state, xs, batch_shape):
    """Return (last_state, ys) of T >= 1 steps, over a batch of any shape."""
    rows = int(np.prod(batch_shape))
    rank = len(batch_shape)

    def flatten(a, leading):
        return a.reshape((*a.shape[:leading], rows, *a.shape[leading + rank :]))

    def unflatten(a, leading):
        return a.reshape((*a.shape[:leading], *batch_shape, *a.shape[leading + 1 :]))

    p = reference.prepare(xp, params)
    s = jax.tree.map(lambda a: flatten(xp.asarray(a), 0), state)
    xs = jax.tree.map(lambda a: flatten(xp.asarray(a), 1), xs)
    ys = []
    for t in range(jax.tree.leaves(xs)[0].shape[0]):
        s = reference.step(xp, p, s, jax.tree.map(lambda a, t=t: a[t], xs))
        ys.append(reference.readout(xp, p, s))
    ys = jax.tree.map(lambda *a: unflatten(xp.stack(a), 1), *ys)
    return jax.tree.map(lambda a: unflatten(a, 0), s), ys


def is_inexact(a):
    return jnp.issubdtype(a.dtype, jnp.inexact)


def pair(xp, cotangents, outputs):
    """Return Re sum(c * y) over the cotangents that are not None: a loss that has just these."""
    cotangents, outputs = (
        jax.tree.leaves(tree, is_leaf=lambda leaf: leaf is None) for tree in (cotangents, outputs)
    )
    pairs = zip(cotangents, outputs, strict=True)
    return sum(xp.real(xp.sum(xp.asarray(c) * y)) for c, y in pairs if c is not None)


def gradients(reference, params, state, xs, batch_shape, cotangents):
    """Return dL/d(params, xs, state) by `jax.grad` of the Python loop, without `lax.scan`."""

    def loss(params, xs, state):
        return pair(jnp, cotangents, unroll(jnp, reference, params, state, xs, batch_shape))

    with jax.numpy_dtype_promotion("standard"):  # the reference is as naive as NumPy
        return jax.grad(loss, argnums=(0, 1, 2), allow_int=True)(params, xs, state)


def directional_derivative(loss, point, direction, step=1e-3):
    """Return the central difference of `loss(point)`, extrapolated once (Richardson): O(step^4)."""

    def moved(by):
        return jax.tree.map(lambda a, d: a + by * d if is_inexact(a) else a, point, direction)

    def central(h):
        return (loss(moved(h)) - loss(moved(-h))) / (2 * h)

    return (4 * central(step / 2) - central(step)) / 3


def sigmoid(xp, a):
    return 1 / (1 + xp.exp(-a))


def gate(p, k, x, s):
    """Return x W_x + s W_s + b of gate k, for parameters [I, G, H], [H, G, H], [G, H]."""
    return x @ p.w_x[:, k] + s @ p.w_s[:, k] + p.b[None, k]


def linear_readout(xp, p, s):
    return s @ p.w_y


def elman(activation):
    """Elman (1990), "Finding structure in time"."""

    def step(xp, p, s, x):
        return activation(xp, gate(p, 0, x, s))

    return step


def lstm(xp, p, state, x):
    """Gers, Schmidhuber and Cummins (2000), "Learning to forget"; gates i, f, g, o."""
    h, c = state
    i = sigmoid(xp, gate(p, 0, x, h))
    f = sigmoid(xp, gate(p, 1, x, h))
    g = xp.tanh(gate(p, 2, x, h))
    o = sigmoid(xp, gate(p, 3, x, h))
    c = f * c + i * g
    return type(state)(o * xp.tanh(c), c)


def gru(xp, p, s, x):
    """Chung et al. (2014) with the reset after the product, as in PyTorch; gates r, z, n."""
    r = sigmoid(xp, gate(p, 0, x, s))
    z = sigmoid(xp, gate(p, 1, x, s))
    n = xp.tanh(x @ p.w_x[:, 2] + p.b[None, 2] + r * (s @ p.w_s[:, 2] + p.b_n[None]))
    return (1 - z) * n + z * s


def gru_reset_before(xp, p, s, x):
    """Cho et al. (2014): the reset gate scales the state that enters the candidate's product."""
    r = sigmoid(xp, gate(p, 0, x, s))
    z = sigmoid(xp, gate(p, 1, x, s))
    n = xp.tanh(x @ p.w_x[:, 2] + (r * s) @ p.w_s[:, 2] + p.b[None, 2])
    return (1 - z) * n + z * s
