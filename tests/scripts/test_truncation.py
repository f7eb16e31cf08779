"""The textbook cases of a truncated gradient: closed form, runs, pages."""

import importlib
import sys
from pathlib import Path

import jax
import pytest

from tests.registry import slow_unless

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture(scope="module")
def script():
    sys.path.insert(0, str(SCRIPTS))
    yield importlib.import_module("truncation")
    sys.path.remove(str(SCRIPTS))


@pytest.mark.parametrize("window", [slow_unless(k == 41, k) for k in range(1, 101)])
def test_the_coefficient_is_its_closed_form(script, window):
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        found = script.coefficient(window)
    assert abs(found - script.closed_form(window)) <= 1e-12 * max(1, abs(found))


def test_the_closed_form_has_the_published_values(script):
    """Its greatest is 16.48 at K = 19, the sign changes at 41, and the limit is -6."""
    values = {k: script.closed_form(k) for k in range(1, 101)}
    assert max(values, key=lambda k: values[k]) == 19 and round(values[19], 2) == 16.48
    assert min(k for k in values if values[k] < 0) == 41
    assert round(values[60], 2) == -5.90 and round(values[100], 4) == -6.0


@pytest.mark.slow
@pytest.mark.parametrize("case", ["balance", "copy"])
def test_a_run(script, case, tmp_path, capsys):
    page = tmp_path / "page.md"
    begin, end = f"<!-- bench truncation {case} -->", f"<!-- end of bench truncation {case} -->"
    page.write_text(f"before\n{begin}\n{end}\n")
    argv = [case, "--updates", "20", "--markdown", str(page)]
    if case == "balance":
        argv += ["--windows", "42", "--plot", str(tmp_path / "plot.svg")]
    with (
        jax.enable_x64(False),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        assert script.main(argv) == 0
    text = page.read_text()
    assert text.startswith("before\n") and f"`python scripts/truncation.py {case}" in text
    assert "bptt()" in capsys.readouterr().out
    assert case == "copy" or "<svg" in (tmp_path / "plot.svg").read_text()


def test_a_page_without_markers_is_refused(script, tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text("nothing\n")
    with pytest.raises(SystemExit) as stopped:
        script.main(["copy", "--markdown", str(page)])
    assert stopped.value.code == 2 and capsys.readouterr().err.count("\n") == 1
