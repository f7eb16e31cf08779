"""Properties of the options: lengths, resets and masks, against single steps without options."""

from typing import Any

import jax
import numpy as np

from jax_bptt.testing import numerics
from jax_bptt.testing.derivatives import EXACT
from jax_bptt.testing.numerics import Leaves
from jax_bptt.testing.problem import Problem, gradients, outputs
from jax_bptt.testing.references import by_steps
from jax_bptt.testing.report import Result, measured, not_applicable
from jax_bptt.testing.subject import Subject

NOTE = "against single steps put together"


def _missing(option: str) -> Result:
    return not_applicable(f"it takes no {option}")


def _error(got: tuple[Leaves, Leaves], want: tuple[Leaves, Leaves]) -> tuple[float, str]:
    return max(numerics.difference(a, b) for a, b in zip(got, want, strict=True))


def _run(subject: Subject, problem: Problem, **options: Any) -> tuple[Leaves, Leaves]:
    """Return the outputs and the gradient under the options."""
    arguments = problem.arguments
    got = outputs(subject, arguments, **options)
    return got, gradients(subject, arguments, problem.cotangents, **options)


def ragged(problem: Problem) -> np.ndarray:
    """Return lengths [B] that differ, the shortest of one step, the first the longest."""
    behind = 2 * np.arange(problem.batch) % problem.steps
    return (problem.steps - behind).astype(np.int32)


def ragged_lengths(subject: Subject, problem: Problem) -> Result:
    """Each sequence ends at its length: state held, outputs zero, cotangents there unread."""
    if "lengths" not in subject.supports:
        return _missing("lengths")
    lengths = ragged(problem)
    got = _run(subject, problem, lengths=lengths)
    error, where = _error(got, by_steps(subject, problem, lengths=lengths))
    return measured(error, EXACT, f"{NOTE}; worst for {where[1:]}")


def nan_padding(subject: Subject, problem: Problem) -> Result:
    """Inputs beyond a sequence's length may be NaN or infinite."""
    if "lengths" not in subject.supports:
        return _missing("lengths")
    if not numerics.leaves(problem.arguments.xs):
        return not_applicable("the inputs are integers")
    lengths = ragged(problem)
    beyond = np.arange(problem.steps)[:, None] >= lengths
    want = by_steps(subject, problem, lengths=lengths)
    worst = 0.0, "", ""
    for number in (np.nan, np.inf):
        xs = jax.tree.map(lambda a, n=number: _put(n, beyond, a), problem.arguments.xs)
        padded = problem._replace(arguments=problem.arguments._replace(xs=xs))
        worst = max(worst, (*_error(_run(subject, padded, lengths=lengths), want), str(number)))
    error, where, number = worst
    return measured(error, EXACT, f"{NOTE}; worst for {where[1:]} with {number}")


def _put(number: float, places: np.ndarray, a: np.ndarray) -> np.ndarray:
    return np.where(_like(places, a), number, a) if numerics.is_inexact(a) else a


def zero_lengths(subject: Subject, problem: Problem) -> Result:
    """A sequence of length zero returns its initial state; also if all have it."""
    if "lengths" not in subject.supports:
        return _missing("lengths")
    some = np.where(np.arange(problem.batch) % 2, ragged(problem), 0).astype(np.int32)
    worst = 0.0, "", ""
    for name, lengths in (("some", some), ("all", np.zeros_like(some))):
        got = _run(subject, problem, lengths=lengths)
        worst = max(worst, (*_error(got, by_steps(subject, problem, lengths=lengths)), name))
    error, where, name = worst
    return measured(error, EXACT, f"{NOTE}; worst for {where[1:]}, {name} of them zero")


def per_step_masks(subject: Subject, problem: Problem) -> Result:
    """Under a mask that differs from step to step, the state is held where it is False."""
    if "mask" not in subject.supports:
        return _missing("mask")
    mask = problem.generator().random((problem.steps, problem.batch)) < 0.6
    mask[0, 0], mask[-1, 0], mask[0, -1] = False, True, True
    # What a held step returns is a matter of convention, so that nobody looks at it.
    ys = jax.tree.map(lambda c: np.where(_like(mask, c), c, 0), problem.cotangents.ys)
    unread = problem._replace(cotangents=problem.cotangents._replace(ys=ys))
    values, gradient = _run(subject, unread, mask=mask)
    values = {k: np.where(_like(mask, v), v, 0) if ".ys" in k else v for k, v in values.items()}
    error, where = _error((values, gradient), by_steps(subject, unread, mask=mask))
    return measured(error, EXACT, f"{NOTE}; worst for {where[1:]}")


def _like(mask: np.ndarray, a: np.ndarray) -> np.ndarray:
    return mask.reshape(mask.shape + (1,) * (a.ndim - 2))


def resets(subject: Subject, problem: Problem) -> Result:
    """Where reset, the state starts again, and no gradient crosses.

    From `reset_state` where the layer takes one, else from the initial state.
    """
    if "resets" not in subject.supports:
        return _missing("resets")
    where_reset = problem.generator().random((problem.steps, problem.batch)) < 0.3
    where_reset[0, 0] = where_reset[problem.steps // 2, -1] = True
    constant = "reset_state" in subject.supports
    start = {"reset_state": problem.arguments.state} if constant else {}
    got = _run(subject, problem, resets=where_reset, **start)
    want = by_steps(subject, problem, resets=where_reset, constant_start=constant)
    error, where = _error(got, want)
    return measured(error, EXACT, f"{NOTE}; worst for {where[1:]}")
