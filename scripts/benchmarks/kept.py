"""Rows that an earlier run has measured: with `--add` a long table is measured in pieces."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.data import Row

Measured = dict[str, Any]


def kept(path: Path | None, mode: str, versions: dict[str, Any]) -> dict[Row, list[Measured]]:
    """Return what a JSON file has of each row; nothing if there is no file.

    Raises:
      ValueError: no file is named, or it is of another mode or of other versions.
    """
    if path is None:
        raise ValueError("--add adds to a file: name it by --json FILE")
    if not path.exists():
        return {}
    old = json.loads(path.read_text(encoding="utf-8"))
    if old["mode"] != mode:
        raise ValueError(f"--add: {path} has the mode {old['mode']}, not {mode}")
    if old["environment"]["versions"] != versions:
        raise ValueError(f"--add: {path} was measured with other versions")
    found: dict[Row, list[Measured]] = {}
    for each in old["rows"]:
        found.setdefault(Row(*(each[field] for field in Row._fields)), []).append(each)
    return found


def completed(
    rows: list[Row], kept: dict[Row, list[Measured]], measure: Callable[[Row], list[Measured]]
) -> list[Measured]:
    """Return the rows in order, measured where they are not kept, and after them the other kept."""
    asked = [each for row in rows for each in (kept[row] if row in kept else measure(row))]
    return asked + [each for row, lines in kept.items() if row not in rows for each in lines]
