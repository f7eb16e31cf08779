"""Errors that are the user's to mend, said in one line."""

import contextlib
import importlib
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any


class InputError(ValueError):
    """Input that cannot be used; the message is one line for the terminal."""


def require(condition: bool, message: str) -> None:
    """Raise `InputError(message)` unless `condition` holds."""
    if not condition:
        raise InputError(message)


def say(message: str) -> None:
    """Print a line on stderr, above a progress bar if there is one."""
    tqdm = sys.modules.get("tqdm")
    write: Any = tqdm.tqdm.write if tqdm else print
    write(f"train.py: {message}", file=sys.stderr)


@contextlib.contextmanager
def user_input() -> Iterator[None]:
    """Raise as `InputError` what the library has to say to values that the user chose."""
    try:
        yield
    except (ValueError, ModuleNotFoundError) as error:
        raise InputError(str(error)) from error


def optional_module(name: str, *, extra: str) -> ModuleType:
    """Import module `name`, which comes with an optional `extra` of the package.

    Raises:
      InputError: it is not installed; the message says how to install it.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        package = name.partition(".")[0]
        raise InputError(
            f"{package} is not installed: run pip install 'jax_bptt[{extra}]', "
            f'or from a clone pip install -e ".[{extra}]"'
        ) from error
