"""A layer of this library as a module of Flax nnx, with the call of `nnx.RNN`."""

# Flax is an extra, so that it may be absent where types are checked.
# pyright: reportMissingImports=false

from typing import Any

import flax.nnx as nnx
import jax
from jax import Array

from jax_bptt.algorithms.tree_checks import same_structure
from jax_bptt.core.checks import require
from jax_bptt.core.types import Algorithm, Cell, PyTree
from jax_bptt.interop.adaptors import sequences
from jax_bptt.layers.layer import Layer

_NAME = "interop.nnx.Recurrent"


class Recurrent(nnx.Module):
    """A cell or layer of this library in place of `nnx.RNN`.

    The call is that of `nnx.RNN`, so that it also serves within `nnx.Bidirectional`. Every array of
    `layer.init` is an `nnx.Param` of its own, at `params` and its name: `params.w_x`. What differs:

    - Outputs beyond `seq_lengths` are zero, and a sequence of length 0 returns its initial carry.
    - A carry is the layer's own state: of an LSTM `jb.LSTMState(h, c)`, where Flax has (c, h).
    - A layer that draws masks has a stream `dropout`, and does so unless `deterministic`, which
      `module.train()`, `module.eval()` and `nnx.view` set.
    - `resets` says where a new sequence begins.

    Attributes:
      layer: what is run, a `jb.Layer`.
      params: its parameters, as `layer.init` makes them, with an `nnx.Param` for each array.
      rngs: the stream that masks are drawn from; None where none are.
      deterministic: whether no masks are drawn.
    """

    def __init__(
        self,
        layer: Cell | Layer,
        *,
        time_major: bool = False,
        return_carry: bool = False,
        reverse: bool = False,
        keep_order: bool = False,
        unroll: int = 1,
        state_axes: Any = None,
        broadcast_rngs: Any = None,
        deterministic: bool = False,
        algorithm: Algorithm | None = None,
        rngs: Any,
    ):
        """Draw the parameters.

        Args:
          layer: a `jb.Cell`, or a `jb.Layer` such as a `jb.stack`.
          time_major: whether inputs are [T, *batch, ...]; by default [*batch, T, ...].
          return_carry: whether a call returns (carry, outputs); by default outputs alone.
          reverse: whether each sequence runs from its last step to its first.
          keep_order: whether outputs of a reversed run stay where their inputs are.
          unroll: 1, for there is no such setting here.
          state_axes: None, for a cell here has no state of its own.
          broadcast_rngs: None, for a layer here says itself what it draws.
          deterministic: whether a layer that draws masks draws none.
          algorithm: as in `jb.unroll`.
          rngs: an `nnx.Rngs`; parameters are drawn from its stream `params`, and masks from a fork
            of its stream `dropout`.

        Raises:
          TypeError: `layer` is no cell or layer, or `rngs` no `nnx.Rngs`.
          ValueError: an argument of `nnx.RNN` that has no meaning here, or no stream for masks.

        Example:
          >>> import jax.numpy as jnp, jax_bptt as jb
          >>> from flax import nnx
          >>> layer = jb.interop.nnx.Recurrent(jb.lstm(3, 5), rngs=nnx.Rngs(0))
          >>> layer(jnp.ones((2, 7, 3))).shape
          (2, 7, 5)
        """
        _refuse(unroll, state_axes, broadcast_rngs)
        require(
            isinstance(rngs, nnx.Rngs),
            f"{_NAME}: rngs must be an nnx.Rngs, such as nnx.Rngs(0), got {type(rngs).__name__}.",
            TypeError,
        )
        self.layer = sequences.as_layer(_NAME, layer)
        self.time_major = time_major
        self.return_carry = return_carry
        self.reverse = reverse
        self.keep_order = keep_order
        self.deterministic = deterministic
        self.algorithm = algorithm
        drawn = self.layer.init(sequences.typed(rngs.params()))
        self.params = nnx.data(jax.tree.map(nnx.Param, drawn))
        random = sequences.draws_masks(self.layer)
        self.rngs = nnx.data(_dropout(rngs).fork() if random else None)

    def __call__(
        self,
        inputs: PyTree,
        *,
        initial_carry: PyTree | None = None,
        seq_lengths: Any = None,
        return_carry: bool | None = None,
        time_major: bool | None = None,
        reverse: bool | None = None,
        keep_order: bool | None = None,
        rngs: Any = None,
        deterministic: bool | None = None,
        resets: Any = None,
    ) -> Any:
        """Run the layer over sequences; None is the setting of the constructor.

        Args:
          inputs: [*batch, T, ...], or [T, *batch, ...] where `time_major`.
          initial_carry: the state to start from; None for the layer's own.
          seq_lengths: integer [*batch], the number of steps of each sequence.
          return_carry: whether to return (carry, outputs).
          time_major: whether time is the first axis.
          reverse: whether each sequence runs from its last step to its first.
          keep_order: whether outputs of a reversed run stay where their inputs are; without it they
            come in the order of the run, padding at the end.
          rngs: an `nnx.Rngs`, a stream or a key to draw masks from in place of the module's own. A
            stream `carry`, as `nnx.Bidirectional` passes, is left alone: no carry is drawn here.
          deterministic: whether to draw no masks.
          resets: bool, on the axes of time and batch: the first steps of new sequences.

        Returns:
          outputs, or (carry, outputs): the state after each sequence's last step.

        Raises:
          TypeError: an argument is of the wrong kind, structure or dtype.
          ValueError: a shape does not fit.
        """
        call = sequences.Call(
            inputs=inputs,
            initial_carry=initial_carry,
            seq_lengths=seq_lengths,
            resets=resets,
            time_major=self.time_major if time_major is None else time_major,
            reverse=self.reverse if reverse is None else reverse,
            keep_order=self.keep_order if keep_order is None else keep_order,
            key=self._key(rngs, self.deterministic if deterministic is None else deterministic),
            algorithm=self.algorithm,
        )
        carry, outputs = sequences.run(_NAME, self.layer, self.get_params(), call)
        returned = self.return_carry if return_carry is None else return_carry
        return (carry, outputs) if returned else outputs

    def initialize_carry(self, input_shape: tuple[int, ...], rngs: Any = None) -> PyTree:
        """Return the carry that a call starts from by default.

        Args:
          input_shape: [*batch, ...] of one input, without time.
          rngs: not read, for no carry is drawn.

        Returns:
          The state of the layer, for `initial_carry`.
        """
        del rngs
        batch = sequences.batch_shape(self.layer, input_shape)
        return self.layer.initial_state(self.get_params(), batch)

    def get_params(self) -> PyTree:
        """Return the parameters as `layer.init` makes them, for `jb.step` and `jb.interop`."""
        return jax.tree.map(lambda p: p[...], self.params, is_leaf=_is_variable)

    def set_params(self, params: PyTree) -> None:
        """Take over parameters, such as those that `jb.interop.torch.to_params` returns.

        Args:
          params: as `layer.init` makes them.

        Raises:
          TypeError: they have another structure.
          ValueError: an array has another shape.
        """
        own = self.get_params()
        way_out = "Make them with the init of this layer, or map them by jb.interop."
        same_structure(_NAME, "params", params, own, "this module", way_out)
        variables = jax.tree.leaves(self.params, is_leaf=_is_variable)
        for variable, new in zip(variables, jax.tree.leaves(params), strict=True):
            new = jax.numpy.asarray(new)
            require(
                new.shape == variable[...].shape,
                f"{_NAME}: params of shape {new.shape} are given for {variable[...].shape}.",
            )
            variable.set_value(new)

    def set_view(self, deterministic: bool | None = None) -> None:
        """Set `deterministic`, on behalf of `nnx.view`.

        Args:
          deterministic: whether no masks are drawn; None leaves it.
        """
        if deterministic is not None:
            self.deterministic = deterministic

    def _key(self, rngs: Any, deterministic: bool) -> Array | None:
        if self.rngs is None or deterministic:
            return None
        if isinstance(rngs, Array):
            return sequences.typed(rngs)
        if isinstance(rngs, nnx.Rngs):
            rngs = _dropout(rngs)
        if rngs is None or rngs.tag == "carry":
            rngs = self.rngs
        return rngs()


