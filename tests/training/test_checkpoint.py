"""Checkpoints: what is written comes back, what is damaged is found, nothing is lost."""

import json
import os
import resource
import shutil

import numpy as np
import pytest
from trainer import checkpoint
from trainer.errors import InputError

pytest.importorskip("orbax.checkpoint")


def arrays_of(step):
    rng = np.random.default_rng(step)
    return {
        "params.0.w_s": rng.normal(size=(3, 2)).astype(np.float32),
        "memory.count": np.array(step, np.int32),
        "losses": rng.normal(size=step),
    }


def write(folder, *steps):
    for step in steps:
        checkpoint.write(folder, {"step": step, "rate": 0.1 * step}, arrays_of(step))


def check(folder, step, damaged=0):
    saved, found = checkpoint.newest(folder)
    assert saved is not None and len(found) == damaged
    assert saved.record["step"] == step and saved.record["rate"] == 0.1 * step
    wanted = arrays_of(step)
    assert saved.arrays.keys() == wanted.keys()
    for name, array in wanted.items():
        assert saved.arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(saved.arrays[name], array)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    write(folder, 4, 7)
    return folder


@pytest.fixture
def folder(two, tmp_path):
    shutil.copytree(two, tmp_path / "run")
    return tmp_path / "run"


def test_the_newest_comes_back_and_two_are_kept(tmp_path):
    with checkpoint.opened(str(tmp_path / "new" / "folder")) as folder:
        assert checkpoint.newest(folder) == (None, [])
        write(folder, 4, 9, 10)
        check(folder, 10)
        assert names(folder) == ["lock", "step-000000000009", "step-000000000010"]
        write(folder, 10)  # once more
        check(folder, 10)
        with pytest.raises(InputError, match="another run is writing to"):
            with checkpoint.opened(str(folder)):
                pass


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "cut short": lambda path: os.truncate(path, path.stat().st_size // 2),
    "emptied": lambda path: os.truncate(path, 0),
    "a bit flipped": flip,
    "missing": lambda path: path.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_to_any_file_falls_back_to_the_one_before(damage, folder):
    newest = folder / "step-000000000007"
    files = [path for path in newest.rglob("*") if path.is_file()]
    assert len(files) > 5
    for path in files:
        content = path.read_bytes()
        DAMAGES[damage](path)
        check(folder, 4, damaged=1)
        path.write_bytes(content)
    check(folder, 7)


def test_a_missing_folder_falls_back_and_nothing_good_is_refused(folder):
    shutil.rmtree(folder / "step-000000000007" / "arrays")
    check(folder, 4, damaged=1)
    checkpoint.set_aside(folder, 4)
    assert names(folder) == ["damaged-step-000000000007", "step-000000000004"]
    write(folder, 5)
    check(folder, 5)
    for place in folder.glob("step-*"):
        flip(place / "run.json")
    with pytest.raises(
        InputError, match=r"no checkpoint in .* is good: .*05/run.json .*04/run.json"
    ):
        checkpoint.newest(folder)


def test_arrays_that_orbax_reads_otherwise_than_they_were_written_are_damage(folder, monkeypatch):
    class Checkpointer(checkpoint._orbax().PyTreeCheckpointer):
        def restore(self, place):
            arrays = super().restore(place)
            return arrays | {"losses": arrays["losses"] * (2 if arrays["memory.count"] == 7 else 1)}

    monkeypatch.setattr(checkpoint._orbax(), "PyTreeCheckpointer", Checkpointer)
    check(folder, 4, damaged=1)


def test_what_a_kill_leaves_half_written_or_half_deleted_is_not_seen(folder):
    half = folder / checkpoint.NEW
    shutil.copytree(folder / "step-000000000007", half)
    shutil.copytree(half, folder / checkpoint.OLD)
    (half / "run.json").unlink()
    check(folder, 7)
    write(folder, 8)
    assert names(folder) == ["step-000000000007", "step-000000000008"]


def test_another_format_is_refused_with_both(folder):
    path = folder / "step-000000000007" / "run.json"
    record = json.loads(path.read_text())["record"] | {"format": 9, "versions": {"jax_bptt": "3"}}
    path.write_text(json.dumps({"record": record, "sha256": checkpoint._digest_of_record(record)}))
    with pytest.raises(InputError, match=r"has format 9.* reads format 1: .*'jax_bptt': '3'"):
        checkpoint.newest(folder)


@pytest.mark.parametrize("limit", [100, 2000, 300_000])
def test_a_disk_that_is_full_loses_nothing(limit, folder, capfd):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            large = {"w": np.random.default_rng(0).normal(size=10_000)}
            checkpoint.write(folder, {"step": 8, "rate": 0.0}, large)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert names(folder) == ["step-000000000004", "step-000000000007"]
    assert capfd.readouterr().err == ""
    check(folder, 7)


def test_a_folder_that_cannot_be_written_is_refused_before_the_work(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot make the folder"):
        with checkpoint.opened(str(tmp_path / "file" / "below")):
            pass

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="No space left on device"):
        with checkpoint.opened(str(tmp_path)):
            pass
    assert names(tmp_path) == ["file"]
