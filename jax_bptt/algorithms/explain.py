"""The default algorithm and the kernel of `fused` for a run of a cell, in words."""

import jax
import jax.numpy as jnp

from jax_bptt.algorithms.bptt import block_length_of, keeps
from jax_bptt.algorithms.fused import in_words
from jax_bptt.algorithms.live_bytes import size
from jax_bptt.core import tracing, trees
from jax_bptt.core.checks import batch_shape, require, shown
from jax_bptt.core.sequence import Controls
from jax_bptt.core.types import Algorithm, Cell, DiagonalStep, GatedStep, Inputs, PyTree
from jax_bptt.kernels.choice import check_device


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
      algorithm: to ask about it alone: what it does, whether its gradient is exact, and the bytes
        that it keeps from the forward pass. Where what decides is the largest Lyapunov exponent
        (`newton`, truncation), it is estimated on the arrays given.
      device: "gpu", "cpu" or "tpu", to ask about another device than JAX's default one.

    Returns:
      A few lines: where `fused()` runs the scan, the reason of each kernel for the device; where a
      kernel, which derivatives are those of the scan; then what `unroll` runs by default, and what
      `autodiff()` would be better for.

    Raises:
      ValueError: the device is none of these, or the algorithm says nothing of itself.

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
        f"explain: {shown(algorithm)} says nothing of itself; leave algorithm out to hear what "
        "unroll runs by default",
    )
    found = []

    def look(params, xs):
        weights = cell.prepare(params)
        state = cell.initial_state(params, batch_shape(cell, xs))
        if algorithm is not None and told is not None:
            inputs = Inputs(weights, state, xs, None, Controls())
            found.extend([told(cell, inputs), _kept(cell, algorithm, inputs)])
            return
        found.append(in_words(cell, Inputs(weights, state, xs, None, None), device))
        found.append(_unrolled(cell, weights, state, xs))

    given = jax.tree.leaves((params, xs))
    if told is not None and not any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in given):
        look(params, jax.tree.map(jnp.asarray, xs))
    else:
        jax.eval_shape(look, params, xs)
    return "\n".join(found)


def _kept(cell: Cell, algorithm: Algorithm, inputs: Inputs) -> str:
    def saved(inputs):
        if algorithm.forward is not None:
            return algorithm.forward(cell, inputs)[1]
        inexact, rest = trees.partition(inputs)
        run = lambda inexact: trees.partition(algorithm.run(cell, trees.combine(inexact, rest)))  # noqa: E731
        return inputs, jax.vjp(run, inexact, has_aux=True)[1]

    count = size(jax.eval_shape(saved, inputs)) - size(inputs)
    return f"it keeps {max(count, 0)} bytes from the forward pass, beside the inputs"


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
