"""The lecture's unfolded network, with each path as wide as what it contributes."""

from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from jax_bptt.diagnostics.plots import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST = 12
"""States up to which paths can be told apart."""

WIDEST, THINNEST = 14.0, 0.6
"""Widths of paths, in points."""

HEIGHT = 1.6
"""Distance of the loss above the states, which are one apart."""


def unfolded(terms: Any, axes: "Axes | None" = None) -> "Axes":
    """Draw s_0 .. s_N and E_N, and from each s_i to E_N a path as wide as its contribution.

    Below each state stands its share of the sum of all sizes. It is a share of sizes, not of the
    gradient: terms may cancel.

    Args:
      terms: a pytree of arrays [N, ...], what `jax_bptt.contributions` returned, or a row of a
        `contribution_map` up to its diagonal: entry i - 1 is of s_i, N at most 12. The size is the
        Euclidean norm over all leaves.
      axes: to draw on; None for those of a new figure.

    Returns:
      The axes.

    Raises:
      ImportError: Matplotlib is not installed.
      ValueError: the arrays do not agree on N, or N is 0 or above 12.

    Example:
      >>> import numpy as np
      >>> unfolded({"w_s": np.array([1.0, 2.0, 5.0])}).get_title(loc="left")
      'By size, 62 % of dE_3/dW comes directly through s_3, 12 % through s_1, 2 steps before'
    """
    name = "plots.unfolded"
    arrays = [np.asarray(leaf) for leaf in jax.tree.leaves(terms)]
    lengths = {len(array) if array.ndim else 0 for array in arrays}
    (last,) = lengths if len(lengths) == 1 else (0,)
    if not 0 < last <= MOST:
        raise ValueError(
            f"{name}: terms must be arrays [N, ...] with the same N from 1 to {MOST}, got "
            f"{[array.shape for array in arrays]}. Take contributions at an earlier step."
        )
    squares = [np.sum(np.abs(a.reshape(last, -1)).astype(np.float64) ** 2, 1) for a in arrays]
    sizes = np.sqrt(sum(squares))
    shares = sizes / (sizes.sum() or 1.0)
    axes = style.axes_of(name, axes)
    _network(axes, last)
    from matplotlib.patches import FancyArrowPatch

    for i in range(1, last + 1):
        width = max(WIDEST * sizes[i - 1] / (sizes.max() or 1.0), THINNEST)
        colour = style.COLOURS[0] if i < last else style.COLOURS[1]
        # Those from afar rise more steeply, and stay apart from one another.
        path = FancyArrowPatch(
            (i, 0.17),
            (last - 0.02 * (last - i), HEIGHT - 0.2),
            connectionstyle=f"arc3,rad={-0.25 if i < last else 0}",
            arrowstyle="-",
            linewidth=width if shares[i - 1] > 0 else 0,
            color=colour,
            alpha=0.65,
            capstyle="butt",
            zorder=1,
        )
        axes.add_patch(path)
        axes.text(i, -0.42, _percent(shares[i - 1]), ha="center", color=colour, weight="bold")
    axes.text(0, -0.42, "share", ha="center", fontsize="small", color="0.4")
    axes.set(xlim=(-0.5, last + 0.5), ylim=(-0.65, HEIGHT + 0.35))
    axes.set_axis_off()
    style.finish(axes, _finding(shares, last), "", "")
    return axes


def _network(axes: "Axes", last: int) -> None:
    """Draw the nodes, and the arrows between them."""
    arrow = dict(arrowstyle="->", color="0.3", shrinkA=12, shrinkB=12)
    for i in range(last + 1):
        axes.plot([i], [0], "o", markersize=24, mfc="white", mec="0.3", zorder=3)
        axes.text(i, 0, f"$s_{{{i}}}$", ha="center", va="center", zorder=4)
        if i < last:
            axes.annotate("", (i + 1, 0), (i, 0), arrowprops=arrow, zorder=2)
    axes.plot([last], [HEIGHT], "s", markersize=24, mfc="white", mec="0.3", zorder=3)
    axes.text(last, HEIGHT, f"$E_{{{last}}}$", ha="center", va="center", zorder=4)


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share == 0 or share >= 0.01 else "< 1 %"


def _finding(shares: np.ndarray, last: int) -> str:
    if not shares.any():
        return f"Nothing contributes to dE_{last}/dW"
    words = f"By size, {_percent(shares[-1])} of dE_{last}/dW comes directly through s_{last}"
    if last > 1:
        steps = "step" if last == 2 else "steps"
        words += f", {_percent(shares[0])} through s_1, {last - 1} {steps} before"
    return words
