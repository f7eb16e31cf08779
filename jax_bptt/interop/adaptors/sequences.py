"""Parts that the layers for other libraries share: a call in their terms, keys, parameter names."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jax_bptt.algorithms.tree_checks import as_arrays, same_structure
from jax_bptt.core import sequence
from jax_bptt.core.checks import kind_of, require
from jax_bptt.core.types import Algorithm, Cell, PyTree
from jax_bptt.layers.batch_major import batch_major
from jax_bptt.layers.dropout import dropout, variational_dropout
from jax_bptt.layers.layer import Layer, turned
from jax_bptt.layers.layer import layer as layer_of
from jax_bptt.layers.recurrent_dropout import recurrent_dropout, recurrent_dropout_per_step
from jax_bptt.layers.zoneout import zoneout

RANDOM = (
    dropout,
    variational_dropout,
    recurrent_dropout,
    recurrent_dropout_per_step,
    zoneout,
)
"""Constructors of the layers that draw masks from a key."""


class Call(NamedTuple):
    """A call of a recurrent layer of Flax.

    Attributes:
      inputs: [*batch, T, ...], or [T, *batch, ...] where `time_major`.
      initial_carry: the state to start from; None for the layer's own.
      seq_lengths: integer [*batch], or None.
      resets: bool [*batch, T], or [T, *batch] where `time_major`; None for none.
      time_major: whether time is the first axis.
      reverse: whether each sequence runs from its last step to its first.
      keep_order: whether outputs of a reversed run stay where their inputs are.
      key: for the masks of a random layer; None for none.
      algorithm: as in `unroll`.
    """

    inputs: PyTree
    initial_carry: PyTree
    seq_lengths: Any
    resets: Any
    time_major: bool
    reverse: bool
    keep_order: bool
    key: Array | None
    algorithm: Algorithm | None


def as_layer(function: str, given: Any) -> Layer:
    """Return a cell or a layer as a layer; raise on anything else, and where the batch leads."""
    if isinstance(given, Cell):
        return layer_of(given)
    require(
        isinstance(given, Layer),
        f"{function}: layer must be a jb.Cell or a jb.Layer, such as jb.lstm(3, 5), got "
        f"{kind_of(given)}. Of another library's cell, jb.interop maps the parameters.",
        TypeError,
    )
    call = given.made_by
    require(
        call is None or call.constructor is not batch_major,
        f"{function}: {given} swaps the axes itself. Give the layer inside of it: which axis leads "
        "is said here.",
    )
    return given


def run(function: str, layer: Layer, params: PyTree, call: Call) -> tuple[PyTree, PyTree]:
    """Run a layer as a call says.

    Args:
      function: the public class on whose behalf errors are raised.
      layer: what to run.
      params: its parameters.
      call: of the layer.

    Returns:
      (carry, outputs), the outputs with time on the axis on which the inputs have it, and zero
      beyond the lengths. A reversed run without `keep_order` leaves padding at the end.
    """
    xs, batch = _time_major(function, layer, call)
    _check_carry(function, layer, params, call.initial_carry, batch)
    lengths, resets = call.seq_lengths, call.resets
    if resets is not None:
        resets = jnp.asarray(resets)
        resets = resets if call.time_major else jnp.moveaxis(resets, -1, 0)
    if lengths is not None:
        lengths = jnp.asarray(lengths)
        require(
            lengths.shape == batch,
            f"{function}: seq_lengths.shape={lengths.shape}, but the inputs say *batch={batch}.",
        )
    run_layer = turned(layer, function) if call.reverse else layer
    carry, ys = run_layer.apply(
        params,
        xs,
        call.initial_carry,
        lengths=lengths,
        resets=resets,
        key=call.key,
        algorithm=call.algorithm,
    )
    if call.reverse and not call.keep_order:
        ys = _flipped(ys, lengths)
    if not call.time_major:
        ys = jax.tree.map(lambda y: jnp.moveaxis(y, 0, len(batch)), ys)
    return carry, ys


def input_spec(layer: Cell | Layer) -> PyTree | None:
    """Describe one input of a layer, by the first cell in it; None if it does not say."""
    if isinstance(layer, Cell):
        return layer.input_spec
    return next((spec for part in _parts(layer) if (spec := input_spec(part)) is not None), None)


def draws_masks(layer: Layer) -> bool:
    """Return whether a layer may draw masks; one that was put together by hand may."""
    if layer.made_by is None or layer.made_by.constructor in RANDOM:
        return True
    return any(draws_masks(part) for part in _parts(layer) if isinstance(part, Layer))


def batch_shape(layer: Layer, input_shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return *batch of the shape [*batch, ...] of one input."""
    features = _feature_axes(layer)[0]
    return tuple(input_shape[: len(input_shape) - features])


