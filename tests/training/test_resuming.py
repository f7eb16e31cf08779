"""scripts/train.py with --checkpoint: a run that goes on is the run that was never stopped."""

import contextlib
import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import check_resuming
import jax
import numpy as np
import pytest
import train
from trainer import checkpoint, resume, saved
from trainer.errors import InputError

from jax_bptt.training import loop
from tests.registry import slow_unless

pytest.importorskip("orbax.checkpoint")

CHARS = ["chars", "--cell", "elman", "--hidden", "4", "--batch", "4", "--steps", "7"]
CHARS += ["--window", "5", "--embedding", "3", "--sample", "5", "--checkpoint-every", "1e-9"]
ADDING = ["adding", "--cell", "gru", "--hidden", "3", "--batch", "3", "--steps", "7"]
ADDING += ["--length", "4", "--checkpoint-every", "1e-9"]


@contextlib.contextmanager
def as_users_have_jax():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture(autouse=True)
def relaxed():
    with as_users_have_jax():
        yield


@pytest.fixture(scope="module")
def chars(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "essay.txt"
    path.write_text("the cat sat on the mat; the dög did not.\n" * 40)
    return [*CHARS, "--text", str(path)]


@pytest.fixture(scope="module")
def whole(chars, tmp_path_factory):
    """Return the folder of a run of chars that nobody stopped."""
    folder = tmp_path_factory.mktemp("whole")
    with as_users_have_jax():
        assert train.main([*chars, "--checkpoint", str(folder)]) == 0
    return folder


@pytest.fixture
def copied(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "copy")
    return tmp_path / "copy"


def record(folder):
    return json.loads((max(folder.glob("step-*")) / "run.json").read_text())["record"]


def places(folder):
    return sorted(path.name for path in folder.glob("*step-*"))


def stop_after(step, number, monkeypatch):
    """Make a signal arrive after a step of the next run."""
    fit = loop.fit

    def stopping(*args):
        for progress in fit(*args):
            yield progress
            if progress.step == step:
                monkeypatch.setattr(loop, "fit", fit)
                signal.raise_signal(number)

    monkeypatch.setattr(loop, "fit", stopping)


@pytest.mark.parametrize(
    "number, status", [slow_unless(False, signal.SIGTERM, 143), (signal.SIGINT, 130)]
)
def test_a_run_goes_on_to_the_last_bit(number, status, chars, whole, tmp_path, monkeypatch, capsys):
    argv = [*chars, "--checkpoint", str(tmp_path / "run")]
    stop_after(3, number, monkeypatch)
    assert train.main(argv) == status
    captured = capsys.readouterr()
    assert record(tmp_path / "run")["step"] == 3 and not record(tmp_path / "run")["finished"]
    assert ("held-out" in captured.out) == (number == signal.SIGINT)
    assert ("terminated after 3 steps, saved in" in captured.err) == (number == signal.SIGTERM)
    assert train.main([*argv, "--sample", "0"]) == 0
    assert "goes on   after the 3 steps that were saved" in capsys.readouterr().out
    assert record(tmp_path / "run")["finished"]
    assert record(tmp_path / "run")["arrays"] == record(whole)["arrays"]


@pytest.mark.parametrize(
    "argv",
    [
        slow_unless(False, [*ADDING, "--precision", "float64"]),
        slow_unless(False, ["digits", *ADDING[1:-4], "--checkpoint-every", "1e-9"]),
    ],
    ids=["adding", "digits"],
)
def test_other_jobs_go_on_to_the_last_bit(argv, tmp_path, monkeypatch):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train.main([*argv, "--checkpoint", str(whole)]) == 0
    stop_after(4, signal.SIGTERM, monkeypatch)
    assert train.main([*argv, "--checkpoint", str(parts)]) == 143
    assert train.main([*argv, "--checkpoint", str(parts)]) == 0
    assert record(parts)["arrays"] == record(whole)["arrays"]


def test_a_finished_run_reports_again(chars, whole, tmp_path, capsys):
    files = [], []
    for written in files:
        json_file = tmp_path / "r.json"
        assert train.main([*chars, "--checkpoint", str(whole), "--json", str(json_file)]) == 0
        written.append(json.loads(json_file.read_text()))
    assert "all of its 7 steps were saved" in capsys.readouterr().out
    assert files[0] == files[1] and files[0][0]["steps"] == 7


def test_damage_is_set_aside_and_the_run_goes_on_from_the_one_before(chars, whole, copied, capsys):
    newest = copied / "step-000000000007" / "run.json"
    newest.write_bytes(newest.read_bytes()[:-30])
    assert train.main([*chars, "--checkpoint", str(copied)]) == 0
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "damaged" in line]
    assert "step-000000000007/run.json" in line and line.endswith("going on from step 6")
    assert places(copied) == ["damaged-step-000000000007", "step-000000000006", "step-000000000007"]
    assert record(copied)["arrays"] == record(whole)["arrays"]


