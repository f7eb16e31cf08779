"""ONNX: the inputs W, R, B and P of the operators `RNN`, `GRU` and `LSTM`.

Their gate orders are z, r, h and i, o, f, c; their matrices are the transposes of ours and lead
with the number of directions; B holds two biases, which are added up.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jax_bptt.cells.lstm_peephole import LSTMPeepholeParams
from jax_bptt.cells.parts import Params
from jax_bptt.core.checks import require
from jax_bptt.interop import layout
from jax_bptt.layers.layer import Directions

_ORDER = {1: "a", 3: "zrn", 4: "iofg"}
_PEEPHOLES = [0, 2, 1]  # of i, f, o among i, o, f, and the other way round alike
_REFUSED = {"lstm_projected": "the operator LSTM has no projection"}


def to_params(tree: Mapping[str, Any], *, linear_before_reset: int | None = None) -> Any:
    """Return the parameters in the inputs of an ONNX node.

        w = W^T, R^T        b = Wb + Rb        b_n = Rb of the candidate, if reset after

    Args:
      tree: "W" [D, G H, I], "R" [D, G H, H] and, where the node has them, "B" [D, 2 G H] and
        "P" [D, 3 H]; D directions.
      linear_before_reset: the attribute of a `GRU` node, 0 where it has none: 1 makes a `jb.gru`, 0
        a `jb.gru_reset_before`. Not for the other operators.

    Returns:
      Parameters of `jb.elman`, one of the GRUs, `jb.lstm` or, with P, `jb.lstm_peephole`; for two
      directions `Directions` of them. A node whose direction is "reverse" is one direction, to be
      run with `reverse=True`. Activations, `clip` and `input_forget` are not in the arrays.

    Raises:
      TypeError: the argument has no arrays by name, such as a module.
      ValueError: an input is missing, a shape does not fit, or it is not said where a GRU resets.
    """
    return _to("interop.onnx.to_params", tree, linear_before_reset, layout.PARAMS)


def from_params(params: Any) -> dict[str, Any]:
    """Return the inputs of an ONNX node for parameters; Rb is zero, or b_n for the candidate.

    A node of `jb.gru` needs the attribute `linear_before_reset` 1, one of `jb.gru_reset_before` 0.

    Args:
      params: of one cell, or `Directions` of two.

    Returns:
      A dict of "W", "R", "B" and, with peepholes, "P".

    Raises:
      ValueError: ONNX has no such cell, or there is a readout.
    """
    return _from("interop.onnx.from_params", params, layout.PARAMS)


def to_gradients(d_tree: Mapping[str, Any], *, linear_before_reset: int | None = None) -> Any:
    """Return the gradient of the parameters for that of a node's inputs: d_b = d_Wb.

    Args:
      d_tree: "W", "R", "B" and, with peepholes, "P".
      linear_before_reset: as in `to_params`.

    Returns:
      Gradients in the structure of `to_params`.

    Raises:
      TypeError: the argument has no arrays by name, such as a module.
      ValueError: as `to_params`; B may not be absent.
    """
    return _to("interop.onnx.to_gradients", d_tree, linear_before_reset, layout.GRADIENTS)


def from_gradients(d_params: Any) -> dict[str, Any]:
    """Return the gradient of a node's inputs for that of the parameters: d_Wb = d_Rb = d_b.

    Args:
      d_params: as `jax.grad` with respect to what `to_params` returns.

    Returns:
      A dict of "W", "R", "B" and, with peepholes, "P".

    Raises:
      ValueError: ONNX has no such cell, or there is a readout.
    """
    return _from("interop.onnx.from_gradients", d_params, layout.GRADIENTS)


def _to(function, tree, linear_before_reset, rule):
    layout.mapping(function, tree, "Pass the node's inputs, {'W': array, 'R': array, ...}.")
    r = layout.leaf(function, tree, "R", None, None, None)
    directions, columns, hidden_size = r.shape
    gates = layout.count_gates(function, columns, hidden_size)
    require(directions in (1, 2), f"{function}: R.shape={r.shape} leads with 1 or 2 directions.")
    require(
        linear_before_reset in ((0, 1) if gates == 3 else (None,)),
        f"{function}: got linear_before_reset={linear_before_reset!r} for {gates} gates. For a GRU "
        "give the node's attribute, 0 where it has none; for other operators leave it out.",
    )
    w = layout.leaf(function, tree, "W", directions, columns, None)
    if tree.get("B") is None:
        b = layout.no_bias(function, rule, "B", np.concatenate([r[..., 0], r[..., 0]], axis=1))
    else:
        b = layout.leaf(function, tree, "B", directions, 2 * columns)
    peepholes = [None] * directions
    if tree.get("P") is not None:
        require(gates == 4, f"{function}: P is for an LSTM, but there are {gates} gates.")
        peepholes = layout.leaf(function, tree, "P", directions, 3 * hidden_size)

    def one(w, r, b, p):
        w_x, w_s, b_x, b_s = (layout.gates_from(a, _ORDER[gates]) for a in (w.T, r.T, *b))
        if linear_before_reset == 0:
            return Params(w_x, w_s, rule.join(b_x, b_s))
        params = layout.join_biases(rule, w_x, w_s, b_x, b_s)
        if p is None:
            return params
        w_c = p.reshape(3, -1)[_PEEPHOLES]
        return LSTMPeepholeParams(params.w_x, params.w_s, w_c, params.b)

    arrays = zip(w, r, b.reshape(directions, 2, -1), peepholes, strict=True)
    layers = [one(*own) for own in arrays]
    return layers[0] if directions == 1 else Directions(*layers)


def _from(function, params, rule):
    def one(params):
        gates = _ORDER[params.w_s.shape[1]]
        b_x, b_s = (layout.gates_to(b, gates) for b in layout.split_biases(rule, params))
        tree = {
            "W": layout.gates_to(params.w_x, gates).T,
            "R": layout.gates_to(params.w_s, gates).T,
            "B": np.concatenate([b_x, b_s]),
        }
        if isinstance(params, LSTMPeepholeParams):
            tree["P"] = params.w_c[_PEEPHOLES].reshape(-1)
        return tree

    directions = params if isinstance(params, Directions) else (params,)
    directions = [layout.recognise(function, p, _REFUSED)[1] for p in directions]
    layout.require_alike(function, directions)
    trees = [one(direction) for direction in directions]
    return {name: np.stack([tree[name] for tree in trees]) for name in trees[0]}
