"""Properties of how the gradient depends on which gradients are asked for, and from where."""

import itertools
from collections.abc import Callable

import jax
import numpy as np

from jax_bptt.testing import numerics
from jax_bptt.testing.derivatives import DIFFERENCES, EXACT, against_differences
from jax_bptt.testing.numerics import Leaves
from jax_bptt.testing.problem import Problem, gradients
from jax_bptt.testing.report import Result, measured, not_applicable
from jax_bptt.testing.subject import ARGUMENTS, Outputs, Subject

MANY = 3
"""Outputs of which all subsets are tried; of more, each alone and all but each."""


def zero_cotangents(subject: Subject, problem: Problem) -> Result:
    """Outputs that the loss does not read count as zeros, whichever they are; parts add up."""
    given = numerics.leaves(problem.cotangents)
    sizes = range(len(given)) if len(given) <= MANY else (0, 1, len(given) - 1)
    subsets = [set(s) for n in sizes for s in itertools.combinations(given, n)]

    def gradient(cotangents: Leaves) -> Leaves:
        tree = numerics.filled(problem.cotangents, cotangents)
        return gradients(subject, problem.arguments, tree)

    zeros = {name: np.zeros_like(c) for name, c in given.items()}
    parts = {name: gradient(zeros | {name: c}) for name, c in given.items()}
    total: Leaves = {}
    for part in parts.values():
        total = numerics.added(total, part)
    worst = numerics.difference(gradient(given), total)[0], "all together"
    for kept in subsets:
        unread = gradient({name: c for name, c in given.items() if name in kept})
        explicit = gradient({name: c if name in kept else zeros[name] for name, c in given.items()})
        error, _ = numerics.difference(unread, explicit)
        names = ", ".join(sorted(name[1:] for name in kept)) or "none"
        worst = max(worst, (error, f"{names} alone"))
    note = f"{len(subsets)} subsets of {len(given)} outputs; worst for {worst[1]}"
    return measured(worst[0], EXACT, note)


def final_state_only(subject: Subject, problem: Problem) -> Result:
    """A loss on the last state alone has the gradient of central differences in xs and state."""
    last = numerics.leaves(problem.cotangents.last_state)
    if not last:
        return not_applicable("the state has no gradient")
    only = problem._replace(
        cotangents=Outputs(problem.cotangents.last_state, _none(problem.cotangents.ys))
    )
    arguments = numerics.leaves(problem.arguments._replace(params=None))
    direction = numerics.noise(problem.generator(), arguments)
    directions = [{name: leaf} for name, leaf in direction.items()]
    error, where = against_differences(subject, only, directions)
    return measured(error, DIFFERENCES, f"against central differences; worst for {where}")


def _none(tree):
    return numerics.filled(tree, {})


def closed_over(subject: Subject, problem: Problem) -> Result:
    """Differentiating some of params, xs and state, the others closed over, changes nothing."""
    together = gradients(subject, problem.arguments, problem.cotangents)
    worst = 0.0, ""
    for wrt in (("params",), ("xs",), ("state",), ("xs", "state")):
        want = {k: d for k, d in together.items() if k[1:].startswith(wrt)}
        if want:
            got = gradients(subject, problem.arguments, problem.cotangents, wrt=wrt)
            error, _ = numerics.difference({k: d for k, d in got.items() if k in want}, want)
            worst = max(worst, (error, " and ".join(wrt)))
    return measured(worst[0], EXACT, f"against all together; worst for {worst[1]} alone")


def integer_state(subject: Subject, problem: Problem) -> Result:
    """Integers in the initial state stay integers, and the gradient of the rest is right."""
    state = dict(_dtypes(problem.arguments.state))
    integers = {k: d for k, d in state.items() if np.issubdtype(d, np.integer)}
    if not integers:
        return not_applicable("the state has no integers")
    last_state, _ = subject.forward(*problem.arguments)
    kept = dict(_dtypes(last_state))
    changed = [k for k, d in integers.items() if kept.get(k) != d]
    if changed:
        return measured(np.inf, DIFFERENCES, f"state{changed[0]} comes back as {kept[changed[0]]}")
    direction = numerics.noise(problem.generator(), numerics.leaves(problem.arguments))
    error = 0.0
    for name in ARGUMENTS:
        chosen = {k: d for k, d in direction.items() if k[1:].startswith(name)}
        alone = subject._replace(gradient=_only(subject.gradient, name))
        if chosen:
            error = max(error, against_differences(alone, problem, [chosen])[0])
    return measured(error, DIFFERENCES, "each argument alone, against central differences")


def _dtypes(tree):
    named = jax.tree_util.tree_leaves_with_path(tree)
    return [(jax.tree_util.keystr(path), np.asarray(leaf).dtype) for path, leaf in named]


def _only(gradient: Callable, name: str) -> Callable:
    return lambda *arguments, wrt=None: gradient(*arguments, wrt=(name,))


def strided_cotangents(subject: Subject, problem: Problem) -> Result:
    """A cotangent's numbers count, not how they lie in memory."""
    given = numerics.leaves(problem.cotangents)
    worst = 0.0, ""
    for name, lay_out in LAYOUTS.items():
        views = {k: lay_out(c) for k, c in given.items()}
        plain = {k: np.array(c, order="C") for k, c in views.items()}
        got, want = (
            gradients(subject, problem.arguments, numerics.filled(problem.cotangents, c))
            for c in (views, plain)
        )
        error, _ = numerics.difference(got, want)
        worst = max(worst, (error, name))
    return measured(worst[0], EXACT, f"against contiguous ones; worst for {worst[1]}")


def _every_second(a: np.ndarray) -> np.ndarray:
    return np.repeat(a, 2, axis=-1)[..., ::2]


def _constant(a: np.ndarray) -> np.ndarray:
    return np.broadcast_to(a.reshape(-1)[:1].reshape((1,) * a.ndim), a.shape)


LAYOUTS = {
    "transposed": np.asfortranarray,
    "every second number of an array": _every_second,
    "one number for all": _constant,
}
