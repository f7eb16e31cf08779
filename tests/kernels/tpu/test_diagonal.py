"""The recurrence on a TPU, interpreted, against a loop."""

import functools

import jax
import jax.numpy as jnp
import pytest

from jax_bptt.kernels.tpu import diagonal
from tests.kernels.recurrence import check, check_forgets, check_vmap, make_case
from tests.registry import slow_unless

REAL, COMPLEX = jnp.float32, jnp.complex64
REASON = diagonal.unsupported(jnp.zeros(1, REAL))
pytestmark = pytest.mark.skipif(REASON is not None, reason=str(REASON))


def interpreted(*args, **kwargs):
    return diagonal.scan(*args, **kwargs, interpret=diagonal.interpreter())


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(
    "steps, shape, dtype, constant",
    [
        slow_unless(False, 1, (), REAL, False),
        slow_unless(False, 5, (3, 5), REAL, False),
        (3, (2, 1, 129), REAL, True),
        (5, (3, 5), COMPLEX, False),
        slow_unless(False, 4, (128,), COMPLEX, True),
    ],
)
def test_equals_the_loop(steps, shape, dtype, constant, reverse):
    check(interpreted, make_case(steps, shape, dtype, constant=constant, reverse=reverse))


@pytest.mark.slow
@pytest.mark.parametrize(
    "dtype, reverse",
    [
        (REAL, False),
        slow_unless(False, REAL, True),
        slow_unless(False, COMPLEX, False),
        (COMPLEX, True),
    ],
)
def test_several_blocks_of_steps_rows_and_units(dtype, reverse, monkeypatch):
    monkeypatch.setattr(diagonal, "UNITS", diagonal.LANES)
    two_steps = 2 * 4 * diagonal.SUBLANES * diagonal.LANES
    monkeypatch.setattr(diagonal, "BYTES", two_steps)
    check(interpreted, make_case(5, (9, 130), dtype, reverse=reverse))


@pytest.mark.parametrize("reverse", [slow_unless(False, False), True])
def test_no_offsets(reverse):
    check(interpreted, make_case(3, (2, 3), REAL, offset=False, reverse=reverse))


@pytest.mark.slow
def test_vmap_over_offsets_alone():
    check_vmap(interpreted)


@pytest.mark.slow
def test_a_factor_of_zero_forgets():
    check_forgets(interpreted)


@pytest.mark.parametrize("dtype", [REAL, COMPLEX])
@pytest.mark.parametrize("reverse", [False, True])
def test_lowers_for_a_tpu(dtype, reverse):
    case = make_case(100, (3, 50), dtype, reverse=reverse)
    run = jax.jit(functools.partial(diagonal.scan, reverse=reverse))
    text = run.trace(*case[:3]).lower(lowering_platforms=("tpu",)).as_text()
    assert "tpu_custom_call" in text


def test_says_what_it_does_not_carry():
    assert "not float64" in str(diagonal.unsupported(jnp.zeros(3, jnp.float64)))
