"""The learning curve as a picture. Needs matplotlib, the extra `plot`."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from trainer.errors import optional_module, require

SMOOTHING = 50
"""Steps over which the drawn curve is a running mean."""


def require_format(path: str) -> None:
    """Raise `InputError` unless a plot can be drawn into a file of this name."""
    figure = optional_module("matplotlib.figure", extra="plot").Figure()
    known = sorted(figure.canvas.get_supported_filetypes())
    require(
        _format(path) in known,
        f"cannot draw into {path}: its ending is none of {', '.join(known)}",
    )


def learning_curve(
    path: str, losses: Sequence[float], *, levels: Mapping[str, float], label: str
) -> bytes:
    """Return the picture of the loss of every step, with horizontal lines to compare it with.

    Args:
      path: the file it is for; its ending says the format (.png, .svg, .pdf).
      losses: one number a step.
      levels: the lines, by what they are called.
      label: what is on the vertical axis, with its unit.

    Raises:
      InputError: matplotlib is not installed.
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
    picture = io.BytesIO()
    figure.savefig(picture, format=_format(path))
    return picture.getvalue()


def _format(path: str) -> str:
    return Path(path).suffix.removeprefix(".").lower()
