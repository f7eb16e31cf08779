import importlib
import importlib.util
import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

import jax_bptt as jb
from jax_bptt.testing import tables
from tests.registry import slow_unless

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture(scope="module")
def bench():
    return importlib.import_module("bench")


def part(name):
    return importlib.import_module(f"benchmarks.{name}")


def run(bench, tmp_path, *argv):
    path = tmp_path / "report.json"
    # The script's user has JAX as it comes, and the peers need it that way.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        status = bench.main([*argv, "--smoke", "--json", str(path)])
    report = json.loads(path.read_text())
    assert {"schema", "mode", "command", "environment", "rows", "absent"} <= report.keys()
    assert report["mode"] == argv[0]
    assert report["environment"]["versions"]["jax"] == jax.__version__
    assert report["environment"]["cores"] >= 1 and report["environment"]["cpu"]
    assert report["rows"]
    for row in report["rows"]:
        assert {"cell", "T", "B", "I", "H", "dtype"} <= row.keys()
    return status, report


def timed(row):
    return {c["name"]: c for c in row["competitors"]}


@pytest.fixture(scope="module")
def peers():
    """Peers that this environment has; haiku and torch are enough for a smoke run."""
    return [n for n in ("haiku", "torch") if importlib.util.find_spec(n) is not None]


@pytest.mark.slow
def test_grad_times_all_that_agree(bench, tmp_path, peers, capsys):
    readme = tmp_path / "README.md"
    begin, end = tables.markers("grad")
    readme.write_text(f"before\n{begin}\nold\n{end}\nafter\n")
    argv = ["--cells", "elman", "--peers", "haiku,torch", "--devices", "1,2"]
    status, report = run(bench, tmp_path, "grad", *argv, "--markdown", str(readme))
    assert status == 0
    (row,) = report["rows"]
    assert row["flops"] == 3 * 2 * row["T"] * row["B"] * (row["I"] + row["H"]) * row["H"]
    entries = timed(row)
    assert list(entries) == ["jax_bptt bptt", "plain scan", "strong scan", *peers]
    for entry in entries.values():
        assert entry["refused"] is None
        assert entry["error"] <= 1e-5
        assert {"w_x", "w_s", "b", "xs", "ys"} == set(entry["errors"])
        assert 0 < entry["seconds_q1"] <= entry["seconds"] <= entry["seconds_q3"]
        assert entry["gflops"] == pytest.approx(row["flops"] / entry["seconds"] / 1e9)
        assert entry["floor_share"] == pytest.approx(row["floor_s"] / entry["seconds"])
        assert (entry["temp_bytes"] is None) == (entry["name"] == "torch")
        counts = [1] if entry["name"] == "torch" else [1, 2]
        assert [s["devices"] for s in entry["settings"]] == counts
        assert entry["seconds"] == min(s["seconds"] for s in entry["settings"])
        assert entry["devices"] in counts
    assert entries["jax_bptt bptt"]["ratio"] == 1
    assert set(report["absent"]) == {"haiku", "torch"} - set(peers)
    assert report["summary"]["all rows"]["plain scan"]["rows"] == 1
    assert "rows with B >= 8" not in report["summary"]
    text = readme.read_text()
    assert text.startswith(f"before\n{begin}\n| T, B, I, H | cell |")
    assert (
        text.endswith(f"{end}\nafter\n") and "old" not in text and "scripts/bench.py grad" in text
    )
    printed = capsys.readouterr().out
    assert "strong scan" in printed and "geometric mean" in printed and "floor" in printed


@pytest.mark.slow
def test_forward(bench, tmp_path, capsys):
    argv = ["--cells", "elman", "--peers", "none", "--devices", "2"]
    shapes = "6,2,3,5;6,1,3,5"
    status, report = run(bench, tmp_path, "forward", *argv, "--shapes", shapes)
    assert status == 0
    assert [row["devices"] for row in report["rows"]] == [[2], [1]]
    assert [timed(row)["plain scan"]["devices"] for row in report["rows"]] == [2, 1]
    assert "B = 1 is not split over 2 devices" in capsys.readouterr().out
    assert set(timed(report["rows"][0])["plain scan"]["errors"]) == {"ys"}


