"""The suite passes on this library, says what does not apply, and fails what raises."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_bptt as jb
from jax_bptt.testing import PROPERTIES, Subject, conformance, from_jax
from tests.registry import CELLS, problem

OPTIONS = {"lengths", "resets", "mask", "reset_state"}
BATCH, STEPS = (3,), 5


def step(name):
    reference = CELLS[name].reference

    def one(params, state, x):
        state = reference.step(jnp, params, state, x)
        return state, reference.readout(jnp, params, state)

    return one


def verdicts(report):
    return {result.name: result.verdict for result in report.results}


NAMES = ["elman", "lstm", "gru", "gru_reset_before", "counted_gated"]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_cells(name):
    p = problem(name, BATCH, STEPS)
    counts = name.startswith("counted")
    run = functools.partial(jb.unroll, CELLS[name].cell)
    subject = from_jax(
        run,
        name=name,
        step=step(name),
        supports=OPTIONS,
        disclaims={"error_growth": "its state is float64"} if counts else {},
    )
    report = conformance(subject, p.params, p.xs, p.state)
    assert not report.failures, report
    missing = {"every_bias", "error_growth"} if counts else {"integer_state"}
    inapplicable = {k for k, verdict in verdicts(report).items() if verdict == "n/a"}
    assert inapplicable == missing | {"per_layer_gradients"}


@pytest.mark.slow
def test_a_stack_of_three():
    """Options apply to every layer: what is held or starts anew below does so above."""
    names = ["lstm", "gru", "elman"]
    sizes = [2, 3, 3]
    cells = [
        getattr(jb, name)(input_size=size, hidden_size=3)
        for name, size in zip(names, sizes, strict=True)
    ]
    rng = np.random.default_rng(0)

    def drawn(tree):
        return jax.tree.map(lambda a: np.asarray(a) + 0.4 * rng.normal(size=a.shape), tree)

    params = [drawn(cell.init(jax.random.key(k))) for k, cell in enumerate(cells)]
    state = [drawn(cell.initial_state(p, BATCH)) for cell, p in zip(cells, params, strict=True)]

    def run(params, xs, state, reset_state=(None,) * 3, **options):
        last = []
        for cell, p, s, start in zip(cells, params, state, reset_state, strict=True):
            after, xs = jb.unroll(cell, p, xs, s, reset_state=start, **options)
            last.append(after)
        return last, xs

    subject = from_jax(run, supports=OPTIONS)
    kept = {"finite_differences", "per_layer_gradients", "every_bias", "order_of_products"}
    kept |= {"ragged_lengths", "per_step_masks", "resets"}
    chosen = [check for check in PROPERTIES if check.__name__ in kept]
    xs = rng.normal(size=(STEPS, *BATCH, 2))
    report = conformance(subject, params, xs, state, properties=chosen)
    assert not report.failures, report
    assert verdicts(report)["per_layer_gradients"] == "ok"


def tanh(params, xs, state):
    def advance(state, x):
        state = jnp.tanh(state @ params + x)
        return state, state

    return jax.lax.scan(advance, state, xs)


def point():
    rng = np.random.default_rng(0)
    return rng.normal(size=(3, 3)), rng.normal(size=(4, 2, 3)), rng.normal(size=(2, 3))


@pytest.mark.slow
def test_a_bare_function_and_what_does_not_apply_to_it():
    report = conformance(tanh, *point())
    assert report.subject == "tanh" and not report.failures, report
    by_name = {result.name: result for result in report.results}
    assert list(by_name) == [check.__name__ for check in PROPERTIES]
    assert by_name["resets"].explanation == "it takes no resets"
    assert by_name["naive_loop"].explanation == "no single step is given"
    assert by_name["adjoint_identity"].explanation == "J u by forward mode"
    assert by_name["third_derivatives"].verdict == "ok"
    assert "FAIL" not in str(report) and "n/a" in str(report)


def only(name):
    return [check for check in PROPERTIES if check.__name__ == name]


def test_forward_mode_is_done_without_where_it_is_refused():
    wrapped = jax.custom_vjp(tanh)
    wrapped.defvjp(lambda *arguments: jax.vjp(tanh, *arguments), lambda pull, d: pull(d))
    (result,) = conformance(wrapped, *point(), properties=only("adjoint_identity")).results
    assert result.verdict == "ok" and result.explanation == "J u by central differences"


def test_jacobians_that_commute_say_nothing_about_their_order():
    def leaky(params, xs, state):
        return jax.lax.scan(lambda s, x: (params[None] * s + x,) * 2, state, xs)

    params, xs, state = point()
    report = conformance(leaky, params[0], xs, state, properties=only("order_of_products"))
    assert verdicts(report) == {"order_of_products": "n/a"}


def test_what_raises_has_failed():
    def reverse_only(*arguments: Any, **options: Any):
        raise NotImplementedError("no such thing\nas this")

    subject = from_jax(tanh)._replace(higher=reverse_only)
    (result,) = conformance(subject, *point(), properties=only("second_derivatives")).results
    assert result.verdict == "FAIL" and result.error is None
    assert result.explanation == "raises NotImplementedError: no such thing"


def test_what_is_disclaimed_does_not_apply():
    subject = from_jax(tanh, disclaims={"repeatability": "it says so"})
    (result,) = conformance(subject, *point(), properties=only("repeatability")).results
    assert (result.verdict, result.explanation) == ("n/a", "it says so")


def test_nan_is_no_success():
    def wrong(*arguments, **options):
        return jax.tree.map(lambda a: a * np.nan, right.gradient(*arguments, **options))

    right: Subject = from_jax(tanh)
    report = conformance(right._replace(gradient=wrong), *point())
    passed = {name for name, verdict in verdicts(report).items() if verdict == "ok"}
    # NaN every time is the same every time, and the Hessian is not taken from the gradient.
    assert passed <= {"repeatability", "third_derivatives"}, report


def test_single_precision_is_refused():
    params, xs, state = point()
    with pytest.raises(ValueError, match="takes params of dtype float32, but is examined in"):
        conformance(tanh, params.astype(np.float32), xs, state)
    with jax.enable_x64(False), pytest.raises(ValueError, match="returned last_state of dtype"):
        conformance(tanh, *point())