def _is_variable(node: Any) -> bool:
    return isinstance(node, nnx.Variable)


def _dropout(rngs: Any) -> Any:
    """Return the stream of an `nnx.Rngs` that masks are drawn from."""
    require(
        "dropout" in rngs or "default" in rngs,
        f"{_NAME}: this layer draws masks, and rngs has no stream for them. Pass "
        "nnx.Rngs(params=0, dropout=1), or nnx.Rngs(0) for all.",
    )
    return rngs.dropout


def _refuse(unroll: int, state_axes: Any, broadcast_rngs: Any) -> None:
    """Raise where an argument of `nnx.RNN` has no meaning here."""
    require(
        unroll == 1,
        f"{_NAME}: unroll={unroll} cannot be had: blocks of time are linearised at once instead. "
        "Their length is algorithm=jb.bptt(block_length=...).",
    )
    require(
        state_axes is None,
        f"{_NAME}: state_axes says what becomes of a cell's variables in nnx.scan, and a cell here "
        "has none but its parameters. Leave it out.",
    )
    require(
        broadcast_rngs is None,
        f"{_NAME}: broadcast_rngs says what is drawn once for all steps, and here a layer does. "
        "Leave it out; jb.variational_dropout and jb.recurrent_dropout draw one mask a sequence.",
    )
