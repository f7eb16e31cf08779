"""The forward pass in parallel over time: all states at once, as the solution of one system.

Y. H. Lim, Q. Zhu, J. Selfridge and M. F. Kasim (2024), "Parallelizing non-linear sequential models
over the sequence length", ICLR. X. Gonzalez, A. Warrington, J. T. H. Smith and S. W. Linderman
(2024), "Towards scalable and stable parallelization of nonlinear RNNs", NeurIPS.
"""

import math
import numbers
import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jax_bptt.algorithms import jacobians, parallel_adjoint
from jax_bptt.algorithms.bptt import Saved, bptt
from jax_bptt.algorithms.exponents import exponent_in_words
from jax_bptt.algorithms.kalman import smoothed
from jax_bptt.core import blocks, trees
from jax_bptt.core.checks import is_integer, require, shown
from jax_bptt.core.derivative import forward_mode_of
from jax_bptt.core.forward import Stretch, entering, forward_scan, over_time
from jax_bptt.core.linearize import linearize
from jax_bptt.core.reverse import cross
from jax_bptt.core.types import Algorithm, Cell, Inputs, PyTree
from jax_bptt.core.values import as_value


class Settings(NamedTuple):
    """The arguments of `newton`."""

    jacobian: str
    damping: float
    trust_region: float | None
    max_iterations: int
    tolerance: float | None
    block_length: int | None


class Solved(NamedTuple):
    """The states of a run, and how they were found.

    Attributes:
      states: s_1..s_T.
      iterations: of Newton's method, the most that a block took.
      residual: the largest of any block at its last iteration.
      converged: whether none of the blocks was run sequentially.
    """

    states: PyTree
    iterations: Array
    residual: Array
    converged: Array


@as_value
def newton(
    *,
    jacobian: str = "full",
    damping: float = 0.0,
    trust_region: float | None = None,
    max_iterations: int = 64,
    tolerance: float | None = None,
    block_length: int | None = None,
) -> Algorithm:
    """Return exact BPTT whose forward pass runs in parallel over time, by Newton's method.

        s^{i+1}_t = f(s^i_{t-1}) + A_t (s^{i+1}_{t-1} - s^i_{t-1})        A_t = df/ds at s^i_{t-1}

    All steps are taken at once from the states of the last iteration, and what they got wrong is
    carried on by a linear recurrence, which an associative scan runs in O(log T) dependent
    operations. After i iterations the first i states are exact, so that T always suffice; what
    decides is whether far fewer do. With the largest Lyapunov exponent of the network below zero
    the number grows as (log T)^2 at most; above zero a scan is faster (Gonzalez et al. 2025,
    arXiv:2508.16817). `newton_solution` returns the number.

    Iterations stop where no state differs from the step taken before it by more than `tolerance`.
    A block of time that has not got there after `max_iterations` is run again by the plain scan,
    and a RuntimeWarning says so: the result is right either way. The gradient is that of the states
    found, by `parallel_adjoint`; forward mode is that of the scan.

    Work is O(T B N D^3) an iteration and memory K B N D^2, with blocks of N and D as in
    `parallel_adjoint`; K steps are solved at once.

    Args:
      jacobian: "full", or "diagonal" for the diagonal of A_t alone (quasi-Newton): work and memory
        O(T B N D) but for making it, more iterations.
      damping: k in [0, 1), for (1 - k) A_t in place of A_t, where iterates grow too fast.
      trust_region: sigma, in the unit of the state: how far an iterate may move from the last one,
        as the standard deviation of a Kalman smoother that takes the last for a noisy observation
        (ELK). None for no limit, which is Newton's method.
      max_iterations: at least 1.
      tolerance: largest difference |s_t - f(s_{t-1})| relative to the largest |s_t|, above 0; by
        default the machine epsilon to the power 3/4: 2e-12 in double precision, 6e-6 in single.
      block_length: K, in steps; by default such that the Jacobians take 32 MiB.

    Returns:
      An `Algorithm` for `unroll`, which raises a TypeError for a cell with integers in its state.

    Raises:
      ValueError: an argument is out of range.
      TypeError: an argument is of the wrong kind.

    Example:
      >>> import jax, jax.numpy as jnp, jax_bptt as jb
      >>> cell = jb.gru(input_size=3, hidden_size=4)
      >>> params, xs = cell.init(jax.random.key(0)), jnp.ones((100, 2, 3))
      >>> jb.unroll(cell, params, xs, algorithm=jb.newton())[1].shape
      (100, 2, 4)
    """
    settings = Settings(jacobian, damping, trust_region, max_iterations, tolerance, block_length)
    _check(settings)
    scan = bptt(recompute=True)

    def values(cell: Cell, inputs: Inputs) -> tuple[tuple[PyTree, PyTree], Saved]:
        found = solve(cell, inputs, settings)
        ys = over_time(cell, cell.readout)(inputs.weights, found.states)
        return (last(inputs.state, found.states), ys), Saved(inputs, found.states, None)

    def run(cell: Cell, inputs: Inputs) -> tuple[PyTree, PyTree]:
        outputs = jax.custom_jvp(lambda inputs: values(cell, inputs)[0])
        outputs.defjvp(lambda *args: jax.jvp(lambda inputs: scan.run(cell, inputs), *args))
        return outputs(inputs)

    def explain(cell, inputs):
        _check_state(inputs.state)
        return (
            "newton() solves for the states of a block of time at once, and is exact\n"
            f"{parallel_adjoint.in_words('newton', cell, inputs, block_length)}\n"
            f"{exponent_in_words(cell, inputs)}: below zero it takes few iterations, above zero "
            "bptt() is faster"
        )

    pull = parallel_adjoint.backward("newton", block_length)
    return Algorithm(run, forward_mode_of(scan.run, values), pull, explain=explain)


