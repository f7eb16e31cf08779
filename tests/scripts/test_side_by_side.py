import importlib
import sys
from pathlib import Path

import jax
import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture(scope="module")
def script():
    sys.path.insert(0, str(SCRIPTS))
    yield importlib.import_module("side_by_side")
    sys.path.remove(str(SCRIPTS))


@pytest.mark.slow
def test_smoke_prints_a_line_per_cell(script, capsys):
    with jax.enable_x64(False):
        assert script.main(["--smoke", "--cells", "elman", "gru"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("64, 4, 2, 8")
    assert [line.split()[0] for line in lines[2:-1]] == ["elman", "gru"]
    assert jax.__version__ in lines[-1]


def test_the_share_is_that_of_the_loops_of_the_blocks(script):
    blocks = [("while.1", 0.0, 100.0)]
    half = [("while.2", 10.0, 20.0), ("while.2", 50.0, 60.0)]

    def other(first, second):
        return [("while.3", first, first + 10.0), ("while.3", second, second + 10.0)]

    assert script.share_beside([*blocks, *half, *other(10.0, 50.0)]) == 1
    assert script.share_beside([*blocks, *half, *other(15.0, 55.0)]) == 0.5
    assert script.share_beside([*blocks, *half, *other(20.0, 60.0)]) == 0
    assert script.share_beside(blocks) == 0


@pytest.mark.parametrize("text", ["1,2,3", "a,2,3,4", "1,8,4,4", "8,1,4,4", "0,1,2,3"])
def test_a_wrong_shape_is_refused(script, text, capsys):
    with pytest.raises(SystemExit):
        script.main(["--shape", text])
    assert text in capsys.readouterr().err
