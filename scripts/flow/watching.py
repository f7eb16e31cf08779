"""A page on a run that is still training, from the lines that train.py --telemetry writes."""

import json
from pathlib import Path
from typing import Any

from trainer.telemetry import NAME

from flow import page
from jax_bptt.diagnostics import plots

MOST = 400
"""Lines that are drawn: of a longer run, evenly spread, the last one among them."""


def spread(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return every so manieth line, such that few are left, counted from the last one."""
    return lines[:: -max(1, -(-len(lines) // MOST))][::-1]


def watched(folder: Path, *, refresh: int, footer: str) -> str:
    """Return the page on a folder as it is now."""
    path = folder / NAME
    written = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    # The last one may be in the making.
    lines = spread([json.loads(line) for line in written if line.endswith("}\n")])
    if not lines:
        intro = f"{path} has no line yet; a run writes one every ten steps."
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
