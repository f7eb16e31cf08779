"""The reverse recursion as an associative scan over Jacobians.

S. Wang, Y. Bai and G. Pekhimenko (2020), "BPPSA: scaling back-propagation by parallel scan
algorithm", MLSys.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jax_bptt.algorithms import jacobians
from jax_bptt.algorithms.associative import associative
from jax_bptt.algorithms.bptt import Saved, bptt, in_blocks
from jax_bptt.core import devices, trees
from jax_bptt.core.checks import is_integer, require, shown
from jax_bptt.core.reverse import Surroundings, cross
from jax_bptt.core.types import Algorithm, Cell, DiagonalStep, Gradient, Inputs, PyTree
from jax_bptt.core.values import as_value


@as_value
def parallel_adjoint(*, block_length: int | None = None) -> Algorithm:
    """Return backpropagation through time whose reverse recursion runs in parallel over time.

        lambda_{t-1} = J_t^T lambda_t + g_{t-1}           t = K..1

    is a linear recurrence once all states are known. Two steps in a row are one of the same kind,
    with the product of their Jacobians, so that K of them take O(log K) dependent operations.

    The forward pass is the scan of `bptt`. The reverse pass takes blocks of K steps from the last;
    in each it makes the K Jacobians as matrices, of N blocks D x D for every sequence, and joins
    them. Work is O(T B N D^3) in place of O(T B N D^2), memory K B N D^2: D is 1 for `indrnn`, H
    for a GRU, 2H for an LSTM, and a Nth of it in N heads. A `DiagonalStep` has no matrices, and
    runs as in `associative`. Exact.

    When to take it: small states, long sequences, and a device that has more cores than B N D^2
    keeps busy. On a CPU it is slower than `bptt()`, and the wider the state the more.

    A cell of one's own that does not say `any_batch=True` may mix sequences, and has Jacobians of
    the whole batch, B D x B D.

    Args:
      block_length: K, in steps; by default such that the Jacobians take 32 MiB.

    Returns:
      An `Algorithm` for `unroll`.

    Raises:
      ValueError: `block_length` is not a positive integer, or T is a symbolic size.

    Example:
      >>> import jax, jax.numpy as jnp, jax_bptt as jb
      >>> cell = jb.gru(input_size=3, hidden_size=4)
      >>> params, xs = cell.init(jax.random.key(0)), jnp.ones((100, 2, 3))
      >>> jb.unroll(cell, params, xs, algorithm=jb.parallel_adjoint())[1].shape
      (100, 2, 4)
    """
    positive_steps("parallel_adjoint", block_length)
    scan = bptt(recompute=True)
    pull = backward("parallel_adjoint", block_length)

    def explain(cell, inputs):
        made = in_words("parallel_adjoint", cell, inputs, block_length)
        return f"parallel_adjoint() is exact\n{made}"

    return Algorithm(scan.run, scan.forward, pull, explain=explain)


def in_words(name: str, cell: Cell, inputs: Inputs, block_length: int | None) -> str:
    """Return what the algorithm `name` makes of the Jacobians."""
    if isinstance(cell.step, DiagonalStep) and _differentiable(inputs.state):
        return "its reverse pass is that of associative()"
    length = jacobians.block_length_of(name, cell, inputs, block_length)
    space = jacobians.vectors(cell, inputs)
    *batch, groups, size = space.shape
    count = math.prod(space.shape) * size * space.dtype.itemsize * length
    return (
        f"Jacobians are {groups} blocks of {size} x {size} for each of {math.prod(batch)} "
        f"sequences, {length} steps at a time: {count} bytes"
    )


def positive_steps(name: str, block_length: int | None) -> None:
    """Raise unless the block length of the algorithm `name` is one."""
    require(
        block_length is None or (is_integer(block_length) and block_length > 0),
        f"{name}: block_length must be a positive number of steps or None, got "
        f"{shown(block_length)}",
    )


def backward(name: str, block_length: int | None) -> Callable[..., Gradient]:
    """Return the reverse pass in parallel over blocks of time, for the algorithm `name`."""

    def pull(cell: Cell, saved: Saved, d_last_state: PyTree, d_ys: PyTree) -> Gradient:
        length = jacobians.block_length_of(name, cell, saved.inputs, block_length)
        if isinstance(cell.step, DiagonalStep) and _differentiable(saved.inputs.state):
            diagonal = associative().backward
            assert diagonal is not None
            return diagonal(cell, saved[:2], d_last_state, d_ys)
        space = jacobians.vectors(cell, saved.inputs)
        return in_blocks(_gradient(space), cell, saved, d_last_state, d_ys, length)

    return pull


def _differentiable(state: PyTree) -> bool:
    return all(map(trees.is_inexact, jax.tree.leaves(state)))


def _gradient(space: jacobians.Vectors) -> Callable[..., Gradient]:
    """Return the gradient of a block, as `reverse.gradient`, for states of that space."""

    def gradient(inputs: Inputs, around: Surroundings, lam: PyTree) -> Gradient:
        linear, g, accumulate = around
        lam = devices.shard_alike(lam, inputs.xs, len(space.shape) - 2)
        steps = linear.residuals, inputs.controls

        def back(residual, control, d_state):
            return cross(linear, residual, control, d_state)

        def jacobian(residual, control):
            return jacobians.matrix(lambda d: back(residual, control, d)[0], space, lam)

        # With m_t = lambda_t - g_t, what reaches s_t from later steps: m_{t-1} = J_t^T (m_t + g_t).
        count = jax.tree.leaves(inputs.xs)[0].shape[0]
        zeros = jax.tree.map(lambda d: jnp.broadcast_to(jnp.zeros_like(d), (count, *d.shape)), lam)
        g = jax.vmap(space.flat)(
            # Zeros are laid out on devices as what they stand beside.
            jax.tree.map(lambda zeros, g: zeros if g is None else g, zeros, g)
        )
        matrices = jax.vmap(jacobian)(*steps)
        offsets = jacobians.apply(matrices, g)
        reached = jacobians.recurrence(matrices, offsets, space.flat(lam), reverse=True)
        lambdas = jax.vmap(space.tree)(reached[1:] + g)
        _, d_starts, emitted = jax.vmap(back)(*steps, lambdas)
        d_weights, d_xs = accumulate(lambdas, emitted)
        d_start = jax.tree.map(lambda d: d.sum(0), d_starts)
        return Gradient(d_weights, space.tree(reached[0]), d_xs, d_start)

    return gradient
