"""The number of dimensions that the states of a run fill."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jax_bptt.algorithms.jacobians import vectors
from jax_bptt.algorithms.unroll import compiled_once
from jax_bptt.core import trees
from jax_bptt.core.types import Cell, Inputs, PyTree
from jax_bptt.diagnostics.trajectory import Trajectory


class EffectiveRank(NamedTuple):
    """Dimensions of a cloud of states.

    Attributes:
      rank: [], exp of the entropy of the singular values in units of their sum.
      participation: [], (sum v)^2 / sum v^2 of the variances v.
      variances: [D] of the principal components, the largest first, in units of a state squared.
    """

    rank: Array
    participation: Array
    variances: Array


def effective_rank(run: Trajectory) -> EffectiveRank:
    """Return how many dimensions the states of all steps and sequences fill, about their mean.

    Two measures that are D where all D directions vary as much, and 1 where one alone does. The
    effective rank of Roy and Vetterli counts small directions for more than the participation
    ratio. States that are held, by `lengths` or `mask`, count once.

    The states of a cell whose functions do not take any batch (`any_batch`) are one vector for the
    whole batch.

    Args:
      run: of T steps; T * B should be well above D.

    References:
      O. Roy and M. Vetterli (2007), "The effective rank: a measure of effective dimensionality",
      EUSIPCO. K. Rajan, L. F. Abbott and H. Sompolinsky (2010), "Inferring stimulus selectivity
      from the spatial structure of neural network dynamics", NIPS, for the participation ratio.

    Example:
      >>> import jax, jax.numpy as jnp, jax_bptt as jb
      >>> cell = jb.elman(input_size=2, hidden_size=8, activation=lambda a: a)
      >>> params = cell.init(jax.random.key(0))
      >>> params = params._replace(w_s=params.w_s * 0)       # x_t W_x: two dimensions
      >>> xs = jax.random.normal(jax.random.key(1), (500, 2))
      >>> found = jb.diagnostics.effective_rank(jb.diagnostics.trajectory(cell, params, xs))
      >>> bool(1 < found.rank < 2.001)
      True
    """
    return compiled_once(_effective_rank, run.runs)(run.inputs, run.states)


def _effective_rank(cell: Cell, inputs: Inputs, states: PyTree) -> EffectiveRank:
    space = vectors(cell, inputs)
    rows = jax.vmap(space.flat)(trees.partition(states)[0])
    rows = rows.reshape(*rows.shape[:-2], -1)
    counts = jnp.ones(rows.shape[:-1], bool)
    if inputs.controls.advance is not None:
        advance = inputs.controls.advance
        counts = jnp.any(advance, axis=tuple(range(counts.ndim, advance.ndim)))
    rows, counts = rows.reshape(-1, rows.shape[-1]), counts.reshape(-1, 1)
    mean = jnp.mean(rows, 0, keepdims=True, where=counts)
    centred = jnp.where(counts, rows - mean, 0)
    sizes = jnp.linalg.svd(centred, compute_uv=False)
    variances = sizes**2 / jnp.sum(counts).astype(sizes.dtype)
    shares = sizes / jnp.sum(sizes)
    rank = jnp.exp(jnp.sum(jax.scipy.special.entr(shares)))
    return EffectiveRank(rank, jnp.sum(variances) ** 2 / jnp.sum(variances**2), variances)
