"""Flax linen: the parameters of `SimpleCell`, `GRUCell`, `LSTMCell` and `OptimizedLSTMCell`.

A dense layer for every gate, in letters ours: `ir` from the input to r, `hr` from the state. Each
array is one gate of ours, so that gradients map as parameters do. The two LSTM cells have the same
parameters. A GRU has our b_n, as the bias of `hn`.
"""

from collections.abc import Mapping
from typing import Any

from jax_bptt.cells.gru import GRUParams
from jax_bptt.cells.parts import Params
from jax_bptt.core.checks import require
from jax_bptt.interop import layout

_REFUSED = {
    "gru_reset_before": "flax.linen.GRUCell resets after the product, as jb.gru does",
    "lstm_peephole": "flax.linen.LSTMCell has no peepholes",
    "lstm_projected": "flax.linen.LSTMCell has no projection",
}


def to_params(tree: Mapping[str, Any]) -> Any:
    """Return the parameters of a recurrent cell of Flax linen.

    Args:
      tree: `variables["params"]` of the cell; of an `nn.RNN` that holds it, its entry "cell".

    Returns:
      Parameters of `jb.elman`, `jb.gru` or `jb.lstm`. An activation and `SimpleCell`'s `residual`
      are not in the arrays.

    Raises:
      TypeError: the argument has no arrays by name, such as a module.
      ValueError: a layer is missing or a shape does not fit.

    Example:
      >>> import numpy as np
      >>> from jax_bptt import interop
      >>> tree = {"i": {"kernel": np.ones((3, 5)), "bias": np.ones(5)},
      ...         "h": {"kernel": np.ones((5, 5))}}
      >>> interop.flax.to_params(tree).w_x.shape
      (3, 1, 5)
    """
    return _to("interop.flax.to_params", tree)


def from_params(params: Any) -> dict[str, dict[str, Any]]:
    """Return the parameters of a cell of Flax linen for ours.

    Args:
      params: of `jb.elman`, `jb.gru` or `jb.lstm`.

    Returns:
      `{layer: {"kernel": array, "bias": array}}`, for `variables["params"]` of the cell.

    Raises:
      ValueError: Flax has no such cell, or there is a readout.
    """
    return _from("interop.flax.from_params", params)


def to_gradients(d_tree: Mapping[str, Any]) -> Any:
    """Return the gradient of the parameters for that of a Flax cell: the same numbers.

    Args:
      d_tree: in the structure of `to_params`' argument.

    Returns:
      Gradients in the structure of `to_params`.

    Raises:
      TypeError: the argument has no arrays by name, such as a module.
      ValueError: a layer is missing or a shape does not fit.
    """
    return _to("interop.flax.to_gradients", d_tree)


def from_gradients(d_params: Any) -> dict[str, dict[str, Any]]:
    """Return the gradient of a Flax cell for that of the parameters: the same numbers.

    Args:
      d_params: as `jax.grad` with respect to what `to_params` returns.

    Returns:
      `{layer: {"kernel": array, "bias": array}}`.

    Raises:
      ValueError: Flax has no such cell, or there is a readout.
    """
    return _from("interop.flax.from_gradients", d_params)


def _to(function, tree):
    layout.mapping(function, tree, "Pass the cell's own part of variables['params'].")
    if "i" in tree:
        w_x, w_s = layout.kernels(function, tree, ["i"]), layout.kernels(function, tree, ["h"])
        return Params(w_x, w_s, layout.biases(function, tree, ["i"]))
    require(
        "ir" in tree or "ii" in tree,
        f"{function}: the layers {sorted(map(str, tree))} are not those of one SimpleCell, GRUCell "
        "or LSTMCell. Of an nn.RNN pass the entry 'cell'.",
    )
    gates = layout.OURS[3 if "ir" in tree else 4]
    inner, outer = [f"i{gate}" for gate in gates], [f"h{gate}" for gate in gates]
    w_x, w_s = layout.kernels(function, tree, inner), layout.kernels(function, tree, outer)
    if "ir" not in tree:
        return Params(w_x, w_s, layout.biases(function, tree, outer))
    b_n = layout.biases(function, tree, ["hn"])[0]
    return GRUParams(w_x, w_s, layout.biases(function, tree, inner), b_n)


def _from(function, params):
    cell, params = layout.recognise(function, params, _REFUSED)
    if cell == "elman":
        return layout.dense(["i"], params.w_x, params.b) | layout.dense(["h"], params.w_s)
    gates = layout.OURS[params.w_s.shape[1]]
    inner, outer = [f"i{gate}" for gate in gates], [f"h{gate}" for gate in gates]
    if cell == "lstm":
        return layout.dense(inner, params.w_x) | layout.dense(outer, params.w_s, params.b)
    tree = layout.dense(inner, params.w_x, params.b) | layout.dense(outer, params.w_s)
    tree["hn"]["bias"] = params.b_n
    return tree
