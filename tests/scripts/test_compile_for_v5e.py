import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
LISTING = """= control target key start
LH: loop header
= control target key end

     0   :  { %s1 = sld [smem:[#allocation0]] }
   0x1   :  { %s2 = smov.u32 0 }
   0x2 LB: > { %s3 = sadd.s32 1, %s2 }
   0x3   : > {}
   0x4 LB: >> { %v1 = vld [vmem:[#allocation3]] }
   0x5   : >> { %v2 = vmul.f32 %v1, %v1  ;;  %v3 = vadd.f32 %v1, %v1 }
   0xa   : >> {}
   0xb PF: > { %s4 = sadd.s32 1, %s3 }
   0xc   :  { %5 = shalt.err (0) }
"""


@pytest.fixture(scope="module")
def script():
    return importlib.import_module("compile_for.v5e")


def test_bundles_are_counted_by_the_depth_of_their_loop(script):
    assert script.bundles(LISTING) == (3, 3)


def test_a_listing_of_other_loops_is_none_of_a_kernel(script):
    assert script.bundles(LISTING.replace(">>", ">")) is None
    assert script.bundles(LISTING.replace("0x5   : >>", "0x5   : >>>")) is None


def main(*argv):
    return importlib.import_module("compile_for.command").main(["v5e", *argv])


def test_tables_and_budget(script, tmp_path, capsys, monkeypatch):
    line = script.Line(512, "reverse", around=300, bundles=150, floor=100.0, moved=1)
    monkeypatch.setattr(script, "obstacle", lambda args: None)
    monkeypatch.setattr(script, "target", lambda dump: dump)
    monkeypatch.setattr(script, "measure", lambda *args: [line])
    monkeypatch.setattr(script.metadata, "version", lambda name: "1")
    page, report = tmp_path / "page.md", tmp_path / "report.json"
    page.write_text("<!-- bench tpu -->\n<!-- end of bench tpu -->\n")
    argv = ["--units", "512", "--markdown", str(page), "--json", str(report)]
    assert main(*argv, "--budget", "1.6") == 0
    printed = capsys.readouterr().out
    assert "512  reverse      150      300    100   1.50     0.10    0.00" in printed
    written = page.read_text()
    assert "| 512 | reverse | 150 | 100 | 1.50 |" in written
    assert "lstm, bfloat16, B = 64, v5e:2x2" in written
    assert "`python scripts/bench.py compile-for v5e --units 512" in written
    assert json.loads(report.read_text())["kernels"] == [line._asdict()]
    assert main(*argv, "--budget", "1.4") == 1
    assert "H=512 reverse: 1.50 x the floor is over the budget" in capsys.readouterr().out
    assert main("--markdown", str(tmp_path / "README.md")) == 2
    assert "has no lines <!-- bench tpu -->" in capsys.readouterr().err


def test_says_what_it_needs(script, monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main() == 2
    assert "pip install libtpu" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
def test_counts_a_small_kernel():
    # In a process of its own: the compiler takes its options from the environment, once.
    command = [sys.executable, str(SCRIPTS / "bench.py"), "compile-for", "v5e"]
    command += ["--units", "128", "--batch", "8"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = [line.split() for line in done.stdout.splitlines()[1:3]]
    assert [line[:2] for line in lines] == [["128", "forward"], ["128", "reverse"]]
    assert all(int(line[2]) > float(line[4]) > 0 for line in lines)
