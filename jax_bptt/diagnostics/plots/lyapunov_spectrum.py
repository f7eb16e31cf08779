"""Lyapunov exponents as they settle."""

import math
from typing import TYPE_CHECKING

import numpy as np

from jax_bptt.diagnostics.lyapunov_spectrum import LyapunovSpectrum
from jax_bptt.diagnostics.plots import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NAMED = 6
"""Number of exponents up to which each has its value beside it; of more, the first and the last."""


def lyapunov_spectrum(found: LyapunovSpectrum, axes: "Axes | None" = None) -> "Axes":
    """Draw the running means of the exponents against time, with the final values beside them.

    A line that is still going up or down says that the run is too short. Of a batch, the mean and,
    for a few exponents, all between the least and the greatest of its sequences. An exponent of
    -inf has no line.

    Example:
      >>> import jax, jax.numpy as jnp, jax_bptt as jb
      >>> from jax_bptt.diagnostics import plots
      >>> cell = jb.elman(3, 8)
      >>> run = jb.diagnostics.trajectory(cell, cell.init(jax.random.key(0)), jnp.ones((50, 3)))
      >>> plots.lyapunov_spectrum(jb.diagnostics.lyapunov_spectrum(run)).get_xlabel()
      'time step t'
    """
    axes = style.axes_of("plots.lyapunov_spectrum", axes)
    running = np.asarray(found.running, np.float64)
    times = np.asarray(found.times)
    running = running.reshape(len(times), -1, running.shape[-1])
    drawn = [k for k in range(running.shape[-1]) if np.isfinite(running[-1, :, k]).all()]
    ends = {}
    for place, k in enumerate(drawn):
        lines = running[:, :, k]
        colour = _colour(place, len(drawn), axes)
        axes.plot(times, lines.mean(1), color=colour, linewidth=1.2)
        if lines.shape[1] > 1 and len(drawn) <= NAMED:
            axes.fill_between(times, lines.min(1), lines.max(1), color=colour, alpha=0.2, lw=0)
        ends[k] = float(lines[-1].mean())
    axes.axhline(0, color="black", linewidth=0.8, linestyle=":")
    settled = running[len(times) // 10 :, :, drawn]
    if settled.size and np.isfinite(settled).all():
        # The first means are of a few steps, and would leave no room for the others.
        low, high = min(settled.min(), 0), max(settled.max(), 0)
        room = 0.06 * (high - low) or 1
        axes.set_ylim(low - room, high + room)
    shown = drawn if len(drawn) <= NAMED else [drawn[0], drawn[-1]]
    for k, y in zip(shown, _apart([ends[k] for k in shown], axes), strict=True):
        axes.annotate(
            f"{ends[k]:+.3f}",
            (1.01, y),
            xycoords=("axes fraction", "data"),
            va="center",
            fontsize="small",
            color=_colour(drawn.index(k), len(drawn), axes),
        )
    title = _in_words(found, running.shape[-1] - len(drawn))
    return style.finish(axes, title, "time step t", "exponent up to t (nats per step)")


def _colour(place: int, count: int, axes: "Axes") -> object:
    if count < len(style.COLOURS):
        return style.COLOURS[place]
    from matplotlib import colormaps

    return colormaps[style.SEQUENTIAL](0.8 * place / (count - 1))


def _apart(values: list[float], axes: "Axes") -> list[float]:
    """Return heights for labels, from the greatest value down, that do not cover one another."""
    low, high = axes.get_ylim()
    places, ceiling = [], math.inf
    for value in values:
        places.append(min(value, ceiling))
        ceiling = places[-1] - 0.05 * (high - low)
    return places


def _in_words(found: LyapunovSpectrum, forgotten: int) -> str:
    exponents = np.asarray(found.exponents, np.float64)
    largest = float(exponents[..., 0].mean())
    if largest == -math.inf:
        return "Every perturbation is forgotten within a step"
    half = f"{math.log(2) / abs(largest):.3g}" if largest else "infinitely many"
    if largest > 0:
        words = f"Chaotic: perturbations double every {half} steps"
    else:
        words = f"Perturbations are halved every {half} steps"
    words += f" (exponent {largest:+.3f})"
    dimension = float(np.mean(found.kaplan_yorke))
    if dimension > 0:
        least = "at least " if dimension >= exponents.shape[-1] else ""
        words += f";\nKaplan-Yorke dimension {least}{dimension:.1f}"
    if forgotten:
        words += f"\n{forgotten} of {exponents.shape[-1]} exponents are $-\\infty$"
    return words
