"""Naive recurrent networks, written from the papers' equations and sharing nothing with jax_bptt.

One example per row: states are [B, H], inputs [B, I], and time is a Python loop. An equation takes
the array namespace `xp` as its first argument: with NumPy it is the reference for values (and for
finite differences), with jax.numpy it is what `jax.grad` differentiates for the gradients.
"""

import functools
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


@functools.cache
def on(xp, reference):
    """Return the reference with `xp` filled in.

    On jax.numpy each function is compiled, for speed: what calls it is still a loop in Python.
    """
    functions = (functools.partial(function, xp) for function in reference)
    return Reference(*(map(jax.jit, functions) if xp is jnp else functions))


def unroll(xp, reference, params, state, xs, batch_shape):
    """Return (last_state, ys) of T >= 1 steps, over a batch of any shape."""
    step, readout, prepare = on(xp, reference)
    rows = int(np.prod(batch_shape))
    rank = len(batch_shape)

    def flatten(a, leading):
        return a.reshape((*a.shape[:leading], rows, *a.shape[leading + rank :]))

    def unflatten(a, leading):
        return a.reshape((*a.shape[:leading], *batch_shape, *a.shape[leading + 1 :]))

    p = prepare(params)
    s = jax.tree.map(lambda a: flatten(xp.asarray(a), 0), state)
    xs = jax.tree.map(lambda a: flatten(xp.asarray(a), 1), xs)
    ys = []
    for t in range(jax.tree.leaves(xs)[0].shape[0]):
        s = step(p, s, jax.tree.map(lambda a, t=t: a[t], xs))
        ys.append(readout(p, s))
    ys = jax.tree.map(lambda *a: unflatten(xp.stack(a), 1), *ys)
    return jax.tree.map(lambda a: unflatten(a, 0), s), ys


class Options(NamedTuple):
    """Options of a sequence, for `unroll_rows`; NumPy arrays, no None."""

    lengths: Any  # [rows]
    resets: Any  # [T, rows]
    mask: Any  # [T, rows]
    reverse: bool = False


@jax.jit
def _cut(state, xs):
    """Return the states of all rows, a batch of one each, and [row][t] the inputs of each step."""
    steps, rows = jax.tree.leaves(xs)[0].shape[:2]

    def pick(tree, *index):
        return jax.tree.map(lambda a: a[index][None], tree)

    states = [pick(state, row) for row in range(rows)]
    return states, [[pick(xs, t, row) for t in range(steps)] for row in range(rows)]


@jax.jit
def _join(states, ys):
    """Return the last states of all rows as one batch, and `ys` [row][t] as arrays [T, rows]."""
    rows = [jax.tree.map(lambda *y: jnp.stack(y), *row) for row in ys]
    return (
        jax.tree.map(lambda *s: jnp.concatenate(s), *states),
        jax.tree.map(lambda *y: jnp.concatenate(y, 1), *rows),
    )


def unroll_rows(reference, params, state, xs, options):
    """Return (last_state, ys) of every row of a batch [rows], each run alone in a Python loop."""
    xp: Any = jnp  # a module is hashable, though its type does not say so
    step, readout, prepare = on(xp, reference)
    p = prepare(params)
    steps = options.mask.shape[0]

    def run(row, start, xs):
        s, ys = start, {}
        valid = range(options.lengths[row])
        for t in reversed(valid) if options.reverse else valid:
            s = start if options.resets[t, row] else s
            s = step(p, s, xs[t]) if options.mask[t, row] else s
            ys[t] = readout(p, s)
        zero = jax.tree.map(lambda y: y * 0, readout(p, start))
        return s, [ys.get(t, zero) for t in range(steps)]

    starts, xs = _cut(state, xs)
    runs = [run(row, *each) for row, each in enumerate(zip(starts, xs, strict=True))]
    return _join(*zip(*runs, strict=True))


def row_gradients(reference, params, state, xs, options, cotangents):
    """Return (outputs, dL/d(params, xs, state)) by `jax.grad` of the rows' Python loops."""

    def loss(params, xs, state):
        outputs = unroll_rows(reference, params, state, xs, options)
        return pair(jnp, cotangents, outputs), outputs

    with jax.numpy_dtype_promotion("standard"):
        gradient = jax.grad(loss, argnums=(0, 1, 2), has_aux=True, allow_int=True)
        gradients, outputs = gradient(params, xs, state)
    return outputs, gradients


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


def directional_derivative(loss, point, direction, step=2e-4):
    """Return a central difference of `loss(point)`, extrapolated twice (Richardson): O(step^6)."""

    def moved(by):
        return jax.tree.map(lambda a, d: a + by * d if is_inexact(a) else a, point, direction)

    def central(h):
        return (loss(moved(h)) - loss(moved(-h))) / (2 * h)

    wide, half, quarter = central(step), central(step / 2), central(step / 4)
    return (64 * quarter - 20 * half + wide) / 45


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


def lstm_peephole(xp, p, state, x):
    """Gers and Schmidhuber (2000), "Recurrent nets that time and count"; peepholes i, f, o."""
    h, c = state
    i = sigmoid(xp, gate(p, 0, x, h) + p.w_c[0][None] * c)
    f = sigmoid(xp, gate(p, 1, x, h) + p.w_c[1][None] * c)
    c = f * c + i * xp.tanh(gate(p, 2, x, h))
    o = sigmoid(xp, gate(p, 3, x, h) + p.w_c[2][None] * c)
    return type(state)(o * xp.tanh(c), c)


def mgu(xp, p, s, x):
    """Zhou et al. (2016), the gate moved behind the candidate's product; gates f, n."""
    f = sigmoid(xp, gate(p, 0, x, s))
    n = xp.tanh(x @ p.w_x[:, 1] + p.b[None, 1] + f * (s @ p.w_s[:, 1]))
    return (1 - f) * s + f * n


def ugrnn(xp, p, s, x):
    """Collins, Sohl-Dickstein and Sussillo (2017); gates g, n."""
    g = sigmoid(xp, gate(p, 0, x, s))
    return g * s + (1 - g) * xp.tanh(gate(p, 1, x, s))


def indrnn(activation):
    """Li et al. (2018): the recurrent weights are a vector."""

    def step(xp, p, s, x):
        return activation(xp, x @ p.w_x[:, 0] + p.w_s[None] * s + p.b[0][None])

    return step


def slstm(log_forget_gate):
    """Beck et al. (2024), equations of the stabilised sLSTM; gates i, f, z, o."""

    def step(xp, p, state, x):
        h, c, n, m = state
        log_i, log_f = gate(p, 0, x, h), log_forget_gate(xp, gate(p, 1, x, h))
        new_m = xp.maximum(log_f + m, log_i)
        i, f = xp.exp(log_i - new_m), xp.exp(log_f + m - new_m)
        c = f * c + i * xp.tanh(gate(p, 2, x, h))
        n = f * n + i
        return type(state)(sigmoid(xp, gate(p, 3, x, h)) * (c / n), c, n, new_m)

    return step


def ctrnn(time_step):
    """Wilson and Cowan (1972), the decay of the old state exact over one step."""

    def step(xp, p, s, x):
        kept = xp.exp(-time_step / xp.exp(p.log_tau))[None]
        return kept * s + (1 - kept) * xp.tanh(gate(p, 0, x, s))

    return step
