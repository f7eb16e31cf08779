"""The fuzzer finds nothing in the library, and finds what is broken on purpose."""

import numpy as np
import pytest

from jax_bptt.testing.fuzz import equations, run
from jax_bptt.testing.fuzz.compositions import draw_composition

SEED = 9


def first_with(*words):
    """Return the number of the first draw whose composition names all the words."""
    for number in range(1000):
        composition = draw_composition(np.random.default_rng((SEED, 0, number)))
        if all(word in str(composition) for word in words):
            return number * run.SHARING
    raise AssertionError(f"there is no {words}")


def test_a_few_draws():
    report = run.fuzz(SEED, range(13 * run.SHARING, 16 * run.SHARING, run.SHARING // 2))
    assert not report.failures, report


@pytest.mark.slow
def test_more_draws():
    report = run.fuzz(SEED, range(27 * run.SHARING))
    assert not report.failures, report


@pytest.mark.slow
def test_a_wrong_equation_is_found_and_the_draw_repeated(monkeypatch, capsys):
    draw = first_with("gru(", "; grad", "T=7", "batch=(2,)")
    command = ["--seed", str(SEED), "--first", str(draw), "--draws", "1"]
    assert run.main(command) == 0
    assert f"1 draws, seed {SEED}, 0 failed" in capsys.readouterr().out
    monkeypatch.setattr(equations, "sigmoid", lambda a: 1 / (1 + np.exp(a)))
    assert run.main(command) == 1
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith(f"draw {draw}: ") and "gru(input_size=" in printed[0]
    assert printed[0].endswith(f"python -m jax_bptt.testing.fuzz {' '.join(command)}")


def test_draws_are_repeatable():
    number = first_with("vmap") // run.SHARING
    twice = [str(draw_composition(np.random.default_rng((SEED, 0, number)))) for _ in range(2)]
    assert twice[0] == twice[1]


ONE = {"a": np.ones(2), "n": np.arange(3)}


@pytest.mark.parametrize(
    "got, where",
    [
        ({"a": np.ones(2)}, "['n']"),
        (ONE | {"a": np.ones(2, np.float32)}, "['a']"),
        (ONE | {"a": np.ones(3)}, "['a']"),
        (ONE | {"a": np.array([1, np.nan])}, "['a']"),
        (ONE | {"n": np.arange(3) + 1}, "['n']"),
        (ONE | {"extra": np.ones(1)}, "['extra']"),
    ],
)
def test_what_is_no_rounding_is_infinitely_wrong(got, where):
    assert run.worst(got, ONE, np.float64) == (np.inf, where)


def test_errors_are_relative():
    off = {"a": np.array([100.0, 1.0]), "b": np.array([1.0])}
    right = {"a": np.array([100.0, 1.5]), "b": np.array([1.0])}
    assert run.worst(off, right, np.float64) == (0.005, "['a']")
