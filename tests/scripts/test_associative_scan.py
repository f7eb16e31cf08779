import importlib
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import jax_bptt as jb

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture(scope="module")
def script():
    sys.path.insert(0, str(SCRIPTS))
    yield importlib.import_module("associative_scan")
    sys.path.remove(str(SCRIPTS))


@pytest.mark.slow
def test_smoke_prints_a_line_per_cell(script, capsys):
    with jax.enable_x64(False):
        assert script.main(["--smoke"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[:4] == ["cell", "T", "B", "H"]
    assert [line.split()[:4] for line in lines[2:-1]] == [
        [name, "8", "2", "4"] for name in script.CELLS
    ]
    assert jax.__version__ in lines[-1]


def test_wrong_gradients_are_not_timed(script, monkeypatch):
    exact: Any = jb.associative()

    def backward(*args):
        gradient = exact.backward(*args)
        return gradient._replace(xs=jax.tree.map(lambda d: 1.01 * d, gradient.xs))

    broken = {"sequential": jb.bptt(), "associative": exact._replace(backward=backward)}
    monkeypatch.setattr(script, "ALGORITHMS", broken)
    with jax.enable_x64(False), pytest.raises(SystemExit, match="the gradients differ by 1.0e-02"):
        script.main(["--smoke", "--cells", "min_gru"])


def test_the_difference_is_relative_to_the_leaf(script):
    got = {"a": jnp.array([1.0, 2.0]), "b": jnp.array([0.5])}
    want = {"a": jnp.array([1.0, 4.0]), "b": jnp.array([0.5])}
    assert script.difference(got, want) == 0.5


@pytest.mark.parametrize("text", ["8,2", "8,2,0", "8,2,x", "8,2,4,1"])
def test_a_bad_shape_is_named(script, text, capsys):
    with pytest.raises(SystemExit):
        script.main(["--shapes", text])
    assert f"must be T,B,H such as 512,32,64, got '{text}'" in capsys.readouterr().err
