r"""One function with a derivative in both modes: forward by JAX, reverse by the explicit pass.

`jax.custom_vjp` has no forward mode and `jax.custom_jvp` takes its reverse mode from the rule for
the forward one. `jax.lax.custom_linear_solve` is the one public operation of JAX that takes a
linear map and its transpose separately and still has derivatives of every order, `vmap` and both
modes. So the tangent map L of a run is stated as the solution of a linear system,

    [  1  0 ] [ u ]   [ d inputs ]
    [ -L  1 ] [ v ] = [    0     ]              =>   v = L d inputs = d outputs

whose solution is forward mode through the plain scan, and whose transposed solution is

    [ 1  -L^T ] [ u ]   [     0     ]
    [ 0    1  ] [ v ] = [ d outputs ]           =>   u = L^T d outputs

the algorithm's own reverse pass. Derivatives of the system with respect to what L is made of give
the higher orders.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero, zero_from_primal

from jax_bptt.core import primal, trees
from jax_bptt.core.sequence import Controls
from jax_bptt.core.types import Algorithm, Cell, PyTree


def differentiable(
    cell: Cell,
    algorithm: Algorithm,
    weights: PyTree,
    state: PyTree,
    xs: PyTree,
    controls: Controls,
) -> tuple[PyTree, PyTree]:
    """Run `algorithm` so that JAX differentiates it by its explicit backward.

    Args:
      cell: the cell.
      algorithm: one with a `backward`, which must be the exact gradient.
      weights: prepared parameters.
      state: s_0.
      xs: [T, *batch, ...].
      controls: when the state moves.

    Returns:
      (last_state, ys).
    """
    backward = algorithm.backward
    assert backward is not None

    @jax.custom_jvp
    def run(*inputs):
        return algorithm.forward(cell, *inputs, False)[0]

    def jvp(inputs, tangents):
        outputs, residuals = algorithm.forward(cell, *inputs, True)
        given = jax.tree.map(_known, tangents, is_leaf=_is_symbolic_zero)

        # Traced once for the two places that call it; and inside `jax.shard_map` the solve below
        # would else make its operands of the constants of a cell, which vary over no mesh axis.
        @jax.jit
        def push(given, inputs):
            return _push_forward(cell, inputs, given)

        @jax.jit
        def pull(d_outputs, residuals):
            d_last_state, d_ys = trees.vary_alike(d_outputs, residuals)
            wants_xs = bool(jax.tree.leaves(given[2]))
            d_inputs = backward(cell, residuals, d_last_state, d_ys, wants_xs)
            return jax.tree.map(
                lambda g, d: None if g is None else d,
                given,
                (*d_inputs, Controls()),
                is_leaf=_is_none,
            )

        def system(vector):
            u, v = _entangle(vector)
            return _entangle((u, jax.tree.map(jnp.subtract, v, push(u, inputs))))

        def solve(_, right):
            u, v = right
            return u, jax.tree.map(jnp.add, v, push(u, inputs))

        def transposed_solve(_, right):
            u, v = right
            return jax.tree.map(jnp.add, u, pull(v, residuals)), v

        inexact, rest = trees.partition(outputs)
        right = given, jax.tree.map(jnp.zeros_like, inexact)
        solution = lax.custom_linear_solve(
            system, _entangle(right), solve=solve, transpose_solve=transposed_solve
        )
        _, d_outputs = _entangle(solution)
        return outputs, trees.combine(d_outputs, jax.tree.map(_zero, rest))

    run.defjvp(jvp, symbolic_zeros=True)
    return run(weights, state, xs, controls)


def twice_differentiable(algorithm: Algorithm) -> Algorithm:
    """Return `algorithm` with a forward pass that JAX can differentiate, by the plain scan.

    The forward pass of `differentiable` is part of the derivative, so that a second one goes
    through it; where it is a kernel, JAX cannot. What it keeps is read by the reverse pass alone,
    which is never differentiated: to all that is known of it, it is constant.
    """

    def forward(cell, weights, state, xs, controls, wants_residuals):
        @jax.custom_jvp
        def run(*inputs):
            return algorithm.forward(cell, *inputs, wants_residuals)

        def jvp(inputs, tangents):
            outputs, residuals = run(*inputs)
            given = jax.tree.map(_known, tangents, is_leaf=_is_symbolic_zero)
            constant = (trees.partition(outputs)[1], residuals)
            without, d_residuals = jax.tree.map(_zero, constant)
            d_outputs = trees.combine(_push_forward(cell, inputs, given), without)
            return (outputs, residuals), (d_outputs, d_residuals)

        run.defjvp(jvp, symbolic_zeros=True)
        return run(weights, state, xs, controls)

    return algorithm._replace(forward=forward)


def _push_forward(cell: Cell, inputs: PyTree, given: PyTree) -> PyTree:
    """Return L d inputs: forward mode through the plain scan, None for zero in `given`."""
    inexact, rest = trees.partition(inputs)
    tangents = jax.tree.map(lambda a, t: jnp.zeros_like(a) if t is None else t, inexact, given)

    def plain(inexact):
        weights, state, xs, controls = trees.combine(inexact, rest)
        last_state, states = primal.scan_states(cell, weights, state, state, xs, controls)
        ys = primal.over_time(cell, cell.readout)(weights, states)
        return trees.partition((last_state, ys))[0]

    return jax.jvp(plain, (inexact,), (tangents,))[1]


def _entangle(tree: PyTree) -> PyTree:
    """Return `tree` as it is, each leaf formally depending on all of them.

    `custom_linear_solve` transposes only if every leaf of the right-hand side depends on what is
    differentiated, while a leaf whose tangent happens to be zero is a constant. The compiler
    removes what is chosen by a constant; nothing of it is computed.
    """

    def first(a):
        return lax.slice(a, [0] * a.ndim, [1] * a.ndim).reshape(()).real.astype(jnp.float32)

    firsts = [first(a) for a in jax.tree.leaves(tree) if a.size]
    if not firsts:
        return tree
    every = jnp.sum(jnp.stack(firsts))
    return jax.tree.map(
        lambda a: a + jnp.where(False, every.astype(a.dtype), jnp.zeros((), a.dtype)), tree
    )


def _known(tangent: Any) -> Any:
    """Return a tangent, or None for one that is zero or cannot be."""
    zero = _is_symbolic_zero(tangent) or tangent.dtype == jax.dtypes.float0
    return None if zero else tangent


def _zero(leaf: Any) -> Any:
    """Return the tangent of a constant."""
    return zero_from_primal(leaf, symbolic_zeros=True)


def _is_symbolic_zero(leaf: Any) -> bool:
    return isinstance(leaf, SymbolicZero)


def _is_none(leaf: Any) -> bool:
    return leaf is None
