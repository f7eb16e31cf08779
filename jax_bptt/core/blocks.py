"""A scan over blocks of time: K steps at a time, and a shorter block for what is left over."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from jax_bptt.core.types import PyTree


def scan_blocks(
    block: Callable[..., tuple[PyTree, PyTree]],
    carry: PyTree,
    inputs: tuple[PyTree, PyTree],
    length: int,
    reverse: bool = False,
) -> tuple[PyTree, PyTree]:
    """Run `block` over T steps, `length` of them at a time; in reverse from the last block.

    Args:
      block: `(carry, (own, steps)) -> (carry, outputs)`, of one entry for the block, and of steps
        and outputs with a leading axis of its steps, K or fewer.
      carry: the first one.
      inputs: entries of the blocks, one each, as `firsts` makes them, and [T, ...] of the steps.
      length: K, positive.
      reverse: whether time runs backwards.

    Returns:
      (carry, outputs [T, ...]).
    """
    own, steps = inputs
    total = jax.tree.leaves(steps)[0].shape[0]
    count, rest = divmod(total, length) if _several(total, length) else (0, total)

    def whole(a):
        return a[: total - rest].reshape(count, length, *a.shape[1:])

    def left_over(carry):
        last = jax.tree.map(lambda a: a[-1], own), jax.tree.map(lambda a: a[total - rest :], steps)
        return block(carry, last)

    def scanned(carry):
        blocks = jax.tree.map(lambda a: a[:count], own), jax.tree.map(whole, steps)
        carry, outputs = lax.scan(block, carry, blocks, reverse=reverse)
        return carry, jax.tree.map(lambda a: a.reshape(total - rest, *a.shape[2:]), outputs)

    if count == 0:
        return left_over(carry)
    if rest == 0:
        return scanned(carry)
    if reverse:
        carry, later = left_over(carry)
        carry, earlier = scanned(carry)
    else:
        carry, earlier = scanned(carry)
        carry, later = left_over(carry)
    return carry, jax.tree.map(lambda *parts: jnp.concatenate(parts), earlier, later)


def firsts(first: PyTree, values: PyTree, length: int) -> PyTree:
    """Return v_0, v_K, v_2K, ...: what each block of `length` steps begins from.

    Args:
      first: v_0.
      values: v_1..v_T.
      length: K.
    """

    def leaf(first, values):
        if not _several(values.shape[0], length):
            return first[None]
        return jnp.concatenate([first[None], values[length - 1 : -1 : length]])

    return jax.tree.map(leaf, first, values)


def _several(total: int, length: int) -> bool:
    """Return whether T steps take more than one block; T of unknown size takes one."""
    return isinstance(total, int) and total > length
