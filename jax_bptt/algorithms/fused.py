"""All steps of a sequence in one kernel, forward and reverse, where there is one for the device."""

from collections.abc import Callable

from jax_bptt.algorithms.bptt import bptt
from jax_bptt.algorithms.fused_diagonal import fused_diagonal
from jax_bptt.algorithms.fused_gated import fused_gated
from jax_bptt.core.checks import require, shown
from jax_bptt.core.derivative import forward_mode_of
from jax_bptt.core.types import Algorithm, Cell, Inputs
from jax_bptt.core.values import as_value
from jax_bptt.kernels.choice import check_device, choose
from jax_bptt.kernels.kernel import DiagonalKernel, Settings


@as_value
def fused(
    *, approximate: bool = False, interpret: bool = False, device: str | None = None
) -> Algorithm:
    """Return backpropagation through time with all T steps in one kernel, where there is one.

    A scan starts several GPU kernels a step, each of which takes longer to start than to run for a
    layer of usual size, and reads the recurrent matrix from memory at each. Here the arithmetic of
    a `GatedStep` is traced into one kernel that keeps the matrix next to the units that multiply,
    from the first step to the last; the reverse pass is a second kernel of that kind. Input
    products, readout and the gradients of the weights are batched over time, as in `bptt`. As in
    FlashRNN, but for any gated cell. The recurrence of a `DiagonalStep` is a kernel as well, one
    that reads every coefficient once and writes every state once.

    The rule by which a kernel is chosen, each time a run is traced (`explain` prints the outcome):

    - T and B are not 0, and there are no resets but of a `DiagonalStep`;
    - the step is a `DiagonalStep` of float32 or complex64 state, or a `GatedStep` of float32 state
      [*batch, H] whose product reads one leaf of it;
    - of the kernels for the device and the kind of step, the first that takes the cell's form: its
      heads (see `multi_head`; a dense matrix is one head), gates and dtype.

    ======  ==============  ========================================================================
    device  kernel          takes
    ======  ==============  ========================================================================
    GPU     `gpu_heads`     heads of 32, 64, 96 or 128 units, up to 4 gates, a matrix that fits into
                            registers: up to 128 units in bfloat16, 64 in float32
    GPU     `gpu_cluster`   a dense matrix of 64 to 512 units, a multiple of 32, up to 4 gates, that
                            fits into registers and shared memory of up to 8 multiprocessors, a
                            cluster, whose blocks send one another what each of them needs
    GPU     `gpu_diagonal`  any `DiagonalStep`
    TPU     `tpu_resident`  any heads and gates, in bfloat16 or float32, whose matrices fit into the
                            vector memory, with 16 MiB and a block of the sequence beside them: of
                            128 MiB, an LSTM of up to 3584 units in bfloat16, 2560 in float32
    TPU     `tpu_diagonal`  any `DiagonalStep`
    ======  ==============  ========================================================================

    Those of a GPU take JAX 0.11.1 or later.

    Elsewhere `bptt()` runs, with the same result. Derivatives in forward mode and of higher order
    are those of the plain scan.

    States are carried in float32. The product takes its operands in the dtype in which `mix` does;
    float32 has products as good as its own: on a GPU of three bfloat16 pieces each, whose six
    largest products leave an error of 1e-8. What the forward kernel keeps for the reverse one, five
    arrays of [T, B, H] for an LSTM, is in the dtype of the operands. The kernels have been compiled
    for an H200 and a TPU v5e and run in the interpreter of JAX; they have not been run on either,
    so that nothing is known of their speed, and `unroll` takes one only when told to.

    Args:
      approximate: whether a GPU's transcendental functions may be the hardware's own, of about 11
        bits: enough for operands of bfloat16, but not for a gate that has to keep a state over a
        thousand steps. Else they are computed to single precision, of what the hardware has so
        precisely or by NVIDIA's library. On a TPU they are the compiler's in any case.
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
        message = f"fused: {name} must be True or False, got {shown(value)}"
        require(isinstance(value, bool), message, TypeError)
    check_device("fused", device)
    message = "fused: interpret=True needs to be told whose kernels, such as device='gpu'"
    require(device is not None or not interpret, message)

    def chosen(cell: Cell, inputs: Inputs) -> Algorithm | None:
        choice = choose(cell, inputs.weights, inputs.state, inputs.xs, device)
        if isinstance(choice, str):
            return None
        kernel, form = choice
        settings = Settings(approximate, kernel.interpreter() if interpret else None)
        if isinstance(kernel, DiagonalKernel):
            return fused_diagonal(kernel.scan, settings.interpret)
        if inputs.start is not None:
            # The resets of a gated step's kernel go back to the state that it begins from.
            return None
        assert form is not None, kernel.name
        return fused_gated(kernel, form, settings)

    def explain(cell: Cell, inputs: Inputs) -> str:
        return in_words(cell, inputs, device)

    return by_kernel(chosen)._replace(explain=explain)


def by_kernel(kernel: Callable[[Cell, Inputs], Algorithm | None]) -> Algorithm:
    """Return the algorithm that runs `kernel(cell, inputs)`, or `bptt()` where that is None.

    Forward mode is that of the scan: JAX cannot differentiate a kernel. A kernel is chosen anew in
    each pass: what it is made of has to be made within what has a derivative of its own. The choice
    follows from the inputs, so that it is the same in all of them.
    """
    scan = bptt()

    def chosen(cell, inputs):
        return kernel(cell, inputs) or scan

    def alone(cell, inputs):
        return chosen(cell, inputs).run(cell, inputs), ()

    def saving(cell, inputs):
        forward = chosen(cell, inputs).forward
        assert forward is not None
        return forward(cell, inputs)

    def run(cell, inputs):
        if kernel(cell, inputs) is None:
            return scan.run(cell, inputs)
        return forward_mode_of(scan.run, alone)(cell, inputs)[0]

    def forward(cell, inputs):
        if kernel(cell, inputs) is None:
            return saving(cell, inputs)
        return forward_mode_of(scan.run, saving)(cell, inputs)

    def backward(cell, saved, d_last_state, d_ys):
        own = chosen(cell, saved.inputs).backward
        assert own is not None
        return own(cell, saved, d_last_state, d_ys)

    return Algorithm(run, forward, backward)


def in_words(cell: Cell, inputs: Inputs, device: str | None) -> str:
    """Return which kernel `fused` runs on a device, or what stands in the way of each."""
    choice = choose(cell, inputs.weights, inputs.state, inputs.xs, device)
    if isinstance(choice, str):
        return f"fused() runs bptt(), a scan over time:\n{choice}"
    kernel, form = choice
    rest = (
        "derivatives in forward mode and of second or higher order run the scan\n"
        "unroll takes it when told to: algorithm=jb.fused()"
    )
    if form is None:
        told = f"fused() runs the kernel {kernel.name}: the recurrence of all steps in one launch"
        return f"{told}\n{rest}"
    heads, size, gates, _ = form.matrix.shape
    return (
        f"fused() runs the kernel {kernel.name}: all steps in one launch, {heads} x {size} units, "
        f"{gates} gates,\nproducts of {form.matrix.dtype}, {form.step.saved} arrays [T, B, H] kept "
        f"besides the states\n{rest}"
    )
