"""scripts/train.py from the outside: results, exit statuses, interrupts."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
import train
from trainer import check, interrupts, report, session, telemetry
from trainer.errors import InputError

from jax_bptt.cells.watched import nothing_seen
from jax_bptt.training import devices, loop
from tests.registry import slow_unless

ROOT = Path(__file__).parents[2]
TINY = ["--hidden", "4", "--batch", "3", "--steps", "3"]
CHARS = ["chars", *TINY, "--window", "5", "--embedding", "3", "--sample", "7"]


@pytest.fixture(autouse=True)
def standard_promotion():
    # What a user runs in, and what optax needs.
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture
def essay(tmp_path):
    path = tmp_path / "essay.txt"
    path.write_text("the cat sat on the mat; the dog did not.\n" * 40)
    return str(path)


def run(argv):
    try:
        return train.main(argv)
    except SystemExit as end:
        return end.code


@pytest.mark.slow
def test_telemetry_is_lines_and_events_and_its_network_writes_text(essay, tmp_path, capsys):
    seen, saved = tmp_path / "seen", tmp_path / "saved"
    options = ["--telemetry", str(seen), "--checkpoint", str(saved), "--check", "--layers", "2"]
    argv = [*CHARS, "--text", essay, *options, "--steps", "20"]
    assert run(argv) == 0
    lines = [json.loads(line) for line in (seen / "telemetry.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [10, 20]
    assert list(lines[0]["adjoints"]) == ["[0]", "[1]"]
    for found in lines[0]["adjoints"].values():
        assert sum(found["decades"].values()) == 5 * 3 and found["nonfinite"] == 0
    assert 0 < lines[0]["gradient_norm"] < 10
    assert len(list(seen.glob("events.out.tfevents.*"))) == 1
    capsys.readouterr()
    assert run(["sample", "--checkpoint", str(saved), "--length", "5"]) == 0
    assert run([a for a in argv if a not in ("--telemetry", str(seen))]) == 2
    assert "--watched True, and this one --watched None" in capsys.readouterr().err


def test_telemetry_goes_on_from_a_step_and_a_full_disk_is_a_line(tmp_path, capsys):
    folder, path = str(tmp_path), tmp_path / telemetry.NAME
    lines = [json.dumps({"step": step}) + "\n" for step in (10, 20, 30)]
    path.write_text("".join(lines) + '{"step": 4')
    learner = loop.Learner((), (), ())
    shown = loop.Telemetry(jnp.ones(()), {"[0]": nothing_seen()})
    with telemetry.Writer(folder, 20) as writer:
        assert path.read_text() == "".join(lines[:2])
        for step in (29, 30):
            writer.add(loop.Progress(step, 1.0, 0.5, learner, shown))
        assert json.loads(path.read_text().splitlines()[-1]) == {
            "step": 30,
            "loss": 0.5,
            "gradient_norm": 1.0,
            "adjoints": {"[0]": {"rms": 0.0, "nonfinite": 0, "decades": {}}},
        }
        writer._lines.close()
        writer._lines = open("/dev/full", "w")
        for step in (40, 50):
            writer.add(loop.Progress(step, 1.0, 0.5, learner, shown))
    assert writer.failed
    assert capsys.readouterr().err.count("No space left on device; no more telemetry") == 1


@pytest.mark.slow
def test_chars_checks_trains_measures_samples_and_writes_its_files(essay, tmp_path, capsys):
    files = ["--json", str(tmp_path / "r.json"), "--plot", str(tmp_path / "r.png")]
    argv = [*CHARS, "--text", essay, "--precision", "float64", "--layers", "2", "--check", *files]
    assert run(argv) == 0
    out = capsys.readouterr().out
    record = json.loads((tmp_path / "r.json").read_text())
    assert len(record["check"]) == 8
    assert 0 < max(record["check"].values()) <= 1e-12
    assert "float64: ok" in out
    assert len(record["sample"]) == 7 and record["sample"] in out
    assert record["steps"] == 3 and not record["interrupted"]
    # Three steps leave a network about as wise as a uniform guess among the characters.
    assert 0 < record["baseline"]["value"] < record["result"]["value"] < 5
    assert f"held-out  {record['result']['value']:.4f} bits per character" in out
    assert "winner    the baseline" in out
    assert record["versions"]["jax"] == jax.__version__
    assert (tmp_path / "r.png").stat().st_size > 1000


@pytest.mark.parametrize(
    "argv, baseline",
    [
        (["adding", "--length", "6", "--seconds", "0.2"], "0.1667 mean squared error"),
        pytest.param(
            ["copy", "--delay", "3", "--symbols", "2", "--precision", "bfloat16", "--check"],
            "0.5941 cross-entropy",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ["digits", "--cell", "elman", "--algorithm", "autodiff"],
            "0.1170 accuracy",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_tasks_report_their_result_beside_the_baseline(argv, baseline, capsys):
    assert run([*argv, *TINY]) == 0
    out = capsys.readouterr().out
    assert f"baseline  {baseline}" in out
    assert "held-out  " in out and "winner" in out
    assert "bfloat16: ok" in out or "--check" not in argv


@pytest.mark.slow
def test_figures_are_written_before_pictures_and_one_does_not_take_the_other(
    tmp_path, monkeypatch, capsys
):
    argv = ["adding", *TINY, "--cell", "elman", "--length", "4"]
    picture = tmp_path / "c.svg"
    assert run([*argv, "--json", "/dev/full", "--plot", str(picture)]) == 3
    captured = capsys.readouterr()
    assert "train.py: cannot write /dev/full: No space left" in captured.err.splitlines()[-1]
    assert "held-out" in captured.out and picture.stat().st_size > 1000

    def undrawable(path, curve, **options):
        assert (tmp_path / "r.json").exists()
        raise InputError(f"cannot write {path}: No space left on device")

    monkeypatch.setattr(report, "learning_curve", undrawable)
    assert run([*argv, "--json", str(tmp_path / "r.json"), "--plot", str(picture)]) == 3
    assert json.loads((tmp_path / "r.json").read_text())["steps"] == 3


def test_outputs_are_tried_before_training(tmp_path, monkeypatch, capsys):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    for option in "--json", "--plot", "--checkpoint":
        assert run(["adding", *TINY, option, str(tmp_path / "c.png")]) == 2
        captured = capsys.readouterr()
        assert "No space left on device" in captured.err and captured.err.count("\n") == 1
        assert captured.out == ""


@pytest.mark.parametrize(
    "error, message",
    [
        (
            jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 9 bytes\nmore"),
            "smaller sizes: RESOURCE",
        ),
        (MemoryError(), "take smaller sizes"),
        (MemoryError("Unable to allocate 9 GiB"), "Unable to allocate 9 GiB"),
    ],
)
def test_too_little_memory_is_one_line_and_status_2(error, message, monkeypatch, capsys):
    def exhausted(*args):
        raise error

    monkeypatch.setattr(session, "run", exhausted)
    assert run(["adding", *TINY]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("train.py: error: out of memory")
    assert message in captured.err and captured.err.count("\n") == 1


@pytest.mark.slow
def test_two_devices_learn_what_one_does(essay, tmp_path, capsys):
    argv = ["chars", "--text", essay, "--cell", "elman", "--hidden", "4", "--batch", "4"]
    argv += ["--steps", "5", "--window", "6", "--precision", "float64", "--sample", "0"]
    results = []
    for count in "1", "2":
        path = tmp_path / "r.json"
        assert run([*argv, "--devices", count, "--json", str(path)]) == 0
        record = json.loads(path.read_text())
        assert record["device"]["count"] == int(count)
        results.append(record["result"]["value"])
    out = capsys.readouterr().out
    assert "on 1 device (cpu)" in out and "on 2 devices (cpu)" in out
    assert results[1] == pytest.approx(results[0], rel=1e-12)


def test_as_many_devices_as_divide_the_batch(monkeypatch):
    monkeypatch.setattr(devices, "cores", lambda: 5)
    assert [devices.mesh(batch).size for batch in (1, 3, 4)] == [1, 1, 2]
    monkeypatch.setattr(devices, "cores", lambda: 1)
    assert devices.mesh(4).size == 1 and devices.mesh(4, 2).size == 2


def test_the_devices_of_a_cpu_are_asked_for_before_jax_looks():
    program = (
        "from jax_bptt.training import devices; devices.cores = lambda: 4; "
        "import jax; print(devices.mesh(6).size, len(jax.devices()))"
    )
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.stdout.split() == ["3", "3"], done.stderr


def test_a_failed_check_ends_with_status_1_before_training(monkeypatch, capsys):
    monkeypatch.setitem(check.TOLERANCE, "float32", 0.0)
    assert run(["adding", *TINY, "--check", "--cell", "elman"]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("the gradient check failed")
    assert "trained" not in captured.out


def test_an_error_that_is_no_number_fails_the_check():
    assert report.passed({"a": 0.0, "b": 1e-6}, "float32")
    assert not report.passed({"a": 0.0, "b": math.nan}, "float32")


@pytest.mark.parametrize(
    "argv, message",
    [
        ([], "required"),
        (["chars", "--hidden", "0"], "--hidden: must be a whole number from 1 to 2147483647"),
        (["adding", "--devices", "0"], "--devices: must be auto, or a whole number from 1 to"),
        (["adding", "--steps", "9" * 30], "--steps: must be a whole number from 1 to"),
        (["adding", "--seed", "9" * 30], "--seed: must be a whole number from 0 to"),
        (["adding", "--seconds", "inf"], "--seconds: must be a finite number above 0"),
        (["adding", "--hidden", "1000000"], "out of memory: parameters, optimiser and states"),
        (["copy", "--delay", "2000000000"], "out of memory"),
        (["adding", "--batch", "2000000000", "--devices", "1"], "out of memory"),
        (["chars", "--order", "2000000000"], "take at most 9"),
        (["adding", "--batch", "3", "--devices", "2"], "2 devices do not divide a batch of 3"),
        (["adding", "--batch", "64", "--devices", "64"], "there are 2 devices for JAX, not 64"),
        (["chars", "--batch", "-3"], "--batch: must be a whole number"),
        (["chars", "--window", "x"], "--window: must be a whole number"),
        (["chars", "--temperature", "0"], "--temperature: must be a finite number above 0"),
        (["chars", "--learning-rate", "nan"], "--learning-rate: must be a finite number above 0"),
        (["chars", "--cell", "rnn"], "invalid choice: 'rnn'"),
        (["copy", "--algorithm", "magic"], "invalid choice: 'magic'"),
        (["chars", "--text", "no/such/file"], "cannot read the text no/such/file"),
        (["chars", "--text", sys.executable], "binary"),
        (["chars", "--window", "100000"], "too few for one window"),
        (["chars", "--order", "20"], "take at most 9"),
        (["adding", "--length", "1"], "at least 2"),
        slow_unless(False, ["digits", "--batch", "2000"], "more than the 1438"),
        (["adding", "--json", "no/such/folder/r.json"], "no folder no/such/folder"),
        (["adding", "--json", "."], "it is a folder"),
        (["adding", "--plot", "curve.odd"], "cannot draw into curve.odd"),
    ],
)
def test_bad_input_is_one_line_and_status_2(argv, message, capsys):
    assert run(argv) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_a_loss_that_is_not_finite_ends_with_status_2(capsys):
    assert (
        run(["adding", *TINY, "--cell", "elman", "--learning-rate", "1e30", "--clip", "inf"]) == 2
    )
    captured = capsys.readouterr()
    assert "the loss became" in captured.err.splitlines()[-1]
    assert "held-out" not in captured.out


@pytest.mark.parametrize(
    "module, argv", [("tqdm", []), ("matplotlib.figure", ["--plot", "curve.png"])]
)
def test_a_missing_extra_is_one_line_and_status_2(module, argv, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, module, None)
    assert run(["adding", *TINY, *argv]) == 2
    captured = capsys.readouterr()
    assert f"{module.partition('.')[0]} is not installed: run pip install" in captured.err
    assert captured.err.count("\n") == 1


def test_the_first_interrupt_asks_and_the_second_is_final():
    before = signal.getsignal(signal.SIGINT)
    with interrupts.listening() as signals:
        assert signals.heard() is None
        signal.raise_signal(signal.SIGINT)
        assert signals.heard() == signal.SIGINT
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
        with signals.deferring():
            signal.raise_signal(signal.SIGTERM)
        assert signals.heard() == signal.SIGTERM
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["compiling", "training"])
def test_an_interrupt_ends_cleanly_with_what_was_learned(moment, essay, tmp_path, request):
    argv = [*CHARS, "--text", essay, "--steps", "1000000", "--json", str(tmp_path / "r.json")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with (tmp_path / "out").open("w+") as out, (tmp_path / "err").open("w+") as err:
        process = subprocess.Popen(
            [sys.executable, "scripts/train.py", *argv],
            cwd=ROOT,
            env=environment,
            stdout=out,
            stderr=err,
        )
        request.addfinalizer(process.kill)
        # The optimiser's line is the last before the first step is compiled; its rate in the bar
        # the first sign that steps are done.
        path, sign = ("out", "optimiser") if moment == "compiling" else ("err", "characters/s")
        deadline = time.monotonic() + 120
        while sign not in (tmp_path / path).read_text():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        status = process.wait(timeout=120)
    shown, errors = (tmp_path / "out").read_text(), (tmp_path / "err").read_text()
    assert status == 130
    assert "Traceback" not in errors
    assert "interrupted" in shown
    if moment == "training":
        assert "held-out" in shown and "sample" in shown
        assert json.loads((tmp_path / "r.json").read_text())["interrupted"]
