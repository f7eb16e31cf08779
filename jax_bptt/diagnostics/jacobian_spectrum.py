"""Singular values of a span of steps: how much they stretch or squeeze what crosses them."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jax_bptt.algorithms.jacobians import vectors
from jax_bptt.algorithms.unroll import compiled_once
from jax_bptt.core import trees
from jax_bptt.core.checks import is_integer, require, shown
from jax_bptt.core.types import Cell, Inputs, PyTree
from jax_bptt.diagnostics.trajectory import Trajectory, linearization, pull_step, push_step

OVERSAMPLING, POWER_ITERATIONS = 10, 2
"""Directions beside those asked for, and passes to and fro that make the largest stand out."""


class JacobianSpectrum(NamedTuple):
    """Singular values of ds_last/ds_first.

    Attributes:
      log_values: their natural logarithms, [*batch, count], the largest first; what has no place in
        floating-point numbers after a hundred steps still has a logarithm. -inf for zero.
      first: the index of the state that is changed.
      last: the index of the state that is looked at.
    """

    log_values: Array
    first: int
    last: int

    @property
    def values(self) -> Array:
        """The singular values themselves, [*batch, count]."""
        return jnp.exp(self.log_values)


def jacobian_spectrum(
    run: Trajectory,
    first: int = 0,
    last: int | None = None,
    *,
    count: int | None = None,
    key: Array | None = None,
) -> JacobianSpectrum:
    """Return the singular values of J_last .. J_{first+1}, the largest first.

    A gradient that crosses the span comes out longer by at most the largest, and shorter by at
    most the smallest. Where all are one, it is kept as it is: dynamical isometry (Pennington,
    Schoenholz and Ganguli 2017).

    Rounding sets a floor: values below the largest times the precision are noise. Over a long span
    `lyapunov_spectrum` has the logarithms of all, per step. Where steps keep groups of units
    apart, as `multi_head` does, the values are those of all groups.

    All values take as many forward passes as a group has units, D, and an SVD of D x D; `count` of
    them about 4 (count + 10) passes forwards and backwards, and are found by random directions:
    close where the others are much smaller, too small otherwise, the last ones by most. Where that
    would be no less work, they are exact.

    Args:
      run: of T steps.
      first: the index of the state that is changed, from 0, the one before the first step.
      last: the index of the state that is looked at, up to T; None for T.
      count: how many singular values, the largest; by default all, exactly.
      key: of the random directions; by default the same every time.

    Raises:
      ValueError: a step or `count` is out of range.

    References:
      N. Halko, P.-G. Martinsson and J. A. Tropp (2011), "Finding structure with randomness:
      probabilistic algorithms for constructing approximate matrix decompositions", SIAM Review
      53(2).

    Example:
      >>> import jax, jax.numpy as jnp, jax_bptt as jb
      >>> cell = jb.indrnn(input_size=1, hidden_size=2, activation=None)
      >>> params = cell.init(jax.random.key(0))._replace(w_s=jnp.array([0.5, 1.0]))
      >>> run = jb.diagnostics.trajectory(cell, params, jnp.ones((10, 1)))
      >>> jb.diagnostics.jacobian_spectrum(run, first=7).values
      Array([1.   , 0.125], dtype=float32)
    """
    name = "jacobian_spectrum"
    inputs, states = run.between(name, first, last)
    *_, groups, size = run.space.shape
    require(
        count is None or (is_integer(count) and 0 < count <= groups * size),
        f"{name}: count must be None or from 1 to {groups * size}, the real numbers of a state, "
        f"got {shown(count)}",
    )
    of_each = None
    if count is not None and count + OVERSAMPLING < size:
        of_each = int(count) + OVERSAMPLING
    key = jax.random.key(0) if key is None else key
    found = compiled_once(_log_values, run.runs, of_each)((inputs, states), key)
    return JacobianSpectrum(found[..., :count], first, run.steps if last is None else last)


def _log_values(cell: Cell, count: int | None, run: tuple[Inputs, PyTree], key: Array) -> Array:
    """Return the logarithms of all, or of `count` of each group, [*batch, N * count]."""
    inputs, _ = run
    linear = linearization(cell, *run)
    space = vectors(cell, inputs)
    steps = linear.residuals, inputs.controls
    zeros = space.flat(trees.partition(inputs.state)[0])[..., None] * 0

    def through(columns, move, reverse):
        """Take columns [*batch, N, D, k] through the span; return them scaled, and log scale."""

        def step(carry, at):
            columns, log_scale = carry
            columns = jax.vmap(
                lambda v: space.flat(move(linear, *at, space.tree(v))), in_axes=-1, out_axes=-1
            )(columns)
            largest = jnp.max(jnp.abs(columns), axis=(-2, -1), keepdims=True)
            scale = lax.stop_gradient(jnp.where(largest == 0, 1, largest))
            return (columns / scale, log_scale + jnp.log(scale[..., 0])), None

        return lax.scan(step, (columns, zeros[..., 0, :]), steps, reverse=reverse)[0]

    def spread(columns):
        return lax.expand_dims(columns, range(zeros.ndim - columns.ndim)) + zeros

    if count is None:
        found = through(spread(jnp.eye(space.shape[-1], dtype=space.dtype)), push_step, False)
    else:
        drawn = jax.random.normal(key, (*space.shape[-2:], count), space.dtype)
        columns = _orthonormal(through(spread(drawn), push_step, False))
        for _ in range(POWER_ITERATIONS):
            columns = _orthonormal(through(columns, pull_step, True))
            columns = _orthonormal(through(columns, push_step, False))
        found = through(columns, pull_step, True)
    matrices, log_scale = found
    logs = jnp.log(jnp.linalg.svd(matrices, compute_uv=False)) + log_scale
    return -jnp.sort(-logs.reshape(*space.shape[:-2], -1), axis=-1)


def _orthonormal(found: tuple[Array, Array]) -> Array:
    return jnp.linalg.qr(found[0])[0]
