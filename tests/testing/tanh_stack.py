"""A stack of tanh layers in NumPy with a reverse pass by hand, and the places where it can break.

It knows nothing of jax_bptt beyond the form of a `Subject`, so that what the suite finds in its
broken versions (planted_bugs.py) is found in somebody else's code.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jax_bptt.testing import Subject

LAYERS, I, H = 3, 2, 3  # noqa: E741 - the axis letters of the package
STEPS, BATCH = 5, 3


class Layer(NamedTuple):
    w_x: Any
    w_s: Any
    b: Any


class Parts(NamedTuple):
    """The places at which a bug is planted, and what is right there.

    Attributes:
      order: T -> the steps as the reverse pass visits them.
      held: (mask [T, B], t) -> the mask that the reverse pass applies at step t.
      cut: (resets [T, B], t) -> where it lets no gradient pass from step t to the one before.
      blank: (live [B, 1], x [B, I]) -> the inputs of a step without those that are not to be read.
      slope: new state [B, H] -> derivative of tanh.
    """

    order: Callable[[int], Any] = lambda steps: reversed(range(steps))
    held: Callable[..., Any] = lambda mask, t: mask[t]
    cut: Callable[..., Any] = lambda resets, t: resets[t]
    blank: Callable[..., Any] = lambda live, x: np.where(live, x, 0)
    slope: Callable[..., Any] = lambda new: 1 - new**2


def _flags(xs, lengths, resets, mask):
    shape = xs.shape[:2]
    within = np.ones(shape, bool) if lengths is None else np.arange(shape[0])[:, None] < lengths
    resets = np.zeros(shape, bool) if resets is None else resets
    mask = np.ones(shape, bool) if mask is None else mask
    return within[..., None], resets[..., None], mask[..., None]


def _forward(parts, params, xs, state, options):
    """Return (last_state, ys) and, for each step and layer, what the reverse pass needs."""
    within, resets, mask = _flags(xs, **options)
    states, ys, tape = list(state), [], []
    for t, x in enumerate(xs):
        live = within[t] & mask[t]
        below, records = parts.blank(live, x), []
        for k, p in enumerate(params):
            start = np.where(resets[t], state[k], states[k])
            new = np.tanh(below @ p.w_x + start @ p.w_s + p.b)
            records.append((below, start, new))
            states[k] = np.where(live, new, start)
            below = new
        tape.append(records)
        ys.append(np.where(within[t], states[-1], 0))
    return (tuple(states), np.stack(ys)), tape


def _backward(parts, params, xs, state, cotangents, options):
    within, resets, mask = _flags(xs, **options)
    _, tape = _forward(parts, params, xs, state, options)
    d_last, d_ys = cotangents
    d_ys = np.zeros((*xs.shape[:2], state[-1].shape[-1]), xs.dtype) if d_ys is None else d_ys
    d_states = [np.zeros_like(s) if d is None else d for s, d in zip(state, d_last, strict=True)]
    d_params = [Layer(*map(np.zeros_like, p)) for p in params]
    d_first = [np.zeros_like(s) for s in state]
    d_xs = np.zeros_like(xs)
    for t in parts.order(len(xs)):
        d_states[-1] = d_states[-1] + np.where(within[t], d_ys[t], 0)
        live = within[t] & parts.held(mask, t)
        d_below = 0
        for k in reversed(range(len(params))):
            below, start, new = tape[t][k]
            d_a = (np.where(live, d_states[k], 0) + d_below) * parts.slope(new)
            part = Layer(below.T @ d_a, start.T @ d_a, d_a.sum(0))
            d_params[k] = Layer(*(d + e for d, e in zip(d_params[k], part, strict=True)))
            d_start = d_a @ params[k].w_s.T + np.where(live, 0, d_states[k])
            d_first[k] = d_first[k] + np.where(parts.cut(resets, t), d_start, 0)
            d_states[k] = np.where(parts.cut(resets, t), 0, d_start)
            d_below = d_a @ params[k].w_x.T
        d_xs[t] = d_below
    return tuple(d_params), d_xs, tuple(d + e for d, e in zip(d_first, d_states, strict=True))


def step(params, state, x):
    """One step in JAX, for the naive loop."""
    new = []
    for p, s in zip(params, state, strict=True):
        x = jnp.tanh(x @ p.w_x + s @ p.w_s + p.b[None])
        new.append(x)
    return tuple(new), x


RIGHT = Parts()


def subject(parts: Parts = RIGHT) -> Subject:
    def options(lengths=None, resets=None, mask=None):
        return {"lengths": lengths, "resets": resets, "mask": mask}

    def forward(params, xs, state, **given):
        return _forward(parts, params, xs, state, options(**given))[0]

    def gradient(params, xs, state, cotangents, wrt=(), **given):
        return _backward(parts, params, xs, state, cotangents, options(**given))

    return Subject("tanh", forward, gradient, step=step, supports={"lengths", "resets", "mask"})


def arguments():
    """Return (params, xs, state) with no zero in them."""
    rng = np.random.default_rng(0)

    def layer(inputs):
        scale = 0.8
        shapes = (inputs, H), (H, H), (H,)
        return Layer(*(scale * rng.normal(size=shape) for shape in shapes))

    params = tuple(layer(H if k else I) for k in range(LAYERS))
    state = tuple(0.5 * rng.normal(size=(BATCH, H)) for _ in range(LAYERS))
    return params, rng.normal(size=(STEPS, BATCH, I)), jax.tree.map(np.tanh, state)
