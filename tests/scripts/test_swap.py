"""Programs in Flax and Equinox run with their layer replaced, by at most six lines."""

import importlib
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
LIBRARIES = ("nnx", "linen", "equinox")


@pytest.fixture(scope="module")
def script():
    sys.path.insert(0, str(SCRIPTS))
    yield importlib.import_module("swap")
    sys.path.remove(str(SCRIPTS))


@pytest.mark.parametrize("library", LIBRARIES)
def test_six_lines_at_most(script, library):
    original, swapped = script.sources(library)
    lines = script.changes(original, swapped)
    assert 0 < script.lines_changed(lines) <= 6
    assert "GRUCell" in original and "GRUCell" not in swapped
    assert [line for line in lines if line == "+import jax_bptt as jb"]
    assert script.lines_changed(["-a", "+b", "+c"]) == 2


def test_tags_are_symbols_seen_before(script):
    xs, tags = script.batch(jax.random.key(0), script.Sizes(1, 2, 9, 4))
    symbols = np.argmax(xs, -1)
    want = np.zeros_like(symbols)
    want[:, script.BACK :] = symbols[:, : -script.BACK]
    np.testing.assert_array_equal(tags, want)


@pytest.mark.slow
def test_both_variants_learn(script, tmp_path, capsys):
    for package in ("flax", "equinox"):
        pytest.importorskip(package)
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- bench swap -->\n<!-- end of bench swap -->\n")
    argv = ["--updates", "60", "--batch", "8", "--steps", "12", "--hidden", "24"]
    with (
        jax.enable_x64(False),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        assert script.main([*argv, "--markdown", str(page)]) == 0
        for library in LIBRARIES:
            original, swapped = script.sources(library)
            sizes = script.Sizes(60, 8, 12, 24)
            for result in script.train({"a": original, "b": swapped}, sizes).values():
                assert result.losses[-5:].mean() < 0.9 * result.losses[:5].mean()
                assert len(result.seconds) == 60 and result.temp_bytes > 0
    text = page.read_text()
    assert text.startswith("before\n") and "python scripts/swap.py --updates 60" in text
    assert text.count("```diff") == 3 and text.count("| ours |") == 3
    assert "times as fast" in capsys.readouterr().out


def test_bad_arguments_are_one_line(script, capsys):
    with pytest.raises(SystemExit) as stopped:
        script.main(["--libraries", "haiku"])
    assert stopped.value.code == 2 and capsys.readouterr().err.count("\n") == 1
