"""A gated cell with all steps of a sequence in one kernel, forward and reverse."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jax_bptt.core import adjoint, trees
from jax_bptt.core.bptt import bptt
from jax_bptt.core.checks import batch_shape, require
from jax_bptt.core.sequence import Controls
from jax_bptt.core.types import Algorithm, GatedStep, PyTree
from jax_bptt.kernels.choice import Kernel, check_device, choose
from jax_bptt.kernels.form import HELD, RESET, Form, normal_form, split_gates, stack_gates


class _Kept(NamedTuple):
    """What the reverse kernel reads, besides the arguments of the run: states and saved tiles."""

    kernel: Kernel
    inputs: tuple[PyTree, PyTree, PyTree, Controls]
    states: PyTree
    saved: tuple[Array, ...]


def fused(
    *, approximate: bool = False, interpret: bool = False, device: str | None = None
) -> Algorithm:
    """Return backpropagation through time with all T steps in one kernel, where there is one.

    A scan starts several GPU kernels a step, each of which takes longer to start than to run for a
    layer of usual size, and reads the recurrent matrix from memory at each. Here the arithmetic of
    a `GatedStep` is traced into one kernel that keeps the matrix next to the units that multiply,
    from the first step to the last; the reverse pass is a second kernel of that kind. Input
    products, readout and the gradients of the weights are batched over time, as in `bptt`. As in
    FlashRNN, but for any gated cell.

    The rule by which a kernel is chosen, each time a run is traced (`explain` prints the outcome):

    - T and B are not 0, and the step is a `GatedStep` of float32 state [*batch, H] whose product
      reads one leaf of it;
    - of the kernels for the device, the first in order of preference that takes the cell's form:
      its heads (see `multi_head`; a dense matrix is one head), gates and dtype.

    ======  ==============  ========================================================================
    device  kernel          takes
    ======  ==============  ========================================================================
    GPU     `gpu_heads`     heads of 32, 64, 96 or 128 units, up to 4 gates, a matrix that fits into
                            registers: up to 128 units in bfloat16, 64 in float32; JAX 0.11 or later
    TPU     `tpu_resident`  any heads and gates, in bfloat16 or float32, whose matrices fit into the
                            vector memory, with 16 MiB and a block of the sequence beside them: of
                            128 MiB, an LSTM of up to 3584 units in bfloat16, 2560 in float32
    ======  ==============  ========================================================================

    Elsewhere `bptt()` runs, with the same result. Derivatives in forward mode and of higher order
    are those of the plain scan.

    States are carried in float32. The product takes its operands in the dtype in which `mix` does;
    float32 has products as good as its own: on a GPU of three bfloat16 pieces each, whose six
    largest products leave an error of 1e-8. What the forward kernel keeps for the reverse one, five
    arrays of [T, B, H] for an LSTM, is in the dtype of the operands. The kernels have been compiled
    for an H200 and a TPU v5e and run in the interpreter of JAX; they have not been run on either,
    so that nothing is known of their speed.

    Args:
      approximate: whether a GPU's transcendental functions may be the hardware's own, of about 11
        bits: enough for bfloat16. On a TPU they are the compiler's in any case.
      interpret: whether to run the kernels in JAX's interpreter on a CPU, for tests: very slow.
      device: "gpu", "cpu" or "tpu", whose kernels to take; None for JAX's default one. To be given
        with `interpret`, and in order to compile for a device that is not there.

    Returns:
      An `Algorithm` for `unroll`.

    Raises:
      TypeError: a flag is no bool.
      ValueError: the device is none of these, or is not given with `interpret`.

    References:
      K. Poppel, M. Beck and S. Hochreiter (2024), "FlashRNN: optimizing traditional RNNs on modern
      hardware".

    Example:
      >>> import jax, jax.numpy as jnp, jax_bptt as jb
      >>> cell = jb.multi_head(jb.lstm(input_size=3, hidden_size=64), heads=2)
      >>> params, xs = cell.init(jax.random.key(0)), jnp.ones((10, 2, 3))
      >>> jb.unroll(cell, params, xs, algorithm=jb.fused())[1].shape
      (10, 2, 64)
    """
    for name, value in (("approximate", approximate), ("interpret", interpret)):
        message = f"fused: {name} must be True or False, got {value!r}"
        require(isinstance(value, bool), message, TypeError)
    check_device("fused", device)
    message = "fused: interpret=True needs to be told whose kernels, such as device='gpu'"
    require(device is not None or not interpret, message)
    scan = bptt()

    def forward(cell, weights, state, xs, controls):
        choice = choose(cell, weights, state, xs, device)
        if isinstance(choice, str):
            return scan.forward(cell, weights, state, xs, controls)
        kernel, form = choice
        drives = adjoint.over_time(cell, cell.project)(weights, xs)
        batch = batch_shape(cell, xs)
        (steps,) = jax.tree.leaves(xs)[0].shape[:1]
        gates = stack_gates(drives, 1 + len(batch))
        rows = math.prod(batch)
        found, saved = kernel.forward(
            form,
            _flat(state, rows),
            gates.reshape(steps, rows, *gates.shape[-2:]),
            _flags(controls, steps, rows),
            save=True,
            approximate=approximate,
            interpret=kernel.interpreter(interpret),
        )
        leaves, structure = jax.tree.flatten(state)
        shaped = [s.reshape(steps, *like.shape) for s, like in zip(found, leaves, strict=True)]
        states = jax.tree.unflatten(structure, shaped)
        ys = adjoint.over_time(cell, cell.readout)(weights, states)
        last_state = jax.tree.map(lambda s: s[-1], states)
        return (last_state, ys), _Kept(kernel, (weights, state, xs, controls), states, saved)

    def backward(cell, residuals, d_last_state, d_ys):
        if not isinstance(residuals, _Kept):
            assert scan.backward is not None
            return scan.backward(cell, residuals, d_last_state, d_ys)
        kernel, (weights, state, xs, controls), states, saved = residuals
        form, step = normal_form(cell, weights, state, xs), cell.step
        assert isinstance(form, Form) and isinstance(step, GatedStep)
        batch = batch_shape(cell, xs)
        (steps,), rows = jax.tree.leaves(xs)[0].shape[:1], math.prod(batch)
        d_readout, d_states = adjoint.readout_gradient(cell, weights, states, d_ys)
        structure = jax.tree.structure(state)
        given = jax.tree.leaves(d_states, is_leaf=lambda d: d is None)
        d_first, d_start, emitted, lambdas = kernel.backward(
            form,
            _flat(state, rows),
            _flat(states, steps, rows),
            saved,
            _flags(controls, steps, rows),
            _flat(d_last_state, rows),
            tuple(d if d is None else d.reshape(steps, rows, -1) for d in given),
            approximate=approximate,
            interpret=kernel.interpreter(interpret),
        )
        d_state = _shaped(d_first, structure, batch)
        if d_start is not None:
            d_state = trees.add(d_state, _shaped(d_start, structure, batch))

        drives, pull_project = trees.inexact_vjp(adjoint.over_time(cell, cell.project), weights, xs)
        prevs = adjoint.previous_states(state, state, states, controls)
        feedbacks, pull_mix = trees.inexact_vjp(
            lambda w: adjoint.over_time(cell, step.mix)(w, prevs), weights
        )

        def cotangent(numbers, like):
            zero = jnp.zeros_like(emitted[0])
            gates = [zero if k is None else emitted[k] for k in numbers]
            stacked = jnp.stack(gates, axis=2)
            shaped = stacked.reshape(steps, *batch, *stacked.shape[2:])
            return split_gates(shaped, like, 1 + len(batch))

        (d_weights,) = pull_mix(cotangent(form.step.d_feedback, feedbacks))
        if lambdas is not None:
            _, pull = trees.inexact_vjp(
                lambda w: adjoint.over_time(cell, step.pointwise)(w, prevs, drives, feedbacks),
                weights,
            )
            d_weights = trees.add(d_weights, pull(_shaped(lambdas, structure, (steps, *batch)))[0])
        d_project, d_xs = pull_project(cotangent(form.step.d_drive, drives))
        d_weights = trees.add(d_weights, d_project)
        if d_readout is not None:
            d_weights = trees.add(d_weights, d_readout)
        return trees.cast_gradient(d_weights, weights), d_state, d_xs

    return Algorithm(forward, backward)


def _flags(controls: Controls, steps: int, rows: int) -> Array | None:
    """Return the controls as the kernels take them, int32 [T, B], or None without any."""
    if controls.advance is None and controls.reset is None:
        return None
    flags = jnp.zeros((steps, rows), jnp.int32)
    if controls.reset is not None:
        flags = flags | jnp.where(controls.reset.reshape(steps, rows), RESET, 0)
    if controls.advance is not None:
        flags = flags | jnp.where(controls.advance.reshape(steps, rows), 0, HELD)
    return flags.astype(jnp.int32)


def _flat(state: PyTree, *leading: int) -> tuple[Array, ...]:
    """Return the leaves [*leading, H] of a state, whose batch may have any number of axes."""
    return tuple(s.reshape(*leading, s.shape[-1]) for s in jax.tree.leaves(state))


def _shaped(leaves: tuple[Array, ...], structure: Any, leading: tuple[int, ...]) -> PyTree:
    return jax.tree.unflatten(structure, [a.reshape(*leading, a.shape[-1]) for a in leaves])
