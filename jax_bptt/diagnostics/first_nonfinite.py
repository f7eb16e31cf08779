"""The place where the first NaN or infinity of a run came from, forward or backward."""

from typing import Any, NamedTuple

import jax
import numpy as np
from jax.core import Tracer

from jax_bptt.algorithms.unroll import compiled_once
from jax_bptt.cells.parameters import UNGATED
from jax_bptt.core import reverse, trees
from jax_bptt.core.checks import batch_shape, leaves, require
from jax_bptt.core.forward import entering, over_time
from jax_bptt.core.tracing import Hoisted
from jax_bptt.core.types import Cell, GatedStep, PyTree
from jax_bptt.diagnostics.trajectory import Trajectory, cotangents_of

_NAMES = {
    "params": "the parameters",
    "weights": "the weights that the cell's prepare makes of the parameters",
    "state": "the state s_0 before the first step",
    "reset_state": "the state that resets go back to",
    "xs": "the input x_t",
    "drive": "the drive, the input's part of the pre-activation",
    "feedback": "the feedback, the state's part of the pre-activation",
    "states": "the state s_t",
    "ys": "the output y_t",
    "d_last_state": "the gradient of the last state, as given",
    "d_ys": "the gradient of the output y_t, as given",
    "g": "the gradient of the state s_t by way of its own output",
    "lambda": "the adjoint lambda_t, the gradient of the state s_t",
    "d_feedback": "the gradient of the pre-activation",
    "d_xs": "the gradient of the input x_t",
    "d_state": "the gradient of the state s_0",
    "d_params": "the gradient of the parameters",
}


_GATED = {"params", "weights", "drive", "feedback", "d_feedback", "d_params"}
_BACKWARD = {"d_last_state", "d_ys", "g", "lambda", "d_feedback", "d_xs", "d_state", "d_params"}


class FirstNonfinite(NamedTuple):
    """The first number of a run that is NaN or infinite, in the order in which it is computed.

    Attributes:
      direction: "forward" or "backward", or "" if all is finite; then the rest is empty.
      what: forward "params", "weights" (what `prepare` makes of them), "state" (s_0),
        "reset_state", and of each step "xs", "drive", "feedback", "states", "ys"; backward
        "d_last_state", and of each step "d_ys", "g" (what reaches s_t from y_t), "lambda",
        "d_feedback" (the gradient of the pre-activation of a `GatedStep`), "d_xs"; at last
        "d_state" (s_0) and "d_params".
      step: t, from 1 to T; 0 before the first step, None where there is no step.
      leaf: the path of its leaf, such as ".c"; "" for a single array.
      sequence: its index in the batch; None without one, and for parameters.
      at: its index in the leaf, behind time and batch.
      gate: the name of its gate, or "".
      value: the number.
      steps: how many steps were looked at, T.
      d_params: the paths of all parameters whose gradient is not finite.
    """

    direction: str
    what: str
    step: int | None
    leaf: str
    sequence: tuple[int, ...] | None
    at: tuple[int, ...]
    gate: str
    value: Any
    steps: int
    d_params: tuple[str, ...]

    @property
    def finite(self) -> bool:
        """Whether there is none."""
        return not self.direction

    def in_words(self) -> str:
        """Return what was found as one sentence."""
        if self.finite:
            return f"All is finite over {self.steps} steps."
        step = self.step or 0
        when = f" at step {step} of {self.steps}" if step else ""
        place = "".join(
            [f", leaf {self.leaf}"] * bool(self.leaf)
            + [f", gate {self.gate}"] * bool(self.gate)
            + [f", sequence {list(self.sequence or ())}"] * bool(self.sequence)
            + [f", index {list(self.at)}"] * bool(self.at)
        )
        text = f"The first {self.value} enters {self.direction}{when}: {_NAMES[self.what]}{place}."
        if self.direction == "backward" and 0 < step < self.steps:
            text += f" From step {step + 1} on it is finite."
        if self.d_params:
            text += f" Gradients that are not finite: {', '.join(self.d_params)}."
        return text


def first_nonfinite(
    run: Trajectory, d_ys: PyTree | None = None, d_last_state: PyTree | None = None
) -> FirstNonfinite:
    """Return where the first NaN or infinity of a run is, forward, or else backward.

    Forward means parameters, initial state, and then step by step the input, the pre-activation's
    parts, the state and the output. If all of that is finite and a gradient of the outputs or of
    the last state is given, it is followed back from the last step on, in the order in which the
    reverse scan computes. What `lengths` or `mask` leave out is not read, and not reported.

    The run is gone through by compiled code and the result read in NumPy, on the host, so that
    this is no part of a compiled function: it needs numbers. Take the run that went wrong, with
    the parameters of the step before, and call it once.

    Args:
      run: of `trajectory`.
      d_ys: dL/dy_t, like `run.ys`, with None at leaves without a gradient; None for zero.
      d_last_state: dL/ds_T by paths other than the outputs, like the state; None for zero.

    Returns:
      `FirstNonfinite`; `in_words()` says it.

    Raises:
      TypeError: the structure of a gradient does not fit, or something is traced.
      ValueError: a shape does not fit.

    Example:
      >>> import jax, jax.numpy as jnp, jax_bptt as jb
      >>> cell = jb.gru(input_size=3, hidden_size=4)
      >>> params, xs = cell.init(jax.random.key(0)), jnp.ones((10, 2, 3))
      >>> run = jb.diagnostics.trajectory(cell, params, xs.at[6, 1, 2].set(jnp.nan))
      >>> print(jb.diagnostics.first_nonfinite(run).in_words())
      The first nan enters forward at step 7 of 10: the input x_t, sequence [1], index [2].
    """
    name = "first_nonfinite"
    require(
        not any(isinstance(a, Tracer) for a in jax.tree.leaves((run, d_ys, d_last_state))),
        f"{name}: it looks at numbers, and here there are none yet. Call it outside jax.jit, "
        "jax.vmap and jax.grad, on the arrays that they return.",
        TypeError,
    )
    given = cotangents_of(name, run, d_ys, d_last_state)
    look = _Look(len(batch_shape(run.cell, run.inputs.xs)), run.cell.gates, run.steps)
    found = _forward(run, look)
    if found is None and not (d_ys is None and d_last_state is None):
        found = _backward(run, given, look)
    return found or FirstNonfinite("", "", None, "", None, (), "", None, run.steps, ())


