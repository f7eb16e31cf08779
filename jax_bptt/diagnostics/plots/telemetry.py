"""A run of training, as `scripts/train.py --telemetry` writes it: loss, gradient and adjoints."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jax_bptt.cells.watched import LEAST
from jax_bptt.diagnostics.plots import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Line = Mapping[str, Any]
"""A step: `step`, `loss`, `gradient_norm`, and `adjoints`, by layer `rms`, `nonfinite` and
`decades`, from the exponent of ten as text to a count."""


def telemetry(lines: Sequence[Line], axes: "Axes | None" = None) -> "Axes":
    """Draw the loss over the steps of training, and on a second axis the norm of the gradient.

    Steps at which an adjoint was not finite are marked at the bottom.

    Args:
      lines: one or more, in order, each as `json.loads` reads it from `telemetry.jsonl`.
      axes: to draw on; None for those of a new figure.

    Returns:
      The axes of the loss.

    Raises:
      ImportError: Matplotlib is not installed.
      ValueError: there is no line.

    Example:
      >>> step = {"adjoints": {"": {"rms": 1.0, "nonfinite": 0, "decades": {"0": 5}}}}
      >>> first = step | {"step": 10, "loss": 2.0, "gradient_norm": 3.0}
      >>> axes = telemetry([first, first | {"step": 20, "loss": 0.5, "gradient_norm": 0.1}])
      >>> print(axes.get_title(loc="left"))
      Loss 2 at step 10, 0.5 at step 20;
      the largest gradient is 3 at step 10
    """
    _check("plots.telemetry", lines)
    axes = style.axes_of("plots.telemetry", axes)
    steps, loss, norm = (_column(lines, key) for key in ("step", "loss", "gradient_norm"))
    right = axes.twinx()
    marker = "o" if len(lines) == 1 else None
    (second,) = right.plot(
        steps, _shown(norm), color=style.COLOURS[5], lw=1, marker=marker, label="gradient norm"
    )
    (first,) = axes.plot(
        steps, _shown(loss), color=style.COLOURS[0], lw=2, marker=marker, label="loss"
    )
    handles = [first, second]
    bad = np.array([any(each["nonfinite"] for each in line["adjoints"].values()) for line in lines])
    if bad.any():
        transform = axes.get_xaxis_transform()
        (third,) = axes.plot(
            steps[bad],
            np.full(bad.sum(), 0.02),
            "x",
            color="black",
            transform=transform,
            label="adjoint not finite",
        )
        handles.append(third)
    axes.set_zorder(right.get_zorder() + 1)  # the loss in front of the gradient
    axes.patch.set_visible(False)
    for each, values in ((axes, loss), (right, norm)):
        if np.any(values > 0):
            each.set_yscale("log")
    right.set_ylabel("gradient norm (loss per unit of weight)")
    right.spines["top"].set_visible(False)
    axes.legend(
        handles=handles,
        frameon=False,
        ncols=len(handles),
        fontsize="small",
        loc="upper center",
        bbox_to_anchor=(0.5, -0.16),
    )
    style.finish(axes, _finding(steps, loss, norm, int(bad.sum())), "step of training", "loss")
    axes.locator_params(axis="x", integer=True)
    return axes


def telemetry_decades(lines: Sequence[Line], layer: str, axes: "Axes | None" = None) -> "Axes":
    """Draw in which decades the adjoints of a layer are, over the steps of training.

    A column is a step of training, and the colour of a decade the share of all |lambda_t|, over
    time and sequences, that are in it.

    Args:
      lines: as `telemetry` takes them.
      layer: the path of its parameters, a key of `adjoints`.
      axes: to draw on; None for those of a new figure.

    Returns:
      The axes.

    Raises:
      ImportError: Matplotlib is not installed.
      ValueError: there is no line, or no such layer in one.

    Example:
      >>> seen = {"": {"rms": 1.0, "nonfinite": 0, "decades": {"-3": 9, "0": 1}}}
      >>> axes = telemetry_decades([{"step": 10, "adjoints": seen}], "")
      >>> axes.get_title(loc="left")
      'At step 10, the median |dL/ds_t| is in the decade of 1e-3'
    """
    name = "plots.telemetry_decades"
    _check(name, lines)
    if not all(layer in line["adjoints"] for line in lines):
        raise ValueError(f"{name}: no layer {layer!r}; there are {sorted(lines[-1]['adjoints'])}")
    axes = style.axes_of(name, axes)
    found = [{int(d): n for d, n in line["adjoints"][layer]["decades"].items()} for line in lines]
    there = sorted({d for counts in found for d in counts}) or [0]
    decades = np.arange(there[0], there[-1] + 1)
    counts = np.array([[each.get(int(d), 0) for each in found] for d in decades], np.float64)
    totals = counts.sum(0)
    shares = counts / np.where(totals > 0, totals, 1)
    steps = _column(lines, "step")
    every = np.median(np.diff(steps)) if len(steps) > 1 else 1.0
    edges = np.append(steps - every, steps[-1])
    picture = axes.pcolormesh(
        edges,
        np.append(decades, decades[-1] + 1),
        np.ma.masked_equal(shares, 0),
        cmap=style.SEQUENTIAL,
        vmin=0,
    )
    axes.figure.colorbar(picture, ax=axes, label="share of all |lambda_t|")
    axes.locator_params(integer=True)
    axes.yaxis.set_major_formatter(lambda power, _: f"$10^{{{power:g}}}$")
    title = f"At step {steps[-1]:g}, no |dL/ds_t| is finite"
    if totals[-1] > 0:
        middle = int(decades[np.searchsorted(np.cumsum(shares[:, -1]), 0.5)])
        below = "or less" if middle == LEAST else ""
        title = f"At step {steps[-1]:g}, the median |dL/ds_t| is in the decade of 1e{middle:d}"
        title = f"{title} {below}".rstrip()
    return style.finish(axes, title, "step of training", "|dL/ds_t| (loss per unit of the state)")


def _check(name: str, lines: Sequence[Line]) -> None:
    if not lines:
        raise ValueError(f"{name}: there are no lines yet; a run writes one every ten steps")


def _column(lines: Sequence[Line], key: str) -> np.ndarray:
    return np.array([line[key] for line in lines], np.float64)


def _shown(values: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(values), values, np.nan)


def _finding(steps: np.ndarray, loss: np.ndarray, norm: np.ndarray, bad: int) -> str:
    words = f"Loss {loss[0]:.3g} at step {steps[0]:g}"
    if len(steps) > 1:
        words += f", {loss[-1]:.3g} at step {steps[-1]:g}"
    finite = np.where(np.isfinite(norm), norm, -math.inf)
    at = int(np.argmax(finite))
    if finite[at] > -math.inf:
        words += f";\nthe largest gradient is {norm[at]:.3g} at step {steps[at]:g}"
    return words + f"; adjoints not finite in {bad} of {len(steps)} lines" * bool(bad)