@pytest.mark.slow
def test_step(bench, tmp_path):
    status, report = run(bench, tmp_path, "step", "--cells", "gru", "--peers", "torch")
    assert status == 0
    assert list(timed(report["rows"][0]))[:2] == ["jax_bptt", "plain scan"]


@pytest.mark.parametrize("cells", [["lru"], slow_unless(False, ["conv_lstm", "lstm_projected"])])
def test_every_cell_is_timed(bench, tmp_path, cells):
    argv = ["--cells", ",".join(cells), "--devices", "2"]
    status, report = run(bench, tmp_path, "cells", *argv)
    assert status == 0
    assert [row["cell"] for row in report["rows"]] == cells
    for row in report["rows"]:
        own, plain = row["competitors"]
        assert (own["name"], plain["name"]) == ("jax_bptt bptt", "plain scan")
        assert own["error"] <= 1e-5 and own["seconds"] > 0 and plain["ratio"] > 0
        assert (own["devices"], plain["devices"]) == (2, 2)
    assert report["summary"]["all rows"]["plain scan"]["rows"] == len(cells)


@pytest.mark.slow
def test_diagonal_cells_by_the_associative_scan(bench, tmp_path, capsys, monkeypatch):
    argv = ["associative", "--cells", "min_gru", "--devices", "1"]
    status, report = run(bench, tmp_path, *argv)
    entries = timed(report["rows"][0])
    assert status == 0
    assert list(entries) == ["jax_bptt bptt", "jax_bptt associative", "plain scan"]
    for entry in entries.values():
        assert entry["error"] <= 1e-5 and entry["ratio"] > 0 and entry["temp_bytes"] > 0
    assert "temp MiB" in capsys.readouterr().out

    exact = jb.associative()
    assert exact.backward is not None
    right = exact.backward

    def backward(*args):
        gradient = right(*args)
        return gradient._replace(xs=jax.tree.map(lambda d: 1.01 * d, gradient.xs))

    broken = exact._replace(backward=backward)
    monkeypatch.setitem(part("library").ALGORITHMS, "associative", lambda: broken)
    status, report = run(bench, tmp_path, *argv)
    assert status == 1
    assert "not timed" in timed(report["rows"][0])["jax_bptt associative"]["refused"]


def test_the_mode_of_every_cell_has_every_cell(bench):
    def is_cell(make):
        return getattr(make, "__annotations__", {}).get("return") is jb.Cell

    made = {name for name in jb.__all__ if is_cell(getattr(jb, name))}
    takes_cell = {n for n in made if "cell" in inspect.signature(getattr(jb, n)).parameters}
    assert set(part("every_cell").CELLS) == made - takes_cell - {"from_step"}


@pytest.mark.slow
def test_sequence_options(bench, tmp_path):
    status, report = run(bench, tmp_path, "sequences", "--cells", "lstm")
    assert status == 0
    (row,) = report["rows"]
    names = [c["name"] for c in row["competitors"]]
    assert names == ["none", "lengths", "resets", "mask", "watched"]
    assert row["competitors"][0]["against_none"] == 1
    # What the file has is kept.
    assert run(bench, tmp_path, "sequences", "--cells", "lstm", "--add")[1]["rows"] == [row]


@pytest.mark.slow
def test_budgets(bench, tmp_path):
    status, report = run(bench, tmp_path, "budgets", "--cells", "elman", "--shapes", "300,2,3,8")
    assert status == 0
    (row,) = report["rows"]
    first, *others = row["competitors"]
    assert first["name"] == "bptt" and first["time_ratio"] == 1
    assert len(others) == 6 and all(c["temp_bytes"] <= c["budget"] for c in others)


