"""The gradient of a run in a few sentences: how far it reaches, and what follows from that."""

import math
import numbers
import warnings
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jax_bptt.algorithms import newton as method
from jax_bptt.algorithms.clipped import norms
from jax_bptt.algorithms.newton_solution import newton_solution
from jax_bptt.algorithms.unroll import compiled_once
from jax_bptt.core import trees
from jax_bptt.core.checks import batch_shape, require, shown
from jax_bptt.core.types import PyTree
from jax_bptt.diagnostics.adjoint_norms import adjoint_norms
from jax_bptt.diagnostics.lyapunov_spectrum import LyapunovSpectrum, lyapunov_spectrum
from jax_bptt.diagnostics.saturation import Saturation, saturation
from jax_bptt.diagnostics.trajectory import Trajectory, cotangents_of, past_of
from jax_bptt.diagnostics.truncation_curve import TruncationCurve, truncation_curve

EXPONENTS = 4
"""Lyapunov exponents that are found; a report speaks of the largest."""

COUNTED = 256
"""Largest state, in numbers, whose Newton iterations are counted: each is T B D^3 operations."""

LIMIT = 64
"""Newton iterations after which the count is given up."""

ROOM = 10.0
"""The clip threshold, in medians of |lambda_t| where a loss enters."""

MOST_OF_THE_TIME = 0.9
"""Share of the steps from which on a unit is called saturated."""

LISTED = 8
"""Units of a gate that are listed by number."""


