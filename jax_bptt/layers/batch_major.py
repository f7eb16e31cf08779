"""From time-major to batch-major, at the edge of the library."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jax_bptt.core.checks import kind_of, require
from jax_bptt.core.types import PyTree
from jax_bptt.core.values import as_value
from jax_bptt.layers.layer import Layer


@as_value
def batch_major(function: Any) -> Any:
    """Return `function` for arrays that lead with the batch rather than with time.

    Swaps the first two axes of xs, of ys, and of the options `resets` and `mask`: [B, T, ...]
    outside, [T, B, ...] inside. States and `lengths`, which have no time axis, stay as they are.
    Inside the library time leads everywhere; swap once, around the outermost layer.

    Args:
      function: a `Layer`, or a function `(params, xs, state=None, **options) -> (last_state, ys)`
        such as `functools.partial(jb.unroll, cell)`.

    Returns:
      A `Layer`, or a function of that signature.

    Raises:
      TypeError: it is neither.
      ValueError: an array has no two leading axes to swap.

    Example:
      >>> import jax, jax.numpy as jnp, jax_bptt as jb
      >>> layer = jb.batch_major(jb.layer(jb.gru(input_size=3, hidden_size=5)))
      >>> layer.apply(layer.init(jax.random.key(0)), jnp.ones((2, 7, 3)))[1].shape
      (2, 7, 5)
    """
    if isinstance(function, Layer):
        return function._replace(apply=_swapped(function.apply))
    require(
        callable(function),
        f"batch_major: give a Layer or a function of (params, xs, state), got {kind_of(function)}",
        TypeError,
    )
    return _swapped(function)


def _swapped(function: Callable[..., tuple[PyTree, PyTree]]) -> Callable:
    def swapped(params, xs, state=None, **options):
        for name in {"resets", "mask"} & set(options):
            options[name] = _swap(name, options[name])
        last_state, ys = function(params, _swap("xs", xs), state, **options)
        return last_state, _swap("ys", ys)

    return swapped


def _swap(name: str, tree: PyTree) -> PyTree:
    def leaf(a):
        a = jnp.asarray(a)
        require(
            a.ndim >= 2,
            f"batch_major: {name} of shape {a.shape} cannot be read as [B, T, ...]. Without a "
            "batch there is nothing to swap.",
        )
        return jnp.swapaxes(a, 0, 1)

    return jax.tree.map(leaf, tree)
