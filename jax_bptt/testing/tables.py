"""Tables of text: for a terminal, and for the pages that keep them between two comments."""

from pathlib import Path
from typing import NamedTuple


class Table(NamedTuple):
    """A title, column heads and cells, all as text."""

    title: str
    header: list[str]
    cells: list[list[str]]


def text(table: Table) -> str:
    """Return a table for a terminal, columns aligned."""
    lines = [table.header, *table.cells]
    widths = [max(len(line[k]) for line in lines) for k in range(len(table.header))]
    rendered = [
        "  ".join(
            c.ljust(w) if k == 0 else c.rjust(w)
            for k, (c, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    ]
    return "\n".join(filter(None, [table.title, *("  " + line.rstrip() for line in rendered)]))


def markdown(table: Table) -> str:
    """Return a table in Markdown."""
    rule = ["---", *["---:"] * (len(table.header) - 1)]
    lines = [f"| {' | '.join(cells)} |" for cells in (table.header, rule, *table.cells)]
    return "\n".join(filter(None, [table.title and table.title + "\n", *lines]))


def write_markdown(path: Path, mode: str, tables: list[Table], caption: str) -> None:
    """Write tables to a file: between the mode's two markers if it has them, else as its whole."""
    body = "\n\n".join([*map(markdown, tables), caption])
    begin, end = markers(mode)
    old = path.read_text(encoding="utf-8") if path.exists() else ""
    if begin in old and end in old:
        head, _, rest = old.partition(begin)
        _, _, tail = rest.partition(end)
        body = f"{head}{begin}\n{body}\n{end}{tail}"
    else:
        body += "\n"
    path.write_text(body, encoding="utf-8")


def unwritable(path: Path, mode: str) -> str | None:
    """Return why the tables of a mode cannot be written to a file, None if they can."""
    if not path.parent.is_dir():
        return f"no folder {path.parent} to write {path.name} in"
    begin, end = markers(mode)
    old = path.read_text(encoding="utf-8") if path.exists() else ""
    # A file of its own may be new; one that is there already is never replaced.
    is_page = bool(old) or path.name == "README.md"
    if is_page and (begin not in old or end not in old.partition(begin)[2]):
        return f"{path} has no lines {begin} and {end} for the table"
    return None


def markers(mode: str) -> tuple[str, str]:
    """Return the comments between which a page keeps the table of a mode."""
    return f"<!-- bench {mode} -->", f"<!-- end of bench {mode} -->"