class Report(NamedTuple):
    """The gradient of a run in numbers, which `in_words()` says in sentences.

    Attributes:
      steps: T.
      bias: the relative bias that `window` is for.
      window: the shortest sliding window, in steps, from which on truncation has at most that bias;
        0 for none, as where the gradient is not finite.
      half: the shortest window that keeps the rest of the gradient below half its norm.
      iterations: of Newton's method for the states of the run, the most of any block of time; None
        where they were not counted: with lengths, mask or resets, with integers in the state, or
        with more than 256 numbers in it.
      converged: whether that was enough; None where they were not counted.
      adjoint: the median of |lambda_t| over the steps and sequences at which a loss enters.
      clip: a threshold for `clipped(norm=)`, 10 times that.
      beyond: the share of all |lambda_t| that are larger than the threshold.
      spectrum: the largest Lyapunov exponents, up to four, as they settle.
      curve: the bias for every window.
      norms: |lambda_t|, [T, *batch].
      saturated: how often each gate of each unit is at an end; None for a cell without such gates.
    """

    steps: int
    bias: float
    window: int
    half: int
    iterations: int | None
    converged: bool | None
    adjoint: float
    clip: float
    beyond: float
    spectrum: LyapunovSpectrum
    curve: TruncationCurve
    norms: Array
    saturated: Saturation | None

    @property
    def exponent(self) -> float:
        """The largest Lyapunov exponent, in nats a step: the mean over sequences."""
        return float(np.mean(np.asarray(self.spectrum.exponents, np.float64)[..., 0]))

    def in_words(self) -> str:
        """Return a sentence or two on each number, a line each."""
        said = self._growth(), self._reach(), self._newton(), self._size(), self._saturation()
        return "\n".join(said)

    def _growth(self) -> str:
        each = np.asarray(self.spectrum.exponents, np.float64)[..., 0]
        value = self.exponent
        if math.isnan(value):
            return "The states are not finite: first_nonfinite says where that begins."
        forgets = int(np.sum(np.isneginf(each)))
        if forgets:
            return (
                "All that was before is forgotten within a step, or reset, in "
                f"{forgets} of {each.size} sequences: the largest Lyapunov exponent is -inf."
            )
        known = f"the largest Lyapunov exponent is {value:+.3f} a step"
        if each.size > 1:
            known += f" ({each.min():+.3f} to {each.max():+.3f} over {each.size} sequences)"
        if value < 0:
            steps = math.ceil(math.log(self.bias) / value)
            return (
                f"Perturbations of the state die out: {known}. At that rate {self.bias:.2g} of one "
                f"is left after {_steps(steps)}."
            )
        if value == 0:
            return f"Perturbations of the state stay as large as they are: {known}."
        return (
            f"Perturbations of the state grow: {known}, and they double every "
            f"{_steps(round(math.log(2) / value, 1))}. Gradients grow as much backwards."
        )

    def _reach(self) -> str:
        whole = float(self.curve.norm[-1])
        if not math.isfinite(whole):
            return "The gradient is not finite: first_nonfinite says where that begins."
        if whole == 0:
            return "The gradient is zero."
        percent = f"{100 * self.bias:.3g} %"
        half = (
            "Half of the gradient is that of each step's own loss"
            if self.half == 1
            else f"Half of the gradient has crossed at most {_steps(self.half - 1)}"
        )
        if self.window in (0, self.steps):
            return (
                f"{half}. No window shorter than all {self.steps} steps has a bias of at most "
                f"{percent}: truncation would cost more than that."
            )
        return (
            f"{half}; truncated({self.window}, sliding=True) has a bias of at most {percent}, and "
            f"so has every longer window."
        )

    def _newton(self) -> str:
        if self.iterations is None:
            rule = (
                f"above an exponent of zero they are about T = {self.steps}: the scan is faster"
                if self.exponent > 0
                else "below an exponent of zero they are of the order of (log T)^2 at most, "
                f"{math.log(self.steps) ** 2:.0f} here"
            )
            return f"Newton's iterations were not counted; {rule}."
        if not self.converged:
            return (
                f"Newton's method has not found the states in {self.iterations} iterations: keep "
                "the scan."
            )
        times = "1 iteration" if self.iterations == 1 else f"{self.iterations} iterations"
        return f"Newton's method, newton(), finds the {_steps(self.steps)} in {times}."

    def _size(self) -> str:
        if not self.adjoint > 0:
            return "No gradient enters at any step, so that there is nothing to clip."
        largest = float(np.max(np.asarray(self.norms)))
        return (
            f"Where a loss enters, |lambda_t| has a median of {self.adjoint:.2g}; the largest of "
            f"all is {largest:.2g}. clipped(norm={self.clip:.2g}), {ROOM:g} medians, so that "
            f"ordinary steps pass as they are, is exceeded at {_share(self.beyond)} of the steps."
        )

    def _saturation(self) -> str:
        if self.saturated is None:
            return "The cell has no tanh or logistic function that could saturate."
        often = f"{MOST_OF_THE_TIME:.0%} of the time or more"
        found, shares = [], {}
        for gate, low in self.saturated.low.items():
            low, high = np.ravel(low), np.ravel(self.saturated.high[gate])
            shares[gate] = float(np.mean(low + high))
            for share, end in ((low, "lower"), (high, "upper")):
                units = np.flatnonzero(share >= MOST_OF_THE_TIME)
                if len(units):
                    found.append(f"{gate} at its {end} end in {_units(units, len(low))}")
        if found:
            return f"Saturated {often}, where gradients hardly pass: {'; '.join(found)}."
        most = max(shares, key=lambda gate: shares[gate])
        return (
            f"No unit is saturated {often}; the gate that is most is {most}, "
            f"{_share(shares[most])} of the time."
        )


