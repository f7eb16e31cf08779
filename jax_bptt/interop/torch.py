"""PyTorch: the state dict of `torch.nn.RNN`, `GRU` or `LSTM`, any layers, directions, projection.

Their gate orders are ours, their matrices the transposes of ours, and they add up two biases:
`bias_ih_l0` and `bias_hh_l0`, of which the candidate's part of the second is our b_n.
"""

from collections.abc import Mapping
from typing import Any

from jax_bptt.cells.lstm_projected import ProjectedLSTMParams
from jax_bptt.core.checks import require
from jax_bptt.interop import layout
from jax_bptt.layers.layer import Directions

_REFUSED = {
    "gru_reset_before": "torch.nn.GRU resets after the product, as jb.gru does",
    "lstm_peephole": "torch.nn.LSTM has no peepholes",
}
_PASSED = (
    "module.state_dict()",
    "{name: p.grad for name, p in module.named_parameters()}",
)
"""The argument of `to_params` and that of `to_gradients`."""


def to_params(state_dict: Mapping[str, Any], *, prefix: str = "") -> tuple[Any, ...]:
    """Return the parameters in the state dict of a recurrent module of PyTorch.

        w = weight^T        b = bias_ih + bias_hh        b_n = bias_hh of a GRU's candidate

    Args:
      state_dict: of the module or of a model that holds it, tensors of any dtype, which may require
        a gradient, or arrays; other keys are left alone. Absent biases are zero.
      prefix: what stands before `weight_ih_l0` in the keys, e.g. "encoder.rnn.".

    Returns:
      A tuple with one entry per layer, as `jb.stack` has it: the parameters of `jb.elman`,
      `jb.gru`, `jb.lstm` or, with a projection, `jb.lstm_projected`; for two directions
      `Directions` of them. Whether an RNN's activation is tanh or relu is not in the arrays.

    Raises:
      TypeError: the argument has no arrays by name, such as a module.
      ValueError: a key is missing or a shape does not fit.

    Example:
      >>> import numpy as np
      >>> from jax_bptt import interop
      >>> (params,) = interop.torch.to_params({
      ...     "weight_ih_l0": np.ones((20, 3)), "weight_hh_l0": np.ones((20, 5)),
      ...     "bias_ih_l0": np.ones(20), "bias_hh_l0": np.ones(20),
      ... })
      >>> params.w_x.shape, params.w_s.shape, params.b.shape, params.b[0, 0].item()
      ((3, 4, 5), (5, 4, 5), (4, 5), 2.0)
    """
    return _to("interop.torch.to_params", state_dict, prefix, layout.PARAMS)


def from_params(params: Any, *, prefix: str = "") -> dict[str, Any]:
    """Return the state dict for parameters: b becomes `bias_ih`, and `bias_hh` is zero or b_n.

    To load it: `module.load_state_dict({k: torch.from_numpy(v) for k, v in tree.items()})`.
    From bfloat16, which PyTorch does not take from NumPy, `torch.tensor(v.astype("float32"))`.

    Args:
      params: as `to_params` returns them; a single layer may go without the tuple.
      prefix: what to put before every key.

    Returns:
      A dict of arrays.

    Raises:
      ValueError: PyTorch has no such cell, or there is a readout.
    """
    return _from("interop.torch.from_params", params, prefix, layout.PARAMS)


def to_gradients(d_state_dict: Mapping[str, Any], *, prefix: str = "") -> tuple[Any, ...]:
    """Return the gradient of the parameters for that of PyTorch's: d_b = d_bias_ih.

    Args:
      d_state_dict: `{name: p.grad for name, p in module.named_parameters()}`.
      prefix: what stands before `weight_ih_l0` in the keys.

    Returns:
      Gradients in the structure of `to_params`.

    Raises:
      TypeError: the argument has no arrays by name, such as a module.
      ValueError: a key is missing, biases included, or a shape does not fit.
    """
    return _to("interop.torch.to_gradients", d_state_dict, prefix, layout.GRADIENTS)


def from_gradients(d_params: Any, *, prefix: str = "") -> dict[str, Any]:
    """Return PyTorch's gradient for that of the parameters: d_bias_ih = d_bias_hh = d_b.

    A GRU's candidate has its own: d_bias_hh = d_b_n there.

    Args:
      d_params: as `jax.grad` with respect to what `to_params` returns.
      prefix: what to put before every key.

    Returns:
      A dict of arrays, named as the module's parameters.

    Raises:
      ValueError: PyTorch has no such cell, or there is a readout.
    """
    return _from("interop.torch.from_gradients", d_params, prefix, layout.GRADIENTS)


