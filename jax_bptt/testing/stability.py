"""Properties of the numbers themselves: the same again, the same reordered, the same in float32."""

import jax
import numpy as np

from jax_bptt.core.types import PyTree
from jax_bptt.testing import numerics
from jax_bptt.testing.derivatives import EXACT
from jax_bptt.testing.numerics import Leaves
from jax_bptt.testing.problem import Problem, gradients, outputs
from jax_bptt.testing.report import Result, measured, not_applicable
from jax_bptt.testing.subject import Arguments, Outputs, Subject

LONG = (8, 128)
"""Numbers of steps at which float32 is held against float64."""

ROUNDINGS = 64.0, 4.0
"""Relative error allowed a gradient in float32, at once and per step, in units of its rounding."""


def repeatability(subject: Subject, problem: Problem) -> Result:
    """The same call gives the same bits, whatever was called in between."""

    def everything() -> Leaves:
        found = outputs(subject, problem.arguments)
        return found | gradients(subject, problem.arguments, problem.cotangents)

    first = everything()
    double = numerics.leaves(problem.arguments)
    gradients(subject, numerics.displaced(problem.arguments, double, 1.0), problem.cotangents)
    again = everything()
    changed = [k for k, a in first.items() if a.tobytes() != again[k].tobytes()]
    note = f"{', '.join(name[1:] for name in changed)} change" if changed else "bit by bit"
    return measured(float(len(changed)), 0.0, note)


def batch_permutation(subject: Subject, problem: Problem) -> Result:
    """Sequences in another order have the same outputs and gradients in that order."""
    if problem.batch < 2:
        return not_applicable("a batch of one has no other order")
    order = np.roll(np.arange(problem.batch), 1)
    axes = {".xs": 1, ".ys": 1, ".state": 0, ".last_state": 0}

    def permuted(tree: PyTree) -> PyTree:
        def move(path, leaf):
            name = jax.tree_util.keystr(path)
            axis = next((axis for part, axis in axes.items() if name.startswith(part)), None)
            return leaf if axis is None else np.take(leaf, order, axis)

        return jax.tree_util.tree_map_with_path(move, tree)

    moved = permuted(problem.arguments)
    before = Outputs(*subject.forward(*problem.arguments))
    d_before = Arguments(*subject.gradient(*problem.arguments, problem.cotangents))
    after = outputs(subject, moved)
    d_after = gradients(subject, moved, permuted(problem.cotangents))
    error, where = max(
        numerics.difference(after, numerics.leaves(permuted(before))),
        numerics.difference(d_after, numerics.leaves(permuted(d_before))),
    )
    return measured(error, EXACT, f"one place further round; worst for {where[1:]}")


def error_growth(subject: Subject, problem: Problem) -> Result:
    """In float32 the error of the gradient grows no faster than the number of steps."""
    errors = []
    for steps in LONG:
        long = _of_length(problem, steps)
        single = _rounded(long, np.float32)
        double = _rounded(single, np.float64)
        got, want = (gradients(subject, p.arguments, p.cotangents) for p in (single, double))
        errors.append(numerics.difference(got, want)[0])
    eps = float(np.finfo(np.float32).eps)
    once, per_step = ROUNDINGS
    allowed = [(once + per_step * steps) * eps for steps in LONG]
    worst = max(error / most for error, most in zip(errors, allowed, strict=True))
    seen = ", ".join(f"{e:.0e} at T={t}" for e, t in zip(errors, LONG, strict=True))
    return measured(worst, 1.0, f"share of what is allowed; {seen}")


def _of_length(problem: Problem, steps: int) -> Problem:
    """Return the problem with T = `steps`, its own steps drawn again and again."""
    drawn = problem.generator().integers(0, problem.steps, size=steps)

    def stretch(tree: PyTree) -> PyTree:
        return jax.tree.map(lambda a: np.take(a, drawn, 0), tree)

    arguments, cotangents = problem.arguments, problem.cotangents
    return problem._replace(
        arguments=arguments._replace(xs=stretch(arguments.xs)),
        cotangents=cotangents._replace(ys=stretch(cotangents.ys)),
    )


def _rounded(problem: Problem, dtype: type) -> Problem:
    def cast(a: np.ndarray) -> np.ndarray:
        if not numerics.is_inexact(a):
            return a
        return a.astype(np.result_type(dtype, np.complex64) if np.iscomplexobj(a) else dtype)

    arguments, cotangents = jax.tree.map(cast, (problem.arguments, problem.cotangents))
    return problem._replace(arguments=arguments, cotangents=cotangents)
