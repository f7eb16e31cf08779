"""Flax nnx: the state of `SimpleCell`, `GRUCell`, `LSTMCell` and `OptimizedLSTMCell`.

An LSTM has the layers of Flax linen, but for `if_`, which is a keyword without the underscore; the
optimized one has one layer `dense_i` and one `dense_h` for all gates in our order, as the others
have. Each array is one of ours, so that gradients map as parameters do. A GRU has no b_n, unlike
that of Flax linen. `Recurrent(layer, rngs=rngs)` is a layer of this library as a module of nnx.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from jax_bptt.cells.gru import GRUParams
from jax_bptt.cells.parts import Params
from jax_bptt.core.checks import require
from jax_bptt.interop import layout
from jax_bptt.interop.adaptors import lazily

if TYPE_CHECKING:
    from jax_bptt.interop.adaptors.nnx import Recurrent as Recurrent

__getattr__ = lazily("nnx", "flax", ("Recurrent",))

_INNER, _OUTER = ("ii", "if_", "ig", "io"), ("hi", "hf", "hg", "ho")
_REFUSED = {
    "gru_reset_before": "flax.nnx.GRUCell resets after the product, as jb.gru does",
    "lstm_peephole": "flax.nnx.LSTMCell has no peepholes",
    "lstm_projected": "flax.nnx.LSTMCell has no projection",
}


def to_params(tree: Mapping[str, Any]) -> Any:
    """Return the parameters of a recurrent cell of Flax nnx.

    Args:
      tree: `nnx.to_pure_dict(nnx.state(cell, nnx.Param))`.

    Returns:
      Parameters of `jb.elman`, `jb.gru` (with b_n zero) or `jb.lstm`. An activation and
      `SimpleCell`'s `residual` are not in the arrays.

    Raises:
      TypeError: the argument has no arrays by name, such as a module.
      ValueError: a layer is missing or a shape does not fit.

    Example:
      >>> import numpy as np
      >>> from jax_bptt import interop
      >>> tree = {"dense_i": {"kernel": np.ones((3, 5)), "bias": np.ones(5)},
      ...         "dense_h": {"kernel": np.ones((5, 5))}}
      >>> interop.nnx.to_params(tree).w_x.shape
      (3, 1, 5)
    """
    return _to("interop.nnx.to_params", tree)


def from_params(params: Any) -> dict[str, dict[str, Any]]:
    """Return the state of a cell of Flax nnx for parameters, of an LSTM that of `LSTMCell`.

    To load it: `nnx.update(cell, tree)`.

    Args:
      params: of `jb.elman`, `jb.gru` with a b_n of zeros, or `jb.lstm`.

    Returns:
      `{layer: {"kernel": array, "bias": array}}`.

    Raises:
      ValueError: nnx has no such cell, a GRU's b_n is not zero, or there is a readout.
    """
    function = "interop.nnx.from_params"
    if isinstance(params, GRUParams):
        require(
            not np.any(params.b_n),
            f"{function}: flax.nnx.GRUCell has no bias b_n inside the reset, and this one is not "
            "zero. Keep b_n at zero in training, or take flax.linen.GRUCell, which has one.",
        )
    return _from(function, params)


def to_gradients(d_tree: Mapping[str, Any]) -> Any:
    """Return the gradient of the parameters for that of an nnx cell; of a GRU d_b_n = 0.

    Args:
      d_tree: in the structure of `to_params`' argument.

    Returns:
      Gradients in the structure of `to_params`.

    Raises:
      TypeError: the argument has no arrays by name, such as a module.
      ValueError: a layer is missing or a shape does not fit.
    """
    return _to("interop.nnx.to_gradients", d_tree)


def from_gradients(d_params: Any) -> dict[str, dict[str, Any]]:
    """Return the gradient of an nnx cell for that of the parameters; d_b_n has no place there.

    Args:
      d_params: as `jax.grad` with respect to what `to_params` returns.

    Returns:
      `{layer: {"kernel": array, "bias": array}}`, of an LSTM for `LSTMCell`.

    Raises:
      ValueError: nnx has no such cell, or there is a readout.
    """
    return _from("interop.nnx.from_gradients", d_params)


def to_optimized_lstm(tree: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the state of an `OptimizedLSTMCell` for that of an `LSTMCell`; gradients alike.

    Args:
      tree: as `from_params` or `from_gradients` returns it for an LSTM.

    Returns:
      `{"dense_i": {"kernel": [I, 4 H]}, "dense_h": {"kernel": [H, 4 H], "bias": [4 H]}}`.

    Raises:
      TypeError: the argument has no arrays by name, such as a module.
      ValueError: a layer is missing or a shape does not fit.
    """
    params = _to("interop.nnx.to_optimized_lstm", tree)
    require(params.w_s.shape[1] == 4, "interop.nnx.to_optimized_lstm: this is no LSTM.")
    return _dense(params, bias_of="dense_h")


def _to(function, tree):
    layout.mapping(function, tree, "Pass nnx.to_pure_dict(nnx.state(cell, nnx.Param)).")
    if "ii" in tree:
        w_x, w_s = (layout.kernels(function, tree, names) for names in (_INNER, _OUTER))
        return Params(w_x, w_s, layout.biases(function, tree, _OUTER))
    require(
        "dense_i" in tree and "dense_h" in tree,
        f"{function}: the layers {sorted(map(str, tree))} are not those of one SimpleCell, "
        "GRUCell, LSTMCell or OptimizedLSTMCell. Of an nnx.RNN pass the entry 'cell'.",
    )
    kernel_h = layout.leaf(f"{function}: dense_h", tree["dense_h"], "kernel", None, None)
    hidden_size, columns = kernel_h.shape
    gates = layout.count_gates(function, columns, hidden_size)
    kernel_i = layout.leaf(f"{function}: dense_i", tree["dense_i"], "kernel", None, columns)
    biased = "dense_h" if gates == 4 else "dense_i"
    bias = layout.leaf(f"{function}: {biased}", tree[biased], "bias", columns)
    w_x, w_s, b = (layout.gates_from(a, layout.OURS[gates]) for a in (kernel_i, kernel_h, bias))
    return GRUParams(w_x, w_s, b, np.zeros_like(b[0])) if gates == 3 else Params(w_x, w_s, b)


def _from(function, params):
    cell, params = layout.recognise(function, params, _REFUSED)
    if cell == "lstm":
        return layout.dense(_INNER, params.w_x) | layout.dense(_OUTER, params.w_s, params.b)
    return _dense(params, bias_of="dense_i")


def _dense(params, *, bias_of):
    gates = layout.OURS[params.w_s.shape[1]]
    tree = {
        "dense_i": {"kernel": layout.gates_to(params.w_x, gates)},
        "dense_h": {"kernel": layout.gates_to(params.w_s, gates)},
    }
    tree[bias_of]["bias"] = layout.gates_to(params.b, gates)
    return tree
