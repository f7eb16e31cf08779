"""Recurrence in heads: units that mix within their own head alone."""

import jax
import jax.numpy as jnp

from jax_bptt.cells.reparametrized import recurrent_matrices
from jax_bptt.core import jaxprs, trees
from jax_bptt.core.checks import is_integer, prng_key, require, shown
from jax_bptt.core.types import Cell, GatedStep, identity
from jax_bptt.core.values import as_value


@as_value
def multi_head(cell: Cell, *, heads: int) -> Cell:
    """Return `cell` with its recurrent product in heads: a block-diagonal w_s.

        mix(s)_k = mix_k(s_k)        k = 1..heads, s_k the D = H / heads units of head k

    Everything else is that of `cell`: the inputs reach all units, the readout sees them all. A
    step has 1 / heads of the arithmetic, as batched small products.

    Params: those of `cell` with `w_s` [heads, D, G, D]. What else the product reads, such as the
    b_n [H] of a GRU, is split among the heads. Initialisation: the cell's own, with every head's
    w_s orthogonal for each gate.

    Args:
      cell: a `Cell` with a `GatedStep`, params with a field `w_s` [H, G, H], and no `prepare`. Its
        initial state has its size from elsewhere than `w_s`, as those of the library's cells do.
      heads: a divisor of H.

    Returns:
      A `Cell` with a `GatedStep` of that many `heads`, and with the pair of `cell` if it has one.

    Raises:
      TypeError: `cell` is no cell, its params have no `w_s` of that kind, its step is no
        `GatedStep`, or it prepares its weights.
      ValueError: H is no multiple of `heads`.

    References:
      M. Beck et al. (2024), "xLSTM: extended long short-term memory", NeurIPS, for the heads of the
      sLSTM.

    Example:
      >>> import jax, jax.numpy as jnp, jax_bptt as jb
      >>> cell = jb.multi_head(jb.elman(input_size=3, hidden_size=6), heads=2)
      >>> params = cell.init(jax.random.key(0))
      >>> params.w_s.shape, jb.unroll(cell, params, jnp.ones((7, 2, 3)))[1].shape
      ((2, 3, 1, 3), (7, 2, 6))
    """
    w_s = recurrent_matrices("multi_head", cell)
    size, gates, _ = w_s.shape
    require(
        isinstance(cell.step, GatedStep),
        "multi_head: the cell's step must be a GatedStep, whose `mix` is the recurrent product",
        TypeError,
    )
    assert isinstance(cell.step, GatedStep)
    require(
        cell.prepare is identity,
        "multi_head: the cell prepares its weights and would not know the blocks. Wrap the other "
        "way round, e.g. jb.mixed_precision(jb.multi_head(cell, heads=...)).",
        TypeError,
    )
    require(
        is_integer(heads) and heads > 0 and size % heads == 0 and w_s.shape[-1] == size,
        f"multi_head: heads must be an integer that divides the size {size} of the recurrent "
        f"matrices, w_s {w_s.shape}, got {shown(heads)}",
    )
    units = size // heads

    def init(key):
        prng_key("cell.init", key)
        key_cell, key_heads = jax.random.split(key)
        params = cell.init(key_cell)
        dtype = params.w_s.dtype
        block = (units, units), trees.accumulator_dtype(dtype)
        orthogonal = jax.nn.initializers.orthogonal()
        blocks = jax.vmap(lambda key: orthogonal(key, *block))(
            jax.random.split(key_heads, heads * gates)
        )
        blocks = jnp.swapaxes(blocks.reshape(heads, gates, units, units), 1, 2)
        return params._replace(w_s=blocks.astype(dtype))

    mix = _by_head(cell, cell.step, size, heads)
    step = cell.step._replace(mix=mix, heads=heads)
    return cell._replace(init=init, step=step)


def _by_head(cell: Cell, step: GatedStep, size: int, heads: int):
    """Return the `mix` of a gated step for each head on its own part of weights and state."""

    def specs():
        params = cell.init(jax.random.key(0))
        return params, cell.initial_state(params, ())

    weights, state = jax.eval_shape(specs)
    read = jax.tree.leaves(jaxprs.used_leaves(step.mix, weights, state))
    is_w_s = jax.tree.leaves((_marked(weights), jax.tree.map(lambda _: False, state)))

    def axis(leaf, read, is_w_s):
        """Return which axis of a leaf counts the heads, once its units are split."""
        in_units = read and leaf.ndim > 0 and leaf.shape[-1] == size
        return 0 if is_w_s else -2 if in_units else None

    def by_head(leaf, axis):
        return leaf.reshape(*leaf.shape[:-1], heads, size // heads) if axis == -2 else leaf

    def mix(weights, state):
        leaves, structure = jax.tree.flatten((weights, state))
        axes = [axis(*each) for each in zip(leaves, read, is_w_s, strict=True)]
        leaves = [by_head(*each) for each in zip(leaves, axes, strict=True)]
        # Axes counted from the end: a state may lead with any batch.
        feedback = jax.vmap(
            lambda leaves: step.mix(*jax.tree.unflatten(structure, leaves)),
            in_axes=(axes,),
            out_axes=-2,
        )(leaves)
        return jax.tree.map(lambda a: a.reshape(*a.shape[:-2], size), feedback)

    return mix


def _marked(weights):
    """Return `weights` with True in the place of w_s and False elsewhere."""
    return jax.tree.map(lambda _: False, weights)._replace(w_s=True)
