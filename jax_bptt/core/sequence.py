"""What a sequence may have besides its inputs: an end, restarts, and steps that are skipped.

    s'  = s_0 where reset_t, else s_{t-1}
    s_t = step(s', x_t) where advance_t, else s'

Everything is chosen with `where`, never multiplied by a mask: 0 * NaN is NaN, and what padding
holds is nobody's business.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jax_bptt.core.types import PyTree


class Controls(NamedTuple):
    """When the state moves, in the order in which time is run.

    Attributes:
      advance: bool [T, *batch], where to take a step rather than hold the state; None for always.
      reset: bool [T, *batch], where to start again from s_0 before the step; None for never.
    """

    advance: Array | None = None
    reset: Array | None = None

    def restart(self, start: PyTree, state: PyTree) -> PyTree:
        """Return what enters a step: `start` where it is reset, `state` elsewhere."""
        return state if self.reset is None else select(self.reset, start, state)

    def hold(self, new: PyTree, old: PyTree) -> PyTree:
        """Return what leaves a step: `new` where it is taken, `old` elsewhere."""
        return new if self.advance is None else select(self.advance, new, old)


def arrange(
    xs: PyTree,
    lengths: Array | None = None,
    resets: Array | None = None,
    mask: Array | None = None,
    reverse: bool = False,
) -> tuple[PyTree, Controls, Array | None]:
    """Bring the inputs and the controls into the order in which time is run.

    Args:
      xs: [T, *batch, ...].
      lengths: integer [*batch], or None for T everywhere.
      resets: bool [T, *batch], or None. A reset beyond the end has no effect.
      mask: bool [T, *batch], False where the state is held, or None.
      reverse: whether time runs from T to 1. A sequence that ends earlier holds s_0 through its
        padding, which so comes first, and is thereby reversed within its own length.

    Returns:
      (xs, controls, valid): inputs that are not read are zero, so that nothing that padding holds
      enters an equation; `valid` [T, *batch] is False beyond the end, or None without lengths.
    """
    valid = None
    if lengths is not None:
        steps = jax.tree.leaves(xs)[0].shape[0]
        times = jnp.arange(steps, dtype=jnp.int32).reshape(-1, *[1] * lengths.ndim)
        valid = times < lengths[None].astype(jnp.int32)
    controls = Controls(_both(valid, mask), _both(valid, resets) if resets is not None else None)
    if controls.advance is not None:
        xs = select(controls.advance, xs)
    if reverse:
        xs, controls, valid = flip((xs, controls, valid))
    return xs, controls, valid


def restore(ys: PyTree, valid: Array | None, reverse: bool) -> PyTree:
    """Undo `arrange` for outputs: zero beyond the end, and in the order of the inputs."""
    if valid is not None:
        ys = select(valid, ys)
    return flip(ys) if reverse else ys


def flip(tree: PyTree) -> PyTree:
    """Reverse the leading axis of every leaf."""
    return jax.tree.map(lambda a: a[::-1], tree)


def _both(a: Array | None, b: Array | None) -> Array | None:
    return b if a is None else a if b is None else a & b


def select(where: Array, chosen: PyTree, other: PyTree | None = None) -> PyTree:
    """Return `chosen` where `where` holds and `other` elsewhere, leaf by leaf.

    Args:
      where: bool, the leading axes of every leaf.
      chosen: pytree; None at leaves that have no gradient.
      other: of the same structure, or None for zero, which leaves PRNG keys alone.

    Returns:
      A pytree like `chosen`. A leaf that is None on one side is zero there.
    """

    def leaf(a, b):
        like = a if b is None else b
        if like is None:
            return None
        if a is None or b is None:
            if jnp.issubdtype(like.dtype, jax.dtypes.prng_key):
                return like
            zero = jnp.zeros_like(like)
            a, b = (zero if a is None else a), (zero if b is None else b)
        where_units = where.reshape(where.shape + (1,) * (like.ndim - where.ndim))
        return jnp.where(where_units, jnp.broadcast_to(a, like.shape), b)

    if other is None:
        other = jax.tree.map(lambda _: None, chosen)
    return jax.tree.map(leaf, chosen, other, is_leaf=lambda a: a is None)