@pytest.mark.slow
def test_memory_and_compile(bench, tmp_path):
    status, report = run(bench, tmp_path, "memory", "--cells", "gru", "--shapes", "8192,4,3,8")
    assert status == 0
    entries = timed(report["rows"][0])
    assert entries["plain scan"]["share_of_plain"] == 1
    assert 0 < entries["jax_bptt bptt"]["share_of_plain"] < 1
    shapes = "3,2,3,4;9,2,3,4"
    status, report = run(
        bench, tmp_path, "compile", "--cells", "elman", "--shapes", shapes, "--rounds", "1"
    )
    assert status == 0
    assert [row["T"] for row in report["rows"]] == [3, 9]
    assert timed(report["rows"][1])["plain scan"]["against_plain"] == 1


@pytest.mark.slow
def test_a_network_is_compiled_against_plain_scans_that_compute_the_same(bench, tmp_path):
    network = "two_bidirectional_lstm_with_lengths"
    status, report = run(bench, tmp_path, "compile", "--cells", network, "--rounds", "1")
    assert status == 0
    (row,) = report["rows"]
    assert [c["name"] for c in row["competitors"]] == ["jax_bptt bptt", "plain scan"]
    assert all(c["seconds"] > 0 and c["against_plain"] > 0 for c in row["competitors"])


@pytest.mark.slow
def test_a_network_that_computes_something_else_is_refused(bench, monkeypatch):
    network, library = part("network"), part("library")
    row = part("data").Row("two_bidirectional_lstm_with_lengths", 6, 4, 3, 5, "float32")
    monkeypatch.setattr(network, "_flip", lambda xs, lengths: xs[::-1])
    with jax.numpy_rank_promotion("allow"), pytest.raises(ValueError, match="plain scans"):
        network.require_agreement(row, library.algorithm("bptt"))


@pytest.mark.slow
def test_devices_are_read_off_the_compiled_gradient(bench, tmp_path, capsys):
    argv = ["--cells", "gru", "--rounds", "1", "--devices", "2"]
    status, report = run(bench, tmp_path, "devices", *argv)
    assert status == 0
    (row,) = report["rows"]
    assert row["devices"] == 2
    # The products of a step have B = 4 rows, those over all T = 6 steps 24.
    assert row["whole_product_rows"] == [4, 24]
    assert [c["name"] for c in row["competitors"]] == ["jit", "shard_map"]
    for way in row["competitors"]:
        assert way["product_rows"] == [2, 12]
        assert way["collectives"]["all-gather"] == {"all": 0, "in_loops": 0}
        assert way["collectives"]["all-reduce"]["all"] >= 1
        assert way["error"] <= 1e-12
    assert "1.00" in capsys.readouterr().out


@pytest.mark.slow
def test_devices_take_a_process_for_each_number_of_them(bench, tmp_path):
    argv = ["--cells", "elman", "--rounds", "1", "--devices", "2,4"]
    status, report = run(bench, tmp_path, "devices", *argv)
    assert status == 0
    assert [row["devices"] for row in report["rows"]] == [2, 4]
    assert report["rows"][1]["competitors"][0]["product_rows"] == [1, 6]


@pytest.mark.slow
def test_accuracy_in_both_precisions(bench, tmp_path):
    status, report = run(bench, tmp_path, "accuracy", "--cells", "gru,lstm")
    assert status == 0 and report["agrees"]
    assert [row["dtype"] for row in report["rows"]] == ["float64", "float32"] * 2
    for row in report["rows"]:
        assert row["error"] == max(row["errors"].values())
        assert 0 < row["error"] <= row["limit"]
        assert ("b_n" in row["errors"]) == (row["cell"] == "gru")
        assert {"w_x", "w_s", "b", "xs", "state"} <= set(row["errors"])


@pytest.mark.slow
def test_curve_is_timed_against_a_gradient(bench, tmp_path):
    status, report = run(bench, tmp_path, "curve")
    (row,) = report["rows"]
    gradient, curve = row["competitors"]
    assert status == 0 and gradient["gradients"] == 1 and curve["gradients"] > 0
    assert 1 <= row["window"] <= row["lags"] <= row["T"] and curve["temp_bytes"] > 0


