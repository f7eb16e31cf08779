"""Singular values of what crosses a span of steps."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np

from jax_bptt.diagnostics.jacobian_spectrum import JacobianSpectrum
from jax_bptt.diagnostics.plots import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def jacobian_spectrum(
    found: JacobianSpectrum | Sequence[JacobianSpectrum], axes: "Axes | None" = None
) -> "Axes":
    """Draw the singular values of one span in their order, or those of several against its length.

    The line at one is a span that keeps what crosses it. Of a batch, medians, and for one span all
    between the least and the greatest of its sequences. Zeros are not drawn; what is shaded in grey
    is rounding.

    Example:
      >>> import jax, jax.numpy as jnp, jax_bptt as jb
      >>> from jax_bptt.diagnostics import plots
      >>> cell = jb.elman(3, 8)
      >>> run = jb.diagnostics.trajectory(cell, cell.init(jax.random.key(0)), jnp.ones((50, 3)))
      >>> spans = [jb.diagnostics.jacobian_spectrum(run, t) for t in (49, 45, 40)]
      >>> plots.jacobian_spectrum(spans).get_xlabel()
      'steps crossed'
    """
    axes = style.axes_of("plots.jacobian_spectrum", axes)
    axes.axhline(0, color="black", linewidth=0.8, linestyle=":")
    if isinstance(found, JacobianSpectrum):
        powers = _powers(found)
        ranks = np.arange(1, powers.shape[-1] + 1)
        axes.plot(ranks, np.median(powers, 0), "o-", color=style.COLOURS[0], markersize=3)
        axes.fill_between(ranks, powers.min(0), powers.max(0), color=style.COLOURS[0], alpha=0.2)
        axes.locator_params(axis="x", integer=True)
        _shade_rounding(found, powers, axes)
        title, x = _in_words(found), "singular value, the largest first"
    else:
        spans = sorted(found, key=lambda each: each.last - each.first)
        lengths = np.array([each.last - each.first for each in spans])
        each_median = np.stack([np.median(_powers(each), 0) for each in spans])
        count = each_median.shape[1]
        from matplotlib import colormaps

        for rank in reversed(range(count)):
            colour = colormaps[style.SEQUENTIAL](0.9 * rank / max(count - 1, 1))
            axes.plot(lengths, each_median[:, rank], color=colour, linewidth=1.2)
        names = ["largest"] if count == 1 else [f"number {count}", "largest"]
        axes.legend(axes.lines[1 :: max(count - 1, 1)], names, frameon=False, fontsize="small")
        title, x = _in_words(spans[-1]), "steps crossed"
    axes.yaxis.set_major_formatter(lambda power, _: f"$10^{{{power:g}}}$")
    axes.locator_params(axis="y", integer=True)
    return style.finish(axes, title, x, "singular value of the Jacobian")


def _powers(found: JacobianSpectrum) -> np.ndarray:
    """Return the powers of ten of the singular values, [B, count], NaN for zero."""
    logs = np.asarray(found.log_values, np.float64)
    powers = logs.reshape(-1, logs.shape[-1]) / math.log(10)
    return np.where(np.isneginf(powers), np.nan, powers)


def _shade_rounding(found: JacobianSpectrum, powers: np.ndarray, axes: "Axes") -> None:
    """Shade what is less than the precision times the largest value, if anything is."""
    dtype = found.log_values.dtype
    floor = np.nanmax(powers) + math.log10(jnp.finfo(dtype).eps)
    if np.nanmin(powers) < floor:
        bottom = axes.get_ylim()[0]
        axes.axhspan(bottom, floor, color="#dddddd", zorder=0, lw=0)
        axes.set_ylim(bottom=bottom)
        axes.annotate(
            f"rounding of {dtype}",
            (0.02, bottom),
            xycoords=("axes fraction", "data"),
            xytext=(0, 5),
            textcoords="offset points",
            fontsize="small",
            color="#555555",
        )


def _in_words(found: JacobianSpectrum) -> str:
    powers = _powers(found)
    count, steps = powers.shape[-1], found.last - found.first
    kept = np.mean(np.sum(np.abs(powers) <= 1, -1))
    largest = np.nanmedian(powers[:, 0])
    by = f"{10**largest:.2g}" if abs(largest) < 3 else f"$10^{{{largest:.0f}}}$"
    return (
        f"{steps} steps keep {kept:.3g} of {count} directions within a factor of ten;\n"
        f"the largest singular value is {by}"
    )
