"""Layers of this library as modules of Flax linen: `nn.RNN`'s call, and `ScannedRNN`."""

# Flax is an extra, so that it may be absent where types are checked.
# pyright: reportMissingImports=false

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import FrozenDict
from jax import Array

from jax_bptt.algorithms.tree_checks import same_structure
from jax_bptt.algorithms.unroll import unroll as run_cell
from jax_bptt.cells.gru import gru
from jax_bptt.core import jaxprs
from jax_bptt.core.checks import kind_of, require
from jax_bptt.core.types import Cell, PyTree
from jax_bptt.interop.adaptors import sequences
from jax_bptt.layers.layer import Layer

_NAME = "interop.linen.Recurrent"
_SCANNED = "interop.linen.ScannedRNN"
_PARAMS = "layer"
"""The name under which a module keeps all parameters."""

_SCAN_SETTINGS = {
    "unroll": 1,
    "variable_axes": {},
    "variable_broadcast": "params",
    "variable_carry": False,
    "split_rngs": {"params": False},
}
"""Settings that `nn.RNN` passes on to `nn.scan`, at the defaults, which are all there is here."""


@dataclasses.dataclass(frozen=True)
class _Held:
    """A cell, layer or algorithm as linen keeps it: of a bare tuple it would make a copy."""

    value: Any

    def __repr__(self) -> str:
        """Return how the value itself is shown."""
        return repr(self.value)


