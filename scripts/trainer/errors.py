"""What is said on stderr: errors that are the user's to mend, and progress bars."""

import contextlib
import importlib
import sys
from collections.abc import Iterable, Iterator, Sequence
from types import ModuleType
from typing import Any, TypeVar

Item = TypeVar("Item")

FAILED_CHECK, BAD_INPUT, UNWRITTEN = 1, 2, 3
"""Exit statuses: the gradient is wrong; the input cannot be used; the run is done and some of its
results could not be written."""


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
    """Import module `name`, or raise `InputError` that says which extra of the package has it."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        package = name.partition(".")[0]
        raise InputError(
            f"{package} is not installed: run pip install 'jax_bptt[{extra}]', "
            f'or from a clone pip install -e ".[{extra}]"'
        ) from error


def bar(**options: Any) -> Any:
    """Return a bar of tqdm: now and then a line in a file, smooth on a terminal."""
    between = 0.2 if sys.stderr.isatty() else 10
    return optional_module("tqdm", extra="train").tqdm(mininterval=between, **options)


def track(items: Sequence[Item], doing: str) -> Iterable[Item]:
    """Return the items, under a bar that says what is being done with them after a second."""
    return bar(iterable=items, desc=doing, delay=1, leave=False)
