"""Keras: the weights of `SimpleRNN`, `GRU`, `LSTM`, or of one of these in `Bidirectional`.

Their gate orders are z, r, h and i, f, c, o. A GRU with `reset_after=True`, the default, has two
biases, the rows of one array; every other layer has one.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jax_bptt.cells.parts import Params
from jax_bptt.core.checks import kind_of, require
from jax_bptt.interop import layout
from jax_bptt.layers.layer import Directions

_ORDER = {1: "a", 3: "zrn", 4: "ifgo"}
_REFUSED = {
    "lstm_peephole": "keras.layers.LSTM has no peepholes",
    "lstm_projected": "keras.layers.LSTM has no projection",
}


def to_params(weights: Sequence[Any]) -> Any:
    """Return the parameters in the weights of a recurrent layer of Keras.

    Args:
      weights: `layer.get_weights()`: kernel [I, G H], recurrent kernel [H, G H] and, if the layer
        has one, bias [G H], or [2, 3 H] of a GRU with `reset_after=True`; of `Bidirectional` those
        of the forward layer, then those of the backward one.

    Returns:
      Parameters of `jb.elman`, `jb.gru` (reset after), `jb.gru_reset_before` or `jb.lstm`; of
      `Bidirectional` a pair `Directions`. Activations are not in the arrays.

    Raises:
      TypeError: the argument is no list of arrays, such as a layer.
      ValueError: the number of arrays or a shape does not fit, or a GRU has no bias to tell where
        it resets.

    Example:
      >>> import numpy as np
      >>> from jax_bptt import interop
      >>> weights = [np.ones((3, 15)), np.ones((5, 15)), np.ones((2, 15))]
      >>> params = interop.keras.to_params(weights)
      >>> type(params).__name__, params.b[:, 0].tolist(), params.b_n.shape
      ('GRUParams', [2.0, 2.0, 1.0], (5,))
    """
    return _to("interop.keras.to_params", weights, layout.PARAMS)


def from_params(params: Any) -> list[Any]:
    """Return the weights of a Keras layer for parameters, for `layer.set_weights`.

    Args:
      params: of one cell, or `Directions` of two. `jb.gru` makes the weights of a `GRU` with
        `reset_after=True`, `jb.gru_reset_before` of one with `reset_after=False`.

    Returns:
      A list of arrays with the bias, as `to_params` takes.

    Raises:
      ValueError: Keras has no such cell, or there is a readout.
    """
    return _from("interop.keras.from_params", params, layout.PARAMS)


def to_gradients(d_weights: Sequence[Any]) -> Any:
    """Return the gradient of the parameters for that of a Keras layer's weights.

    Of the two biases of a GRU that resets after the product, d_b is the gradient of the first.

    Args:
      d_weights: in the order of `layer.trainable_variables`, biases included.

    Returns:
      Gradients in the structure of `to_params`.

    Raises:
      TypeError: the argument is no list of arrays, such as a layer.
      ValueError: the number of arrays or a shape does not fit.
    """
    return _to("interop.keras.to_gradients", d_weights, layout.GRADIENTS)


def from_gradients(d_params: Any) -> list[Any]:
    """Return the gradient of a Keras layer's weights for that of the parameters.

    Args:
      d_params: as `jax.grad` with respect to what `to_params` returns.

    Returns:
      A list of arrays in the order of `layer.trainable_variables`.

    Raises:
      ValueError: Keras has no such cell, or there is a readout.
    """
    return _from("interop.keras.from_gradients", d_params, layout.GRADIENTS)


def _to(function, weights, rule):
    require(
        isinstance(weights, Sequence),
        f"{function}: expected a list of arrays, got {kind_of(weights)}. Pass layer.get_weights().",
        TypeError,
    )
    count = len(weights)
    require(
        count in (2, 3, 4, 6),
        f"{function}: got {count} arrays, expected kernel, recurrent kernel and perhaps bias, "
        "or twice as many of a Bidirectional layer.",
    )
    if count in (2, 3):
        return _direction_to(function, weights, rule)
    halves = weights[: count // 2], weights[count // 2 :]
    return Directions(*(_direction_to(function, half, rule) for half in halves))


def _direction_to(function, weights, rule):
    recurrent = layout.array(function, "the recurrent kernel", weights[1], None, None)
    hidden_size, columns = recurrent.shape
    order = _ORDER[layout.count_gates(function, columns, hidden_size)]
    kernel = layout.array(function, "the kernel", weights[0], None, columns)
    w_x, w_s = layout.gates_from(kernel, order), layout.gates_from(recurrent, order)
    if len(weights) == 2:
        require(
            len(order) != 3,
            f"{function}: without a bias it is not to be seen where the GRU resets. Append zeros "
            f"of shape [2, {columns}] for reset_after=True, of [{columns}] for False.",
        )
        return Params(w_x, w_s, layout.no_bias(function, rule, "bias", w_x[0]))
    reset_after = np.ndim(weights[2]) == 2
    require(not reset_after or len(order) == 3, f"{function}: only a GRU has a bias with two axes.")
    shape = (2, columns) if reset_after else (columns,)
    bias = layout.gates_from(layout.array(function, "the bias", weights[2], *shape), order)
    return layout.join_biases(rule, w_x, w_s, *bias) if reset_after else Params(w_x, w_s, bias)


def _from(function, params, rule):
    if isinstance(params, Directions):
        halves = [_direction_from(function, direction, rule) for direction in params]
        return halves[0] + halves[1]
    return _direction_from(function, params, rule)


def _direction_from(function, params, rule):
    name, params = layout.recognise(function, params, _REFUSED)
    order = _ORDER[params.w_s.shape[1]]
    bias = np.stack(layout.split_biases(rule, params)) if name == "gru" else params.b
    return [layout.gates_to(w, order) for w in (params.w_x, params.w_s, bias)]
