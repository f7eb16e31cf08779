"""Plots of the reports; matplotlib is imported only when one is asked for."""

from pathlib import Path
from typing import Any

from benchmarks.data import Row


def save(figure: Any, path: Path) -> None:
    """Write a figure in the format that the file's name asks for."""
    figure.savefig(path, dpi=150, bbox_inches="tight")


def figure_of(**settings: Any) -> Any:
    """Return a figure that needs no window system."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(layout="constrained", **settings)
    FigureCanvasAgg(figure)  # no window system is needed, nor any global state changed
    return figure


def marks(axes: Any, labels: list[str], points: list[tuple[str, float, str]]) -> None:
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


def race(report: dict[str, Any], path: Path) -> None:
    """Plot the ratio of each competitor's time to the library's, a line of marks per row."""
    labels = [str(Row(*(row[f] for f in Row._fields))) for row in report["rows"]]
    points = [
        (c["name"], c["ratio"], label)
        for row, label in zip(report["rows"], labels, strict=True)
        for c in row["competitors"]
        if c.get("ratio") is not None
    ]
    figure = figure_of(figsize=(8, 1.2 + 0.3 * len(labels)))
    axes = figure.subplots()
    marks(axes, labels, points)
    axes.axvline(1.0, color="gray", linewidth=1)
    axes.set_xlabel("time / time of the library (right of 1: the library is faster)")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    save(figure, path)


def scaling(report: dict[str, Any], path: Path) -> None:
    """Plot time and memory against each axis, log-log, with the fitted slopes in the legend."""
    rows = report["rows"]
    axis_names = list(dict.fromkeys(row["axis"] for row in rows))
    figure = figure_of(figsize=(5 * len(axis_names), 8))
    panels = figure.subplots(2, len(axis_names), squeeze=False)
    many = len({row["cell"] for row in rows}) > 1
    for row in rows:
        column = axis_names.index(row["axis"])
        name = f"{row['cell']}, {row['name']}" if many else row["name"]
        for panel, key, slope, scale in (
            (panels[0][column], "seconds", "time_slope", 1e3),
            (panels[1][column], "temp_bytes", "memory_slope", 2**-20),
        ):
            values = [v * scale for v in row[key]]
            panel.loglog(row["sizes"], values, "o-", label=f"{name}: slope {row[slope]:.2f}")
    for column, axis in enumerate(axis_names):
        for panel, label in (
            (panels[0][column], "gradient, ms"),
            (panels[1][column], "temporary memory, MiB"),
        ):
            panel.set_xlabel(axis)
            panel.set_ylabel(label)
            panel.legend(fontsize="small")
            panel.grid(which="both", alpha=0.3)
    save(figure, path)