@pytest.mark.parametrize(
    "argv, theirs, ours",
    [
        slow_unless(False, ["--hidden", "6"], "--hidden 4", "--hidden 6"),
        (["--steps", "9"], "--steps 7", "--steps 9"),
        (["--devices", "1"], "--devices 2", "--devices 1"),
        (["--text", __file__], "--text 1,476 characters with sha256", "--text "),
    ],
)
def test_other_settings_are_refused_with_both(argv, theirs, ours, chars, whole, capsys):
    assert train.main([*chars, *argv, "--checkpoint", str(whole)]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and captured.out == ""
    assert f"has {theirs}" in captured.err and f"and this one {ours}" in captured.err
    assert "give the options of that run to go on, or another --checkpoint" in captured.err


def test_a_checkpoint_of_another_version_goes_on_and_says_so(chars, copied, capsys):
    path = copied / "step-000000000007" / "run.json"
    changed = record(copied)
    changed["versions"]["jax"] = "0.0.1"
    digest = checkpoint._digest_of_record(changed)
    path.write_text(json.dumps({"record": changed, "sha256": digest}))
    assert train.main([*chars, "--checkpoint", str(copied)]) == 0
    assert "jax 0.0.1" in capsys.readouterr().err


@pytest.mark.parametrize("failing, status", [((3, 4), 0), slow_unless(False, (6, 7), 3)])
def test_a_full_disk_is_a_line_and_training_goes_on(
    failing, status, chars, tmp_path, monkeypatch, capsys
):
    write = checkpoint.write

    def sometimes(folder, record, arrays):
        if record["step"] in failing:
            raise OSError(28, "No space left on device")
        write(folder, record, arrays)

    monkeypatch.setattr(checkpoint, "write", sometimes)
    argv = [*chars, "--checkpoint", str(tmp_path / "run"), "--json", str(tmp_path / "r.json")]
    assert train.main(argv) == status
    captured = capsys.readouterr()
    assert "step 3 was not saved in" in captured.err or "step 7 was not saved" in captured.err
    assert "No space left on device" in captured.err and "held-out" in captured.out
    assert record(tmp_path / "run")["step"] == (5 if status else 7)
    assert json.loads((tmp_path / "r.json").read_text())["steps"] == 7


def test_a_saved_network_writes_text(whole, capsys):
    argv = ["sample", "--checkpoint", str(whole), "--length", "6"]
    assert train.main([*argv, "--prompt", "the dög"]) == 0
    assert train.main([*argv, "--prompt", "the dög"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == second and first.startswith("the dög") and len(first) == 13
    assert train.main([*argv, "--prompt", "the ☃\udc80"]) == 2
    error = capsys.readouterr().err
    assert r"never read: '\u2603\udc80'" in error and error.count("\n") == 1


@pytest.mark.slow
def test_an_exported_network_runs_without_the_library(whole, tmp_path):
    """The program on the page, with another prompt, and one window against two."""
    pytest.importorskip("flatbuffers")
    path = tmp_path / "chars.bin"
    assert train.main(["export", "--checkpoint", str(whole), "--output", str(path)]) == 0
    page = (Path(__file__).parents[2] / "docs" / "training.md").read_text()
    (program,) = re.findall(r"test_resuming.py -->\n```python\n(.*?)```", page, re.S)
    program = program.replace('"The"', '"the"') + (
        "import sys; assert 'jax_bptt' not in sys.modules\n"
        "state = tuple(np.zeros((3, *shape[1:]), dtype) for dtype, shape in about['state'])\n"
        "xs = np.arange(21, dtype=np.int32).reshape(7, 3) % 5\n"
        "middle, head = run(state, xs[:4])\n"
        "_, tail = run(middle, xs[4:])\n"
        "print(json.dumps(np.concatenate([head, tail]).tolist()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    text, _, logits = done.stdout.rpartition("[[[")
    assert text.startswith("the") and len(text.rstrip("\n")) == 103
    trained = saved.load(str(whole))
    xs = np.arange(21, dtype=np.int32).reshape(7, 3) % 5
    with jax.enable_x64(False):
        wanted = trained.layer.apply(trained.params, xs)[1]
    np.testing.assert_allclose(json.loads("[[[" + logits), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("command", ["sample", "export"])
def test_without_a_checkpoint_there_is_nothing_to_use(command, tmp_path, capsys):
    output = ["--output", str(tmp_path / "net")] if command == "export" else []
    assert train.main([command, "--checkpoint", str(tmp_path), *output]) == 2
    assert "there is no checkpoint in" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_runs_that_are_killed_learn_the_same(capsys):
    assert check_resuming.main(["--kills", "3", "--steps", "300"]) == 0
    assert "3 of 3 runs end as" in capsys.readouterr().out


def test_the_script_sees_a_difference(tmp_path):
    for name in "ab":
        with checkpoint.opened(str(tmp_path / name)) as folder:
            checkpoint.write(folder, {"step": 1}, {"w": np.full(3, ord(name))})
    digests = {check_resuming._digest(Path(tmp_path, name)) for name in "ab"}
    assert len(digests) == 2


def test_arrays_of_another_network_are_refused():
    arrays = {"params.w": np.ones(2), "memory.count": np.ones(()), "losses": np.ones(3)}
    held = checkpoint.Saved({"versions": {"jax_bptt": "3"}}, arrays)
    assert resume.parameters(held, {"w": np.zeros(2)})["w"] is arrays["params.w"]
    for like in {"w": np.zeros(3)}, {"w": np.zeros(2, np.float32)}, {"v": np.zeros(2)}, {}:
        with pytest.raises(InputError, match=r"other arrays were saved .* \(jax_bptt 3\)"):
            resume.parameters(held, like)