def typed(key: Array) -> Array:
    """Return a key of `jax.random.PRNGKey` as one of `jax.random.key`, and such a one as it is."""
    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        return key
    return jax.random.wrap_key_data(key)


def to_dict(params: PyTree) -> dict[str, Any]:
    """Return parameters as nested dicts of arrays, by the names of fields and the places in tuples.

    Example:
      >>> import jax_bptt as jb
      >>> to_dict((jb.Params(1, 2, 3), (), 4))
      {'0': {'w_x': 1, 'w_s': 2, 'b': 3}, '2': 4}
    """
    tree = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        *parents, name = _names(path)
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return tree


def from_dict(function: str, like: PyTree, tree: Mapping[str, Any]) -> PyTree:
    """Undo `to_dict`: return the parameters with the structure of `like`."""

    def leaf(path, _):
        node = tree
        for name in _names(path):
            require(
                isinstance(node, Mapping) and name in node,
                f"{function}: there is no {'/'.join(_names(path))} among the parameters.",
            )
            node = node[name]
        return node

    return jax.tree_util.tree_map_with_path(leaf, like)


def _names(path):
    """Return the names on the way to a leaf; parameters that are one array are called value."""
    return [jax.tree_util.keystr((entry,), simple=True) for entry in path] or ["value"]


def _parts(layer: Layer) -> list[Cell | Layer]:
    """Return the cells and layers that a layer was made of."""
    call = layer.made_by
    if call is None:
        return []
    every = jax.tree.leaves(list(call.named().values()), is_leaf=_is_part)
    return [part for part in every if _is_part(part)]


def _is_part(value):
    return isinstance(value, Cell | Layer)


def _feature_axes(layer: Layer) -> list[int]:
    """Return how many axes of features each array of an input has."""
    return [len(spec.shape) for spec in jax.tree.leaves(input_spec(layer))] or [1]


def _time_major(function: str, layer: Layer, call: Call) -> tuple[PyTree, tuple[int, ...]]:
    """Return the inputs as [T, *batch, ...], and *batch."""
    leaves, structure = jax.tree.flatten(as_arrays(function, "inputs", call.inputs))
    features = _feature_axes(layer)
    require(len(leaves) > 0, f"{function}: the inputs hold no array.")
    if len(features) != len(leaves):
        features = features[:1] * len(leaves)
    moved = []
    for x, axes in zip(leaves, features, strict=True):
        order = "[T, *batch" if call.time_major else "[*batch, T"
        letters = ", ...]" if axes else "]"
        require(
            x.ndim > axes,
            f"{function}: inputs of shape {x.shape} cannot be read as {order}{letters} with {axes} "
            "axes of features.",
        )
        moved.append(x if call.time_major else jnp.moveaxis(x, x.ndim - axes - 1, 0))
    batch = moved[0].shape[1 : moved[0].ndim - features[0]]
    return jax.tree.unflatten(structure, moved), batch


def _check_carry(
    function: str, layer: Layer, params: PyTree, carry: PyTree, batch: tuple[int, ...]
) -> None:
    if carry is None:
        return
    expected = jax.eval_shape(lambda params: layer.initial_state(params, batch), params)
    way_out = "Pass a carry that this layer returned, or what initialize_carry makes."
    fields = getattr(expected, "_fields", ())
    if fields == ("h", "c") and isinstance(carry, tuple) and len(carry) == 2:
        way_out = "Flax's (c, h) is jb.LSTMState(h=h, c=c) here."
    same_structure(function, "initial_carry", carry, expected, "this layer's state", way_out)


def _flipped(ys: PyTree, lengths: Array | None) -> PyTree:
    """Reverse outputs [T, *batch, ...] within their lengths; padding stays at the end."""
    if lengths is None:
        return sequence.flip(ys)

    def leaf(y):
        steps = y.shape[0]
        times = jnp.arange(steps, dtype=jnp.int32).reshape(-1, *[1] * lengths.ndim)
        source = (lengths.astype(jnp.int32)[None] - 1 - times) % max(1, steps)
        source = source.reshape(source.shape + (1,) * (y.ndim - source.ndim))
        return jnp.take_along_axis(y, source, axis=0)

    return jax.tree.map(leaf, ys)
