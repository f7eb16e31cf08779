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

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero, zero_from_primal
from jax.dtypes import float0

from jax_bptt.core import devices, trees
from jax_bptt.core.types import Algorithm, Cell, Inputs, PyTree


def differentiable(cell: Cell, algorithm: Algorithm, inputs: Inputs) -> tuple[PyTree, PyTree]:
    """Run `algorithm` so that JAX differentiates it by its explicit backward.

    Args:
      cell: the cell.
      algorithm: if it has no `backward`, JAX differentiates its `run`.
      inputs: of the run.

    Returns:
      (last_state, ys).
    """
    if algorithm.backward is None or algorithm.forward is None:
        return algorithm.run(cell, inputs)
    forward, backward = algorithm.forward, algorithm.backward

    @jax.custom_jvp
    def run(inputs):
        return algorithm.run(cell, inputs)

    def jvp(primals, tangents):
        with devices.mesh_of(primals):
            return _derivative(primals, tangents)

    def _derivative(primals, tangents):
        (inputs,), (given,) = primals, tangents
        outputs, saved = forward(cell, inputs)
        given = _known(given)
        wanted = jax.tree.map(lambda g: g is not None, given, is_leaf=trees.is_none)

        # Traced once for the two places that call it; and inside `jax.shard_map` the solve below
        # would else make its operands of the constants of a cell, which vary over no mesh axis.
        @jax.jit
        def push(given, inputs):
            return _push_forward(algorithm.run, cell, inputs, given)

        @jax.jit
        def pull(d_outputs, saved):
            d_last_state, d_ys = devices.vary_alike(d_outputs, saved)
            found = backward(cell, saved, d_last_state, d_ys)
            d_inputs = Inputs(*found, wanted.controls)
            chosen = lambda w, d: d if w else None  # noqa: E731
            return jax.tree.map(chosen, wanted, d_inputs, is_leaf=trees.is_none)

        d_outputs = _linear_map(push, pull, given, (inputs, saved), trees.partition(outputs)[0])
        return outputs, with_constants(d_outputs, outputs)

    run.defjvp(jvp, symbolic_zeros=True)
    return run(inputs)


def reverse_only(cell: Cell, algorithm: Algorithm, inputs: Inputs) -> tuple[PyTree, PyTree]:
    """Run `algorithm` as `differentiable` does, without a forward mode: the cell has none."""
    if algorithm.backward is None or algorithm.forward is None:
        return algorithm.run(cell, inputs)
    forward, backward = algorithm.forward, algorithm.backward

    @jax.custom_vjp
    def run(inputs):
        return algorithm.run(cell, inputs)

    def pull(saved, d_outputs):
        with devices.mesh_of(saved):
            d_outputs = jax.tree.map(lambda d: None if d.dtype == float0 else d, d_outputs)
            found = backward(cell, saved, *devices.vary_alike(d_outputs, saved))
            return (Inputs(*found, None),)

    run.defvjp(lambda inputs: forward(cell, inputs), pull)
    return run(inputs)


def forward_mode_of(run: Any, forward: Any) -> Any:
    """Return `forward`, a function that JAX cannot differentiate, with the forward mode of `run`.

    It is part of a derivative, so that a second one goes through it. What it saves is read by the
    reverse pass alone, which is never differentiated: to all that is known of it, it is constant.

    Args:
      run: `(cell, inputs) -> outputs`.
      forward: `(cell, inputs) -> (outputs, saved)`, with the same outputs.
    """

    def differentiable(cell: Cell, inputs: Inputs) -> Any:
        @jax.custom_jvp
        def function(inputs):
            return forward(cell, inputs)

        def jvp(primals, tangents):
            (inputs,), (given,) = primals, tangents
            outputs, saved = function(inputs)
            d_outputs = _push_forward(run, cell, inputs, _known(given))
            d_saved = jax.tree.map(_zero, saved)
            return (outputs, saved), (with_constants(d_outputs, outputs), d_saved)

        function.defjvp(jvp, symbolic_zeros=True)
        return function(inputs)

    return differentiable


def _push_forward(run: Any, cell: Cell, inputs: Inputs, given: Inputs) -> PyTree:
    """Return L d inputs, the derivative of the inexact outputs of `run`.

    Args:
      run: of an `Algorithm`.
      cell: the cell.
      inputs: of the run.
      given: tangents of the inputs, None for zero.
    """
    inexact, rest = trees.partition(inputs)
    tangents = jax.tree.map(lambda a, t: jnp.zeros_like(a) if t is None else t, inexact, given)

    def outputs(inexact):
        return trees.partition(run(cell, trees.combine(inexact, rest)))[0]

    return jax.jvp(outputs, (inexact,), (tangents,))[1]


def _linear_map(push: Any, pull: Any, given: PyTree, known: tuple, like: PyTree) -> PyTree:
    """Return `push(given, inputs)`, whose transpose is `pull(d_outputs, saved)`.

    Args:
      push: L.
      pull: its transpose.
      given: tangents of the inputs.
      known: (inputs, saved).
      like: what L returns.
    """
    inputs, saved = known

    def system(vector):
        u, v = _entangle(vector)
        return _entangle((u, jax.tree.map(lax.sub, v, push(u, inputs))))

    def solve(_, right):
        u, v = right
        return u, jax.tree.map(lax.add, v, push(u, inputs))

    def transposed_solve(_, right):
        u, v = right
        return jax.tree.map(lax.add, u, pull(v, saved)), v

    right = _entangle((given, jax.tree.map(jnp.zeros_like, like)))
    solution = lax.custom_linear_solve(system, right, solve=solve, transpose_solve=transposed_solve)
    return _entangle(solution)[1]


def _entangle(tree: PyTree) -> PyTree:
    """Return `tree` as it is, each leaf formally depending on all of them.

    `custom_linear_solve` transposes only if every leaf of the right-hand side depends on what is
    differentiated, while a leaf whose tangent happens to be zero is a constant. The compiler
    removes what is chosen by a constant; nothing of it is computed. (A barrier would be shorter,
    but keeps zeros from being removed, and in later versions of JAX does not entangle.)
    """
    sums = [jnp.sum(a).real.astype(jnp.float32) for a in jax.tree.leaves(tree)]
    every = functools.reduce(lax.add, sums, jnp.float32(0))

    def leaf(a):
        zero = lax.select(False, every.astype(a.dtype), jnp.zeros((), a.dtype))
        return lax.add(a, lax.broadcast(zero, a.shape))

    return jax.tree.map(leaf, tree)


def _known(tangents: Inputs) -> Inputs:
    """Return tangents with None for one that is zero or cannot be, and for the controls'."""

    def known(tangent):
        zero = _is_symbolic_zero(tangent) or tangent.dtype == float0
        return None if zero else tangent

    given = jax.tree.map(known, tangents, is_leaf=_is_symbolic_zero)
    return given._replace(controls=jax.tree.map(lambda _: None, given.controls))


def with_constants(d_outputs: PyTree, outputs: PyTree) -> PyTree:
    """Return tangents of all leaves of `outputs`, zero for those that are not inexact."""
    return trees.combine(d_outputs, jax.tree.map(_zero, trees.partition(outputs)[1]))


def _zero(leaf: Any) -> Any:
    """Return the tangent of a constant."""
    return zero_from_primal(leaf, symbolic_zeros=True)


def _is_symbolic_zero(leaf: Any) -> bool:
    return isinstance(leaf, SymbolicZero)
