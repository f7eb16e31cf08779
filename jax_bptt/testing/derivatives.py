"""Properties that hold the gradient against something else that is right."""

from collections.abc import Callable, Iterable

import jax
import numpy as np

from jax_bptt.testing import numerics, references
from jax_bptt.testing.numerics import Leaves
from jax_bptt.testing.problem import Problem, gradients, outputs
from jax_bptt.testing.report import Result, measured, not_applicable
from jax_bptt.testing.subject import Arguments, Outputs, Subject

EXACT = 1e-11
"""Relative error allowed between two computations in double precision."""

DIFFERENCES = 1e-8
"""The same where one of them is a central difference."""


def slope(subject: Subject, problem: Problem, direction: Leaves) -> Leaves:
    """Return J v by central differences: the change of the outputs along a direction."""
    return numerics.derivative(
        lambda h: outputs(subject, numerics.displaced(problem.arguments, direction, h))
    )


def against_differences(
    subject: Subject, problem: Problem, directions: Iterable[Leaves]
) -> tuple[float, str]:
    """Return the largest error of <gradient, v> against <cotangents, J v> over directions v.

    It is relative to |cotangents| (|J v| + |outputs|), the most that either product can be and
    the rounding of the differences. Named is the direction in which it is largest.
    """
    given = numerics.leaves(problem.cotangents)
    gradient = gradients(subject, problem.arguments, problem.cotangents)
    values = {k: v for k, v in outputs(subject, problem.arguments).items() if k in given}
    worst, where = 0.0, ""
    for direction in directions:
        change = {k: v for k, v in slope(subject, problem, direction).items() if k in given}
        scale = numerics.norm(given) * (numerics.norm(change) + numerics.norm(values))
        error = abs(numerics.inner(gradient, direction) - numerics.inner(given, change)) / scale
        if not error <= worst:
            worst = error if np.isfinite(error) else np.inf
            where = next(iter(direction))[1:] if len(direction) == 1 else "all leaves together"
    return worst, where


def finite_differences(subject: Subject, problem: Problem) -> Result:
    """The gradient along random directions, leaf by leaf, is that of central differences."""
    direction = numerics.noise(problem.generator(), numerics.leaves(problem.arguments))
    directions = [direction, *({name: leaf} for name, leaf in direction.items())]
    error, where = against_differences(subject, problem, directions)
    return measured(error, DIFFERENCES, f"against central differences; worst for {where}")


def naive_loop(subject: Subject, problem: Problem) -> Result:
    """Outputs and gradients are those of a Python loop over the single step, by `jax.grad`."""
    if subject.step is None:
        return not_applicable("no single step is given")
    want_outputs, want = references.naive_loop(subject.step, problem)
    got = gradients(subject, problem.arguments, problem.cotangents)
    errors = [
        numerics.difference(outputs(subject, problem.arguments), want_outputs),
        numerics.difference(got, want),
    ]
    error, where = max(errors)
    return measured(error, EXACT, f"against jax.grad of a Python loop; worst for {where[1:]}")


def adjoint_identity(subject: Subject, problem: Problem) -> Result:
    """<J u, v> = <u, J^T v> for random u and v."""
    rng = problem.generator()
    worst, forward_mode = 0.0, True
    for _ in range(3):
        u = numerics.noise(rng, numerics.leaves(problem.arguments))
        v = numerics.noise(rng, numerics.leaves(problem.cotangents))
        ju = _pushed_forward(subject, problem, u)
        if ju is None:
            forward_mode = False
            ju = slope(subject, problem, u)
        cotangents = numerics.filled(problem.cotangents, v)
        gradient = gradients(subject, problem.arguments, cotangents)
        scale = numerics.norm(v) * numerics.norm(ju)
        error = abs(numerics.inner(ju, v) - numerics.inner(gradient, u)) / scale
        worst = max(worst, error if np.isfinite(error) else np.inf)
    if forward_mode:
        return measured(worst, EXACT, "J u by forward mode")
    return measured(worst, DIFFERENCES, "J u by central differences")


def _pushed_forward(subject: Subject, problem: Problem, direction: Leaves) -> Leaves | None:
    if subject.pushforward is None:
        return None
    arguments = problem.arguments
    result = subject.pushforward(*arguments, numerics.filled(arguments, direction))
    return None if result is None else numerics.leaves(Outputs(*result))


def order_of_products(subject: Subject, problem: Problem) -> Result:
    """The gradient through T steps is J_1^T ... J_T^T, in this order, of Jacobians that differ."""
    params, xs, state = problem.arguments
    last = numerics.leaves(problem.cotangents.last_state)
    if not last:
        return not_applicable("the state has no gradient")
    starts = [state]
    at = _steps_of(xs, problem.steps)
    for x in at:
        starts.append(subject.forward(params, x, starts[-1])[0])

    def product(order: Iterable[int]) -> Leaves:
        d_state = last
        for t in order:
            cotangents = Outputs(numerics.filled(state, d_state), _nothing(problem))
            d_state = numerics.leaves(subject.gradient(params, at[t], starts[t], cotangents)[2])
        return d_state

    right, wrong = product(reversed(range(problem.steps))), product(range(problem.steps))
    if numerics.difference(wrong, right)[0] < 1e-3:
        return not_applicable("the Jacobians of these steps commute")
    cotangents = Outputs(problem.cotangents.last_state, _nothing(problem))
    got = numerics.leaves(subject.gradient(params, xs, state, cotangents)[2])
    error, _ = numerics.difference(got, right)
    note = "against the steps' own Jacobians, the last first"
    if error > EXACT and numerics.difference(got, wrong)[0] <= EXACT:
        note += "; it equals the product in forward order"
    return measured(error, EXACT, note)


