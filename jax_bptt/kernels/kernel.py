"""The protocol of a kernel: everything that the algorithms ask of `kernels.gpu` and `kernels.tpu`.

A module there ends with its `KERNEL`, a `GatedKernel` or a `DiagonalKernel`, and `choice.py` lists
it. Nothing else of the module is called from outside.

Axes: T steps, B rows of the batch, H units, in N heads of D units, G gates, E emitted tiles.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from jax import Array

from jax_bptt.kernels.form import Form


class Settings(NamedTuple):
    """How a kernel is run.

    Attributes:
      approximate: whether transcendental functions may be a GPU's own, of about 11 bits; of no
        effect on a TPU, which has no others.
      interpret: what `interpreter` of the kernel returns, or None to run on the device itself.
    """

    approximate: bool = False
    interpret: Any = None


class ForwardInputs(NamedTuple):
    """The arrays that a forward kernel reads, besides the weights in the form.

    Attributes:
      state: the leaves of s_0, float32 [B, H] each.
      drives: floating, [T, B, G, H].
      flags: int32 [T, B] of `form.RESET` and `form.HELD`, or None for neither.
    """

    state: tuple[Array, ...]
    drives: Array
    flags: Array | None


Trajectory = tuple[tuple[Array, ...], tuple[Array, ...]]
"""(states, saved): the leaves of s_1..s_T, float32 [T, B, H] each; arrays of the kernel's own that
its reverse pass reads, in the dtype of the operands."""


class BackwardInputs(NamedTuple):
    """The arrays that a reverse kernel reads, besides the weights in the form.

    Attributes:
      state: the leaves of s_0, float32 [B, H] each.
      states: the leaves of s_1..s_T, float32 [T, B, H] each.
      saved: the second part of the `Trajectory`.
      flags: those of the forward kernel.
      d_last: cotangents of s_T from beyond the run, float32 [B, H] each.
      d_states: cotangents of s_1..s_T from the outputs, float32 [T, B, H] each, or None for zero.
    """

    state: tuple[Array, ...]
    states: tuple[Array, ...]
    saved: tuple[Array, ...]
    flags: Array | None
    d_last: tuple[Array, ...]
    d_states: tuple[Array | None, ...]


class Cotangents(NamedTuple):
    """The results of a reverse kernel.

    Attributes:
      first: those of s_0, float32 [B, H] each.
      start: those of the state that resets go back to, likewise; None without flags.
      emitted: derivatives of drives and feedbacks (`TiledStep.d_drive` and `d_feedback` number
        them), [T, B, E, H] in the dtype of the operands; zero where the state was held.
      lambdas: dL/ds_t, float32 [T, B, H] each; None unless the step reads weights of units.
    """

    first: tuple[Array, ...]
    start: tuple[Array, ...] | None
    emitted: Array
    lambdas: tuple[Array, ...] | None


class GatedKernel(NamedTuple):
    """A pair of kernels that run all steps of a `GatedStep`, forward and reverse.

    Attributes:
      name: as `explain` prints it.
      unsupported: `(form) -> reason`, a line on why the kernels cannot take the form, None if they
        can. It is asked first; the other functions may rely on its None.
      interpreter: `() -> parameters` of JAX's interpreter of such kernels on a CPU.
      forward: `(form, inputs, settings, save) -> Trajectory`; nothing is saved without `save`.
      backward: `(form, inputs, settings) -> Cotangents`. The gradient of the weights is no part of
        it: it is a product over time of these results.
    """

    name: str
    unsupported: Callable[[Form], str | None]
    interpreter: Callable[[], Any]
    forward: Callable[[Form, ForwardInputs, Settings, bool], Trajectory]
    backward: Callable[[Form, BackwardInputs, Settings], Cotangents]


class Scan(Protocol):
    """The recurrence of `kernels.linear` over all steps."""

    def __call__(
        self,
        first: Array,
        factors: Array,
        offsets: Array | None,
        *,
        reverse: bool,
        interpret: Any,
    ) -> tuple[Array, Array]:
        """Run it.

        Args:
          first: v_0, or in reverse the cotangent of s_T from beyond: float32 or complex64 [...],
            not empty.
          factors: a_1..a_T [T, ...], or [1, ...] where all are the same and there are offsets.
          offsets: b_1..b_T [T, ...], T at least 1; None for zero.
          reverse: whether to go from T to 1.
          interpret: as in `Settings`.

        Returns:
          (values, last): v_1..v_T [T, ...], and the number carried out of the last step run [...].
        """
        ...


class DiagonalKernel(NamedTuple):
    """A kernel that runs the recurrence of a `DiagonalStep`, in either direction.

    Attributes:
      name: as `explain` prints it.
      unsupported: `(leaf) -> reason`, a line on why the kernel cannot carry a leaf of the state,
        None if it can.
      interpreter: as in `GatedKernel`.
      scan: the recurrence of one leaf.
    """

    name: str
    unsupported: Callable[[Array], str | None]
    interpreter: Callable[[], Any]
    scan: Scan


Kernel = GatedKernel | DiagonalKernel
