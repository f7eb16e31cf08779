"""The command line of the package's tools and of the scripts: a parser, and what options read."""

import argparse
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NoReturn


class Parser(argparse.ArgumentParser):
    """A parser that shows its description as it is written, and complains in one line."""

    def __init__(self, **settings: Any) -> None:
        """Take the settings of `argparse.ArgumentParser`."""
        raw: dict[str, Any] = {"formatter_class": argparse.RawDescriptionHelpFormatter}
        super().__init__(**raw | settings)

    def error(self, message: str) -> NoReturn:
        """Print the message and exit with status 2."""
        self.exit(2, f"{self.prog}: {message}\n")


def names(known: Collection[str]) -> Callable[[str], list[str]]:
    """Return what reads names that are known, with commas in between, or none."""

    def parse(text):
        found = [] if text == "none" else [name for name in text.split(",") if name]
        for name in found:
            if name not in known:
                raise argparse.ArgumentTypeError(f"no {name!r}; there are {', '.join(known)}")
        return found

    return parse


def positive(text: str) -> int:
    """Read a positive number."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return int(text)


def output(text: str) -> Path:
    """Read the path of a file to write, whose folder is there."""
    path = Path(text)
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"no folder {path.parent} to write {path.name} in")
    return path
