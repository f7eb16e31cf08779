"""Files written whole or not at all, and tried before the work, not after it."""

import os
from pathlib import Path

from trainer.errors import InputError, require


def make_folder(path: str) -> None:
    """Make a folder unless it is there, or raise `InputError`."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the folder {path}: {error.strerror}") from error


def try_out(path: str) -> None:
    """Raise `InputError` for a file that could not be written, and leave it as it is."""
    folder = Path(path).parent
    require(folder.is_dir(), f"cannot write {path}: there is no folder {folder}")
    require(not Path(path).is_dir(), f"cannot write {path}: it is a folder")
    _write(path, bytes(4096), keep=False)


def write(path: str, content: bytes) -> None:
    """Write a file: under another name first, so that the old content stays until the new is there.

    What is no regular file, a pipe or a terminal, is written to directly.
    """
    _write(path, content, keep=True)


def _write(path: str, content: bytes, *, keep: bool) -> None:
    target = Path(os.path.realpath(path))
    new = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        # /dev/stdout is a link to a regular file where the shell redirects it, not to be replaced.
        if path.startswith("/dev/") or (target.exists() and not target.is_file()):
            if keep:
                Path(path).write_bytes(content)
            return
        try:
            with open(new, "xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            if keep:
                os.replace(new, target)
        finally:
            new.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from error
