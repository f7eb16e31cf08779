"""Tables and a plot of what was measured on an accelerator."""

from pathlib import Path
from typing import Any

import numpy as np
from benchmarks import pictures, race, report

from accelerator import contestants
from jax_bptt.testing.tables import Table

PAIRS = (
    (contestants.PLAIN, contestants.GRAPH),
    (contestants.PLAIN, contestants.SCAN),
    (contestants.PLAIN, contestants.FUSED),
    (contestants.SCAN, contestants.FUSED),
    (contestants.GRAPH, contestants.FUSED),
    (contestants.TORCH, contestants.FUSED),
    (contestants.TORCH, contestants.GRAPH),
    (contestants.CUDNN, contestants.GRAPH),
)
"""Whose time is divided by whose."""


def correctness(title: str, rows: list[dict[str, Any]]) -> Table:
    """Return the table of the kernels' errors."""
    lines = []
    for row in rows:
        if row["error"] is None:
            lines.append([row["name"], "-", "-", "no kernel: " + row.get("scan", "")])
        else:
            met = f"yes, {row['worst']}" if row["met"] else f"NO: {row['worst']}"
            lines.append([row["name"], f"{row['error']:.1e}", f"{row['limit']:.0e}", met])
    return Table(title, ["case", "error", "limit", "within it, and worst of"], lines)


def times(title: str, rows: list[dict[str, Any]]) -> Table:
    """Return the table of a group of times, a line for every way to run a row."""
    header = ["row", "way", "us / step", "quartiles", "bandwidth", "matrix peak", "note"]
    lines = []
    for row in rows:
        for c in row["contestants"]:
            note = c["absent"] or c["error"] or ""
            figures = ["-"] * 4
            if "us_per_step" in c:
                low, high = (1e6 * c[f"seconds_{q}"] / row["T"] for q in ("q1", "q3"))
                figures = [f"{c['us_per_step']:.3g}", f"{low:.3g} to {high:.3g}"]
                figures += [_share(c["bandwidth_share"]), _share(c["matrix_share"])]
            lines.append([row["name"], c["name"], *figures, " ".join(note.split())[:120]])
    return Table(title, header, lines)


def ratios(groups: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Return, for pairs of ways, how many times faster the second is, on equal rows."""
    by_row: dict[str, dict[str, float]] = {}
    for group in groups.values():
        for row in group["rows"]:
            for c in row.get("contestants", []):
                if "seconds" in c:
                    by_row.setdefault(row["name"], {})[c["name"]] = c["seconds"]
    return [
        {"row": name, "slower": slower, "faster": faster, "ratio": found[slower] / found[faster]}
        for name, found in by_row.items()
        for slower, faster in PAIRS
        if slower in found and faster in found
    ]


def proven(groups: dict[str, dict[str, Any]]) -> list[str]:
    """Return which kernels were right in every case and faster than the scan on a mean of rows."""
    check = groups.get("correct", {"rows": [], "ended": "absent"})
    if check["ended"] != "done":
        return []
    gains: dict[str, list[float]] = {}
    for row in (row for group in groups.values() for row in group["rows"]):
        seconds = {c["name"]: c.get("seconds") for c in row.get("contestants", [])}
        scan, fused = seconds.get(contestants.SCAN), seconds.get(contestants.FUSED)
        if row.get("kernel") and scan and fused:
            gains.setdefault(row["kernel"], []).append(scan / fused)
    wrong = {row.get("kernel") for row in check["rows"] if not row["met"]}
    right = {row.get("kernel") for row in check["rows"]} - wrong
    return [name for name, found in gains.items() if name in right and np.log(found).mean() > 0]


def ratio_table(found: list[dict[str, Any]]) -> Table:
    """Return the geometric means and extremes of the ratios, forward and backward apart."""
    by_pair: dict[str, list[tuple[float, str]]] = {}
    for entry in found:
        way = "forward + backward" if entry["row"].endswith("backward") else "forward"
        pair = f"{entry['slower']} / {entry['faster']}, {way}"
        by_pair.setdefault(pair, []).append((entry["ratio"], entry["row"]))
    summary = {pair: race.summarized(each) for pair, each in by_pair.items()}
    return report.ratios("Time of one / time of the other, on equal rows", summary)


def plot(groups: dict[str, dict[str, Any]], path: Path) -> None:
    """Plot microseconds per step: a panel for heads and one for dense rows, a mark for each way."""
    rows = [r for g in groups.values() for r in g["rows"] if "contestants" in r]
    panels = {
        "LSTM of heads": [r for r in rows if r["D"] != r["H"]],
        "Dense LSTM": [r for r in rows if r["D"] == r["H"]],
    }
    labels = {title: list(dict.fromkeys(r["name"] for r in kept)) for title, kept in panels.items()}
    height = 3 + 0.22 * max(map(len, labels.values()))
    figure, both = pictures.figure_of(columns=2, figsize=(16, height))
    for axes, (title, kept) in zip(both, panels.items(), strict=True):
        points = [
            (c["name"], c["us_per_step"], row["name"])
            for row in kept
            for c in row["contestants"]
            if "us_per_step" in c
        ]
        _marks(axes, labels[title], points)
        if points:
            axes.legend(fontsize="small")
        axes.tick_params(axis="y", labelsize="x-small")
        axes.set_xlabel("microseconds per step")
        axes.set_title(title)
    pictures.save(figure, path)


def _marks(axes: Any, labels: list[str], points: list[tuple[str, float, str]]) -> None:
    """Plot values on a logarithmic axis: a line for each label, a kind of mark for each name.

    Args:
      axes: of matplotlib.
      labels: of the lines, from above.
      points: (name, value, label).
    """
    kinds = dict.fromkeys(name for name, _, _ in points)
    for name, marker in zip(kinds, "osD^v<>Phx*" * len(kinds), strict=False):
        own = [(value, labels.index(label)) for other, value, label in points if other == name]
        axes.plot(*zip(*own, strict=True), marker, label=name, linestyle="", alpha=0.8)
    if points:
        axes.set_xscale("log")
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"
