"""A cell that is watched while it trains: sizes of its adjoints, as a side output of the gradient.

The derivative with respect to a parameter of which nothing depends is zero; in its place the
gradient of a watched cell has a histogram of |lambda_t|. It is made of the adjoints that the
reverse scan has stacked, after the loop, so that the loop itself is that of the cell alone.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jax_bptt.core import trees
from jax_bptt.core.checks import kind_of, require
from jax_bptt.core.linearize import pointwise_pair
from jax_bptt.core.types import Cell, DiagonalStep, GatedStep, PyTree
from jax_bptt.core.values import as_value

LEAST, MOST = -16, 15
"""Decades of the first and of the last bin."""

BINS = MOST - LEAST + 1


class Seen(NamedTuple):
    """Sizes of adjoints, in counts of time steps and sequences.

    Attributes:
      decades: [32], how many |lambda_t| are in [10^d, 10^{d+1}), d = -16..15; the first bin has
        all that are smaller, zeros as well, and the last all that are larger.
      nonfinite: [], how many are not a number, infinite, or so large, from 1e19 on, that their
        square is.
      squares: [], the sum of |lambda_t|^2 of the others.
    """

    decades: Array
    nonfinite: Array
    squares: Array


class WatchedParams(NamedTuple):
    """Parameters of a watched cell.

    Attributes:
      cell: those of the inner cell.
      seen: zeros. In the gradient of the parameters, what was seen.
    """

    cell: PyTree
    seen: Seen


@as_value
def watched(cell: Cell) -> Cell:
    """Return `cell` with the sizes of its adjoints as a side output of the gradient.

    Values and gradients are those of `cell`, but that in the gradient the place of `params.seen`
    has a histogram of |lambda_t| over time and batch. `telemetry` takes it out. There is no forward
    mode. Time is that of one reduction over the adjoints; a cell that is not watched has nothing of
    it in its program.

    Params: `WatchedParams(cell, seen)`.

    Args:
      cell: any cell.

    Returns:
      A `Cell`.

    Raises:
      TypeError: `cell` is no cell.

    Example:
      >>> import jax, jax.numpy as jnp, jax_bptt as jb
      >>> cell = jb.diagnostics.watched(jb.elman(input_size=3, hidden_size=5))
      >>> params, xs = cell.init(jax.random.key(0)), jnp.ones((7, 2, 3))
      >>> gradient = jax.jit(jax.grad(lambda p: jb.unroll(cell, p, xs)[1].sum()))(params)
      >>> gradient, seen = jb.diagnostics.telemetry(gradient)
      >>> seen[""].decades.sum(), gradient.seen.squares
      (Array(14., dtype=float32), Array(0., dtype=float32))
    """
    require(isinstance(cell, Cell), f"watched: cell must be a Cell, got {kind_of(cell)}", TypeError)

    def init(key):
        return WatchedParams(cell.init(key), nothing_seen())

    return Cell(
        init=init,
        initial_state=lambda params, batch_shape: cell.initial_state(params.cell, batch_shape),
        step=_observed_step(cell),
        project=lambda weights, x: cell.project(weights.cell, x),
        readout=lambda weights, state: cell.readout(weights.cell, state),
        input_spec=cell.input_spec,
        prepare=lambda params: WatchedParams(cell.prepare(params.cell), params.seen),
        any_batch=cell.any_batch,
        gates=cell.gates,
    )


def nothing_seen() -> Seen:
    """Return zeros, a buffer for each."""
    return Seen(jnp.zeros(BINS, jnp.float32), *(jnp.zeros((), jnp.float32) for _ in range(2)))


def telemetry(gradient: PyTree) -> tuple[PyTree, dict[str, Seen]]:
    """Take what watched cells have seen out of a gradient.

    Args:
      gradient: of parameters with any number of `WatchedParams` among them.

    Returns:
      (gradient, seen): the gradient with zeros where something was seen, for an optimiser; and what
      was seen, by the path of the cell's parameters as `jax.tree_util.keystr` writes it.
    """
    seen = {}

    def leaf(path, node):
        if not isinstance(node, WatchedParams):
            return node
        seen[jax.tree_util.keystr(path)] = node.seen
        return WatchedParams(node.cell, jax.tree.map(jnp.zeros_like, node.seen))

    def is_watched(node):
        return isinstance(node, WatchedParams)

    gradient = jax.tree_util.tree_map_with_path(leaf, gradient, is_leaf=is_watched)
    return gradient, seen


def _observed_step(cell: Cell) -> Any:
    """Return the step of `cell` on `WatchedParams`, with its new state observed."""
    step = cell.step
    state = jax.eval_shape(lambda key: cell.initial_state(cell.init(key), ()), jax.random.key(0))
    ranks = tuple(leaf.ndim for leaf in jax.tree.leaves(trees.partition(state)[0]))

    def observe(state, seen):
        inexact, rest = trees.partition(state)
        return trees.combine(_observe(ranks, inexact, seen), rest)

    if isinstance(step, DiagonalStep):

        def coefficients(weights, drive):
            # The cotangent of b_t is lambda_t.
            a, b = step.coefficients(weights.cell, drive)
            return a, observe(b, weights.seen)

        return DiagonalStep(coefficients)

    if isinstance(step, GatedStep):
        fwd, bwd = pointwise_pair(step)

        def pointwise(weights, *args):
            return observe(step.pointwise(weights.cell, *args), weights.seen)

        # The pair knows nothing of it: what is seen is accumulated after the loop.
        return step._replace(
            mix=lambda weights, state: step.mix(weights.cell, state),
            pointwise=pointwise,
            pointwise_fwd=lambda weights, *args: fwd(weights.cell, *args),
            pointwise_bwd=bwd,
        )

    return lambda weights, state, drive: observe(step(weights.cell, state, drive), weights.seen)


def _observe(ranks: tuple[int, ...], state: PyTree, seen: Seen) -> PyTree:
    """Return `state`, whose adjoint is looked at; `ranks` are those of its leaves' units."""

    @jax.custom_vjp
    def identity(state, seen):
        return state

    def pull(_, lam):
        return lam, _look(ranks, lam)

    identity.defvjp(lambda state, seen: (state, None), pull)
    return identity(state, seen)


def _look(ranks: tuple[int, ...], lam: PyTree) -> Seen:
    """Return what is seen of adjoints with any leading axes."""

    def squared(a, rank):
        units = tuple(range(a.ndim - rank, a.ndim))
        return jnp.sum(jnp.square(jnp.abs(a)).astype(jnp.float32), axis=units)

    squares = sum(map(squared, jax.tree.leaves(lam), ranks))
    finite = jnp.isfinite(squares)
    kept = jnp.where(finite, squares, jnp.zeros_like(squares))
    # What is smaller than the first bin is in it; the logarithm of zero is -inf.
    decades = jnp.clip(jnp.floor(jnp.log10(kept) / 2), LEAST, MOST).astype(jnp.int32)
    bins = jnp.arange(LEAST, MOST + 1, dtype=jnp.int32)
    bins = bins.reshape((1,) * finite.ndim + (-1,))
    marks = (decades[..., None] == bins) & finite[..., None]
    axes = tuple(range(finite.ndim))
    return Seen(
        marks.sum(axes, dtype=jnp.float32), (~finite).sum(axes, dtype=jnp.float32), kept.sum()
    )