class Recurrent(nn.Module):
    """A cell or layer of this library in place of `nn.RNN`.

    The call is that of `nn.RNN`, so that it also serves within `nn.Bidirectional`. The parameters
    are at `layer`, as dicts of arrays by their names: `variables["params"]["layer"]["w_x"]`. What
    differs:

    - Outputs beyond `seq_lengths` are zero, and a sequence of length 0 returns its initial carry.
    - A carry is the layer's own state: of an LSTM `jb.LSTMState(h, c)`, where Flax has (c, h).
    - A layer that draws masks takes `deterministic`, here or in the call, and draws from the
      stream `dropout`, as `nn.Dropout` does.
    - `resets` says where a new sequence begins.
    - Settings of `nn.scan` other than its defaults are refused.

    A module of one's own holds a `Recurrent` in a field, as it would an `nn.RNN`, not a bare layer:
    linen copies the tuples that it finds in fields, and a copy does not know what it is made of.

    Attributes:
      layer: a `jb.Cell`, or a `jb.Layer` such as a `jb.stack`.
      time_major: whether inputs are [T, *batch, ...]; by default [*batch, T, ...].
      return_carry: whether a call returns (carry, outputs); by default outputs alone.
      reverse: whether each sequence runs from its last step to its first.
      keep_order: whether outputs of a reversed run stay where their inputs are.
      unroll: 1.
      variable_axes: {}.
      variable_broadcast: "params".
      variable_carry: False.
      split_rngs: {"params": False}.
      deterministic: whether a layer that draws masks draws none.
      algorithm: as in `jb.unroll`.

    Raises:
      TypeError: `layer` is no cell or layer.
      ValueError: a setting of `nn.scan` is not its default.

    Example:
      >>> import jax, jax.numpy as jnp, jax_bptt as jb
      >>> layer = jb.interop.linen.Recurrent(jb.lstm(3, 5))
      >>> xs = jnp.ones((2, 7, 3))
      >>> layer.apply(layer.init(jax.random.key(0), xs), xs).shape
      (2, 7, 5)
    """

    layer: Any
    time_major: bool = False
    return_carry: bool = False
    reverse: bool = False
    keep_order: bool = False
    unroll: int = 1
    variable_axes: Mapping[Any, Any] = FrozenDict()
    variable_broadcast: Any = "params"
    variable_carry: Any = False
    split_rngs: Mapping[Any, bool] = FrozenDict({"params": False})
    deterministic: bool | None = None
    algorithm: Any = None

    def __post_init__(self):
        """Check the settings, and hold the tuples that linen would copy."""
        for name, default in _SCAN_SETTINGS.items():
            given = getattr(self, name)
            given = dict(given) if isinstance(given, Mapping) else given
            require(
                given == default,
                f"{_NAME}: {name}={given!r} is a setting of nn.scan, which is not used here: a "
                "layer has no variables but its parameters and draws its masks itself. Leave it "
                "out; the length of a block of time is algorithm=jb.bptt(block_length=...).",
            )
        _hold(self, "layer", lambda given: sequences.as_layer(_NAME, given))
        _hold(self, "algorithm", lambda given: given)
        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        inputs: PyTree,
        *,
        initial_carry: PyTree | None = None,
        init_key: Array | None = None,
        seq_lengths: Any = None,
        return_carry: bool | None = None,
        time_major: bool | None = None,
        reverse: bool | None = None,
        keep_order: bool | None = None,
        deterministic: bool | None = None,
        resets: Any = None,
    ) -> Any:
        """Run the layer over sequences; None is the value of the module's field.

        The arguments are those of `interop.nnx.Recurrent`. Masks are drawn from the stream
        `dropout`, and `init_key` is not read, for no carry is drawn.

        Returns:
          outputs, or (carry, outputs): the state after each sequence's last step.

        Raises:
          TypeError: an argument is of the wrong kind, structure or dtype.
          ValueError: a shape does not fit, or `deterministic` is given twice, or not at all to a
            layer that draws masks.
        """
        del init_key
        layer: Layer = self.layer.value
        params = _params(self, _NAME, layer)
        key = None
        if sequences.draws_masks(layer):
            if not nn.merge_param("deterministic", self.deterministic, deterministic):
                key = sequences.typed(self.make_rng("dropout"))
        call = sequences.Call(
            inputs=inputs,
            initial_carry=initial_carry,
            seq_lengths=seq_lengths,
            resets=resets,
            time_major=self.time_major if time_major is None else time_major,
            reverse=self.reverse if reverse is None else reverse,
            keep_order=self.keep_order if keep_order is None else keep_order,
            key=key,
            algorithm=self.algorithm.value,
        )
        carry, outputs = sequences.run(_NAME, layer, params, call)
        returned = self.return_carry if return_carry is None else return_carry
        return (carry, outputs) if returned else outputs

    @nn.nowrap
    def to_params(self, variables: Mapping[str, Any]) -> PyTree:
        """Return the parameters as `layer.init` makes them, for `jb.step` and `jb.interop`.

        Args:
          variables: of this module alone, `{"params": {"layer": {name: array}}}`.

        Returns:
          Parameters of the layer.

        Raises:
          ValueError: one is missing.
        """
        tree = variables.get("params", {}).get(_PARAMS, {})
        return sequences.from_dict(_NAME, _params_spec(self.layer.value), tree)

    @nn.nowrap
    def from_params(self, params: PyTree) -> dict[str, Any]:
        """Return the variables of this module for parameters; inverse of `to_params`.

        Args:
          params: as `layer.init` makes them, such as `jb.interop.torch.to_params` returns.

        Returns:
          `{"params": {"layer": {name: array}}}`.
        """
        return {"params": {_PARAMS: sequences.to_dict(params)}}


