"""From which state to which loss the gradient flows, as a map."""

from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from jax_bptt.diagnostics.plots import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DECADES = 6
"""Powers of ten below the largest entry down to which colours tell sizes apart."""

NEGLIGIBLE = 0.01
"""Share of the largest lag's size at which the title takes a lag for the end of the reach."""


def contribution_map(found: Any, axes: "Axes | None" = None) -> "Axes":
    """Draw the size of what state i contributes to the gradient of the loss of step t.

    Colours are on a logarithmic scale of six decades below the largest entry; what is smaller has
    the darkest, what is zero none. The title says after how many steps a contribution, its root
    mean square over t, stays at or below 1 % of the largest.

    Args:
      found: what `jax_bptt.diagnostics.contribution_map` returned with a measure of one number a
        leaf, such as its default: a pytree of [T, T], of which the root of the sum of squares is
        drawn. Pass one leaf, `found.w_s`, for a matrix alone.
      axes: to draw on; None for those of a new figure.

    Returns:
      The axes.

    Raises:
      ImportError: Matplotlib is not installed.
      ValueError: an array is not [T, T].

    Example:
      >>> import numpy as np
      >>> reach = np.tril(0.5 ** np.abs(np.subtract.outer(np.arange(20), np.arange(20))))
      >>> contribution_map({"w_s": reach}).get_title(loc="left")
      'What reaches a loss falls to 1 % within 7 of 19 steps'
    """
    name = "plots.contribution_map"
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(found)]
    shapes = {leaf.shape for leaf in leaves}
    (shape,) = shapes if len(shapes) == 1 else [()]
    if len(shape) != 2 or shape[0] != shape[1]:
        raise ValueError(
            f"{name}: found must have one number for each loss and state, arrays [T, T], got "
            f"{sorted(shapes)}. Leave out the measure, or reduce what it kept."
        )
    size = np.sqrt(sum(np.abs(leaf.astype(np.float64)) ** 2 for leaf in leaves))
    axes = style.axes_of(name, axes)
    from matplotlib.colors import LogNorm

    steps, largest = shape[0], size.max() or 1.0
    shown = np.ma.masked_less_equal(size, 0.0)
    picture = axes.imshow(
        shown,
        cmap=style.SEQUENTIAL,
        norm=LogNorm(largest * 10.0**-DECADES, largest),
        extent=(0.5, steps + 0.5, steps + 0.5, 0.5),
        interpolation="nearest",
    )
    axes.figure.colorbar(picture, ax=axes, label="|c_t,i| (loss per unit of weight)", extend="min")
    axes.locator_params(integer=True)
    x, y = "index i of the state (steps)", "index t of the loss (steps)"
    return style.finish(axes, _finding(size), x, y)


def _finding(size: np.ndarray) -> str:
    steps = len(size)
    by_lag = np.array([np.sqrt(np.mean(np.diagonal(size, -k) ** 2)) for k in range(steps)])
    if not by_lag.any():
        return "Nothing reaches any loss"
    reach = 1 + int(np.flatnonzero(by_lag > NEGLIGIBLE * by_lag.max())[-1])
    if reach >= steps:
        return f"What reaches a loss is above 1 % of its largest over all {steps - 1} steps"
    return f"What reaches a loss falls to 1 % within {reach} of {steps - 1} steps"
