"""Sequence options: an end, restarts, skipped steps, and a factor on the gradient through time.

    s'  = start where reset_t, else s_{t-1}
    s_t = step(s', x_t) where advance_t, else s'
    ds'/ds_{t-1} = gamma_t where not reset_t

Everything is chosen with `where`, never multiplied by a mask: 0 * NaN is NaN, and the values of
padding must not matter.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jax_bptt.core import trees
from jax_bptt.core.types import PyTree


class Options(NamedTuple):
    """Options of the sequences, each None for nothing; see `unroll`.

    Attributes:
      lengths: integer [*batch].
      resets: bool [T, *batch].
      mask: bool [T, *batch].
      reset_state: like the state.
    """

    lengths: Any = None
    resets: Any = None
    mask: Any = None
    reset_state: PyTree = None


class Controls(NamedTuple):
    """When the state moves and what crosses a step, in the order in which time is run.

    Attributes:
      advance: bool [T, *batch], where to take a step rather than hold the state; None for always.
      reset: bool [T, *batch], where to begin again from the start before the step; None for never.
      gamma: [T] or [T, *batch], the factor on every derivative that crosses from s_{t-1} to s_t, in
        both modes: 1 is exact, 0 a cut, and 1 / (1 - c) makes up for cuts of probability c. Values
        are left alone. None for 1. Nothing is differentiated with respect to it.
    """

    advance: Array | None = None
    reset: Array | None = None
    gamma: Array | None = None

    def enter(self, start: PyTree, state: PyTree) -> PyTree:
        """Return what enters a step: the start where it is reset, the state before it elsewhere."""
        if self.gamma is not None:
            inexact, rest = trees.partition(state)
            state = trees.combine(_damped(inexact, self.gamma), rest)
        return state if self.reset is None else select(self.reset, start, state)

    def hold(self, new: PyTree, old: PyTree) -> PyTree:
        """Return what leaves a step: `new` where it is taken, `old` elsewhere."""
        return new if self.advance is None else select(self.advance, new, old)

    def taken(self, lam: PyTree) -> PyTree:
        """Return what of lambda_t goes back through the step: all of it where it is taken."""
        return lam if self.advance is None else select(self.advance, lam)

    def held(self, lam: PyTree) -> PyTree:
        """Return what of lambda_t passes by the step: all of it where the state is held."""
        if self.advance is None:
            return jax.tree.map(lambda _: None, lam)
        return select(~self.advance, lam)

    def leave(self, d_entered: PyTree) -> tuple[PyTree, PyTree]:
        """Transpose `enter`: return what reaches s_{t-1}, and the start, None without resets."""
        d_state, d_start = d_entered, None
        if self.reset is not None:
            d_state, d_start = select(~self.reset, d_entered), select(self.reset, d_entered)
        return d_state if self.gamma is None else _scaled(self.gamma, d_state), d_start


@jax.custom_jvp
def _damped(state: PyTree, gamma: Array) -> PyTree:
    """Return `state`, whose derivative is gamma."""
    return state


@_damped.defjvp
def _damped_jvp(primals, tangents):
    (state, gamma), (d_state, _) = primals, tangents
    return state, _scaled(gamma, d_state)


def _scaled(gamma: Array, tree: PyTree) -> PyTree:
    """Return gamma times every leaf, and zero where gamma is zero, whatever the leaf holds."""

    def leaf(a):
        factor = gamma.reshape(gamma.shape + (1,) * (a.ndim - gamma.ndim))
        scaled = factor.astype(jnp.finfo(a.dtype).dtype).astype(a.dtype) * a
        return jnp.where(factor == 0, jnp.zeros_like(a), scaled)

    return jax.tree.map(leaf, tree)


def arrange(
    xs: PyTree, options: Options, reverse: bool = False
) -> tuple[PyTree, Controls, Array | None]:
    """Bring the inputs and the controls into the order in which time is run.

    Args:
      xs: [T, *batch, ...].
      options: of the sequences. A reset beyond the end has no effect.
      reverse: whether time runs from T to 1. A sequence that ends earlier holds s_0 through its
        padding, which so comes first, and is thereby reversed within its own length.

    Returns:
      (xs, controls, valid): inputs that are not read are zero, so that nothing that padding holds
      enters an equation; `valid` [T, *batch] is False beyond the end, or None without lengths.
    """
    lengths, resets, mask, _ = options
    valid = None
    if lengths is not None:
        steps = jax.tree.leaves(xs)[0].shape[0]
        times = jnp.arange(steps, dtype=jnp.int32).reshape(-1, *[1] * lengths.ndim)
        valid = times < _as_int32(lengths)[None]
    controls = Controls(_both(valid, mask), None if resets is None else _both(valid, resets))
    if controls.advance is not None:
        xs = select(controls.advance, xs)
    if reverse:
        xs, controls, valid = flip((xs, controls, valid))
    return xs, controls, valid


def _as_int32(lengths: Array) -> Array:
    """Return lengths as int32; a larger one, of another type, as the largest of them."""
    largest = jnp.iinfo(jnp.int32).max
    if jnp.iinfo(lengths.dtype).max > largest:
        lengths = jnp.minimum(lengths, jnp.asarray(largest, lengths.dtype))
    return lengths.astype(jnp.int32)


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
