"""Rows that an earlier run has measured: with `--add` a long table is measured in pieces."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.data import Row

Measured = dict[str, Any]


def kept(path: Path | None, mode: str, versions: dict[str, Any]) -> dict[Row, Measured]:
    """Return the measured rows of a JSON file; none if there is no file.

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
    return {Row(*(each[field] for field in Row._fields)): each for each in old["rows"]}


def completed(
    rows: list[Row], kept: dict[Row, Measured], measure: Callable[[Row], Measured]
) -> list[Measured]:
    """Return the rows in order, measured where they are not kept, and after them the other kept."""
    asked = [kept[row] if row in kept else measure(row) for row in rows]
    return asked + [each for row, each in kept.items() if row not in rows]
