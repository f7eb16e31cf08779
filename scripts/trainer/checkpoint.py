"""A folder of checkpoints: each written whole or not at all, and proven before it is believed.

    DIR/step-000000000120/run.json    the record: settings, place, digests
    DIR/step-000000000120/arrays/     the arrays, by name, as orbax writes them
    DIR/lock                          held by the run that writes here

A checkpoint is made under another name, brought to the disk, and renamed; only then are older ones
deleted, of which one is kept beside it. A kill at any moment leaves the last good one in place. A
file that was cut short or changed is found by its digest before orbax reads it, which may not
notice a changed byte, or wait for a minute; a second digest is of the arrays that were read.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from trainer import files
from trainer.errors import InputError, optional_module, require

FORMAT = 1
"""Version of the record. In every version run.json holds a digest of its record."""
KEEP = 2
"""Number of good checkpoints that a folder holds once it has so many."""
NEW, OLD = ".new", ".old"
BESIDE = 2**18
"""Bytes that a checkpoint takes beside its arrays, at most: a dozen small files."""


class Saved(NamedTuple):
    """A checkpoint: what describes the run, and its arrays by name."""

    record: dict[str, Any]
    arrays: dict[str, np.ndarray]


class Damaged(Exception):
    """A checkpoint that is not as it was written; the message says which and why."""


@contextlib.contextmanager
def opened(folder: str) -> Iterator[Path]:
    """Make a folder for checkpoints, unless it is there, and keep other runs from writing to it."""
    _orbax()
    files.make_folder(folder)
    files.try_out(str(Path(folder, "step")))
    with open(Path(folder, "lock"), "a+b") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(
                f"another run is writing to {folder}: wait for it, or give another --checkpoint"
            ) from error
        yield Path(folder).resolve()


def _orbax() -> Any:
    # Where it is used: a run without checkpoints does not need it, and it takes a second to import.
    return optional_module("orbax.checkpoint", extra="train")


def write(folder: Path, record: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """Add a checkpoint to a folder from `opened`, and delete those older than the last `KEEP`.

    Whatever exception orbax or the system raises, those that were there are unharmed.
    """
    new, place = folder / NEW, folder / f"step-{record['step']:012d}"
    try:
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir()
        # orbax that finds a full disk prints a traceback from each of its threads.
        size = sum(array.nbytes for array in arrays.values()) + BESIDE
        if hasattr(os, "posix_fallocate"):
            with open(new / "space", "xb") as file:
                os.posix_fallocate(file.fileno(), 0, size)
            (new / "space").unlink()
        with _orbax().PyTreeCheckpointer() as checkpointer:
            checkpointer.save(new / "arrays", arrays)
        digests = {"files": _digest_of_files(new / "arrays"), "arrays": _digest_of_arrays(arrays)}
        record = record | {"format": FORMAT, **digests}
        content = {"sha256": _digest_of_record(record), "record": record}
        (new / "run.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        for path in [*new.rglob("*"), new]:
            _to_disk(path)
        _remove(place)
        os.rename(new, place)
        _to_disk(folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    for old in _places(folder)[:-KEEP]:
        _remove(old)


def newest(folder: Path) -> tuple[Saved | None, list[Damaged]]:
    """Return the newest good checkpoint, None if there was never one, and newer ones' damages."""
    damaged = []
    for place in reversed(_places(folder)):
        try:
            record = _read_record(place)
            theirs = record["format"]
            require(
                theirs == FORMAT,
                f"{place} has format {theirs}, and this train.py reads format {FORMAT}: take the "
                f"version that wrote it ({record.get('versions')}), or another --checkpoint",
            )
            return Saved(record, _read_arrays(place / "arrays", record)), damaged
        except Damaged as error:
            damaged.append(error)
    if damaged:
        raise InputError(f"no checkpoint in {folder} is good: {'; '.join(map(str, damaged))}")
    return None, damaged


def set_aside(folder: Path, step: int) -> None:
    """Rename the checkpoints beyond a step, which are damaged, lest they count as the newest."""
    for place in _places(folder):
        if place.name > f"step-{step:012d}":
            aside = place.with_name(f"damaged-{place.name}")
            shutil.rmtree(aside, ignore_errors=True)
            os.rename(place, aside)


def _places(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-" + "[0-9]" * 12))


def _read_record(place: Path) -> dict[str, Any]:
    try:
        content = json.loads((place / "run.json").read_text(encoding="utf-8"))
        record, digest = content["record"], content["sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Damaged(f"{place / 'run.json'} cannot be read ({_reason(error)})") from error
    if digest != _digest_of_record(record):
        raise Damaged(f"{place / 'run.json'} has another digest than when it was written")
    return record


def _read_arrays(place: Path, record: dict[str, Any]) -> dict[str, np.ndarray]:
    try:
        if _digest_of_files(place) != record["files"]:
            raise Damaged(f"{place} has another digest than when it was written")
        with _orbax().PyTreeCheckpointer() as checkpointer:
            arrays = checkpointer.restore(place)
    except (OSError, ValueError) as error:
        raise Damaged(f"{place} cannot be read ({_reason(error)})") from error
    if _digest_of_arrays(arrays) != record["arrays"]:
        raise Damaged(f"{place} holds other arrays than were written")
    return arrays


def _reason(error: Exception) -> str:
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return reason.splitlines()[0][:100]


def _digest_of_record(record: Any) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _digest_of_files(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(folder)} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def _digest_of_arrays(arrays: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _remove(place: Path) -> None:
    """Delete a checkpoint; a kill in between leaves nothing that looks like one."""
    old = place.with_name(OLD)
    shutil.rmtree(old, ignore_errors=True)
    if place.exists():
        os.rename(place, old)
        shutil.rmtree(old, ignore_errors=True)


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
