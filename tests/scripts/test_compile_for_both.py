"""Four devices that are not there: what is read of a program, and which promises it breaks."""

import importlib

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

COLLECTIVES = {
    "all-reduce": {"all": 1, "in_loops": 0},
    "all-gather": {"all": 0, "in_loops": 0},
}
ROW = {
    "device": "TPU v5e",
    "gradient": "lstm, checkpointed(block_length=8, on_host=True)",
    "collectives": COLLECTIVES,
    "temp_bytes": 3 * 2**20,
    "host_bytes": 2**21,
}


@pytest.fixture
def both():
    return importlib.import_module("compile_for.both")


@pytest.mark.parametrize(
    "change, broken",
    [
        ({}, []),
        ({"host_bytes": 5}, ["5 bytes on the host, not 2097152"]),
        ({"host_bytes": 5, "gradient": "lstm"}, []),
        (
            {"collectives": COLLECTIVES | {"all-reduce": {"all": 2, "in_loops": 1}}},
            ["2 times all-reduce, 1 in loops"],
        ),
        (
            {"collectives": COLLECTIVES | {"all-gather": {"all": 1, "in_loops": 0}}},
            ["1 times all-gather, 0 in loops"],
        ),
    ],
)
def test_promises(both, change, broken):
    assert both.broken(ROW | change) == broken


def test_the_table(both):
    (line,) = both.table([ROW]).cells
    assert line == ["TPU v5e", ROW["gradient"], "1, 0", "0", "3.0", "2.0"]


def test_programs_for_two_cpus(both, monkeypatch):
    """They stand for four devices. A CPU has one memory, and XLA leaves its sums in loops."""
    for name, size in {"STEPS": 16, "BATCH": 4, "UNITS": 5}.items():
        monkeypatch.setattr(both, name, size)
    mesh = Mesh(np.array(jax.devices()[:2]), ("batch",))
    gradients = both.gradients()
    assert len(gradients) == 5
    for name in ("gru", "lstm, checkpointed(block_length=8, on_host=True)"):
        found = both.facts(gradients[name], mesh)
        assert found["collectives"]["all-reduce"]["all"] >= 1
        assert found["collectives"]["all-gather"]["all"] == 0
        assert found["host_bytes"] == 0 and found["temp_bytes"] > 0
