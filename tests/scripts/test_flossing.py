"""Gradient flossing as a script: what it asks for, that it pushes exponents, and its page."""

import importlib
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture(scope="module")
def script():
    sys.path.insert(0, str(SCRIPTS))
    yield importlib.import_module("flossing")
    sys.path.remove(str(SCRIPTS))


@pytest.fixture
def as_users_have_it():
    with (
        jax.enable_x64(False),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        yield


def test_what_is_asked_for(script):
    case = script.CASES["copy"]._replace(steps=30, delay=8)
    for task in ("copy", "xor"):
        xs, answers = map(np.asarray, script.drawn(task, case, jax.random.key(0)))
        bits = xs[..., 0] > 0
        want = bits[:22] if task == "copy" else bits[:22] ^ bits[4:26]
        np.testing.assert_array_equal(answers, want)


@pytest.mark.slow
def test_flossing_brings_exponents_to_zero(script, as_users_have_it):
    case = script.Case(16, 4, 60, 8, 150, 0, 0.0)
    cell, params = script.started(case, jax.random.key(0), False)

    def size(params):
        return np.abs(script.spectrum("copy", case, cell, params, jax.random.key(1))).mean()

    flossed = script.flossed("copy", case, cell, params, jax.random.key(2))
    assert size(flossed) < 0.5 * size(params)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["copy", "xor"])
def test_a_run(script, as_users_have_it, task, tmp_path, capsys):
    page = tmp_path / "page.md"
    begin, end = f"<!-- bench flossing {task} -->", f"<!-- end of bench flossing {task} -->"
    page.write_text(f"before\n{begin}\n{end}\n")
    picture = tmp_path / "plot.svg"
    argv = [task, "--smoke", "--markdown", str(page), "--plot", str(picture)]
    assert script.main(argv) == 0
    text = page.read_text()
    assert text.startswith("before\n") and f"`python scripts/flossing.py {task}" in text
    assert "flossed" in capsys.readouterr().out and "<svg" in picture.read_text()


def test_a_page_without_markers_is_refused(script, tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text("nothing\n")
    with pytest.raises(SystemExit) as stopped:
        script.main(["copy", "--markdown", str(page)])
    assert stopped.value.code == 2 and capsys.readouterr().err.count("\n") == 1
