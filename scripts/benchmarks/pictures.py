"""Figures of the scripts; matplotlib is imported only when one is asked for."""

from pathlib import Path
from typing import Any


def figure_of(columns: int = 1, **settings: Any) -> Any:
    """Return (figure, axes), one for each column, without a window system."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(layout="constrained", **settings)
    FigureCanvasAgg(figure)  # no window system is needed, nor any global state changed
    return figure, figure.subplots(1, columns)


def save(figure: Any, path: Path) -> None:
    """Write a figure in the format that the file's name asks for, the same for equal figures."""
    import matplotlib

    dated = {"Date": None} if path.suffix == ".svg" else {}
    with matplotlib.rc_context({"svg.hashsalt": "jax_bptt"}):
        figure.savefig(path, dpi=150, bbox_inches="tight", metadata=dated)
