"""A smoke run of every group on a CPU, and what becomes of groups that end badly."""

import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_bptt as jb
from jax_bptt.kernels.gpu import mosaic

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture(scope="module")
def script():
    return importlib.import_module("bench_accelerator")


def part(name):
    return importlib.import_module(f"accelerator.{name}")


@pytest.fixture(scope="module")
def smoke(script, tmp_path_factory):
    """Run all groups; return the exit status, what was printed, the report and the plot."""
    folder = tmp_path_factory.mktemp("accelerator")
    files = folder / "report.json", folder / "plot.png"
    command = [sys.executable, str(SCRIPTS / "bench_accelerator.py"), "--smoke"]
    command += ["--json", str(files[0]), "--plot", str(files[1])]
    done = subprocess.run(command, capture_output=True, text=True, env=environment())
    return done.returncode, done.stdout, json.loads(files[0].read_text()), files[1].read_bytes()


def environment():
    return os.environ | {"PYTHONPATH": str(SCRIPTS.parent), "JAX_PLATFORMS": "cpu"}


@pytest.mark.slow
def test_every_group_runs_and_says_what_it_left_out(smoke):
    status, printed, report, plot = smoke
    assert status == 0
    groups = ["correct", "heads", "dense", "torch", "cudnn"]
    assert list(report["groups"]) == groups
    for group in report["groups"].values():
        done = [row["name"] for row in group["rows"]]
        assert done or group["ended"] == "absent"
        assert bool(group["not_run"]) == (group["ended"] == "absent")
        assert all(name in printed for name in done + group["not_run"])
    assert report["environment"]["versions"]["jax"] == jax.__version__
    assert report["environment"]["device"] and report["command"].endswith("plot.png")
    assert plot.startswith(b"\x89PNG")


@pytest.mark.slow
def test_the_kernels_are_compared_in_the_interpreter(smoke):
    kernel, none = smoke[2]["groups"]["correct"]["rows"]
    if mosaic.available() is None:
        assert kernel["met"] and kernel["kernel"] == "gpu_heads"
        assert 0 < kernel["error"] <= kernel["limit"] == 2e-6
        assert "not 48" in none["scan"]
    else:
        assert str(mosaic.available()) in kernel["scan"]
    assert none["error"] is None


@pytest.mark.slow
def test_ways_are_timed_or_say_why_not(smoke):
    groups = smoke[2]["groups"]
    for name in ("heads", "dense"):
        (row,) = groups[name]["rows"]
        by_name = {c["name"]: c for c in row["contestants"]}
        for way in ("scan", "scan, one graph", "plain scan"):
            c = by_name[way]
            assert c["error"] is None and c["absent"] is None
            assert 0 < c["seconds_q1"] <= c["seconds"] <= c["seconds_q3"]
            assert c["us_per_step"] == pytest.approx(1e6 * c["seconds"] / row["T"])
            assert c["bandwidth_share"] is None  # a CPU is not in the table of peaks
        for way in ("fused", "fused, drives given"):
            assert "the device is a cpu" in by_name[way]["absent"]
    (row,) = groups["cudnn"]["rows"]
    assert row["contestants"][0]["absent"] == "it takes an NVIDIA GPU"
    pairs = {(r["slower"], r["faster"]) for r in smoke[2]["ratios"]}
    assert ("plain scan", "scan, one graph") in pairs


@pytest.mark.slow
def test_no_accelerator_is_said(tmp_path):
    command = [sys.executable, str(SCRIPTS / "bench.py"), "accelerator", "--groups", "correct"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment())
    assert done.returncode == 2
    assert "no accelerator was found" in done.stderr and done.stdout == ""


@pytest.mark.slow
def test_a_hang_costs_its_time_alone(script, monkeypatch):
    process = part("process")
    hang = """
import time
print('{"event": "plan", "rows": ["a", "b"]}', flush=True)
print('{"event": "row", "row": {"name": "a"}}', flush=True)
time.sleep(60)
"""
    monkeypatch.setattr(process, "COMMAND", [sys.executable, "-c", hang])
    ticks = []
    begin = time.monotonic()
    found = process.run("heads", True, 2.0, lambda: ticks.append(1))
    assert time.monotonic() - begin < 20 and ticks == [1]
    assert (found.ended, found.rows, found.not_run) == ("timed out", [{"name": "a"}], ["b"])
    monkeypatch.setattr(process, "COMMAND", [sys.executable, "-c", "raise SystemExit('broken')"])
    found = process.run("heads", True, 20.0, lambda: None)
    assert (found.ended, found.reason) == ("failed", "exit status 1: broken")


