"""The recurrence on a GPU, interpreted with the race detector on, against a loop."""

import functools
import inspect
import logging

import jax
import jax.numpy as jnp
import pytest

from jax_bptt.kernels.gpu import diagonal, mosaic
from tests.kernels.lowering import lowered
from tests.kernels.recurrence import check, check_forgets, check_vmap, make_case
from tests.registry import slow_unless

pytestmark = pytest.mark.skipif(mosaic.available() is not None, reason=str(mosaic.available()))

REAL, COMPLEX = jnp.float32, jnp.complex64
# Two steps of two arrays, so that a few steps go round the ring.
SHORT = 2 * 2 * 4 * diagonal.LANES


def interpreted(**options):
    params = mosaic.plgpu.InterpretGPUParams(detect_races=True, **options)
    return functools.partial(diagonal.scan, interpret=params)


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
    case = make_case(steps, shape, dtype, constant=constant, reverse=reverse)
    check(interpreted(), case)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(
    "steps, dtype, constant",
    [
        (11, REAL, False),
        slow_unless(False, 10, REAL, False),
        (7, COMPLEX, False),
        slow_unless(False, 21, REAL, True),
        slow_unless(False, 12, COMPLEX, True),
    ],
)
def test_more_steps_than_are_in_flight(steps, dtype, constant, reverse, monkeypatch):
    monkeypatch.setattr(diagonal, "SLOT", SHORT)
    check(interpreted(), make_case(steps, (3,), dtype, constant=constant, reverse=reverse))


@pytest.mark.parametrize("reverse", [slow_unless(False, False), True])
def test_no_offsets(reverse):
    check(interpreted(), make_case(3, (2, 3), REAL, offset=False, reverse=reverse))


def test_vmap_over_offsets_alone():
    check_vmap(interpreted())


def test_a_factor_of_zero_forgets():
    check_forgets(interpreted())


def test_overwriting_what_is_being_read_is_caught(monkeypatch, caplog):
    monkeypatch.setattr(diagonal, "SLOT", SHORT)
    case = make_case(11, (3,), REAL)
    if "on_race" not in inspect.signature(mosaic.plgpu.InterpretGPUParams).parameters:
        pytest.skip("the interpreter of this JAX prints races, and does not log them")
    run = interpreted(on_race="warn")
    with caplog.at_level(logging.WARNING):
        check(run, case)
        assert "RACE DETECTED" not in caplog.text
        monkeypatch.setattr(diagonal, "release", lambda: None)
        jax.block_until_ready(run(*case[:3]))
    assert "RACE DETECTED" in caplog.text


@pytest.mark.parametrize("dtype", [REAL, COMPLEX])
@pytest.mark.parametrize("reverse", [False, True])
def test_lowers_for_a_gpu(dtype, reverse):
    case = make_case(100, (3, 50), dtype, reverse=reverse)
    run = functools.partial(diagonal.scan, reverse=reverse)
    assert "mosaic_gpu" in lowered(run, *case[:3])


def test_says_what_it_does_not_carry():
    assert "not float64" in str(diagonal.unsupported(jnp.zeros(3, jnp.float64)))
    assert diagonal.unsupported(jnp.zeros(3, COMPLEX)) is None
