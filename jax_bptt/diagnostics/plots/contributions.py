"""The lecture's sum, term by term."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from jax_bptt.diagnostics.plots import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_HEAT_MAPS = 6
"""Number of states up to which every term is drawn as a matrix of its own."""


def plot_contributions(terms: Mapping[str, Any]) -> "Figure":
    """Draw each state's term of dE_N/dW: its norm against i and, for small N, the matrix itself.

    The norms stand on a logarithmic axis, on which a gradient that vanishes or explodes with the
    distance N - i is a straight line; a norm of zero has no point. Up to N = 6 a row of heat maps
    per parameter shows the terms of s_N .. s_1 and their sum on one colour scale.

    Args:
      terms: name to array [N, ...], e.g. `{"Ws": contributions(...).w_s}`. A heat map has the
        first parameter axis as rows and the others, flattened, as columns.

    Returns:
      A Matplotlib figure that belongs to no window: `figure.savefig("terms.png")`.

    Raises:
      ImportError: Matplotlib is not installed.
      ValueError: no terms, or arrays that do not agree on N.

    Example:
      >>> import numpy as np
      >>> figure = plot_contributions({"Ws": np.ones((3, 2, 1, 2))})
      >>> [axes.get_title() for axes in figure.axes][1:5]
      ['s_3', 's_2', 's_1', 'sum']
    """
    arrays = {name: np.asarray(term) for name, term in terms.items()}
    lengths = {len(array) if array.ndim > 1 else 0 for array in arrays.values()}
    if len(lengths) != 1 or 0 in lengths:
        shapes = {name: array.shape for name, array in arrays.items()}
        raise ValueError(
            "plot_contributions: terms must be one or more arrays [N, ...] with the same N > 0, "
            f"got {shapes}"
        )
    (last,) = lengths
    figure_class = style.figure_class("plot_contributions")
    if last > MAX_HEAT_MAPS:
        figure = figure_class(figsize=(7.0, 4.2), layout="constrained")
        _draw_norms(figure.add_subplot(), arrays, last)
        return figure
    heights = [1.6] + [1.0] * len(arrays)
    size = max(7.0, 1.8 * (last + 1) + 1.2), 2.1 * sum(heights)
    figure = figure_class(figsize=size, layout="constrained")
    parts: Any = figure.subfigures(len(heights), 1, height_ratios=heights)
    _draw_norms(parts[0].add_subplot(), arrays, last)
    for row, (name, array) in zip(parts[1:], arrays.items(), strict=True):
        _draw_heat_maps(row, name, array.reshape(*array.shape[:2], -1))
    return figure


def _draw_norms(axes: "Axes", arrays: Mapping[str, np.ndarray], last: int) -> None:
    states = np.arange(1, last + 1)
    for (name, array), marker in zip(arrays.items(), "osD^v<>" * len(arrays), strict=False):
        norms = np.linalg.norm(array.reshape(last, -1), axis=1)
        shown = np.where(norms > 0, norms, np.nan)
        axes.plot(states, shown, marker=marker, markersize=5 if last <= 40 else 2.5, label=name)
    axes.set_yscale("log")
    axes.set_xlabel("index i of the state s_i (steps)")
    axes.set_ylabel("Frobenius norm of the term\n(units of E per unit of weight)")
    axes.set_title(f"dE_{last}/dW: the term through each state")
    axes.locator_params(axis="x", integer=True)
    axes.grid(alpha=0.3)
    axes.legend(title="W")


def _draw_heat_maps(figure: Any, name: str, array: np.ndarray) -> None:
    """Draw the terms [N, rows, columns] of s_N .. s_1 and their sum, on one scale."""
    last = len(array)
    panels = [*array[::-1], array.sum(axis=0)]
    titles = [f"s_{i}" for i in range(last, 0, -1)] + ["sum"]
    limit = max(np.abs(panel).max() for panel in panels) or 1.0
    all_axes = figure.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0]
    # Rows and columns are counted from one, as in the lecture.
    extent = 0.5, array.shape[2] + 0.5, array.shape[1] + 0.5, 0.5
    for axes, panel, title in zip(all_axes, panels, titles, strict=True):
        axes.imshow(panel, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto", extent=extent)
        axes.set_title(title)
        axes.locator_params(integer=True)
        axes.set_xlabel(f"column of {name}")
    all_axes[0].set_ylabel(f"row of {name}")
    figure.colorbar(
        all_axes[0].images[0],
        ax=all_axes,
        aspect=12,
        fraction=0.25 / last,
        label=f"dE_{last}/d{name}\n(E per unit of weight)",
    )
