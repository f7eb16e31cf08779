"""A smoke run of the script that counts Newton's iterations."""

import importlib
from pathlib import Path

import jax
import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.mark.slow
def test_iterations_against_the_exponent(tmp_path, capsys, monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    script = importlib.import_module("newton")
    page = tmp_path / "page.md"
    page.write_text("<!-- bench newton -->\n<!-- end of bench newton -->\n")
    argv = ["--smoke", "--steps", "64", "--markdown", str(page)]
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        assert script.main([*argv, "--plot", str(tmp_path / "plot.svg")]) == 0
        points = [script.measure(gain, ["full"], 64) for gain in (0.5, 2.0)]
    assert points[0].exponents.max() < 0 < points[1].exponents.min()
    assert points[0].iterations["full"].max() < points[1].iterations["full"].min()
    assert "largest exponent" in capsys.readouterr().out and "| 0.5 |" in page.read_text()
    assert "<svg" in (tmp_path / "plot.svg").read_text()
