"""A smoke run of the script that trains a flip-flop and looks for its fixed points."""

import importlib
from pathlib import Path

import jax
import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.mark.slow
def test_a_run(tmp_path, capsys, monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    script = importlib.import_module("flip_flop")
    page = tmp_path / "page.md"
    page.write_text("<!-- bench flip_flop -->\n<!-- end of bench flip_flop -->\n")
    argv = ["--updates", "20", "--candidates", "32"]
    argv += ["--markdown", str(page), "--plot", str(tmp_path / "plot.svg")]
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        assert script.main(argv) == 0
    assert "gru of 16 units" in capsys.readouterr().out
    assert "| unstable directions | points |" in page.read_text()
    assert "<svg" in (tmp_path / "plot.svg").read_text()


@pytest.mark.slow
def test_eight_memories_and_the_saddles_between(monkeypatch):
    """Three bits: corners, edges, faces and the centre of a cube."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    script = importlib.import_module("flip_flop")
    args = script.parser().parse_args([])
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        _, _, found = script.studied(args)
    assert found.stable.sum() == 8 and found.unstable.tolist().count(1) == 12


def test_a_page_without_markers_is_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    page = tmp_path / "page.md"
    page.write_text("nothing\n")
    with pytest.raises(SystemExit) as stopped:
        importlib.import_module("flip_flop").main(["--markdown", str(page)])
    assert stopped.value.code == 2 and "flip_flop" in capsys.readouterr().err
