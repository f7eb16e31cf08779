"""The window of truncation, chosen from how fast the gradient decays with lag.

C. Aicher, N. J. Foti and E. B. Fox (2019), "Adaptively truncating backpropagation through time to
control gradient bias", UAI.
"""

import math
import numbers
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jax_bptt.algorithms.by_lag import norm, prepared, scan_lags
from jax_bptt.algorithms.unroll import Arguments, compiled_once
from jax_bptt.core.checks import require, shown
from jax_bptt.core.types import Cell, PyTree

NEGLIGIBLE = 1e-20
"""A lag whose gradient is so much smaller than the greatest tells nothing of the decay."""


class Truncation(NamedTuple):
    """A window, and what it was chosen by.

    Attributes:
      window: int32, in steps, for `truncated(int(window), sliding=True)`; T where none is enough.
      bias: the bound at this window: the part of the gradient that is cut off, in norm, relative to
        the whole.
      bounds: [lags], the same for windows of 1, 2, ... steps.
      norms: [lags], of the gradient that has crossed 0, 1, ... steps.
      decay: the factor by which the norms shrink with each step.
    """

    window: Array
    bias: Array
    bounds: Array
    norms: Array
    decay: Array


def adaptive_truncation(
    cell: Cell,
    params: PyTree,
    xs: PyTree,
    d_ys: PyTree,
    *,
    bias: float = 0.1,
    lags: int | None = None,
) -> Truncation:
    """Return the shortest window of truncation whose gradient is biased by no more than `bias`.

        norms[k]  = |G_k|           G_k the gradient that has crossed k steps, `gradient_by_lag`
        cut(h)    = sum_{h <= k < lags} norms[k] + norms[lags - 1] decay / (1 - decay)
        bounds(h) = cut(h) / max_h' (|sum_{k < h'} G_k| - cut(h'))

    The cut-off part is no longer than the sum of its norms; the whole no shorter than any truncated
    gradient less what that leaves out. What lies beyond the measured lags is taken to decay as the
    latter half of them, by a least-squares line through the logarithms; there is nothing beyond T.
    On the data given and with lags = T the bound is rigorous, on other data an estimate.

    Time is that of one gradient for each lag: once per epoch, on a few sequences, is enough.

    Args:
      cell: a `Cell`.
      params: `cell.init(key)`.
      xs: [T, *batch, I].
      d_ys: dL/dy_t, such as `jax.grad` of the loss with respect to the outputs of `unroll`.
      bias: the largest that is allowed, relative to the norm of the gradient, above 0.
      lags: how many are measured, at least 1; by default T.

    Returns:
      A `Truncation`.

    Raises:
      TypeError: an argument is of the wrong kind, structure or dtype.
      ValueError: a shape does not fit, or a number is out of range.

    Example:
      >>> import jax, jax.numpy as jnp, jax_bptt as jb
      >>> cell = jb.gru(input_size=3, hidden_size=4)
      >>> params, xs = cell.init(jax.random.key(0)), jnp.ones((40, 2, 3))
      >>> found = jb.adaptive_truncation(cell, params, xs, jnp.ones((40, 2, 4)), bias=0.1)
      >>> algorithm = jb.truncated(int(found.window), sliding=True)
      >>> bool(found.bias <= 0.1), int(found.window) < 40
      (True, True)
    """
    name = "adaptive_truncation"
    require(
        isinstance(bias, numbers.Real) and not isinstance(bias, bool) and 0 < bias < math.inf,
        f"{name}: bias must be a number above 0, got {shown(bias)}",
    )
    given, lags = prepared(name, cell, (params, xs), lags)
    return compiled_once(_choose, cell, lags, float(bias))(given, d_ys)


def _choose(cell: Cell, lags: int, bias: float, given: Arguments, d_ys: PyTree) -> Truncation:
    def lengths(part, total):
        return norm(part), norm(total)

    norms, reached = scan_lags("adaptive_truncation", cell, lags, (given, d_ys), lengths)
    steps = jax.tree.leaves(given.xs)[0].shape[0]
    decay = _decay(norms)
    beyond = jnp.where(decay < 1, norms[-1] * decay / (1 - decay), jnp.inf)
    beyond = jnp.zeros_like(beyond) if lags == steps else beyond
    # Of a window of 1, 2, ..., steps: what has crossed as many or more is cut off.
    later = jnp.cumsum(norms[::-1])[::-1]
    cut = jnp.append(later[1:], jnp.zeros_like(later[:1])) + beyond
    whole = jnp.max(reached - cut)
    bounds = jnp.where(cut == 0, 0, jnp.where(whole > 0, cut / whole, jnp.inf))
    enough = bounds <= bias
    index = jnp.argmax(enough)
    found = jnp.any(enough)
    return Truncation(
        window=jnp.where(found, index + 1, steps).astype(jnp.int32),
        bias=jnp.where(found, bounds[index], 0),
        bounds=bounds,
        norms=norms,
        decay=decay,
    )


def _decay(norms: Array) -> Array:
    """Return the factor from lag to lag of the latter half, by least squares of the logarithms."""
    later = norms[norms.shape[0] // 2 :]
    lag = jnp.arange(later.shape[0], dtype=later.dtype)
    told = later > NEGLIGIBLE * jnp.max(norms)
    logarithms = jnp.log(jnp.where(told, later, 1))
    count = jnp.maximum(jnp.sum(told), 1).astype(later.dtype)
    center = jnp.sum(jnp.where(told, lag, 0)) / count
    level = jnp.sum(logarithms) / count
    lag = jnp.where(told, lag - center, 0)
    spread = jnp.sum(lag**2)
    slope = jnp.sum(lag * (logarithms - level)) / jnp.where(spread == 0, 1, spread)
    # One lag or none that tells: nothing is known of the decay but that nothing is left.
    return jnp.where(spread == 0, 0, jnp.exp(slope))
