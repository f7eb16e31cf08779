"""The kernel that `fused` would run, or what stands in the way of one, in words."""

import jax

from jax_bptt.core.checks import batch_shape
from jax_bptt.core.types import Cell, PyTree
from jax_bptt.kernels.choice import check_device, choose


def explain(cell: Cell, params: PyTree, xs: PyTree, *, device: str | None = None) -> str:
    """Return in words what `fused()` would run, and what stands in the way of a kernel.

    Args:
      cell: a `Cell`.
      params: its parameters, or their `jax.ShapeDtypeStruct`.
      xs: [T, *batch, I], or its `jax.ShapeDtypeStruct`.
      device: "gpu", "cpu" or "tpu", to ask about another device than JAX's default one.

    Returns:
      A few lines; where the scan runs, the reason of each kernel for the device; where a kernel
      does, which derivatives are those of the scan.

    Raises:
      ValueError: the device is none of these.

    Example:
      >>> import jax, jax.numpy as jnp, jax_bptt as jb
      >>> cell = jb.layer_norm_lstm(input_size=3, hidden_size=64)
      >>> params = cell.init(jax.random.key(0))
      >>> print(jb.explain(cell, params, jnp.ones((10, 2, 3)), device="gpu"))
      fused() runs bptt(), a scan over time:
      its step is no jb.GatedStep, whose product is known from its arithmetic
    """
    check_device("explain", device)
    found = []

    def look(params, xs):
        state = cell.initial_state(params, batch_shape(cell, xs))
        found.append(choose(cell, cell.prepare(params), state, xs, device))

    jax.eval_shape(look, params, xs)
    (choice,) = found
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
