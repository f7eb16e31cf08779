"""Each bug of the list is caught, by the property that is there for it."""

import pytest

from jax_bptt.testing import PROPERTIES, conformance
from tests.registry import slow_unless
from tests.testing import tanh_stack
from tests.testing.planted_bugs import BUGS, COUNTED, RIGHT, arguments


def failed(report):
    return {result.name for result in report.failures}


def test_the_right_layer_passes():
    report = conformance(RIGHT, *tanh_stack.arguments())
    assert failed(report) == set(), report
    inapplicable = {result.name for result in report.results if result.passed is None}
    assert inapplicable == {"integer_state", "second_derivatives", "third_derivatives"}


@pytest.mark.slow
def test_the_right_counter_passes():
    report = conformance(COUNTED, *arguments("counter_as_float"))
    assert failed(report) == set(), report
    assert {r.name: r.passed for r in report.results}["integer_state"]


QUICK = "products_in_forward_order", "padding_times_zero", "reset_one_step_late"
QUICK += ("last_state_dropped",)


@pytest.mark.parametrize("name", [slow_unless(name in QUICK, name) for name in BUGS])
def test_caught(name):
    bug = BUGS[name]
    report = conformance(bug.subject, *arguments(name))
    assert failed(report) == {bug.caught_by, *bug.besides}, report
    for result in report.failures:
        assert result.error is None or result.error > 10 * (result.tolerance or 1e-16), result


def test_every_property_catches_a_bug():
    caught = {name for bug in BUGS.values() for name in (bug.caught_by, *bug.besides)}
    assert caught == {check.__name__ for check in PROPERTIES}


def test_forward_order_is_called_by_its_name():
    bug = BUGS["products_in_forward_order"]
    report = conformance(bug.subject, *tanh_stack.arguments())
    (result,) = [r for r in report.results if r.name == "order_of_products"]
    assert "equals the product in forward order" in result.explanation
