"""The Lyapunov exponents of a run: how fast perturbations of its states grow, or are forgotten."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jax_bptt.algorithms.exponents import TRANSIENT, directions
from jax_bptt.algorithms.jacobians import vectors
from jax_bptt.algorithms.unroll import compiled_once
from jax_bptt.core.checks import is_integer, require, shown
from jax_bptt.core.types import Cell, Inputs, PyTree
from jax_bptt.diagnostics.trajectory import Trajectory, linearization, push_step


class LyapunovSpectrum(NamedTuple):
    """Lyapunov exponents, per step, to the base e, and how far they have settled.

    Attributes:
      exponents: [*batch, count], the largest first; -inf in directions that the states forget.
      running: [M, *batch, count], the same from the steps up to each of `times`; the last entry
        are the exponents.
      times: t of the M orthogonalisations that count, integer [M].
      overshoot: [*batch], in nats: by how much the growth along the leading direction exceeds
        what its exponent makes of as many steps, at most. Zero for steady growth.
    """

    exponents: Array
    running: Array
    times: Array
    overshoot: Array

    @property
    def kaplan_yorke(self) -> Array:
        """The dimension of the attractor as Kaplan and Yorke (1979) conjecture it, [*batch].

        j + (l_1 + .. + l_j) / |l_{j+1}|, with the largest j for which the sum is not negative.
        It is `count` where no sum is: the dimension is at least that, and more exponents will say.
        """
        sums = jnp.cumsum(self.exponents, -1)
        j = jnp.sum(sums >= 0, -1, keepdims=True)
        zero = jnp.zeros_like(sums[..., :1])
        sums = jnp.concatenate([zero, sums], -1)
        after = jnp.concatenate([self.exponents, zero - jnp.inf], -1)
        part = jnp.take_along_axis(sums, j, -1) / jnp.abs(jnp.take_along_axis(after, j, -1))
        return (j.astype(part.dtype) + part)[..., 0]


def lyapunov_spectrum(
    run: Trajectory, *, count: int | None = None, transient: int | None = None, every: int = 1
) -> LyapunovSpectrum:
    """Return the largest Lyapunov exponents along a run.

        Q_t R_t = J_t Q_{t-1}        exponent i = mean over t of log |R_t[i, i]|

    The first k of them say how fast a volume of k dimensions grows that moves with the run. Where
    steps keep groups of units apart, as `multi_head` does, each group has exponents of its own,
    and those of the run are the largest of all. A cell whose functions do not take any batch
    (`any_batch`) has one spectrum for the whole batch.

    The mean is over the steps that were taken: held by `lengths` or `mask`, a state is not any
    older. Across a reset nothing is left, and every exponent is -inf. So is one that arithmetic
    cannot tell from it: what is left of its direction, on average, is rounding. Where a few steps
    lose a direction, as where a maximum changes sides, each counts as the logarithm of rounding.

    It is differentiable, along the run as well: gradient flossing (Engelken 2023) is gradient
    descent on `jnp.mean(lyapunov_spectrum(run, count=k).exponents ** 2)`. All exponents that are
    asked for have to be finite for that.

    Time is that of `count` forward passes and T / every QR decompositions of D x count.

    Args:
      run: of T steps.
      count: how many exponents; by default all, as many as the state has real numbers.
      transient: how many steps turn the directions without being counted; by default T // 10.
      every: steps between two orthogonalisations. More are faster, and lose the smaller exponents
        to rounding.

    Raises:
      ValueError: `count`, `transient` or `every` is out of range.

    References:
      G. Benettin, L. Galgani, A. Giorgilli and J.-M. Strelcyn (1980), "Lyapunov characteristic
      exponents for smooth dynamical systems and for Hamiltonian systems", Meccanica 15.
      I. Shimada and T. Nagashima (1979), "A numerical approach to ergodic problem of dissipative
      dynamical systems", Progress of Theoretical Physics 61(6).
      K. Geist, U. Parlitz and W. Lauterborn (1990), "Comparison of different methods for computing
      Lyapunov exponents", Progress of Theoretical Physics 83(5).

    Example:
      >>> import jax, jax.numpy as jnp, jax_bptt as jb
      >>> cell = jb.indrnn(input_size=1, hidden_size=2, activation=None)
      >>> params = cell.init(jax.random.key(0))._replace(w_s=jnp.array([0.5, 0.9]))
      >>> run = jb.diagnostics.trajectory(cell, params, jnp.ones((200, 1)))
      >>> found = jb.diagnostics.lyapunov_spectrum(run)
      >>> [round(float(jnp.exp(exponent)), 3) for exponent in found.exponents]
      [0.9, 0.5]
    """
    name = "lyapunov_spectrum"
    steps, (*_, groups, size) = run.steps, run.space.shape
    count = groups * size if count is None else count
    transient = steps // TRANSIENT if transient is None else transient
    require(
        is_integer(count) and 0 < count <= groups * size,
        f"{name}: count must be from 1 to {groups * size}, the real numbers of a state, got "
        f"{shown(count)}",
    )
    require(
        is_integer(transient) and 0 <= transient < steps,
        f"{name}: transient must be 0 <= transient < T={steps}, for a step to be left that counts, "
        f"got {shown(transient)}",
    )
    require(
        is_integer(every) and every > 0,
        f"{name}: every must be a positive number of steps, got {shown(every)}",
    )
    spectrum = compiled_once(_spectrum, run.runs, int(count), int(transient), int(every))
    return spectrum(run.inputs, run.states)


def _spectrum(
    cell: Cell, count: int, transient: int, every: int, inputs: Inputs, states: PyTree
) -> LyapunovSpectrum:
    *batch, groups, size = vectors(cell, inputs).shape
    of_each = min(count, size)
    ends = np.arange(1, jax.tree.leaves(inputs.xs)[0].shape[0] + 1)
    # Blocks begin anew where the transient ends, so that what counts are whole steps.
    due = ((ends - transient) % every == 0) | (ends == len(ends))
    counted = np.flatnonzero(due & (ends > transient))
    growth, left = jax.tree.map(
        lambda a: a[counted].reshape(len(counted), *batch, groups * of_each),
        _growth(cell, of_each, due, inputs, states),
    )
    taken = _taken(inputs, len(batch), len(ends))
    age = jnp.cumsum(taken[transient:], 0)[counted - transient].astype(growth.dtype)
    moved = (jnp.diff(age, axis=0, prepend=0) > 0)[..., None]

    total = jnp.cumsum(growth, 0)
    running = total / age[..., None]
    rounding = math.log(4 * math.sqrt(size) * jnp.finfo(growth.dtype).eps)
    # One at a time: a single step that by chance leaves little is still a number.
    left = jnp.mean(left, 0, where=moved, keepdims=True)
    running = jnp.where(left < rounding, -jnp.inf, running)

    order = jnp.argsort(-running[-1], axis=-1)[..., :count]
    running, total = (jnp.take_along_axis(a, order[None], -1) for a in (running, total))
    leading = running[-1, ..., 0]
    expected = jnp.where(jnp.isneginf(leading), 0, leading)[None] * age
    overshoot = jnp.maximum(jnp.max(total[..., 0] - expected, 0), 0)
    return LyapunovSpectrum(running[-1], running, jnp.asarray(ends[counted]), overshoot)


def _taken(inputs: Inputs, axes: int, steps: int) -> Array:
    """Return which steps are taken, [T, *batch] with as many batch axes as there are spectra."""
    advance = inputs.controls.advance
    if advance is None:
        return jnp.ones((steps, *[1] * axes), int)
    return jnp.any(advance, axis=tuple(range(axes + 1, advance.ndim))).astype(int)


def _growth(
    cell: Cell, count: int, due: np.ndarray, inputs: Inputs, states: PyTree
) -> tuple[Array, Array]:
    """Return log |R_t[i, i]|, and the log of the share of column i that R_t[i, i] is.

    Args:
      cell: the cell.
      count: number of columns in each group.
      due: bool [T], after which steps to orthogonalise.
      inputs: of the run.
      states: s_1..s_T.

    Returns:
      Two arrays [T, *batch, N, count], zero where nothing is due.
    """
    linear = linearization(cell, inputs, states)
    space = vectors(cell, inputs)

    def orthogonalise(columns):
        q, r = jnp.linalg.qr(columns)
        size = jnp.abs(jnp.diagonal(r, axis1=-2, axis2=-1))
        whole = lax.stop_gradient(jnp.sqrt(jnp.sum(columns**2, -2)))
        left = lax.stop_gradient(size) / jnp.where(whole == 0, 1, whole)
        return q, jnp.log(size), jnp.log(left)

    def leave(columns):
        nothing = jnp.zeros_like(columns[..., 0, :])
        return columns, nothing, nothing

    def step(columns, at):
        residual, control, due_now = at

        def push(v):
            return space.flat(push_step(linear, residual, control, space.tree(v)))

        columns = jax.vmap(push, -1, -1)(columns)
        if due.all():
            columns, size, left = orthogonalise(columns)
        else:
            columns, size, left = lax.cond(due_now, orthogonalise, leave, columns)
        return columns, (size, left)

    first = jnp.linalg.qr(directions(space, inputs.state, count))[0]
    steps = linear.residuals, inputs.controls, jnp.asarray(due)
    return lax.scan(step, first, steps)[1]
