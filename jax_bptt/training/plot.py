"""Drawings of a run. Needs matplotlib, the extra `plot`."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from jax_bptt.training.errors import InputError, optional_module, require

SMOOTHING = 50
"""Steps over which the drawn curve is a running mean."""


def require_format(path: str) -> None:
    """Raise `InputError` unless a plot can be drawn into a file of this name."""
    figure = optional_module("matplotlib.figure", extra="plot").Figure()
    known = sorted(figure.canvas.get_supported_filetypes())
    require(
        Path(path).suffix.removeprefix(".").lower() in known,
        f"cannot draw into {path}: its ending is none of {', '.join(known)}",
    )


def learning_curve(
    path: str, losses: Sequence[float], *, levels: Mapping[str, float], label: str
) -> None:
    """Draw the loss of every step, with horizontal lines to compare it with, into a file.

    Args:
      path: the file; its ending says the format (.png, .svg, .pdf).
      losses: one number a step.
      levels: the lines, by what they are called.
      label: what is on the vertical axis, with its unit.

    Raises:
      InputError: matplotlib is not installed, or the file cannot be written.
    """
    figure_class = optional_module("matplotlib.figure", extra="plot").Figure
    figure = figure_class(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    width = min(SMOOTHING, len(losses))
    smooth = np.convolve(losses, np.full(width, 1 / width), mode="valid")
    axes.plot(np.arange(len(smooth)) + width, smooth, label="training (running mean)")
    for number, (name, level) in enumerate(levels.items(), start=1):
        axes.axhline(level, linestyle="--", color=f"C{number}", label=f"{name}: {level:.4g}")
    axes.set_xlabel("steps")
    axes.set_ylabel(label)
    axes.legend()
    try:
        figure.savefig(path)
    except OSError as error:
        raise InputError(f"cannot write the plot {path}: {error.strerror}") from error