def test_a_group_out_of_time_lists_what_it_did_not_run(script, capfd):
    part("groups").run("correct", True, 0.0)
    events = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    found = part("process").outcome(events, False, 0, "")
    assert found.ended == "out of time" and found.rows == [] and len(found.not_run) == 2
    report = found._asdict() | {"title": ""}
    text = "\n".join(script.texts({"correct": report}))
    assert all(name in text for name in found.not_run)
    assert not script.wrong({"correct": report})
    assert script.wrong({"correct": report | {"ended": "timed out"}})
    assert script.wrong({"correct": report | {"rows": [{"met": False}]}})


def test_a_way_that_fails_costs_itself_alone(script):
    groups, rows = part("groups"), part("rows")
    row = rows.Row(4, 2, 64, 64, "float32", "forward")

    def broken():
        raise ValueError("no such instruction")

    ways = {"broken": broken, "well": lambda: lambda: None, "none": "not here"}
    found = groups.measured(row, ways, 2, "NVIDIA H200")
    by_name = {c["name"]: c for c in found["contestants"]}
    assert by_name["broken"]["error"] == "ValueError: no such instruction"
    assert "seconds" not in by_name["broken"] and by_name["none"]["absent"] == "not here"
    assert by_name["well"]["bandwidth_share"] > 0 and by_name["well"]["matrix_share"] is None
    assert script.wrong({"dense": {"rows": [found], "ended": "done"}})


@pytest.mark.slow
def test_a_wrong_kernel_is_seen(script, monkeypatch):
    correct = part("correct")
    exact = jb.bptt()
    assert exact.forward is not None
    right = exact.forward

    def forward(*args):
        (last_state, ys), kept = right(*args)
        return (last_state, 1.001 * ys), kept

    monkeypatch.setattr(jb, "fused", lambda **settings: exact._replace(forward=forward))
    monkeypatch.setattr(jb, "explain", lambda *args, **settings: "fused() runs the kernel k")
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        found = correct.compare(correct.SMOKE[0], True)
    assert not found["met"] and found["error"] == pytest.approx(1e-3, rel=0.1)


def test_which_kernels_are_proven(script):
    def proven(met, fused, ended="done"):
        ways = [{"name": "scan", "seconds": 2.0}, {"name": "fused", "seconds": fused}]
        without = [{"name": "scan", "seconds": 1.0}, {"name": "fused", "absent": "too large"}]
        timed = [
            {"kernel": "gpu_heads", "contestants": ways},
            {"kernel": None, "contestants": without},
        ]
        checks = [{"kernel": "gpu_heads", "met": True}, {"kernel": "gpu_heads", "met": met}]
        groups = {"correct": {"rows": checks, "ended": ended}, "heads": {"rows": timed}}
        return part("show").proven(groups)

    assert proven(True, 1.0) == ["gpu_heads"]
    assert proven(False, 1.0) == proven(True, 3.0) == proven(True, 1.0, "out of time") == []


def test_rows_are_in_order_of_value_and_complete(script):
    rows = part("rows")
    heads, dense = rows.heads(), rows.dense()
    assert [(r.B, r.H, r.D) for r in heads[:2]] == [(16, 768, 64)] * 2
    for found, sizes in ((heads, (32, 64, 128)), (dense, (None,))):
        assert len(set(found)) == len(found)
        wide = {(r.B, r.H, r.D, r.direction) for r in found if r.dtype == "bfloat16"}
        assert wide == {
            (b, h, d or h, way)
            for b in (16, 64, 256)
            for h in (256, 512, 768, 1024, 2048)
            for d in sizes
            for way in rows.DIRECTIONS
        }
    assert len(rows.cudnn(("float16", "float32"))) == 2 * len(dense)


def test_shares_of_a_known_device(script):
    rows = part("rows")
    row = rows.Row(10, 2, 64, 32, "bfloat16", "forward")
    assert row.flops == 2 * 10 * 2 * 4 * 64 * (64 + 32) and row.bytes == 5 * 10 * 2 * 64 * 2
    shares = rows.shares(row, row.bytes / 4.8e12, "NVIDIA H200 NVL")
    assert shares["bandwidth_share"] == pytest.approx(1)
    assert shares["matrix_share"] == pytest.approx(row.flops * 4.8e12 / row.bytes / 989e12)
    assert rows.shares(row, 1.0, "unknown")["bandwidth_share"] is None


def test_the_recurrence_alone_is_the_layer_without_its_input_product(script):
    contestants, rows = part("contestants"), part("rows")
    cell = contestants.cell_of(rows.Row(4, 2, 64, 32, "float32", "forward"))
    params = cell.init(jax.random.key(0))
    xs = jax.random.normal(jax.random.key(1), (4, 2, 64), jnp.float32)
    want = jb.unroll(cell, params, xs)[1]
    drives = cell.project(cell.prepare(params), xs)
    got = jb.unroll(contestants.given_drives(cell), params, drives)[1]
    np.testing.assert_allclose(got, want, rtol=1e-6)
