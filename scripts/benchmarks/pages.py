"""Tables of a script: printed, and kept on a page between the markers of its mode."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks import environment
from jax_bptt.testing import tables
from jax_bptt.testing.arguments import Parser


class Page(NamedTuple):
    """A file, or None, the name of the markers in it, and the command that writes there."""

    path: Path | None
    mode: str
    command: str


def add_option(parser: Parser) -> None:
    """Add `--markdown FILE` to a parser."""
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write between its markers")


def opened(parser: Parser, path: Path | None, mode: str, argv: Sequence[str] | None) -> Page:
    """Return the page of a mode, which begins with the script's name.

    Exits with status 2 if the file has no place for the tables; `argv` is as for `main`.
    """
    if path is not None and (reason := tables.unwritable(path, mode)):
        parser.error(reason)
    given = sys.argv[1:] if argv is None else argv
    return Page(path, mode, shlex.join(["python", f"scripts/{mode.split()[0]}.py", *given]))


def show(page: Page, *found: tables.Table, more: Sequence[str] = ()) -> None:
    """Print tables, and write them to the page with where they were made, and `more` paragraphs."""
    print("\n\n".join(map(tables.text, found)))
    if page.path is not None:
        caption = f"{environment.sentence(environment.describe(1))}  \n`{page.command}`"
        tables.write_markdown(page.path, page.mode, list(found), "\n\n".join([caption, *more]))
