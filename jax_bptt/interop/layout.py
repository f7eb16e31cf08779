"""Parts that the mappings share: gate orders, two biases for one, and refusals.

A gate order is written in our own letters: "a" for the one gate of a simple network, "rzn" for a
GRU, "ifgo" for an LSTM. Theirs is a permutation of these.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jax_bptt.cells.gru import GRUParams
from jax_bptt.cells.lstm_peephole import LSTMPeepholeParams
from jax_bptt.cells.lstm_projected import ProjectedLSTMParams
from jax_bptt.cells.parts import Params
from jax_bptt.core.checks import kind_of, require

OURS = {1: "a", 3: "rzn", 4: "ifgo"}

_CELLS = {
    (Params, 1): "elman",
    (Params, 3): "gru_reset_before",
    (Params, 4): "lstm",
    (GRUParams, 3): "gru",
    (LSTMPeepholeParams, 4): "lstm_peephole",
    (ProjectedLSTMParams, 4): "lstm_projected",
}


class Rule(NamedTuple):
    """How one bias of ours goes with two of theirs that are added up, b_x to the input's part.

    Attributes:
      join: `(b_x, b_s) -> b`.
      split: `b -> (b_x, b_s)`, new arrays.
      is_gradient: whether it is the rule of gradients: each the transpose of the other's opposite.
    """

    join: Callable[[Any, Any], Any]
    split: Callable[[Any], tuple[Any, Any]]
    is_gradient: bool


PARAMS = Rule(lambda b_x, b_s: b_x + b_s, lambda b: (b.copy(), np.zeros_like(b)), False)
GRADIENTS = Rule(lambda d_x, d_s: d_x.copy(), lambda d_b: (d_b.copy(), d_b.copy()), True)


def join_biases(rule: Rule, w_x: Any, w_s: Any, b_x: Any, b_s: Any) -> Params | GRUParams:
    """Return parameters of a cell with two biases [G, H]; three gates are a GRU, reset after.

    The candidate's b_s stands inside the reset, so it is a parameter of its own: our b_n.
    """
    b = rule.join(b_x, b_s)
    if len(b) != 3:
        return Params(w_x, w_s, b)
    b[2] = b_x[2]
    return GRUParams(w_x, w_s, b, b_s[2].copy())


def split_biases(rule: Rule, params: Any) -> tuple[Any, Any]:
    """Return (b_x, b_s), [G, H] each: `join_biases` the other way."""
    b_x, b_s = rule.split(params.b)
    if isinstance(params, GRUParams):
        b_s[2] = params.b_n
    return b_x, b_s


def gates_from(w: Any, theirs: str) -> Any:
    """Return w [..., G H] in `theirs` gate order as [..., G, H] in ours."""
    w = w.reshape(*w.shape[:-1], len(theirs), -1)
    return w[..., [theirs.index(gate) for gate in OURS[len(theirs)]], :]


def gates_to(w: Any, theirs: str) -> Any:
    """Return w [..., G, H] in our gate order as [..., G H] in `theirs`."""
    w = w[..., [OURS[len(theirs)].index(gate) for gate in theirs], :]
    return w.reshape(*w.shape[:-2], -1)


def count_gates(function: str, columns: int, hidden_size: int) -> int:
    """Return G of recurrent weights with G H columns, or raise if no cell has as many gates."""
    gates = columns // max(hidden_size, 1)
    require(
        gates in OURS and gates * hidden_size == columns,
        f"{function}: {columns} numbers per input for {hidden_size} hidden units are not 1 gate "
        "(simple network), 3 (GRU) or 4 (LSTM).",
    )
    return gates


def leaf(function: str, tree: Mapping[str, Any], key: str, *shape: int | None) -> Any:
    """Return `tree[key]` as a new array, its shape checked; None stands for any size."""
    require(
        key in tree, f"{function}: there is no {key!r} among the keys {sorted(map(str, tree))}."
    )
    return array(function, key, tree[key], *shape)


def array(function: str, name: str, value: Any, *shape: int | None) -> Any:
    """Return `value` as a new array, its shape checked; None stands for any size."""
    require(value is not None, f"{function}: {name} is None, where an array was expected.")
    copy = _as_numpy(value).copy()
    fits = len(copy.shape) == len(shape) and all(
        want in (None, got) for got, want in zip(copy.shape, shape, strict=True)
    )
    axes = ", ".join("any" if size is None else str(size) for size in shape)
    require(fits, f"{function}: {name} has shape {list(copy.shape)}, expected [{axes}].")
    return copy


def _as_numpy(value: Any) -> Any:
    """Return an array of any library, with the dtype that it has, as one of NumPy."""
    if hasattr(value, "detach"):  # a tensor of PyTorch, which may require a gradient
        value = value.detach().cpu()
        if str(value.dtype) == "torch.bfloat16":  # NumPy's is in ml_dtypes, which PyTorch knows not
            return np.asarray(value.float()).astype(jnp.bfloat16)
    return np.asarray(value)


def mapping(function: str, tree: Any, way_out: str) -> None:
    """Raise unless `tree` has arrays by name; the way out says how to get them from a module."""
    require(
        isinstance(tree, Mapping),
        f"{function}: expected arrays by name, got {kind_of(tree)}. {way_out}",
        TypeError,
    )


def no_bias(function: str, rule: Rule, name: str, like: Any) -> Any:
    """Return the zeros that stand for an absent bias; an absent gradient is refused."""
    require(
        not rule.is_gradient,
        f"{function}: there is no {name}, so the gradient of the bias is not known. To keep the "
        f"bias as it is, add zeros of shape {list(like.shape)}.",
    )
    return np.zeros_like(like)


def recognise(function: str, params: Any, refused: Mapping[str, str]) -> tuple[str, Any]:
    """Return (the name of the cell, params with NumPy leaves), or refuse them.

    Args:
      function: on whose behalf the errors are raised.
      params: of one cell, or gradients of the same type.
      refused: why, for each cell by name that the target has no counterpart of.

    Returns:
      The name of the constructor in `jax_bptt` and the parameters, each array a copy.

    Raises:
      ValueError: there is no counterpart, or a readout, which belongs to a layer of its own.
    """
    w_s: Any = getattr(params, "w_s", None)
    gates = np.shape(w_s)[1] if np.ndim(w_s) == 3 else 0
    name = _CELLS.get((type(params), gates))
    known = ", ".join(sorted(f"jb.{cell}" for cell in _CELLS.values() if cell not in refused))
    require(
        name is not None,
        f"{function}: got a {type(params).__name__}"
        f"{f' with {gates} gates' if gates else ''}; it takes parameters of {known}.",
    )
    assert name is not None
    require(
        name not in refused,
        f"{function}: jb.{name} has no counterpart there: {refused.get(name)}. It takes parameters "
        f"of {known}.",
    )
    require(
        params.w_y is None,
        f"{function}: the readout w_y has no place in a recurrent layer there. Pass "
        "params._replace(w_y=None), and carry w_y over to a linear layer.",
    )
    return name, type(params)(*(None if p is None else np.asarray(p).copy() for p in params))


def require_alike(function: str, params: Sequence[Any]) -> None:
    """Raise unless all of `params`, layers or directions of one foreign module, are of one cell."""
    seen = {f"{type(p).__name__} with w_s {list(p.w_s.shape)}" for p in params}
    require(
        len(seen) <= 1,
        f"{function}: a module there has one cell and one hidden size throughout, got "
        f"{' and '.join(sorted(seen))}. Map each layer on its own.",
    )


def kernels(function: str, tree: Mapping[str, Any], names: Sequence[str]) -> Any:
    """Return the kernels [N, H] of the dense layers `names`, a gate each, as [N, G, H]."""
    each = [leaf(f"{function}: {name}", tree[name], "kernel", None, None) for name in names]
    return np.stack(each, axis=1)


def biases(function: str, tree: Mapping[str, Any], names: Sequence[str]) -> Any:
    """Return the biases [H] of the dense layers `names`, a gate each, as [G, H]."""
    return np.stack([leaf(f"{function}: {name}", tree[name], "bias", None) for name in names])


def dense(names: Sequence[str], w: Any, b: Any = None) -> dict[str, dict[str, Any]]:
    """Return w [N, G, H] and, if given, b [G, H] as one dense layer per gate."""
    tree = {name: {"kernel": w[:, gate].copy()} for gate, name in enumerate(names)}
    if b is not None:
        for gate, name in enumerate(names):
            tree[name]["bias"] = b[gate].copy()
    return tree