class _Look(NamedTuple):
    """The number of batch axes, the names of the gates, and the number of steps."""

    rank: int
    gates: tuple[str, ...]
    steps: int

    def whole(self, what: str, tree: PyTree, rank: int = 0) -> FirstNonfinite | None:
        """Look at something that has no time axis, and `rank` axes of the batch."""
        for path, array in _arrays(tree):
            bad = ~np.isfinite(array)
            if bad.any():
                return self._found((what, 0, path), array, bad, rank)
        return None

    def along(self, places: dict[str, PyTree], last: bool = False) -> FirstNonfinite | None:
        """Look at all of the first step that has any, or with `last` of the last one."""
        arrays = [
            (what, path, array, ~np.isfinite(array))
            for what, tree in places.items()
            for path, array in _arrays(tree)
        ]
        times = [np.flatnonzero(bad.any(axis=tuple(range(1, bad.ndim)))) for *_, bad in arrays]
        if not sum(map(len, times)):
            return None
        step = max(np.concatenate(times)) if last else min(np.concatenate(times))
        for (what, path, array, bad), of in zip(arrays, times, strict=True):
            if step in of:
                return self._found((what, int(step) + 1, path), array[step], bad[step], self.rank)
        return None

    def _found(
        self, where: tuple[str, int, str], array: np.ndarray, bad: np.ndarray, rank: int
    ) -> FirstNonfinite:
        (what, step, path), at = where, tuple(map(int, np.argwhere(bad)[0]))
        gated = what in _GATED and not path.endswith(UNGATED)
        gated &= array.ndim - rank > 1 and array.shape[-2:-1] == (len(self.gates),)
        gate = self.gates[at[-2]] if gated and len(self.gates) > 1 else ""
        sequence = at[:rank] if rank else None
        direction = "backward" if what in _BACKWARD else "forward"
        value = array[at].item()
        return FirstNonfinite(
            direction, what, step, path, sequence, at[rank:], gate, value, self.steps, ()
        )


def _arrays(tree: PyTree) -> list[tuple[str, np.ndarray]]:
    """Return the inexact leaves of a tree with their paths."""
    return [(path, np.asarray(leaf)) for path, leaf in leaves(trees.partition(tree)[0])]


def _forward(run: Trajectory, look: _Look) -> FirstNonfinite | None:
    weights, state, xs, start, _ = run.inputs
    before = {"params": run.params, "weights": weights}
    for what, tree in before.items():
        if (found := look.whole(what, tree)) is not None:
            return found
    for what, tree in {"state": state, "reset_state": start}.items():
        if (found := look.whole(what, tree, look.rank)) is not None:
            return found
    parts = compiled_once(_pre_activations, run.runs)(run)
    return look.along({"xs": xs, **parts, "states": run.states, "ys": run.ys})


def _pre_activations(cell: Cell, run: Trajectory) -> dict[str, PyTree]:
    weights, state, xs, start, controls = run.inputs
    parts = {"drive": over_time(cell, cell.project)(weights, xs)}
    if isinstance(cell.step, GatedStep):
        prevs = entering(start, state, run.states, controls)
        parts["feedback"] = over_time(cell, cell.step.mix)(weights, prevs)
    return parts


def _backward(run: Trajectory, given: tuple[PyTree, PyTree], look: _Look) -> FirstNonfinite | None:
    d_ys, d_last_state = given
    along, d_state, d_params = compiled_once(_gradients, run.runs)(run, given)
    found = look.whole("d_last_state", d_last_state, look.rank)
    # `jit` sorts what a dict holds; this is the order in which it is computed.
    order = ("g", "lambda", "d_feedback", "d_xs")
    parts = {"d_ys": d_ys} | {what: along[what] for what in order if what in along}
    found = found or look.along(parts, last=True)
    found = found or look.whole("d_state", d_state, look.rank)
    found = found or look.whole("d_params", d_params)
    if found is None:
        return None
    paths = [path for path, array in _arrays(d_params) if not np.isfinite(array).all()]
    return found._replace(d_params=tuple(paths))


def _gradients(
    cell: Cell, run: Trajectory, given: tuple[PyTree, PyTree]
) -> tuple[dict[str, PyTree], PyTree, PyTree]:
    """Return all of the reverse pass along time, and the gradients of s_0 and the parameters."""
    d_ys, d_last_state = given
    around = reverse.surroundings(cell, run.inputs, run.states, d_ys)
    (d_state, _), lambdas, emitted = reverse.reverse_scan(
        around.linear, d_last_state, around.g, run.inputs.controls
    )
    d_weights, d_xs = around.accumulate(lambdas, emitted)
    if isinstance(run.inputs.weights, Hoisted):
        d_weights = d_weights.own
    d_params = trees.inexact_vjp(run.cell.prepare, run.params)[1](d_weights)[0]
    along = {"g": around.g, "lambda": lambdas}
    if isinstance(cell.step, GatedStep):
        along["d_feedback"] = emitted[0]
    return {**along, "d_xs": d_xs}, d_state, d_params