@pytest.mark.slow
def test_scaling_fits_slopes(bench, tmp_path):
    argv = ["--cells", "elman", "--rounds", "1"]
    status, report = run(bench, tmp_path, "scaling", *argv)
    assert status == 0
    assert {row["axis"] for row in report["rows"]} == {"T", "B", "H"}
    slope = part("scaling").slope
    assert slope([1, 4, 16], [3.0, 6.0, 12.0]) == pytest.approx(0.5)


@pytest.mark.slow
def test_devices_split_the_batch(tmp_path):
    path = tmp_path / "report.json"
    argv = ["forward", "--smoke", "--cells", "elman", "--peers", "none", "--devices", "3"]
    argv += ["--shapes", "6,3,3,5"]
    environment = os.environ | {"PYTHONPATH": str(SCRIPTS.parent)}
    command = [sys.executable, str(SCRIPTS / "bench.py"), *argv, "--json", str(path)]
    subprocess.run(command, check=True, env=environment, capture_output=True)
    report = json.loads(path.read_text())
    assert report["mode"] == "forward" and report["environment"]["devices"] == 3
    for entry in timed(report["rows"][0]).values():
        assert entry["devices"] == 3
        assert entry["error"] <= 1e-5


@pytest.mark.slow
def test_who_disagrees_is_not_timed(bench, tmp_path, monkeypatch):
    plain, data = part("plain"), part("data")
    with jax.numpy_rank_promotion("allow"):
        right = plain.reference(data.draw(data.Row("elman", 6, 4, 3, 5, "float32")), "elman")
    argv = ["forward", "--cells", "elman", "--peers", "none", "--devices", "1"]

    def wrong(weights, state, drive):
        return jax.numpy.tanh(drive - state @ weights["w_s"])

    with monkeypatch.context() as patch:
        patch.setattr(plain, "reference", lambda data, equations: right)
        patch.setitem(plain.STEPS, "elman", wrong)
        status, report = run(bench, tmp_path, *argv)
    entries = timed(report["rows"][0])
    assert status == 0
    assert "not timed" in entries["plain scan"]["refused"]
    assert "seconds" not in entries["plain scan"]
    assert "plain scan" not in report["summary"]["all rows"]
    assert entries["jax_bptt bptt"]["refused"] is None

    with monkeypatch.context() as patch:
        patch.setattr(plain, "reference", lambda data, equations: {"ys": -right["ys"]})
        status, report = run(bench, tmp_path, *argv)
    assert status == 1 and not report["agrees"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--shapes", "1,2,3"], "T,B,I,H"),
        (["--shapes", "1,2,3,0"], "T,B,I,H"),
        (["--shapes", "a"], "T,B,I,H"),
        (["--cells", "ltsm"], "no 'ltsm'; there are elman"),
        (["--algorithms", "magic"], "no algorithm 'magic'"),
        (["--algorithms", "bptt:block_length=0"], "block_length must be"),
        (["--algorithms", "bptt:speed=9"], "speed"),
        (["--algorithms", "bptt:block_length"], "name=number"),
        (["--peers", "keras"], "no 'keras'"),
        (["--rounds", "0"], "positive"),
        (["--dtype", "int8"], "invalid choice"),
        (["--json", "nowhere/report.json"], "no folder nowhere"),
        (["--devices", "1,64"], "JAX has only 2"),
        (["--devices", "1,0"], "not a positive number"),
        (["frobnicate"], "invalid choice"),
        (["memory", "--rounds", "3"], "unrecognized arguments"),
    ],
)
def test_bad_arguments_are_one_line_and_status_two(bench, capsys, argv, message):
    try:
        status = bench.main(argv)
    except SystemExit as stop:
        status = stop.code
    assert status == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.mark.parametrize("name", ["README.md", "page.md"])
def test_a_page_without_markers_is_left_alone(bench, tmp_path, capsys, name):
    readme = tmp_path / name
    readme.write_text("no table here\n")
    assert bench.main(["--smoke", "--markdown", str(readme)]) == 2
    assert "bench grad" in capsys.readouterr().err
    assert readme.read_text() == "no table here\n"
