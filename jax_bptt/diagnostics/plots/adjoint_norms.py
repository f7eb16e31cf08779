"""The gradient on its way back through time, and through layers."""

from typing import TYPE_CHECKING

import numpy as np
from jax.typing import ArrayLike

from jax_bptt.diagnostics.plots import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def adjoint_norms(found: ArrayLike, axes: "Axes | None" = None) -> "Axes":
    """Draw |dL/ds_t| against t: its median over sequences, and what lies between nine tenths.

    On the logarithmic axis a gradient that vanishes or explodes is a straight line; norms of zero
    have no point. The title says how much of the last step's is left at the first.

    Args:
      found: [T, *batch], what `jax_bptt.diagnostics.adjoint_norms` returned.
      axes: to draw on; None for those of a new figure.

    Returns:
      The axes.

    Raises:
      ImportError: Matplotlib is not installed.

    Example:
      >>> import numpy as np
      >>> adjoint_norms(0.5 ** np.arange(20)[::-1, None]).get_title(loc="left")
      'Backwards, |dL/ds_t| shrinks to 1.9e-06 of its size: 0.5 a step'
    """
    axes = style.axes_of("plots.adjoint_norms", axes)
    norms = _rows(found)
    times = np.arange(1, len(norms) + 1)
    low, middle, high = (_shown(np.quantile(norms, q, axis=1)) for q in (0.05, 0.5, 0.95))
    if norms.shape[1] > 1:
        axes.fill_between(times, low, high, color=style.COLOURS[0], alpha=0.2, lw=0)
    axes.plot(times, middle, color=style.COLOURS[0], lw=2)
    axes.set_yscale("log")
    axes.locator_params(axis="x", integer=True)
    y = "|dL/ds_t| (loss per unit of the state)"
    return style.finish(axes, _finding(middle), "time step t", y)


def adjoint_norms_by_layer(found: ArrayLike, axes: "Axes | None" = None) -> "Axes":
    """Draw |dL/dy_t| of the outputs of each layer against t, the median over sequences.

    The title says how the first layer's compares with the last one's, over all steps.

    Args:
      found: [L, T, *batch], what `jax_bptt.diagnostics.adjoint_norms_by_layer` returned.
      axes: to draw on; None for those of a new figure.

    Returns:
      The axes.

    Raises:
      ImportError: Matplotlib is not installed.

    Example:
      >>> import numpy as np
      >>> found = np.array([0.1, 1.0])[:, None, None] * np.ones((2, 5, 3))
      >>> adjoint_norms_by_layer(found).get_title(loc="left")
      "The first layer's outputs are reached by 0.1 times the gradient of the last one's"
    """
    axes = style.axes_of("plots.adjoint_norms_by_layer", axes)
    layers = [_rows(norms) for norms in np.asarray(found)]
    lines = "-", "--", "-.", ":"
    for k, norms in enumerate(layers):
        times = np.arange(1, len(norms) + 1)
        colour, line = style.COLOURS[k % len(style.COLOURS)], lines[k % len(lines)]
        shown = _shown(np.median(norms, axis=1))
        axes.plot(times, shown, color=colour, ls=line, lw=2, label=f"layer {k}")
    axes.set_yscale("log")
    axes.locator_params(axis="x", integer=True)
    axes.legend(frameon=False)
    sizes = [np.sqrt(np.mean(norms**2)) for norms in (layers[0], layers[-1])]
    title = "No gradient reaches the last layer"
    if sizes[1] > 0:
        share = f"{sizes[0] / sizes[1]:.2g}"
        title = (
            f"The first layer's outputs are reached by {share} times the gradient of the last one's"
        )
    return style.finish(axes, title, "time step t", "|dL/dy_t| (loss per unit of an output)")


def _rows(found: ArrayLike) -> np.ndarray:
    """Return [T, B] of [T, *batch]."""
    norms = np.asarray(found, np.float64)
    return norms.reshape(len(norms), -1)


def _shown(norms: np.ndarray) -> np.ndarray:
    return np.where(norms > 0, norms, np.nan)


def _finding(middle: np.ndarray) -> str:
    (told,) = np.nonzero(middle > 0)
    if len(told) < 2:
        return "|dL/ds_t| is zero but at one step" if len(told) else "|dL/ds_t| is zero throughout"
    crossed = int(told[-1] - told[0])
    left = middle[told[0]] / middle[told[-1]]
    change = f"shrinks to {left:.2g} of" if left < 1 else f"grows to {left:.3g} times"
    span = ""
    if (told[0], told[-1]) != (0, len(middle) - 1):
        span = f" from step {told[-1] + 1} to {told[0] + 1}"
    factor = left ** (1 / crossed)
    return f"Backwards{span}, |dL/ds_t| {change} its size: {factor:.3g} a step"
