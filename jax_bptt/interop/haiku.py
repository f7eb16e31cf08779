"""Haiku: the parameters of `hk.VanillaRNN`, `hk.GRU` and `hk.LSTM`.

A vanilla RNN is one of relu, with two biases that are added up.

A GRU has the order z, r, a. It resets before the product, as `jb.gru_reset_before`, and turns z
round, h_t = (1 - z) h_{t-1} + z a. Since 1 - sigmoid(u) = sigmoid(-u), its z is ours with the
weights and the bias of that gate negated.

An LSTM has the order i, g, f, o and one matrix for [x, h]. It adds 1 to the forget gate, which is
part of our b.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jax_bptt.cells.parts import Params
from jax_bptt.core.checks import require
from jax_bptt.interop import layout

_GRU, _LSTM = "zrn", "igfo"
_REFUSED = {
    "gru": "hk.GRU resets before the product, as jb.gru_reset_before does",
    "lstm_peephole": "hk.LSTM has no peepholes",
    "lstm_projected": "hk.LSTM has no projection",
}


def to_params(tree: Mapping[str, Any]) -> Any:
    """Return the parameters of one recurrent core of Haiku.

    Args:
      tree: `{module: {name: array}}` with the modules of that core alone; of a larger model
        `hk.data_structures.filter(lambda module, *_: module.startswith("lstm"), params)`.

    Returns:
      Parameters of `jb.elman` (with `activation=jax.nn.relu`), `jb.gru_reset_before` or `jb.lstm`.

    Raises:
      TypeError: the argument has no arrays by name, such as a module.
      ValueError: the modules are not those of one core, or a shape does not fit.

    Example:
      >>> import numpy as np
      >>> from jax_bptt import interop
      >>> tree = {"lstm/linear": {"w": np.zeros((8, 20)), "b": np.zeros(20)}}
      >>> params = interop.haiku.to_params(tree)
      >>> params.w_x.shape, params.w_s.shape, params.b[:, 0].tolist()
      ((3, 4, 5), (5, 4, 5), [0.0, 1.0, 0.0, 0.0])
    """
    return _to("interop.haiku.to_params", tree, layout.PARAMS)


def from_params(params: Any, *, name: str | None = None) -> dict[str, dict[str, Any]]:
    """Return the parameters of Haiku's core for ours.

    Args:
      params: of `jb.elman` (with `activation=jax.nn.relu`), `jb.gru_reset_before` or `jb.lstm`.
      name: of the core in Haiku's tree; None for `vanilla_rnn`, `gru` or `lstm`.

    Returns:
      `{module: {name: array}}`.

    Raises:
      ValueError: Haiku has no such cell, or there is a readout.
    """
    return _from("interop.haiku.from_params", params, name, layout.PARAMS)


def to_gradients(d_tree: Mapping[str, Any]) -> Any:
    """Return the gradient of our parameters for that of Haiku's.

    As `to_params`, but that no 1 is added, and that d_b of a simple network is d_b of its input.

    Args:
      d_tree: in the structure of `to_params`' argument.

    Returns:
      Gradients in the structure of `to_params`.

    Raises:
      TypeError: the argument has no arrays by name, such as a module.
      ValueError: the modules are not those of one core, or a shape does not fit.
    """
    return _to("interop.haiku.to_gradients", d_tree, layout.GRADIENTS)


def from_gradients(d_params: Any, *, name: str | None = None) -> dict[str, dict[str, Any]]:
    """Return the gradient of Haiku's parameters for that of ours.

    As `from_params`, but that no 1 is taken off, and that both biases of a simple network get d_b.

    Args:
      d_params: as `jax.grad` with respect to what `to_params` returns.
      name: of the core in Haiku's tree; None for `vanilla_rnn`, `gru` or `lstm`.

    Returns:
      `{module: {name: array}}`.

    Raises:
      ValueError: Haiku has no such cell, or there is a readout.
    """
    return _from("interop.haiku.from_gradients", d_params, name, layout.GRADIENTS)


def _to(function, tree, rule):
    layout.mapping(function, tree, "Pass the params of one core, {module: {name: array}}.")
    modules = {path.rpartition("/")[2]: leaves for path, leaves in tree.items()}
    if len(tree) == 1:
        ((last, leaves),) = modules.items()
        if set(leaves) == {"w_i", "w_h", "b"}:
            return _gru_to(function, leaves)
        if last == "linear" and set(leaves) == {"w", "b"}:
            return _lstm_to(function, leaves, rule)
    require(
        len(tree) == 2 and set(modules) == {"linear", "linear_1"},
        f"{function}: the modules {sorted(tree)} are not those of one VanillaRNN, GRU or LSTM. "
        "Pass those of one core alone, see hk.data_structures.filter.",
    )
    return _vanilla_to(function, modules["linear"], modules["linear_1"], rule)


def _vanilla_to(function, inner, outer, rule):
    w_s = layout.leaf(function, outer, "w", None, None)
    hidden_size = len(w_s)
    w_x = layout.leaf(function, inner, "w", None, hidden_size)
    b_x = layout.leaf(function, inner, "b", hidden_size)
    # With double_bias=False the one bias is the whole of ours, and so is its gradient.
    b_s = layout.leaf(function, outer, "b", hidden_size) if "b" in outer else np.zeros_like(b_x)
    return layout.join_biases(rule, *(a[..., None, :] for a in (w_x, w_s, b_x, b_s)))


def _gru_to(function, leaves):
    w_h = layout.leaf(function, leaves, "w_h", None, None)
    hidden_size = len(w_h)
    w_h = layout.array(function, "w_h", w_h, hidden_size, 3 * hidden_size)
    w_i = layout.leaf(function, leaves, "w_i", None, 3 * hidden_size)
    b = layout.leaf(function, leaves, "b", 3 * hidden_size)
    return _turned(Params(*(layout.gates_from(a, _GRU) for a in (w_i, w_h, b))))


def _turned(params):
    """Negate all that leads to the update gate z: its own inverse, and its own transpose."""
    sign = np.array([[1], [-1], [1]])
    return params._replace(
        **{
            name: getattr(params, name) * sign.astype(params.b.dtype)
            for name in ("w_x", "w_s", "b")
        }
    )


def _lstm_to(function, leaves, rule):
    b = layout.leaf(function, leaves, "b", None)
    hidden_size, rest = divmod(len(b), 4)
    require(not rest, f"{function}: an LSTM's b has 4 H numbers, got {len(b)}.")
    w = layout.gates_from(layout.leaf(function, leaves, "w", None, len(b)), _LSTM)
    inputs = len(w) - hidden_size
    require(inputs > 0, f"{function}: an LSTM's w has I + H rows, got {len(w)} for H={hidden_size}")
    b = layout.gates_from(b, _LSTM) + _forget_one(rule, b.dtype)
    return Params(w[:inputs], w[inputs:], b)


def _forget_one(rule, dtype):
    """Return the constants that Haiku adds to the gates i, f, g, o, [4, 1]; zero for a gradient."""
    return np.array([[0], [0 if rule.is_gradient else 1], [0], [0]], dtype)


def _from(function, params, name, rule):
    cell, params = layout.recognise(function, params, _REFUSED)
    if cell == "elman":
        name = name or "vanilla_rnn"
        b_x, b_s = layout.split_biases(rule, params)
        return {
            f"{name}/linear": {"w": params.w_x[:, 0], "b": b_x[0]},
            f"{name}/linear_1": {"w": params.w_s[:, 0], "b": b_s[0]},
        }
    if cell == "gru_reset_before":
        turned = _turned(params)
        w_i, w_h, b = (layout.gates_to(a, _GRU) for a in (turned.w_x, turned.w_s, turned.b))
        return {name or "gru": {"w_i": w_i, "w_h": w_h, "b": b}}
    w = layout.gates_to(np.concatenate([params.w_x, params.w_s]), _LSTM)
    b = layout.gates_to(params.b - _forget_one(rule, params.b.dtype), _LSTM)
    return {f"{name or 'lstm'}/linear": {"w": w, "b": b}}
