"""A smoke run of the mode that times the modules for other libraries."""

import importlib.util

import pytest

from tests.scripts import test_bench

bench = test_bench.bench

MODULES = {
    "flax": ["interop.linen.Recurrent", "interop.linen.ScannedRNN", "flax"],
    "equinox": ["interop.equinox.Recurrent", "interop.equinox.Recurrent, vmap", "equinox"],
}


@pytest.mark.slow
def test_adaptors(bench, tmp_path, capsys):
    status, report = test_bench.run(bench, tmp_path, "adaptors", "--cells", "gru")
    assert status == 0
    (row,) = report["rows"]
    entries = test_bench.timed(row)
    assert list(entries)[:2] == ["jb.unroll", "plain scan"]
    for library, names in MODULES.items():
        if importlib.util.find_spec(library) is not None:
            assert set(names) <= set(entries)
    for entry in entries.values():
        assert entry["refused"] is None and entry["error"] <= 1e-5
        assert entry["seconds"] > 0 and entry["compile_s"] > 0
        assert (entry["original_ratio"] is None) == (entry["original"] == "")
    assert "in place of" in capsys.readouterr().out
