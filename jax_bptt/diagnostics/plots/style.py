"""Colours, and axes to draw on, that the pictures share. Matplotlib is imported when one is drawn.

A picture's title states what was found; colours can be told apart by the colour-blind and differ in
lightness, so that they survive a printer.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000"
"""M. Okabe and K. Ito (2008), "Color universal design"."""

SEQUENTIAL = "cividis"
"""A colour map for sizes, of one hue to the colour-blind as to others."""

DIVERGING = "PuOr"
"""A colour map for signed numbers, white at zero."""


def figure_class(function: str) -> "type[Figure]":
    """Return Matplotlib's `Figure`, whose figures belong to no window."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            f"{function}: Matplotlib is not installed. Install the extra: "
            "pip install 'jax_bptt[plot]'"
        ) from error
    return Figure


def axes_of(function: str, axes: "Axes | None") -> "Axes":
    """Return `axes`, or those of a new figure, to be saved by `axes.figure.savefig`."""
    if axes is not None:
        return axes
    return figure_class(function)(figsize=(6.4, 4.0), layout="constrained").add_subplot()


def finish(axes: "Axes", title: str, x: str, y: str) -> "Axes":
    """Give a picture its title and the names and units of its axes, and return it."""
    axes.set_title(title, fontsize="medium", loc="left")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return axes
