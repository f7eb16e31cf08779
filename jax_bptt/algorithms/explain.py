"""The default algorithm and the kernel of `fused` for a run of a cell, in words."""

import jax

from jax_bptt.algorithms.bptt import block_length_of, keeps
from jax_bptt.core import tracing
from jax_bptt.core.checks import batch_shape, require, shown
from jax_bptt.core.sequence import Controls
from jax_bptt.core.types import Algorithm, Cell, DiagonalStep, GatedStep, Inputs, PyTree
from jax_bptt.kernels.choice import check_device, choose


def explain(
    cell: Cell,
    params: PyTree,
    xs: PyTree,
    *,
    algorithm: Algorithm | None = None,
    device: str | None = None,
) -> str:
    """Return in words what `fused()` and `unroll` would run, and what stands in a kernel's way.

    Args:
      cell: a `Cell`.
      params: its parameters, or their `jax.ShapeDtypeStruct`.
      xs: [T, *batch, I], or its `jax.ShapeDtypeStruct`.
      algorithm: one that depends on the shapes, `checkpointed()`, to ask about it alone.
      device: "gpu", "cpu" or "tpu", to ask about another device than JAX's default one.

    Returns:
      A few lines: where `fused()` runs the scan, the reason of each kernel for the device; where a
      kernel, which derivatives are those of the scan; then what `unroll` runs by default, and what
      `autodiff()` would be better for.

    Raises:
      ValueError: the device is none of these, or the algorithm has nothing to say.

    Example:
      >>> import jax, jax.numpy as jnp, jax_bptt as jb
      >>> cell = jb.layer_norm_lstm(input_size=3, hidden_size=64)
      >>> params = cell.init(jax.random.key(0))
      >>> print(jb.explain(cell, params, jnp.ones((10, 2, 3)), device="gpu"))
      fused() runs bptt(), a scan over time:
      its step is no jb.GatedStep, whose product is known from its arithmetic
      unroll runs bptt() by default, T = 10 in blocks of 10 steps: a plain step, whose Jacobian is
      taken within the reverse scan; a jb.GatedStep is faster
      for derivatives of second and higher order autodiff() takes two thirds of its time
    """
    check_device("explain", device)
    told = None if algorithm is None else algorithm.explain
    require(
        algorithm is None or told is not None,
        f"explain: {shown(algorithm)} does the same whatever the shapes; leave algorithm out to "
        "hear what unroll runs by default",
    )
    found = []

    def look(params, xs):
        weights = cell.prepare(params)
        state = cell.initial_state(params, batch_shape(cell, xs))
        if told is not None:
            found.append(told(cell, Inputs(weights, state, xs, None, Controls())))
            return
        found.append(_fused(cell, weights, state, xs, device))
        found.append(_unrolled(cell, weights, state, xs))

    jax.eval_shape(look, params, xs)
    return "\n".join(found)


def _fused(cell: Cell, weights: PyTree, state: PyTree, xs: PyTree, device: str | None) -> str:
    choice = choose(cell, weights, state, xs, device)
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


def _unrolled(cell: Cell, weights: PyTree, state: PyTree, xs: PyTree) -> str:
    if tracing.trace(cell, weights, state, xs).effects:
        return (
            "unroll runs autodiff() by default, the plain scan: a function of the cell has an "
            "effect, such as jax.debug.print, which bptt() would run again"
        )
    if isinstance(cell.step, GatedStep):
        kept = "kept from the forward pass" if keeps(state) else "computed block by block"
        kind = f"a gated step, whose unit-wise\nJacobians are {kept}"
    elif isinstance(cell.step, DiagonalStep):
        kind = (
            "a diagonal step, which\nassociative() runs in parallel over time where there are cores"
        )
    else:
        kind = (
            "a plain step, whose Jacobian is\n"
            "taken within the reverse scan; a jb.GatedStep is faster"
        )
    steps = jax.tree.leaves(xs)[0].shape[0]
    return (
        f"unroll runs bptt() by default, T = {steps} in blocks of "
        f"{block_length_of(cell, weights, xs)} steps: {kind}\n"
        "for derivatives of second and higher order autodiff() takes two thirds of its time"
    )
