"""Layers on top of one another, and around one."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from jax_bptt.algorithms import argument_checks
from jax_bptt.core import sequence
from jax_bptt.core.checks import kind_of, prng_key, require
from jax_bptt.core.types import PyTree
from jax_bptt.core.values import as_value
from jax_bptt.layers.layer import Layer, check_layer


@as_value
def stack(*layers: Layer) -> Layer:
    """Return the layer that feeds each layer's outputs to the next.

        ys = layers[-1](... layers[1](layers[0](xs)))

    Params and state are tuples, one entry a layer. `lengths`, `resets`, `mask` and `algorithm` hold
    for all of them. A key is split among the layers, None goes to all, and one that is left out is
    missed by the first layer that draws masks. What goes wrong in a layer is told with its place.

    Args:
      layers: one or more `Layer`, each on inputs as the one before puts out.

    Returns:
      A `Layer`.

    Raises:
      TypeError: an argument is no layer, or params or state are no tuple of one entry a layer.
      ValueError: there is no layer.

    Example:
      >>> import jax, jax.numpy as jnp, jax_bptt as jb
      >>> first, second = jb.lstm(input_size=3, hidden_size=5), jb.gru(input_size=5, hidden_size=4)
      >>> deep = jb.stack(jb.layer(first), jb.dropout(rate=0.2), jb.layer(second))
      >>> params = deep.init(jax.random.key(0))
      >>> last_state, ys = deep.apply(params, jnp.ones((7, 2, 3)), key=jax.random.key(1))
      >>> last_state[0].h.shape, last_state[1], last_state[2].shape, ys.shape
      ((2, 5), (), (2, 4), (7, 2, 4))
    """
    require(len(layers) > 0, "stack: give one layer or more, e.g. jb.stack(jb.layer(cell))")
    for k, each in enumerate(layers):
        check_layer("stack", each, f"layers[{k}]")

    def init(key):
        prng_key("stack", key)
        keys = jax.random.split(key, len(layers))
        return tuple(each.init(key) for each, key in zip(layers, keys, strict=True))

    def initial_state(params, batch_shape):
        _check_entries("params", params, layers)
        states = []
        for k, (each, own) in enumerate(zip(layers, params, strict=True)):
            with _within(k):
                states.append(each.initial_state(own, batch_shape))
        return tuple(states)

    def apply(params, xs, state=None, *, reset_state=None, **options):
        none = (None,) * len(layers)
        state = none if state is None else state
        starts = none if reset_state is None else reset_state
        for name, value in (("params", params), ("state", state), ("reset_state", starts)):
            _check_entries(name, value, layers)
        last_states = []
        own = zip(layers, params, state, starts, _split(options, len(layers)), strict=True)
        for k, (each, own_params, own_state, start, own_options) in enumerate(own):
            with _within(k):
                last_state, xs = each.apply(
                    own_params, xs, own_state, reset_state=start, **own_options
                )
            last_states.append(last_state)
        return tuple(last_states), xs

    return Layer(init, initial_state, apply)


def _split(options: dict[str, Any], number: int) -> list[dict[str, Any]]:
    """Return the options for each of a number of layers: a key is split, all else is the same."""
    if options.get("key") is None:
        return [options] * number
    prng_key("stack", options["key"])
    return [options | {"key": key} for key in jax.random.split(options["key"], number)]


@contextlib.contextmanager
def _within(k: int) -> Iterator[None]:
    """Say in which layer it is that something goes wrong."""
    try:
        yield
    except (TypeError, ValueError) as error:
        if type(error) not in (TypeError, ValueError):  # JAX's own, which are made otherwise
            raise
        raise type(error)(f"stack: layers[{k}]: {error}") from error


@as_value
def residual(layer: Layer) -> Layer:
    """Return the layer that adds its inputs to the outputs of `layer`.

        y_t = layer(x)_t + x_t

    Params and state are those of `layer`. An input that the layer does not read, beyond the
    lengths or where the mask is False, is not added either.

    Args:
      layer: a `Layer` whose outputs have the shape and dtype of its inputs.

    Returns:
      A `Layer`.

    Raises:
      TypeError: `layer` is no layer.
      ValueError: inputs and outputs differ in structure, shape or dtype.

    References:
      K. He, X. Zhang, S. Ren and J. Sun (2016), "Deep residual learning for image recognition",
      CVPR.

    Example:
      >>> import jax, jax.numpy as jnp, jax_bptt as jb
      >>> block = jb.residual(jb.layer(jb.gru(input_size=3, hidden_size=3)))
      >>> block.apply(block.init(jax.random.key(0)), jnp.ones((7, 2, 3)))[1].shape
      (7, 2, 3)
    """
    check_layer("residual", layer)

    def apply(params, xs, state=None, *, lengths=None, mask=None, **options):
        last_state, ys = layer.apply(params, xs, state, lengths=lengths, mask=mask, **options)
        xs, ys = jax.tree.map(jnp.asarray, (xs, ys))
        kinds = _kinds(xs), _kinds(ys)
        require(
            kinds[0] == kinds[1],
            f"residual: the layer's outputs, {kinds[1]}, cannot be added to its inputs, "
            f"{kinds[0]}. Make its output size, or hidden size, the input size.",
        )
        given = sequence.Options(lengths=_as_array(lengths), mask=_as_array(mask))
        read, _, _ = sequence.arrange(xs, given)
        return last_state, jax.tree.map(lambda y, x: y + x, ys, read)

    return layer._replace(apply=apply)


def _as_array(option):
    return None if option is None else jnp.asarray(option)


def _kinds(tree: PyTree) -> PyTree:
    """Return `tree` with each array described by its dtype and shape."""
    return jax.tree.map(lambda a: f"{a.dtype}{list(a.shape)}", tree)


def _check_entries(name: str, value: PyTree, layers: tuple[Layer, ...]) -> None:
    fits = isinstance(value, tuple | list) and len(value) == len(layers)
    got = f"{len(value)} entries" if isinstance(value, tuple | list) else kind_of(value)
    way_out = "An entry of a layer without any is ()."
    if isinstance(value, dict):
        way_out = f"{argument_checks.restored('layer.init')}."
    require(
        fits,
        f"stack: {name} must be a tuple with one entry for each of the {len(layers)} layers, "
        f"got {got}. {way_out}",
        TypeError,
    )