def report(run: Trajectory, d_ys: PyTree, *, bias: float = 0.01) -> Report:
    """Return how far the gradient of a run reaches, and what follows: windows, clipping, Newton.

    The window is that of `truncation_curve`, the exponent that of `lyapunov_spectrum`. Newton's
    iterations are counted by `newton_solution` where that applies. The threshold for `clipped` is
    ten times the median of |lambda_t| where a loss enters: elsewhere a vanishing gradient would
    make it so low as to cut what the loss itself sends, and a larger multiple guards against less.
    All of it is of these data and these parameters.

    Time is mostly that of `truncation_curve`, at most T / 2 gradients, and up to 64 iterations of
    T B D^3 operations. The result has Python's numbers: it is not part of a compiled function.

    Args:
      run: a `trajectory` of at least one step.
      d_ys: dL/dy_t, like the outputs of `unroll`, None at leaves without a gradient.
      bias: relative, above 0 and below 1.

    Returns:
      A `Report`.

    Raises:
      TypeError: the structure or dtype of `d_ys` does not fit.
      ValueError: a shape does not fit, `bias` is out of range, or a leaf of the state has no batch
        axes.

    Example:
      >>> import jax, jax.numpy as jnp, jax_bptt as jb
      >>> cell = jb.indrnn(input_size=1, hidden_size=1, activation=None)
      >>> params = cell.init(jax.random.key(0))._replace(w_s=jnp.array([0.9]))
      >>> run = jb.diagnostics.trajectory(cell, params, jnp.ones((200, 1)), jnp.array([10.0]))
      >>> found = jb.diagnostics.report(run, jnp.zeros((200, 1)).at[-1].set(1.0))
      >>> round(found.exponent, 4), found.window, found.half, found.iterations
      (-0.1054, 44, 7, 1)
      >>> print(found.in_words().splitlines()[2])
      Newton's method, newton(), finds the 200 steps in 1 iteration.
    """
    name = "report"
    require(
        isinstance(bias, numbers.Real) and 0 < bias < 1,
        f"{name}: bias must be a share of the gradient between 0 and 1, got {shown(bias)}",
    )
    *_, groups, size = run.space.shape
    curve = truncation_curve(run, d_ys)
    sizes = adjoint_norms(run, d_ys)
    typical = _median(sizes, compiled_once(_entering)(run, cotangents_of(name, run, d_ys, None)[0]))
    iterations, converged = _newton(run)
    return Report(
        steps=run.steps,
        bias=float(bias),
        window=int(curve.shortest(bias)),
        half=int(curve.shortest(0.5)),
        iterations=iterations,
        converged=converged,
        adjoint=typical,
        clip=ROOM * typical,
        beyond=float(jnp.mean(sizes > ROOM * typical)),
        spectrum=lyapunov_spectrum(run, count=min(EXPONENTS, groups * size)),
        curve=curve,
        norms=sizes,
        saturated=_saturation(run),
    )


def _entering(run: Trajectory, d_ys: PyTree) -> Array:
    """Return |g_t|, what the loss of each step sends to its state, [T, *batch]."""
    g = past_of(run).begin(d_ys)[1]
    return norms(g, 1 + len(batch_shape(run.runs, run.inputs.xs)))


def _median(sizes: Array, entering: Array) -> float:
    """Return the median of the sizes where something enters, 0 where nothing does."""
    of_these = np.asarray(sizes)[np.asarray(entering) > 0]
    return float(np.median(of_these)) if of_these.size else 0.0


def _newton(run: Trajectory) -> tuple[int | None, bool | None]:
    state = run.inputs.state
    fits = all(map(trees.is_inexact, jax.tree.leaves(state))) and run.space.shape[-1] <= COUNTED
    if not fits or jax.tree.leaves(run.inputs.controls):
        return None, None
    algorithm = method.newton(max_iterations=LIMIT)
    with warnings.catch_warnings():
        # That a block was run by the scan is said by the result.
        warnings.filterwarnings("ignore", "newton", RuntimeWarning)
        found = newton_solution(run.cell, run.params, run.inputs.xs, state, algorithm=algorithm)
        iterations, converged = int(found.iterations), bool(found.converged)
        jax.effects_barrier()
    return iterations, converged


def _saturation(run: Trajectory) -> Saturation | None:
    try:
        return saturation(run)
    except ValueError:  # the step has nothing that saturates: a finding, not an error
        return None


def _steps(count: float) -> str:
    return f"{count:g} step" if count == 1 else f"{count:g} steps"


def _share(share: float) -> str:
    return f"{share:.0%}" if share == 0 or share >= 0.01 else "less than 1%"


def _units(units: np.ndarray, of: int) -> str:
    if len(units) == of:
        return f"all {of} units"
    named = ", ".join(map(str, units[:LISTED]))
    more = f" and {len(units) - LISTED} more" if len(units) > LISTED else ""
    return f"{len(units)} of {of} units ({named}{more})"
