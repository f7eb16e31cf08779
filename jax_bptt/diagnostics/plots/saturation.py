"""Shares of the time that gates spend at either end."""

from typing import TYPE_CHECKING

import numpy as np

from jax_bptt.diagnostics.plots import style
from jax_bptt.diagnostics.saturation import Saturation

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LOW, HIGH, BETWEEN = style.COLOURS[0], style.COLOURS[5], "#e8e8e8"


def saturation(found: Saturation, axes: "Axes | None" = None) -> "Axes":
    """Draw a band for each gate: its units side by side, each a column of its time.

    A column is dark from below for the steps at the lower end of the gate's range, light from above
    for those at the upper end, and grey between, where a gradient passes. Units are sorted from
    closed to open, gate by gate: a column is not the same unit in two bands.

    Example:
      >>> import jax, jax.numpy as jnp, jax_bptt as jb
      >>> from jax_bptt.diagnostics import plots
      >>> cell = jb.lstm(3, 8)
      >>> run = jb.diagnostics.trajectory(cell, cell.init(jax.random.key(0)), jnp.ones((50, 3)))
      >>> axes = plots.saturation(jb.diagnostics.saturation(run))
      >>> [label.get_text() for label in axes.get_yticklabels()]
      ['i', 'f', 'g', 'o']
    """
    axes = style.axes_of("plots.saturation", axes)
    names, height = list(found.low), 0.84
    totals = {}
    for row, name in enumerate(names):
        low, high = np.ravel(found.low[name]), np.ravel(found.high[name])
        order = np.argsort(high - low, kind="stable")
        low, high = low[order] * height, high[order] * height
        edges, bottom = np.linspace(0, 100, len(low) + 1), len(names) - 1 - row
        floor, top = np.full(len(low), bottom), np.full(len(low), bottom + height)
        for levels, base, colour in (
            (top, floor, BETWEEN),
            (floor + low, floor, LOW),
            (top, top - high, HIGH),
        ):
            axes.stairs(levels, edges, baseline=base, fill=True, color=colour)
        totals[name] = float(np.mean(found.low[name])), float(np.mean(found.high[name]))
        axes.annotate(
            f"{totals[name][0]:.0%} | {totals[name][1]:.0%}",
            (101, bottom + height / 2),
            va="center",
            fontsize="small",
            annotation_clip=False,
        )
    axes.set_yticks([len(names) - 1 - row + height / 2 for row in range(len(names))], names)
    axes.tick_params(axis="y", length=0)
    axes.set(xlim=(0, 100), ylim=(0, len(names) - 1 + height))
    handles = [axes.stairs([0], [0, 0], fill=True, color=c) for c in (LOW, BETWEEN, HIGH)]
    axes.legend(
        handles,
        ["lower end", "between", "upper end"],
        ncols=3,
        loc="upper center",
        bbox_to_anchor=(0.5, -0.18),
        frameon=False,
        fontsize="small",
    )
    most = max(names, key=lambda name: sum(totals[name]))
    low, high = totals[most]
    title = f"{most} is at its lower end {low:.0%} of the time, at its upper {high:.0%}"
    if len(names) > 1:
        least = min(names, key=lambda name: sum(totals[name]))
        title += f"; {least} the least, {sum(totals[least]):.0%} in all"
    return style.finish(
        axes, title, "units, sorted (%)", "gate, and within it the share of time (0 to 1)"
    )
