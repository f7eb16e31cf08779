"""A page on a run that is still training, from the lines that train.py --telemetry writes."""

import json
from pathlib import Path
from typing import Any

from trainer.telemetry import NAME

from flow import page
from jax_bptt.diagnostics import plots

MOST = 400
"""Lines that are drawn: of a longer run, evenly spread, the last one among them."""


def lines_of(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of a run, without one that is being written."""
    path = folder / NAME
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("}\n")]


def spread(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return every so manieth line, such that few are left, counted from the last one."""
    every = -(-len(lines) // MOST)
    return lines[::-1][::every][::-1] if every > 1 else lines


def watched(folder: Path, *, refresh: int, footer: str) -> str:
    """Return the page on a folder as it is now."""
    lines = spread(lines_of(folder))
    if not lines:
        intro = f"{folder / NAME} has no line yet; a run writes one every ten steps."
        return page.page("Nothing to see yet", intro, [], footer=footer, refresh=refresh)
    axes = plots.telemetry(lines)
    heading = axes.get_title(loc="left").replace("\n", " ")
    about = "The loss of each step's batch, and the norm of its gradient before it is clipped."
    parts = [page.Section("Training", about, {"": page.svg(axes, "training")})]
    layers = {
        f"layer {k}, {path}" if path else "the cell": page.svg(
            plots.telemetry_decades(lines, path), f"layer{k}"
        )
        for k, path in enumerate(lines[-1]["adjoints"])
    }
    about = (
        "Each column is a step of training: in which powers of ten the |dL/ds_t| of its time steps "
        "and sequences are. A band that moves down is a gradient that vanishes."
    )
    parts.append(page.Section("Sizes of adjoints", about, layers))
    intro = f"{folder}, {len(lines)} of its lines, the last one of step {lines[-1]['step']}."
    return page.page(heading, intro, parts, footer=footer, refresh=refresh)