def last(state: PyTree, states: PyTree) -> PyTree:
    """Return s_T, which is s_0 where T = 0."""
    return jax.tree.map(lambda s, ss: ss[-1] if ss.shape[0] else s, state, states)


def solve(cell: Cell, inputs: Inputs, settings: Settings) -> Solved:
    """Return the states of a run, block by block of time."""
    _check_state(inputs.state)
    length = jacobians.block_length_of("newton", cell, inputs, settings.block_length)
    space = jacobians.vectors(cell, inputs)
    weights, state, xs, start, controls = inputs

    def block(carry, steps):
        state, told = carry
        _, (xs, controls) = steps
        own = Inputs(weights, state, xs, start, controls)
        found, states = _solve_block(cell, own, settings, space)
        told = jax.tree.map(jnp.maximum, told, found)
        return (last(state, states), told), states

    nothing = jnp.int32(0), jnp.zeros((), space.dtype), jnp.bool_(False)
    (_, told), states = blocks.scan_blocks(block, (state, nothing), (None, (xs, controls)), length)
    iterations, residual, failed = told
    return Solved(states, iterations, residual, ~failed)


def _solve_block(
    cell: Cell, inputs: Inputs, settings: Settings, space: jacobians.Vectors
) -> tuple[tuple[Array, Array, Array], PyTree]:
    """Return ((iterations, residual, failed), states) of K steps."""
    weights, state, xs, start, controls = inputs
    flat, tree = jax.vmap(space.flat), jax.vmap(space.tree)
    drives = over_time(cell, cell.project)(weights, xs)
    tolerance = settings.tolerance
    if tolerance is None:
        tolerance = float(jnp.finfo(space.dtype).eps) ** 0.75

    def stepped(states):
        """Take all steps at once: what entered them, what they made of it, and what left them."""
        prevs = entering(start, state, states, controls)
        new = over_time(cell, cell.step)(weights, prevs, drives)
        return prevs, new, controls.hold(new, prevs)

    def improved(carry):
        iteration, states, (prevs, new, left), _ = carry
        linear = linearize(cell, weights, Stretch(prevs, drives, new))

        def jacobian(residual, control):
            def back(d_state):
                # JAX pairs a complex cotangent with a tangent without conjugating it.
                return conjugate(cross(linear, residual, control, conjugate(d_state))[0])

            return jnp.swapaxes(jacobians.matrix(back, space, state), -1, -2)

        a = (1 - settings.damping) * jax.vmap(jacobian)(linear.residuals, controls)
        states = tree(_carried_on(a, flat(states), flat(left), space.flat(state), settings))
        taken = stepped(states)
        return iteration + 1, states, taken, _residual(flat(states), flat(taken[2]))

    def conjugate(tree):
        return jax.tree.map(jnp.conj, tree)

    def goes_on(carry):
        iteration, _, _, residual = carry
        return (iteration < settings.max_iterations) & (residual > tolerance) & (residual < jnp.inf)

    count = jax.tree.leaves(xs)[0].shape[0]
    states = jax.tree.map(lambda s: jnp.broadcast_to(s, (count, *s.shape)), state)
    if count == 0:
        return (jnp.int32(0), jnp.zeros((), space.dtype), jnp.bool_(False)), states
    taken = stepped(states)
    first = jnp.int32(0), states, taken, _residual(flat(states), flat(taken[2]))
    iterations, _, (_, _, states), residual = lax.while_loop(goes_on, improved, first)
    failed = ~(residual <= tolerance)

    def sequential(states):
        jax.debug.callback(_warn, failed, iterations, residual)
        return forward_scan(cell, inputs)[1]

    return (iterations, residual, failed), lax.cond(failed, sequential, lambda s: s, states)


