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


def test_the_share_is_that_of_the_loops_over_steps(script):
    def span(name, thread, start, end):
        return script.Span(name, thread, start, end)

    loops = [span("while.1", 1, 0, 100), span("while.2", 1, 10, 20), span("while.2", 1, 50, 60)]
    own = [span("dot.1", 1, 10, 20)]
    assert script.share_beside(loops + own) == 0
    assert script.share_beside([*loops, span("dot.2", 2, 15, 70)]) == 0.75
    twice = [span("dot.2", 2, 0, 15), span("add.2", 2, 10, 12), span("dot.2", 3, 12, 18)]
    assert script.share_beside(loops + twice) == 0.4
    assert script.share_beside([span("while.1", 1, 0, 100), span("dot.2", 2, 0, 50)]) == 0


@pytest.mark.parametrize("text", ["1,2,3", "a,2,3,4", "1,8,4,4", "8,1,4,4", "0,1,2,3"])
def test_a_wrong_shape_is_refused(script, text, capsys):
    with pytest.raises(SystemExit):
        script.main(["--shape", text])
    assert text in capsys.readouterr().err
