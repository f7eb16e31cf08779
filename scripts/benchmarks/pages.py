"""Tables of a script: printed, and kept on a page between the markers of its mode."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import environment
from jax_bptt.testing import tables
from jax_bptt.testing.arguments import Parser


def add_option(parser: Parser) -> None:
    """Add `--markdown FILE` to a parser."""
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write between its markers")


def check(parser: Parser, path: Path | None, mode: str) -> None:
    """Exit with status 2 if the page has no place for the tables of a mode."""
    if path is not None and (reason := tables.unwritable(path, mode)):
        parser.error(reason)


def show(
    found: list[tables.Table], path: Path | None, mode: str, argv: Sequence[str] | None, *more: str
) -> None:
    """Print tables, and write them to a page, if one is given.

    Args:
      found: the tables.
      path: of the page.
      mode: the name of its markers, which begins with that of the script.
      argv: arguments of the script, None for those of the process.
      *more: paragraphs below the caption, which says where and how the tables were made.
    """
    print("\n\n".join(map(tables.text, found)))
    if path is not None:
        given = sys.argv[1:] if argv is None else argv
        command = shlex.join(["python", f"scripts/{mode.split()[0]}.py", *given])
        caption = f"{environment.sentence(environment.describe(1))}  \n`{command}`"
        tables.write_markdown(path, mode, found, "\n\n".join([caption, *more]))