def load_safetensors(path: Any, *, prefix: str = "") -> tuple[Any, ...]:
    """Return the parameters in a state dict saved as safetensors, PyTorch not needed.

    Args:
      path: of the file.
      prefix: what stands before `weight_ih_l0` in the keys.

    Returns:
      As `to_params`.

    Raises:
      ImportError: the package safetensors is not installed.
      ValueError: a key is missing or a shape does not fit.
    """
    try:
        from safetensors.numpy import load_file
    except ImportError as error:
        raise ImportError(
            "interop.torch.load_safetensors: needs the package safetensors: pip install "
            "'jax_bptt[interop]'."
        ) from error
    function = "interop.torch.load_safetensors"
    return _to(function, load_file(path), prefix, layout.PARAMS)


def _to(function, tree, prefix, rule):
    layout.mapping(function, tree, f"Pass {_PASSED[rule.is_gradient]}.")
    first = "weight_ih_l0"
    found = sorted(key.removesuffix(first) for key in tree if key.endswith(first))
    require(
        prefix + first in tree,
        f"{function}: there is no {prefix + first!r} among the keys. "
        + (f"Pass one of prefix={found}." if found else f"No key ends in {first!r}."),
    )
    layers = []
    while f"{prefix}weight_ih_l{len(layers)}" in tree:
        suffix = f"_l{len(layers)}"
        layer = _direction_to(function, tree, prefix, suffix, rule)
        if f"{prefix}weight_ih{suffix}_reverse" in tree:
            backward = _direction_to(function, tree, prefix, suffix + "_reverse", rule)
            layer = Directions(layer, backward)
        layers.append(layer)
    return tuple(layers)


def _direction_to(function, tree, prefix, suffix, rule):
    def leaf(name, *shape):
        return layout.leaf(function, tree, f"{prefix}{name}{suffix}", *shape)

    w_s, w_p = leaf("weight_hh", None, None).T, None
    if f"{prefix}weight_hr{suffix}" in tree:
        w_p = leaf("weight_hr", w_s.shape[0], None).T
    columns, hidden_size = w_s.shape[1], len(w_s if w_p is None else w_p)
    gates = layout.OURS[layout.count_gates(function, columns, hidden_size)]
    w_x = leaf("weight_ih", columns, None).T
    biases = []
    for name in ("bias_ih", "bias_hh"):
        if f"{prefix}{name}{suffix}" in tree:
            biases.append(leaf(name, columns))
        else:
            biases.append(layout.no_bias(function, rule, f"{prefix}{name}{suffix}", w_x[0]))
    w_x, w_s, *biases = (layout.gates_from(w, gates) for w in (w_x, w_s, *biases))
    params = layout.join_biases(rule, w_x, w_s, *biases)
    return params if w_p is None else ProjectedLSTMParams(params.w_x, params.w_s, params.b, w_p)


def _from(function, params, prefix, rule):
    def checked(layer):
        directions = layer if isinstance(layer, Directions) else (layer,)
        return [layout.recognise(function, p, _REFUSED)[1] for p in directions]

    layers = [checked(layer) for layer in (params if type(params) is tuple else (params,))]
    layout.require_alike(function, [p for layer in layers for p in layer])
    require(
        len({len(layer) for layer in layers}) == 1,
        f"{function}: a module there has one direction or two in every layer, got both.",
    )
    tree = {}
    for index, layer in enumerate(layers):
        for direction, end in zip(layer, ("", "_reverse"), strict=False):
            leaves = _direction_from(direction, rule)
            tree |= {f"{prefix}{name}_l{index}{end}": leaf for name, leaf in leaves.items()}
    return tree


def _direction_from(params, rule):
    gates = layout.OURS[params.w_s.shape[1]]
    b_x, b_s = layout.split_biases(rule, params)
    tree = {
        "weight_ih": layout.gates_to(params.w_x, gates).T.copy(),
        "weight_hh": layout.gates_to(params.w_s, gates).T.copy(),
        "bias_ih": layout.gates_to(b_x, gates),
        "bias_hh": layout.gates_to(b_s, gates),
    }
    if isinstance(params, ProjectedLSTMParams):
        tree["weight_hr"] = params.w_p.T.copy()
    return tree
