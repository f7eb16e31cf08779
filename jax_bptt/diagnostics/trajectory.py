"""A run and its derivative along the states that it took: what all diagnostics are read off.

    s_t = step(s_{t-1}, x_t)        J_t = ds_t/ds_{t-1}
    push    v -> J_last .. J_{first+1} v                what becomes of a perturbation
    pull    v -> J_{first+1}^T .. J_last^T v            where a gradient comes from

Both are read off one linearisation, at the states of the run.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from jax_bptt.algorithms.argument_checks import cotangents
from jax_bptt.algorithms.by_lag import Past
from jax_bptt.algorithms.jacobians import Vectors, matrix, vectors
from jax_bptt.algorithms.unroll import Arguments, begin, checked, compiled_once
from jax_bptt.core import reverse, sequence, trees
from jax_bptt.core.checks import is_integer, require, shown
from jax_bptt.core.forward import forward_scan, over_time
from jax_bptt.core.linearize import Linearization
from jax_bptt.core.sequence import Controls, Options
from jax_bptt.core.types import Cell, Inputs, PyTree


def _static() -> dict[str, bool]:
    return {"static": True}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Trajectory:
    """The states of a run, and their derivative by one another.

    It is a pytree, which `jax.jit` and `jax.vmap` take and return. Where a state is held, by
    `lengths` or `mask`, J_t is the identity; across a reset it is zero.

    Attributes:
      cell: the cell, as it was given.
      params: its parameters.
      states: s_1..s_T, [T, *batch, ...].
      ys: [T, *batch, ...], zero beyond `lengths`.
      inputs: all that the run depends on.
      valid: bool [T, *batch], False beyond `lengths`; None without any.
      runs: the cell that was run: `cell`, with what its functions close over as part of its
        weights.
    """

    cell: Cell = dataclasses.field(metadata=_static())
    params: PyTree
    states: PyTree
    ys: PyTree
    inputs: Inputs
    valid: Array | None
    runs: Cell = dataclasses.field(metadata=_static())

    @property
    def steps(self) -> int:
        """T, the number of time steps."""
        return jax.tree.leaves(self.inputs.xs)[0].shape[0]

    @property
    def space(self) -> Vectors:
        """How states are read as vectors [*batch, N, D], of N groups that no step mixes."""
        return vectors(self.runs, self.inputs)

    def push(self, d_state: PyTree, first: int = 0, last: int | None = None) -> PyTree:
        """Return J_last .. J_{first+1} d_state: a change of s_first, as it is seen in s_last.

        Args:
          d_state: like one state, None at leaves without a derivative (integers).
          first: the index of the state that is changed, from 0, the one before the first step.
          last: the index of the state that is looked at, up to T; None for T.

        Raises:
          TypeError: the structure of `d_state` does not fit.
          ValueError: a shape does not fit, or a step is out of range.
        """
        run, d_state = self._span("Trajectory.push", d_state, first, last)
        return compiled_once(_push, self.runs)(run, d_state)

    def pull(self, d_state: PyTree, first: int = 0, last: int | None = None) -> PyTree:
        """Return J_{first+1}^T .. J_last^T d_state: a gradient at s_last, as it reaches s_first.

        Args:
          d_state: dL/ds_last, like one state, None at leaves without a gradient (integers).
          first: the index of the state that is reached, from 0, the one before the first step.
          last: the index of the state at which the gradient is, up to T; None for T.

        Raises:
          TypeError: the structure of `d_state` does not fit.
          ValueError: a shape does not fit, or a step is out of range.
        """
        run, d_state = self._span("Trajectory.pull", d_state, first, last)
        return compiled_once(_pull, self.runs)(run, d_state)

    def jacobians(self, first: int = 0, last: int | None = None) -> Array:
        """Return J_{first+1}..J_last as matrices, [K, *batch, N, D, D] with K = last - first.

        A state is read as vectors by `space`: all its inexact leaves one after the other, the real
        and the imaginary parts of complex ones apart. Memory is that of the result, a few times.

        Raises:
          ValueError: a step is out of range.
        """
        run = self.between("Trajectory.jacobians", first, last)
        return compiled_once(_jacobians, self.runs)(run)

    def _span(
        self, name: str, d_state: PyTree, first: int, last: int | None
    ) -> tuple[tuple[Inputs, PyTree], PyTree]:
        d_state = cotangents(name, "d_state", d_state, self.inputs.state)
        return self.between(name, first, last), d_state

    def between(self, name: str, first: int, last: int | None) -> tuple[Inputs, PyTree]:
        """Return the inputs and the states of the steps from `first` + 1 to `last`.

        Args:
          name: the public function that asks, for its messages.
          first: from 0.
          last: up to T; None for T.

        Raises:
          ValueError: a step is out of range.
        """
        last = self.steps if last is None else last
        require(
            is_integer(first) and is_integer(last) and 0 <= first <= last <= self.steps,
            f"{name}: first and last must be 0 <= first <= last <= T={self.steps}, got "
            f"{shown(first)} and {shown(last)}",
        )
        weights, state, xs, start, controls = self.inputs
        if first > 0:
            state = jax.tree.map(lambda s: s[first - 1], self.states)
        xs, controls, states = jax.tree.map(lambda a: a[first:last], (xs, controls, self.states))
        return Inputs(weights, state, xs, start, controls), states


def trajectory(
    cell: Cell,
    params: PyTree,
    xs: PyTree,
    state: PyTree | None = None,
    *,
    lengths: ArrayLike | None = None,
    resets: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    reset_state: PyTree | None = None,
) -> Trajectory:
    """Run `cell` over `xs` and keep what is needed to look at the run.

    Args:
      cell: a `Cell`.
      params: `cell.init(key)`.
      xs: [T, *batch, I].
      state: s_0; by default `cell.initial_state(params, batch_shape)`.
      lengths: as in `unroll`; integer [*batch].
      resets: as in `unroll`; bool [T, *batch].
      mask: as in `unroll`; bool [T, *batch].
      reset_state: as in `unroll`; like the state.

    Returns:
      A `Trajectory`, which the other functions of `jax_bptt.diagnostics` take.

    Raises:
      TypeError: an argument is of the wrong kind, structure or dtype.
      ValueError: a shape does not fit.

    Example:
      >>> import jax, jax.numpy as jnp, jax_bptt as jb
      >>> cell = jb.gru(input_size=3, hidden_size=4)
      >>> params, xs = cell.init(jax.random.key(0)), jnp.ones((10, 2, 3))
      >>> run = jb.diagnostics.trajectory(cell, params, xs)
      >>> run.states.shape, run.jacobians().shape
      ((10, 2, 4), (10, 2, 1, 4, 4))
      >>> run.pull(jnp.ones((2, 4)), first=5, last=10).shape
      (2, 4)
    """
    options = Options(lengths, resets, mask, reset_state)
    given = checked("trajectory", cell, (params, xs, state), options)
    return compiled_once(_trajectory, cell)(given)


def _trajectory(cell: Cell, given: Arguments) -> Trajectory:
    run = begin("trajectory", cell, given, reverse=False)
    states = forward_scan(run.cell, run.inputs)[1]
    ys = over_time(run.cell, run.cell.readout)(run.inputs.weights, states)
    ys = sequence.restore(ys, run.valid, reverse=False)
    runs = run.cell if run.traced.closed else cell
    return Trajectory(cell, given.params, states, ys, run.inputs, run.valid, runs)


def cotangents_of(
    name: str, run: Trajectory, d_ys: PyTree, d_last_state: PyTree
) -> tuple[PyTree, PyTree]:
    """Return (d_ys, d_last_state), checked on behalf of `name`; zeros where the latter is None."""
    if d_ys is not None:
        d_ys = cotangents(name, "d_ys", d_ys, run.ys)
        d_ys = d_ys if run.valid is None else sequence.select(run.valid, d_ys)
    if d_last_state is None:
        return d_ys, jax.tree.map(jnp.zeros_like, trees.partition(run.inputs.state)[0])
    return d_ys, cotangents(name, "d_last_state", d_last_state, run.inputs.state)


def past_of(run: Trajectory) -> Past:
    """Return a run as a walk back through its lags takes it."""
    return Past(run.runs, run.inputs, run.states, (run.cell, run.params))


def linearization(cell: Cell, inputs: Inputs, states: PyTree) -> Linearization:
    """Linearise the steps of `inputs`, whose states are s_1..s_K."""
    return reverse.surroundings(cell, inputs, states, None).linear


def pull_step(
    linear: Linearization, residual: PyTree, control: Controls, d_state: PyTree
) -> PyTree:
    """Return J_t^T d_state of one step, given its residual and its control."""
    return reverse.cross(linear, residual, control, d_state)[0]


def push_step(linear: Linearization, residual: PyTree, control: Controls, d_prev: PyTree) -> PyTree:
    """Return J_t d_prev of one step, as the transpose of `pull_step`."""

    def pull(d_state):
        return pull_step(linear, residual, control, d_state)

    return jax.linear_transpose(pull, d_prev)(d_prev)[0]


def _push(cell: Cell, run: tuple[Inputs, PyTree], d_state: PyTree) -> PyTree:
    linear = linearization(cell, *run)

    def step(d_prev, at):
        residual, control = at
        return push_step(linear, residual, control, d_prev), None

    return lax.scan(step, d_state, (linear.residuals, run[0].controls))[0]


def _pull(cell: Cell, run: tuple[Inputs, PyTree], d_state: PyTree) -> PyTree:
    linear = linearization(cell, *run)

    def step(d_state, at):
        residual, control = at
        return pull_step(linear, residual, control, d_state), None

    return lax.scan(step, d_state, (linear.residuals, run[0].controls), reverse=True)[0]


def _jacobians(cell: Cell, run: tuple[Inputs, PyTree]) -> Array:
    inputs, _ = run
    linear = linearization(cell, *run)
    space = vectors(cell, inputs)
    like = trees.partition(inputs.state)[0]

    def step(residual, control):
        return matrix(lambda v: push_step(linear, residual, control, v), space, like)

    return jax.vmap(step)(linear.residuals, inputs.controls)
