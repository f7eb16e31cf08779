"""The bias that a window of truncation costs, for every window."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from jax_bptt.algorithms.bptt import Saved, block_length_of, in_blocks
from jax_bptt.algorithms.by_lag import Past, first, norm, number_of_lags, stretches
from jax_bptt.algorithms.unroll import compiled_once
from jax_bptt.core import reverse, sequence, trees
from jax_bptt.core.sequence import Controls
from jax_bptt.core.types import PyTree
from jax_bptt.diagnostics.trajectory import Trajectory, cotangents_of, past_of

ROUNDINGS = 64
"""Bias, in roundings of a number, at which a sum of lags counts as the whole gradient."""


class TruncationCurve(NamedTuple):
    """How the gradient of a sliding window compares with the exact one, window by window.

    Entry K - 1 is of a window of K steps, the gradient S_K of `truncated(K, sliding=True)` against
    the exact one G, over all parameters together.

    Attributes:
      bias: |S_K - G| / |G|, [lags].
      cosine: of the angle between S_K and G, NaN where one of them is zero.
      agreement: the share of entries whose sign is that of G, 0 to 1.
      norm: |S_K|.
    """

    bias: Array
    cosine: Array
    agreement: Array
    norm: Array

    def shortest(self, bias: ArrayLike) -> Array:
        """Return the shortest window from which on the bias is at most `bias`; 0 for none.

        A longer window may be more biased than a shorter one, where what they leave out cancels.
        """
        within = jnp.flip(self.bias <= bias, -1).astype(jnp.int32)
        enough = jnp.sum(jnp.cumprod(within, axis=-1), axis=-1, dtype=jnp.int32)
        return jnp.where(enough > 0, self.bias.shape[-1] + 1 - enough, 0)


def truncation_curve(run: Trajectory, d_ys: PyTree, *, lags: int | None = None) -> TruncationCurve:
    """Return the bias of truncated backpropagation for every window, in one pass.

        S_K = sum_{k < K} sum_t (d+ s_t / dW)^T Lambda^k_t        K = 1..lags
        G   = sum_t (d+ s_t / dW)^T lambda_t

    Lambda^k_t is what the loss k steps later sends to s_t, as in `gradient_by_lag`. Windows count
    the steps that are taken, as those of `truncated` do: neither padding nor steps that a mask
    leaves out. What an initial state owes to the parameters is left out on both sides.

    Every lag takes all steps at once: a product for the adjoints and one for the weights. The pass
    ends where a lag adds no more than a rounding error and the sum is the gradient to a few; larger
    windows are given the values of that one. So time is at most half a gradient's for each lag, and
    less the faster the gradient decays; memory that of the steps linearised at once, about 20
    arrays [T, B, H] for an LSTM.

    Args:
      run: a `trajectory`.
      d_ys: dL/dy_t, like the outputs of `unroll`, None at leaves without a gradient.
      lags: the largest window, at least 1; by default T.

    Returns:
      A `TruncationCurve`.

    Raises:
      TypeError: an argument is of the wrong kind, structure or dtype.
      ValueError: a shape does not fit, or `lags` is no positive integer.

    Example:
      >>> import jax, jax.numpy as jnp, jax_bptt as jb
      >>> cell = jb.gru(input_size=3, hidden_size=4)
      >>> params, xs = cell.init(jax.random.key(0)), jnp.ones((40, 2, 3))
      >>> run = jb.diagnostics.trajectory(cell, params, xs)
      >>> curve = jb.diagnostics.truncation_curve(run, jnp.ones_like(run.ys))
      >>> window = int(curve.shortest(bias=0.01))
      >>> 1 < window < 40, bool(curve.bias[window - 1] <= 0.01 < curve.bias[window - 2])
      (True, True)
    """
    name = "truncation_curve"
    lags = number_of_lags(name, lags, run.steps)
    d_ys, _ = cotangents_of(name, run, d_ys, None)
    return compiled_once(_curve, lags)(run, d_ys)


class _Walk(NamedTuple):
    """The way through the lags: the next one, its adjoints, the sum, the curve, whether it ends."""

    lag: Array
    lambdas: PyTree
    total: PyTree
    curve: TruncationCurve
    done: Array


def _curve(lags: int, run: Trajectory, d_ys: PyTree) -> TruncationCurve:
    past = past_of(run)
    pull_prepare = past.pull_prepare()
    none = trees.zero_gradient(run.params)
    exact = trees.accumulate(none, pull_prepare(_gradient(past, d_ys)))
    d_readout, g = past.begin(d_ys)
    weights = jax.tree.map(jnp.zeros_like, trees.partition(run.inputs.weights)[0])
    total = trees.accumulate(none, pull_prepare(trees.add(weights, d_readout)))
    past, lambdas = _taken_alone(past, g)
    size = norm(exact)
    rounding = float(jnp.finfo(size.dtype).eps)
    curve = TruncationCurve(*[jnp.zeros(lags, size.dtype)] * 4)
    walk = _Walk(jnp.int32(0), lambdas, total, curve, jnp.bool_(False))

    def through(past: Past, end: int, walk: _Walk) -> _Walk:
        crossing = past.crossing()

        def lag(walk):
            later, emitted = crossing.back(walk.lambdas)
            part = pull_prepare(crossing.accumulate(walk.lambdas, emitted))
            total = trees.accumulate(walk.total, part)
            found = _compare(total, exact)
            curve = jax.tree.map(lambda a, v: a.at[walk.lag].set(v), walk.curve, found)
            little = norm(part) <= rounding * size
            done = little & (found.bias <= ROUNDINGS * rounding)
            return _Walk(walk.lag + 1, later, total, curve, done)

        return lax.while_loop(lambda walk: (walk.lag < end) & ~walk.done, lag, walk)

    for begun, end, left in stretches(run.steps, lags):
        walk = walk._replace(lambdas=first(left, walk.lambdas))
        go = functools.partial(through, past.until(left), end)
        walk = go(walk) if begun == 0 else lax.cond(walk.done, lambda walk: walk, go, walk)
    beyond = jnp.arange(lags, dtype=jnp.int32) >= walk.lag
    return jax.tree.map(lambda a: jnp.where(beyond, a[walk.lag - 1], a), walk.curve)


def _gradient(past: Past, d_ys: PyTree) -> PyTree:
    """Return the exact gradient of the weights by one explicit reverse pass."""
    cell, inputs = past.cell, past.inputs
    zeros = jax.tree.map(jnp.zeros_like, trees.partition(inputs.state)[0])
    length = block_length_of(cell, inputs.weights, inputs.xs)
    saved = Saved(inputs, past.states, None)
    return in_blocks(reverse.gradient, cell, saved, zeros, d_ys, length).weights


def _taken_alone(past: Past, g: PyTree) -> tuple[Past, PyTree]:
    """Return the run without the steps that hold the state, and g_t of those that are left.

    They go to the end of the sequence. What the loss reads of a held state is the state of the last
    step that was taken; a reset while it is held comes before the next one.
    """
    weights, state, xs, start, (advance, reset, _) = past.inputs
    if advance is None:
        return past, g
    never = jnp.zeros_like(advance)
    stays = ~advance if reset is None else ~advance & ~reset

    def back(later, step):
        g, advance, stays = step
        here = trees.add(g, later)
        return sequence.select(stays, here), sequence.select(advance, here)

    def on(pending, step):
        advance, reset = step
        now = pending | reset
        return now & ~advance, now

    nothing = jax.tree.map(lambda a: jnp.zeros_like(a[0]), g)
    _, g = lax.scan(back, nothing, (g, advance, stays), reverse=True)
    if reset is not None:
        _, reset = lax.scan(on, never[0], (advance, reset))
    order = jnp.argsort(~advance, axis=0, stable=True)
    at = order, *jnp.indices(order.shape)[1:]
    xs, states, g, advance, reset = jax.tree.map(
        lambda a: a[at], (xs, past.states, g, advance, reset)
    )
    inputs = past.inputs._replace(xs=xs, controls=Controls(advance, reset))
    return past._replace(inputs=inputs, states=states), g


def _compare(found: PyTree, exact: PyTree) -> TruncationCurve:
    pairs = list(zip(jax.tree.leaves(found), jax.tree.leaves(exact), strict=True))
    size, whole = norm(found), norm(exact)
    left_out = norm(jax.tree.map(jnp.subtract, found, exact))
    inner = sum(jnp.sum((a.conj() * b).real) for a, b in pairs)
    signs = [jnp.sign(x) == jnp.sign(y) for a, b in pairs for x, y in _real(a, b)]
    alike = sum(jnp.sum(each, dtype=size.dtype) for each in signs)
    entries = sum(each.size for each in signs)
    return TruncationCurve(
        bias=jnp.where(left_out == 0, 0, left_out / whole),
        cosine=inner / (size * whole),
        agreement=jnp.asarray(alike / entries),
        norm=size,
    )


def _real(*arrays: Array) -> list[tuple[Array, ...]]:
    """Return the arrays, or if they are complex their real and their imaginary parts."""
    if not jnp.iscomplexobj(arrays[0]):
        return [arrays]
    return [tuple(a.real for a in arrays), tuple(a.imag for a in arrays)]
