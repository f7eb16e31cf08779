"""A cell over a whole sequence as a value: in one direction or in two."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jax_bptt.algorithms import option_checks
from jax_bptt.algorithms.tree_checks import as_arrays
from jax_bptt.algorithms.unroll import unroll
from jax_bptt.core import sequence
from jax_bptt.core.checks import kind_of, prng_key, require, shown
from jax_bptt.core.types import Cell, PyTree
from jax_bptt.core.values import Value, as_value


class _Layer(NamedTuple):
    init: Callable[..., PyTree]
    initial_state: Callable[..., PyTree]
    apply: Callable[..., tuple[PyTree, PyTree]]


class Layer(Value, _Layer):
    """A map from a sequence to a sequence of the same length, as pure functions.

    Layers are what `stack` and `residual` put together; a cell becomes one by `layer`.

    Attributes:
      init: `key -> params`.
      initial_state: `(params, batch_shape) -> state`.
      apply: `(params, xs, state=None, *, lengths=None, resets=None, mask=None, reset_state=None,
        key=None, algorithm=None) -> (last_state, ys)`, xs and ys [T, *batch, ...]. As `unroll`,
        with two differences. `resets` [T, *batch] marks the first step of a new sequence in the
        order of the inputs, also for what runs backwards. `key` is what random layers draw their
        masks from, the same ones for the same key; they must be given it, a key to train or None to
        evaluate. Layers that draw nothing need none.
    """


class Directions(NamedTuple):
    """Parameters or states of the two directions of a layer."""

    forward: PyTree
    backward: PyTree


@as_value
def layer(cell: Cell, *, reverse: bool = False) -> Layer:
    """Return the layer that runs `cell` over a sequence.

        s_t = step(s_{t-1}, x_t)        y_t = readout(s_t)        t = 1..T, or T..1 in reverse

    Params and state are the cell's own. In reverse each sequence runs from its own last step, see
    `unroll`, and last_state is the one at index 0. A sequence that `resets` begins at t ends the
    one before it, so that in reverse the state starts again between t and t - 1.

    Args:
      cell: a `Cell`.
      reverse: whether time runs backwards.

    Returns:
      A `Layer`.

    Raises:
      TypeError: `cell` is no cell, or `reverse` no boolean.

    Example:
      >>> import jax, jax.numpy as jnp, jax_bptt as jb
      >>> backwards = jb.layer(jb.gru(input_size=3, hidden_size=5), reverse=True)
      >>> params = backwards.init(jax.random.key(0))
      >>> backwards.apply(params, jnp.ones((7, 2, 3)), lengths=jnp.array([7, 4]))[1].shape
      (7, 2, 5)
    """
    check_cell("layer", cell)
    check_reverse("layer", reverse)

    def apply(params, xs, state=None, *, key=None, resets=None, **options):
        option_checks.named("layer", options)
        if reverse and resets is not None:
            xs = as_arrays("layer", "xs", xs)
            given = sequence.Options(options.get("lengths"), resets)
            resets = _turned_resets(option_checks.stateless("layer", xs, given)).resets
        return unroll(cell, params, xs, state, resets=resets, reverse=reverse, **options)

    return Layer(cell.init, cell.initial_state, apply)


@as_value
def bidirectional(forward: Cell | Layer, backward: Cell | Layer) -> Layer:
    """Return the layer that runs one cell or layer forwards and another backwards over a sequence.

        y_t = [y_t of the forward one, y_t of the backward one]        t = 1..T

    Params and state are `Directions(forward, backward)`, of each one's own; a key is split between
    the two. With `lengths` the backward one starts at the last step of each sequence, with `resets`
    at that of each part. The outputs, arrays or pytrees alike, meet on their last axis,
    [T, *batch, 2 H] for two cells of H.

    Args:
      forward: a `Cell`, or a `Layer` such as `zoneout(cell, rate=0.1)`.
      backward: the same on the same inputs; it may be the same one and has its own params. It is
        given as it would run forwards, without `reverse=True`, and is turned round here.

    Returns:
      A `Layer`.

    Raises:
      TypeError: an argument is neither cell nor layer, or params or state are no `Directions`.
      ValueError: a layer was made with `reverse=True`.

    References:
      M. Schuster and K. K. Paliwal (1997), "Bidirectional recurrent neural networks", IEEE
      Transactions on Signal Processing 45(11).

    Example:
      >>> import jax, jax.numpy as jnp, jax_bptt as jb
      >>> cell = jb.lstm(input_size=3, hidden_size=5)
      >>> both = jb.bidirectional(cell, cell)
      >>> params = both.init(jax.random.key(0))
      >>> last_state, ys = both.apply(params, jnp.ones((7, 2, 3)), lengths=jnp.array([7, 4]))
      >>> last_state.backward.h.shape, ys.shape
      ((2, 5), (7, 2, 10))
    """
    _check_direction("forward", forward)
    _check_direction("backward", backward)
    ahead = layer(forward) if isinstance(forward, Cell) else forward
    if isinstance(backward, Cell):
        back = layer(backward, reverse=True)
    else:
        back = turned(backward, "bidirectional")

    def init(key):
        prng_key("bidirectional", key)
        keys = jax.random.split(key)
        return Directions(ahead.init(keys[0]), back.init(keys[1]))

    def initial_state(params, batch_shape):
        _check_directions("params", params)
        return Directions(
            ahead.initial_state(params.forward, batch_shape),
            back.initial_state(params.backward, batch_shape),
        )

    def apply(params, xs, state=None, *, reset_state=None, **options):
        state = Directions(None, None) if state is None else state
        reset_state = Directions(None, None) if reset_state is None else reset_state
        for name, value in (("params", params), ("state", state), ("reset_state", reset_state)):
            _check_directions(name, value)
        own = Directions(options, options)
        if options.get("key") is not None:
            prng_key("bidirectional", options["key"])
            own = Directions(*(options | {"key": k} for k in jax.random.split(options["key"])))

        def run(layer, *given):
            params, state, reset_state, options = given
            return layer.apply(params, xs, state, reset_state=reset_state, **options)

        every = params, state, reset_state, own
        last_forward, ys = run(ahead, *(each.forward for each in every))
        last_backward, zs = run(back, *(each.backward for each in every))
        ys = jax.tree.map(lambda y, z: jnp.concatenate([y, z], axis=-1), ys, zs)
        return Directions(last_forward, last_backward), ys

    return Layer(init, initial_state, apply)


def turned(layer: Layer, function: str) -> Layer:
    """Return `layer` on time that runs backwards, each sequence from its own last step.

    Args:
      layer: as it runs forwards.
      function: the public function on whose behalf errors are raised.

    Returns:
      A layer whose outputs are where their inputs are, and zero beyond the lengths.
    """

    def apply(params, xs, state=None, *, lengths=None, resets=None, mask=None, **options):
        xs = jax.tree.map(jnp.asarray, xs)
        given = sequence.Options(lengths, resets, mask)
        given = _turned_resets(option_checks.stateless(function, xs, given))
        xs, controls, valid = sequence.arrange(xs, given, reverse=True)
        # Padding comes first now: the state is held through it, and its outputs are no outputs.
        last_state, ys = layer.apply(
            params, xs, state, resets=controls.reset, mask=controls.advance, **options
        )
        return last_state, sequence.restore(ys, valid, reverse=True)

    return layer._replace(apply=apply)


def _turned_resets(given: sequence.Options) -> sequence.Options:
    """Return checked options with the resets for time as it is run in reverse.

    Where a sequence begins at t, the state starts again at the last step before it, t - 1. What
    would begin in the padding begins nothing.
    """
    lengths, resets, *_ = given
    if resets is None:
        return given
    if lengths is not None:
        times = jnp.arange(resets.shape[0]).reshape(-1, *[1] * lengths.ndim)
        resets = resets & (times < lengths[None])
    return given._replace(resets=jnp.concatenate([resets[1:], jnp.zeros_like(resets[:1])]))


def check_cell(function: str, cell: Any, name: str = "cell") -> None:
    """Raise unless `cell`, the argument `name`, is a Cell."""
    require(
        isinstance(cell, Cell), f"{function}: {name} must be a Cell, got {kind_of(cell)}", TypeError
    )


def check_layer(function: str, layer: Any, name: str = "layer") -> None:
    """Raise unless `layer`, the argument `name`, is a Layer."""
    way_out = f" Wrap it: jb.{function}(jb.layer(cell))." if isinstance(layer, Cell) else ""
    require(
        isinstance(layer, Layer),
        f"{function}: {name} must be a Layer, got {kind_of(layer)}.{way_out}",
        TypeError,
    )


def check_reverse(function: str, reverse: Any) -> None:
    """Raise unless `reverse` is a boolean."""
    require(
        isinstance(reverse, bool),
        f"{function}: reverse must be True or False, got {shown(reverse)}",
        TypeError,
    )


def _check_direction(name: str, given: Any) -> None:
    """Raise unless `given`, the argument `name`, is a cell, or a layer that runs forwards."""
    require(
        isinstance(given, Cell | Layer),
        f"bidirectional: {name} must be a Cell or a Layer, got {kind_of(given)}",
        TypeError,
    )
    call = given.made_by
    require(
        call is None or not call.named().get("reverse", False),
        f"bidirectional: {name} is {given}, which runs backwards by itself. Make it without "
        "reverse=True: jb.bidirectional turns its second argument round.",
    )


def _check_directions(name: str, value: Any) -> None:
    require(
        isinstance(value, Directions),
        f"bidirectional: {name} must be jb.Directions(forward, backward), got {kind_of(value)}.",
        TypeError,
    )