def _carried_on(a: Array, states: Array, left: Array, first: Array, settings: Settings) -> Array:
    """Return the next iterate, [K, *batch, N, D].

    Args:
      a: A_1..A_K.
      states: the last iterate s^i_1..s^i_K.
      left: f(s^i_0)..f(s^i_{K-1}).
      first: s_0.
      settings: of the method.
    """
    shape = states.shape
    prevs = jnp.concatenate([first[None], states[:-1]])
    if settings.jacobian == "diagonal":
        # As N D groups of one unit each.
        a = jnp.diagonal(a, axis1=-2, axis2=-1).reshape(*shape[:-2], -1, 1, 1)
        states, left, prevs = (v.reshape(*shape[:-2], -1, 1) for v in (states, left, prevs))
        first = first.reshape(*first.shape[:-2], -1, 1)
    offsets = left - jacobians.apply(a, prevs)
    if settings.trust_region is None:
        found = jacobians.recurrence(a, offsets, first)[1:]
    else:
        found = smoothed(a, offsets, first, states, settings.trust_region**2)
    return found.reshape(shape)


def _residual(states: Array, left: Array) -> Array:
    """Return the largest difference relative to the largest state; NaN and infinity stay."""
    scale = jnp.max(jnp.abs(left))
    return jnp.max(jnp.abs(states - left)) / jnp.where(scale == 0, 1, scale)


def _warn(failed: Any, iterations: Any, residual: Any) -> None:
    # Under `jax.vmap` both branches of a condition run.
    if failed:
        warnings.warn(
            f"newton: not converged after {int(iterations)} iterations, with a residual of "
            f"{float(residual):.1e}; these steps were run by the plain scan. Take jb.bptt() where "
            "the largest Lyapunov exponent is above zero, or a smaller block_length.",
            RuntimeWarning,
            stacklevel=2,
        )


def _check_state(state: PyTree) -> None:
    require(
        all(map(trees.is_inexact, jax.tree.leaves(state))),
        "newton: every leaf of the state must be floating-point or complex; with integers in the "
        "state take jb.bptt().",
        TypeError,
    )


def _check(settings: Settings) -> None:
    """Raise for settings that are none."""
    require(
        settings.jacobian in ("full", "diagonal"),
        f'newton: jacobian must be "full" or "diagonal", got {shown(settings.jacobian)}',
    )
    for name, optional in (
        ("damping", ""),
        ("trust_region", " or None"),
        ("tolerance", " or None"),
    ):
        value = getattr(settings, name)
        number = isinstance(value, numbers.Real) and not isinstance(value, bool)
        require(
            number or (value is None and optional != ""),
            f"newton: {name} must be a number{optional}, got {shown(value)}",
            TypeError,
        )
        size = None if value is None else float(value)
        in_range = size is None or (0 <= size < 1 if name == "damping" else 0 < size < math.inf)
        wanted = "at least 0 and below 1" if name == "damping" else "above 0 and finite"
        require(in_range, f"newton: {name} must be {wanted}, got {shown(value)}")
    require(
        is_integer(settings.max_iterations) and settings.max_iterations > 0,
        f"newton: max_iterations must be a positive integer, got {shown(settings.max_iterations)}",
    )
    parallel_adjoint.positive_steps("newton", settings.block_length)
