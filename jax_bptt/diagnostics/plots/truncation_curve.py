"""The bias of truncated backpropagation against its window."""

from typing import TYPE_CHECKING

import numpy as np

from jax_bptt.diagnostics.plots import style
from jax_bptt.diagnostics.truncation_curve import TruncationCurve

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BIAS = 0.01
"""Bias whose window is marked."""

LEAST = 1e-8
"""Lower end of the axis: what is below is rounding."""


def truncation_curve(curve: TruncationCurve, axes: "Axes | None" = None) -> "Axes":
    """Draw the relative bias of the gradient against the window, and mark that for 1 %.

    A second line is the share of parameters whose gradient has the wrong sign.

    Args:
      curve: what `jax_bptt.diagnostics.truncation_curve` returned.
      axes: to draw on; None for those of a new figure.

    Returns:
      The axes.

    Raises:
      ImportError: Matplotlib is not installed.

    Example:
      >>> import numpy as np
      >>> from jax_bptt.diagnostics import TruncationCurve
      >>> bias = 0.5 ** np.arange(1, 21)
      >>> axes = truncation_curve(TruncationCurve(bias, 1 - bias**2 / 8, 1 - bias, bias))
      >>> axes.get_title(loc="left")
      'From a window of 7 steps on, the gradient is biased by at most 1 %'
    """
    axes = style.axes_of("plots.truncation_curve", axes)
    bias, agreement = (np.asarray(a, np.float64) for a in (curve.bias, curve.agreement))
    windows = np.arange(1, len(bias) + 1)
    axes.plot(windows, _shown(bias), color=style.COLOURS[0], lw=2, label="bias |S_K - G| / |G|")
    wrong = _shown(1 - agreement)
    axes.plot(windows, wrong, color=style.COLOURS[5], lw=1, label="share of wrong signs")
    axes.set_yscale("log")
    axes.axhline(BIAS, color="0.6", lw=0.8, ls="--")
    within = np.flatnonzero(~(bias <= BIAS))
    window = 1 if len(within) == 0 else int(within[-1]) + 2
    title = f"No window of up to {len(bias)} steps has a bias of at most {100 * BIAS:g} %"
    if window <= len(bias):
        axes.plot([window], [max(bias[window - 1], LEAST)], "o", color=style.COLOURS[1])
        axes.annotate(
            f"K = {window}",
            (window, max(bias[window - 1], LEAST)),
            textcoords="offset points",
            xytext=(8, 6),
            color=style.COLOURS[1],
        )
        steps = "step" if window == 1 else "steps"
        title = (
            f"From a window of {window} {steps} on, the gradient is biased by at most "
            f"{100 * BIAS:g} %"
        )
    axes.legend(frameon=False)
    axes.locator_params(axis="x", integer=True)
    return style.finish(axes, title, "window K (steps)", "against the exact gradient (share)")


def _shown(values: np.ndarray) -> np.ndarray:
    return np.where(values > LEAST, values, np.nan)