class ScannedRNN(nn.Module):
    """The recurrent network of reinforcement learning: `(carry, (ins, resets)) -> (carry, ys)`.

    The module that repositories for RL in JAX copy from one another, by its name and with its call.
    The state starts again before every step whose `resets` is true: `resets[t]` says that `ins[t]`
    is the first observation of an episode. That is the `done` which the environment returned one
    step earlier, together with that observation.

    Attributes:
      cell: a constructor `(input_size, hidden_size) -> Cell`, whose sizes are those of the inputs
        and of the carry; or a `jb.Cell`, which has its own.
      algorithm: as in `jb.unroll`.

    Example:
      >>> import jax, jax.numpy as jnp, jax_bptt as jb
      >>> rnn = jb.interop.linen.ScannedRNN()
      >>> carry = rnn.initialize_carry(2, 5)
      >>> x = jnp.ones((7, 2, 3)), jnp.zeros((7, 2), bool)
      >>> carry, ys = rnn.apply(rnn.init(jax.random.key(0), carry, x), carry, x)
      >>> carry.shape, ys.shape
      ((2, 5), (7, 2, 5))
    """

    cell: Any = gru
    algorithm: Any = None

    def __post_init__(self):
        """Hold the tuples that linen would copy."""
        _hold(self, "cell", lambda given: given)
        _hold(self, "algorithm", lambda given: given)
        super().__post_init__()

    @nn.compact
    def __call__(self, carry: PyTree, x: tuple[Any, Any]) -> tuple[PyTree, PyTree]:
        """Run over T steps.

        Args:
          carry: [B, H], what `initialize_carry` or an earlier call returned.
          x: (ins [T, B, F], resets [T, B]), the latter true where an episode begins.

        Returns:
          (carry, ys): the state after the last step, and the outputs [T, B, H].

        Raises:
          TypeError: `cell` makes no cell, or the carry is not its state.
          ValueError: a shape does not fit.
        """
        ins, resets = x
        leaves = jax.tree.leaves(carry)
        require(len(leaves) > 0, f"{_SCANNED}: carry holds no array. Pass initialize_carry(B, H).")
        cell = _sized(self.cell.value, jnp.shape(ins)[-1], jnp.shape(leaves[0])[-1])
        params = _params(self, _SCANNED, cell)
        batch = jnp.shape(resets)[1:]
        expected = jax.eval_shape(lambda params: cell.initial_state(params, batch), params)
        way_out = "Make it with the cell: initialize_carry(B, H, cell)."
        same_structure(_SCANNED, "carry", carry, expected, "the state of this cell", way_out)
        return run_cell(
            cell,
            params,
            ins,
            carry,
            resets=jnp.asarray(resets).astype(bool),
            algorithm=self.algorithm.value,
        )

    @staticmethod
    def initialize_carry(
        batch_size: int, hidden_size: int, cell: Cell | Callable[..., Cell] = gru
    ) -> PyTree:
        """Return the state from which a cell starts, for a batch.

        Args:
          batch_size: B.
          hidden_size: H.
          cell: what the module has as its `cell`.

        Returns:
          The state, [B, H] for a GRU, `jb.LSTMState(h, c)` for an LSTM.

        Raises:
          ValueError: the cell learns its initial state, which is among its parameters.
        """
        cell = _sized(cell, 1, hidden_size)
        spec = _params_spec(cell)

        def start(params):
            return cell.initial_state(params, (batch_size,))

        require(
            not any(jax.tree.leaves(jaxprs.used_leaves(start, spec))),
            f"{_SCANNED}: {cell} learns its initial state, which is among the parameters. Start "
            "from cell.initial_state(params, (B,)) instead.",
        )
        return start(jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), spec))


def _sized(cell: Any, input_size: int, hidden_size: int) -> Cell:
    """Return a cell, made by its constructor if that is what is given."""
    made: Any = cell
    if not isinstance(cell, Cell) and callable(cell):
        made = cell(input_size, hidden_size)
    require(
        isinstance(made, Cell),
        f"{_SCANNED}: cell must be a constructor of (input_size, hidden_size) such as jb.gru, or a "
        f"jb.Cell, got {kind_of(made)}.",
        TypeError,
    )
    return made


def _hold(module: nn.Module, name: str, checked: Callable[[Any], Any]) -> None:
    given = getattr(module, name)
    if not isinstance(given, _Held):  # it is one in a clone
        object.__setattr__(module, name, _Held(checked(given)))


def _params(module: Any, function: str, layer: Cell | Layer) -> PyTree:
    """Return the parameters that a bound module keeps for a layer, drawn where there are none."""

    def init(key):
        return sequences.to_dict(layer.init(sequences.typed(key)))

    spec = _params_spec(layer)
    if not jax.tree.leaves(spec):
        return spec
    return sequences.from_dict(function, spec, module.param(_PARAMS, init))


def _params_spec(layer: Cell | Layer) -> PyTree:
    return jax.eval_shape(layer.init, jax.random.key(0))
