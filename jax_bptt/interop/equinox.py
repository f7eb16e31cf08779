"""Equinox: the arrays of `equinox.nn.GRUCell` and `LSTMCell`.

Their gate orders are ours and their matrices the transposes of ours; the biases are ours too.
`Recurrent(layer, key=key)` is a layer of this library as a module of Equinox.
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
    from jax_bptt.interop.adaptors.equinox import Recurrent as Recurrent

__getattr__ = lazily("equinox", "equinox", ("Recurrent",))

_REFUSED = {
    "elman": "Equinox has no simple recurrent cell",
    "gru_reset_before": "equinox.nn.GRUCell resets after the product, as jb.gru does",
    "lstm_peephole": "equinox.nn.LSTMCell has no peepholes",
    "lstm_projected": "equinox.nn.LSTMCell has no projection",
}


def to_params(arrays: Mapping[str, Any]) -> Any:
    """Return the parameters in the arrays of a cell of Equinox.

    Args:
      arrays: `vars(cell)`. Read are `weight_ih` [G H, I], `weight_hh` [G H, H], `bias` [G H] and,
        of a GRU, `bias_n` [H]; biases that are None are zero.

    Returns:
      Parameters of `jb.gru` or `jb.lstm`.

    Raises:
      TypeError: the argument has no arrays by name, such as a module.
      ValueError: a key is missing or a shape does not fit.

    Example:
      >>> import numpy as np
      >>> from jax_bptt import interop
      >>> arrays = {"weight_ih": np.ones((20, 3)), "weight_hh": np.ones((20, 5)), "bias": None}
      >>> interop.equinox.to_params(arrays).w_x.shape
      (3, 4, 5)
    """
    return _to("interop.equinox.to_params", arrays, layout.PARAMS)


def from_params(params: Any) -> dict[str, Any]:
    """Return the arrays of a cell of Equinox for parameters.

    To load them: `eqx.tree_at(lambda c: [getattr(c, k) for k in tree], cell, list(tree.values()))`.

    Args:
      params: of `jb.gru` or `jb.lstm`.

    Returns:
      A dict of arrays, named as the cell's fields.

    Raises:
      ValueError: Equinox has no such cell, or there is a readout.
    """
    return _from("interop.equinox.from_params", params)


def to_gradients(d_arrays: Mapping[str, Any]) -> Any:
    """Return the gradient of the parameters for that of an Equinox cell: the same numbers.

    Args:
      d_arrays: `vars(d_cell)` of what `eqx.filter_grad` returns.

    Returns:
      Gradients in the structure of `to_params`.

    Raises:
      TypeError: the argument has no arrays by name, such as a module.
      ValueError: a key is missing, biases included, or a shape does not fit.
    """
    return _to("interop.equinox.to_gradients", d_arrays, layout.GRADIENTS)


def from_gradients(d_params: Any) -> dict[str, Any]:
    """Return the gradient of an Equinox cell for that of the parameters: the same numbers.

    Args:
      d_params: as `jax.grad` with respect to what `to_params` returns.

    Returns:
      A dict of arrays, named as the cell's fields.

    Raises:
      ValueError: Equinox has no such cell, or there is a readout.
    """
    return _from("interop.equinox.from_gradients", d_params)


def _to(function, tree, rule):
    layout.mapping(function, tree, "Pass vars(cell).")
    weight_hh = layout.leaf(function, tree, "weight_hh", None, None)
    columns, hidden_size = weight_hh.shape
    gates = layout.count_gates(function, columns, hidden_size)
    require(gates != 1, f"{function}: {_REFUSED['elman']}, but there is one gate.")
    weight_ih = layout.leaf(function, tree, "weight_ih", columns, None)
    w_x, w_s = (layout.gates_from(w.T, layout.OURS[gates]) for w in (weight_ih, weight_hh))

    def bias(name, like):
        if tree.get(name) is None:
            return layout.no_bias(function, rule, name, like)
        return layout.leaf(function, tree, name, like.size).reshape(like.shape)

    b = bias("bias", w_x[0])
    return GRUParams(w_x, w_s, b, bias("bias_n", b[0])) if gates == 3 else Params(w_x, w_s, b)


def _from(function, params):
    _, params = layout.recognise(function, params, _REFUSED)
    gates = layout.OURS[params.w_s.shape[1]]
    tree = {
        "weight_ih": np.ascontiguousarray(layout.gates_to(params.w_x, gates).T),
        "weight_hh": np.ascontiguousarray(layout.gates_to(params.w_s, gates).T),
        "bias": layout.gates_to(params.b, gates),
    }
    return tree | {"bias_n": params.b_n} if isinstance(params, GRUParams) else tree
