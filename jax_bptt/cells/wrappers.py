"""Cells around cells: integer tokens as inputs, products in half precision."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import NamedSharding, PartitionSpec

from jax_bptt.cells.checks import floating_dtype, positive_size
from jax_bptt.core.checks import kind_of, prng_key, require
from jax_bptt.core.trees import accumulator_dtype, is_inexact
from jax_bptt.core.types import Cell, DiagonalStep, GatedStep, PyTree, Tokens
from jax_bptt.core.values import as_value


class EmbeddingParams(NamedTuple):
    """Parameters of a cell on tokens: `embedding` [V, I], and the inner `cell`'s own."""

    embedding: Array
    cell: PyTree


@as_value
def embedding(cell: Cell, *, vocabulary_size: int) -> Cell:
    """Return `cell` on integer tokens: row k of an embedding matrix is the input for token k.

        x_t = E[k_t]        k_t in 0..V-1

    The lookup is part of `project`, so it runs batched over time and its gradient is one
    scatter-add per block. A token out of range is an error; under `jit`, where its value is not
    known, the nearest row is read and gets the gradient. Initialisation: standard normal times
    1 / sqrt(I), I the cell's input size.

    Args:
      cell: a cell whose inputs are vectors of floating-point features.
      vocabulary_size: V, the number of distinct tokens.

    Returns:
      A `Cell` with `xs` integer of shape [T, *batch] and parameters `EmbeddingParams`.

    Raises:
      ValueError: the vocabulary size is not a positive integer, or the cell takes no vectors.
      TypeError: `cell` is no cell.

    Example:
      >>> import jax, jax.numpy as jnp, jax_bptt as jb
      >>> cell = jb.embedding(jb.lstm(input_size=8, hidden_size=5), vocabulary_size=30)
      >>> jb.unroll(cell, cell.init(jax.random.key(0)), jnp.arange(12).reshape(6, 2))[1].shape
      (6, 2, 5)
    """
    require(
        isinstance(cell, Cell), f"embedding: cell must be a Cell, got {kind_of(cell)}", TypeError
    )
    positive_size("embedding", vocabulary_size=vocabulary_size)
    vocabulary_size = int(vocabulary_size)
    spec = cell.input_spec
    require(
        isinstance(spec, jax.ShapeDtypeStruct) and len(spec.shape) == 1 and is_inexact(spec),
        f"embedding: the cell must take vectors of features, but takes {spec}",
    )

    def init(key):
        prng_key("cell.init", key)
        key_embedding, key_cell = jax.random.split(key)
        params = cell.init(key_cell)
        inexact = [p for p in jax.tree.leaves(params) if is_inexact(p)]
        dtype = jnp.finfo(inexact[0].dtype).dtype if inexact else jnp.dtype(jnp.float32)
        shape = (vocabulary_size, *spec.shape)
        table = jax.random.normal(key_embedding, shape, accumulator_dtype(dtype))
        return EmbeddingParams((table / spec.shape[0] ** 0.5).astype(dtype), params)

    def project(weights, x):
        # The nearest row in both directions: JAX's own lookup wraps a negative index, and its
        # transpose drops what is too large.
        x = jnp.clip(x, 0, vocabulary_size - 1)
        # Widened before the lookup, so that its transpose adds up the rows of a frequent token in
        # at least single precision.
        table = weights.embedding.astype(accumulator_dtype(weights.embedding.dtype))
        # On a mesh of explicit axes a lookup wants to be told: the rows lie as the tokens do.
        lies = jax.typeof(x).sharding
        rows = NamedSharding(lies.mesh, PartitionSpec(*lies.spec, None))
        return cell.project(weights.cell, table.at[x].get(out_sharding=rows))

    return Cell(
        init=init,
        initial_state=lambda params, batch_shape: cell.initial_state(params.cell, batch_shape),
        step=_on_inner(cell.step),
        project=project,
        readout=lambda weights, state: cell.readout(weights.cell, state),
        input_spec=Tokens(vocabulary_size),
        prepare=lambda params: EmbeddingParams(params.embedding, cell.prepare(params.cell)),
        any_batch=cell.any_batch,
        gates=cell.gates,
    )


def _on_inner(step: Any) -> Any:
    """Return `step` over the weights' `cell` field; one of a kind stays of that kind."""

    def inner(fun):
        return lambda weights, *args: fun(weights.cell, *args)

    if isinstance(step, DiagonalStep):
        return DiagonalStep(inner(step.coefficients))
    if not isinstance(step, GatedStep):
        return inner(step)
    return step._replace(
        mix=inner(step.mix),
        pointwise=inner(step.pointwise),
        pointwise_fwd=None if step.pointwise_fwd is None else inner(step.pointwise_fwd),
    )


@as_value
def mixed_precision(cell: Cell, *, dtype: Any = jnp.bfloat16) -> Cell:
    """Return `cell` with its weights cast to a narrower type once per sequence, in `prepare`.

    The operands of every product are then of that type; sums, states, gate arithmetic and the
    accumulated gradients stay in at least float32, and so do the parameters that an optimiser
    sees. A product's gradient with respect to a weight is rounded to `dtype` once per block.

    bfloat16 has the range of float32, float16 has not: what is beyond 65504 becomes infinite, and
    below 6e-5 digits are lost, below 6e-8 all of them. Gradients of long sequences get there. Take
    bfloat16, or scale the loss by a power of two such as 1024, divide the gradients by it, and skip
    an update that is not finite.

    Args:
      cell: any cell.
      dtype: `jnp.bfloat16` or `jnp.float16`.

    Returns:
      A `Cell` with the same parameters.

    Raises:
      TypeError: `cell` is no cell, or the dtype no floating one.

    Example:
      >>> import jax, jax.numpy as jnp, jax_bptt as jb
      >>> cell = jb.mixed_precision(jb.gru(input_size=3, hidden_size=5), dtype=jnp.bfloat16)
      >>> params = cell.init(jax.random.key(0))
      >>> params.w_s.dtype, jb.unroll(cell, params, jnp.ones((7, 3)))[1].dtype
      (dtype('float32'), dtype('float32'))
    """
    name = "mixed_precision"
    require(isinstance(cell, Cell), f"{name}: cell must be a Cell, got {kind_of(cell)}", TypeError)
    floating_dtype(name, dtype, "jnp.bfloat16")

    def prepare(params):
        return jax.tree.map(
            lambda w: w.astype(dtype) if jnp.issubdtype(w.dtype, jnp.floating) else w,
            cell.prepare(params),
        )

    return cell._replace(prepare=prepare)
