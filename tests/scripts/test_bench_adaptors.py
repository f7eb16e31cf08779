"""A smoke run of the mode that times the modules for other libraries, and its parts."""

import json

import jax
import numpy as np
import pytest

from tests.scripts import test_bench

bench = test_bench.bench

PAIRS = {
    "interop.nnx.Recurrent": "nnx.RNN",
    "interop.linen.Recurrent": "nn.RNN",
    "interop.linen.ScannedRNN": "scan with resets",
    "interop.equinox.Recurrent": "scan of eqx.nn cell",
    "interop.equinox.Recurrent, vmap": "scan of eqx.nn cell",
}


@pytest.mark.slow
def test_adaptors(bench, tmp_path, capsys):
    pytest.importorskip("flax")
    pytest.importorskip("equinox")
    argv = ["adaptors", "--devices", "1,2", "--shapes"]
    status, report = test_bench.run(bench, tmp_path, *argv, "6,8,3,5")
    assert status == 0
    assert [row["cell"] for row in report["rows"]] == ["gru", "lstm"]
    for row in report["rows"]:
        assert {p["module"]: p["original"] for p in row["pairs"]} == PAIRS
        for entry in [p[side] for p in row["pairs"] for side in ("ours", "theirs")]:
            assert entry["refused"] is None and entry["error"] <= 1e-5
            assert entry["seconds"] > 0 and entry["compile_s"] > 0 and entry["devices"] in (1, 2)
    summary = report["summary"]
    assert set(summary) == {*PAIRS, "all"} and summary["all"]["rows"] == 10
    ratios = [p["ratio"] for row in report["rows"] for p in row["pairs"]]
    assert summary["all"]["run"] == pytest.approx(np.exp(np.mean(np.log(ratios))))
    assert "in place of" in capsys.readouterr().out
    by_row, means = test_bench.part("adaptors").readme(report)
    assert by_row.cells[0][:2] == ["6, 8, 5", "gru"] and len(by_row.cells[0]) == 2 + len(PAIRS)
    assert means.cells[-1][0] == "all" and means.cells[0][:2] == [*next(iter(PAIRS.items()))]

    # What the file has is kept, and the rest measured.
    more = ["6,8,3,5;6,1,3,5", "--cells", "gru", "--peers", "equinox", "--add"]
    status, again = test_bench.run(bench, tmp_path, *argv, *more)
    assert status == 0 and [again["rows"][0], again["rows"][2]] == report["rows"]
    assert [row["devices"] for row in again["rows"]] == [[1, 2], [1], [1, 2]]
    assert [p["original"] for p in again["rows"][1]["pairs"]] == ["scan of eqx.nn cell"] * 2
    again["environment"]["versions"]["jax"] = "0.0.1"
    path = tmp_path / "report.json"
    path.write_text(json.dumps(again))
    assert bench.main([*argv, *more, "--json", str(path)]) == 2
    assert "other versions" in capsys.readouterr().err


def test_rows_are_added_to_a_file(bench, capsys):
    assert bench.main(["adaptors", "--add", "--devices", "1"]) == 2
    assert "--json FILE" in capsys.readouterr().err


def test_a_batch_repeats_a_few_sequences(bench):
    """The gradient of the few, and of the batch as it stands."""
    row = test_bench.part("data").Row("gru", 3, 8, 2, 4, "float64")
    with jax.numpy_rank_promotion("allow"):
        data, expected = test_bench.part("adaptors").repeated(row)
    assert data.xs.shape == (3, 8, 2)
    with jax.numpy_rank_promotion("allow"):
        want = test_bench.part("plain").reference(data, "gru")
    assert max(test_bench.part("measure").errors(expected, want).values()) < 1e-12
