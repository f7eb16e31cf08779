"""Files written whole or not at all, and tried before the work, not after it."""

import os
from pathlib import Path

from trainer.errors import InputError, require


def try_out(path: str) -> None:
    """Raise `InputError` for a file that could not be written, and leave it as it is."""
    folder = Path(path).parent
    require(folder.is_dir(), f"cannot write {path}: there is no folder {folder}")
    require(not Path(path).is_dir(), f"cannot write {path}: it is a folder")
    if not _is_device(path):
        _replace(path, bytes(4096), keep=False)


def write(path: str, content: bytes) -> None:
    """Write a file: under another name first, so that the old content stays until the new is there.

    What is no regular file, a pipe or a terminal, is written to directly.

    Raises:
      InputError: it cannot be written; what was there is unharmed.
    """
    if not _is_device(path):
        _replace(path, content, keep=True)
        return
    try:
        with open(path, "wb") as file:
            file.write(content)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from error


def _is_device(path: str) -> bool:
    # /dev/stdout is a link to a regular file where the shell redirects it, not to be replaced.
    return (Path(path).exists() and not Path(path).is_file()) or path.startswith("/dev/")


def _replace(path: str, content: bytes, *, keep: bool) -> None:
    target = os.path.realpath(path)
    folder, name = os.path.split(target)
    new = os.path.join(folder, f".{name}.{os.getpid()}")
    try:
        try:
            with open(new, "xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            if keep:
                os.replace(new, target)
        finally:
            if os.path.exists(new):
                os.unlink(new)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from error