def _steps_of(xs, steps: int):
    return [jax.tree.map(lambda a, t=t: a[t : t + 1], xs) for t in range(steps)]


def _nothing(problem: Problem):
    return numerics.filled(problem.cotangents.ys, {})


def per_layer_gradients(subject: Subject, problem: Problem) -> Result:
    """In a stack, each layer's weights have the gradient of central differences, by its scale."""
    layers: dict[str, list[str]] = {}
    for path in numerics.leaves(problem.arguments.params):
        layer = subject.layer_of(path)
        if layer is not None and not subject.is_bias(path):
            layers.setdefault(layer, []).append(f".params{path}")
    if len(layers) < 2:
        return not_applicable("no stack of layers")
    rng, named = problem.generator(), numerics.leaves(problem.arguments)
    given = numerics.leaves(problem.cotangents)
    gradient = gradients(subject, problem.arguments, problem.cotangents)
    errors = {}
    for layer, names in layers.items():
        pairs = []
        for _ in range(3):
            direction = numerics.noise(rng, {name: named[name] for name in names})
            change = numerics.inner(given, slope(subject, problem, direction))
            pairs.append((numerics.inner(gradient, direction), change))
        got, want = np.transpose(pairs)
        errors[layer] = float(np.abs(got - want).max() / np.abs(want).max())
    worst = _worst(errors)
    return measured(errors[worst], 100 * DIFFERENCES, f"{len(layers)} layers; worst for {worst}")


def every_bias(subject: Subject, problem: Problem) -> Result:
    """Each single entry of each bias has the gradient of central differences."""
    params = numerics.leaves(problem.arguments.params)
    biases = {f".params{k}": b for k, b in params.items() if subject.is_bias(k)}
    if not biases:
        return not_applicable("no parameter is named like a bias")
    given = numerics.leaves(problem.cotangents)
    gradient = gradients(subject, problem.arguments, problem.cotangents)
    errors = {}
    for name, bias in biases.items():
        entries = np.eye(bias.size, dtype=bias.dtype).reshape(-1, *bias.shape)
        changes = [
            numerics.inner(given, slope(subject, problem, {name: entry})) for entry in entries
        ]
        want = {name: np.reshape(changes, bias.shape)}
        got = {name: gradient.get(name, np.zeros_like(bias))}
        errors[name] = numerics.difference(got, want)[0]
    worst = _worst(errors)
    entries = sum(bias.size for bias in biases.values())
    note = f"{entries} entries against central differences; worst in {worst[1:]}"
    return measured(errors[worst], 10 * DIFFERENCES, note)


def _worst(errors: dict[str, float]) -> str:
    return max(errors, key=lambda name: errors[name] if np.isfinite(errors[name]) else np.inf)


def second_derivatives(subject: Subject, problem: Problem) -> Result:
    """The Hessian times a vector is the central difference of the gradient along it."""
    if subject.higher is None:
        return not_applicable("no higher derivatives are given")
    (u,) = _directions(problem, 1)
    want = numerics.derivative(
        lambda h: gradients(
            subject, numerics.displaced(problem.arguments, u, h), problem.cotangents
        )
    )
    error, where = numerics.difference(_curvature(subject, problem, u)(0.0), want, together=True)
    note = f"against central differences of the gradient; worst for {where[1:]}"
    return measured(error, DIFFERENCES, note)


def third_derivatives(subject: Subject, problem: Problem) -> Result:
    """The third derivative along two vectors is the central difference of the second."""
    if subject.higher is None:
        return not_applicable("no higher derivatives are given")
    u, v = _directions(problem, 2)
    want = numerics.derivative(_curvature(subject, problem, u, moved_along=v))
    got = _curvature(subject, problem, u, v)(0.0)
    error, where = numerics.difference(got, want, together=True)
    note = f"against central differences of the second; worst for {where[1:]}"
    return measured(error, 10 * DIFFERENCES, note)


def _directions(problem: Problem, number: int) -> list[Leaves]:
    rng, like = problem.generator(), numerics.leaves(problem.arguments)
    return [numerics.noise(rng, like) for _ in range(number)]


def _curvature(
    subject: Subject, problem: Problem, *directions: Leaves, moved_along: Leaves | None = None
) -> Callable[[float], Leaves]:
    """Return h -> the gradient of the derivative along the directions, at a displaced point."""
    trees = tuple(numerics.filled(problem.arguments, d) for d in directions)
    higher = subject.higher
    assert higher is not None

    def at(h: float) -> Leaves:
        point = numerics.displaced(problem.arguments, moved_along or {}, h)
        return numerics.leaves(Arguments(*higher(*point, problem.cotangents, trees)))

    return at
