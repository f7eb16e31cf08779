"""The phase plane: where a network stays, and how it moves between."""

import math
from typing import TYPE_CHECKING

import jax
import numpy as np

from jax_bptt.core.checks import batch_shape
from jax_bptt.core.types import PyTree
from jax_bptt.diagnostics.fixed_points import FixedPoints
from jax_bptt.diagnostics.plots import style
from jax_bptt.diagnostics.trajectory import Trajectory

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SEQUENCES = 40
"""Number of sequences of a run that are drawn."""

MARKERS = "osD^v"
"""By the number of unstable directions."""

SHARE = 0.08
"""Half the length of the line along an unstable direction, as a share of the width of all."""


def fixed_points(
    found: FixedPoints, run: Trajectory | None = None, axes: "Axes | None" = None
) -> "Axes":
    """Draw fixed points in the plane of the two leading principal components.

    Stable points are filled, saddles hollow, with a line along each direction in which a
    perturbation grows, as much of it as lies in the plane; of a pair of complex eigenvalues both
    directions of the plane that they turn in. Points that are outliers or did not converge are left
    out.

    Args:
      found: from `jax_bptt.diagnostics.fixed_points`.
      run: whose trajectories to draw behind the points, up to 40 sequences, from the same cell; the
        principal components are those of its states, or without it those of the points.
      axes: to draw on; None for those of a new figure.

    Returns:
      The axes.

    Raises:
      ImportError: Matplotlib is not installed.
      ValueError: no point converged, or a state has less than two numbers.

    Example:
      >>> import jax, jax.numpy as jnp, jax_bptt as jb
      >>> from jax_bptt.diagnostics import plots
      >>> cell = jb.elman(input_size=1, hidden_size=2)
      >>> params = cell.init(jax.random.key(0))._replace(w_s=2 * jnp.eye(2)[:, None])
      >>> candidates = jax.random.normal(jax.random.key(1), (100, 2))
      >>> found = jb.diagnostics.fixed_points(cell, params, jnp.zeros(1), candidates)
      >>> plots.fixed_points(found).get_title(loc="left")
      '4 stable fixed points, 4 saddles, 1 repeller'
    """
    axes = style.axes_of("plots.fixed_points", axes)
    shown = found.where(found.converged & ~found.outliers)
    points = as_vectors(shown.states, 1)
    if len(points) == 0 or points.shape[1] < 2:
        raise ValueError(
            "plots.fixed_points: a phase plane has one or more converged points, of two or more "
            f"units; found has {len(points)}, of {points.shape[1]}. Search from more candidates."
        )
    clouds = points
    if run is not None:
        batch = len(batch_shape(run.cell, run.inputs.xs))
        clouds = as_vectors(run.states, 1 + batch).reshape(run.steps, -1, points.shape[1])
    centre, plane, shares = _plane(clouds.reshape(-1, points.shape[1]))

    if run is not None:
        for path in np.moveaxis(clouds, 1, 0)[:SEQUENCES]:
            axes.plot(*((path - centre) @ plane).T, color="#999999", linewidth=0.4, alpha=0.5)
    flat = (points - centre) @ plane
    length = SHARE * np.ptp(flat, axis=0).max()
    for number in np.unique(shown.unstable).tolist():
        of_kind = np.flatnonzero(shown.unstable == number)
        colour = style.COLOURS[number % len(style.COLOURS)]
        for index in of_kind:
            for direction in _growing(shown.jacobians[index]):
                ends = flat[index] + length * np.array([[-1.0], [1.0]]) * (direction @ plane)
                axes.plot(*ends.T, color=colour, linewidth=1.5, solid_capstyle="butt")
        axes.plot(
            *flat[of_kind].T,
            MARKERS[number % len(MARKERS)],
            color=colour,
            markerfacecolor="white" if number else colour,
            markeredgewidth=1.5,
            linestyle="none",
            label=f"{_kind(number, points.shape[1])} ({len(of_kind)})",
        )
    axes.legend(frameon=False, fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))
    axes.set_aspect("equal", adjustable="datalim")
    x, y = (f"principal component {k + 1} ({share:.0%} of the variance)" for k, share in shares)
    return style.finish(axes, _finding(shown), x, y)


def _plane(points: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[tuple[int, float]]]:
    """Return the centre, the two leading principal components [D, 2], and their shares."""
    centre = points.mean(axis=0)
    _, sizes, axes = np.linalg.svd(points - centre, full_matrices=False)
    variances = np.append(sizes**2, 0.0)
    if len(axes) < 2:  # a single point: any plane will do
        axes = np.eye(2, points.shape[1])
    return centre, axes[:2].T, list(enumerate(variances[:2] / max(variances.sum(), 1e-300)))


def _growing(jacobian: np.ndarray) -> list[np.ndarray]:
    """Return a unit vector for each eigenvalue of a modulus of at least 1."""
    values, vectors = np.linalg.eig(jacobian)
    found = []
    for value, vector in zip(values, vectors.T, strict=True):
        if np.abs(value) >= 1:
            # The conjugate of a pair has the same two directions, and gives the other one here.
            direction = np.real(vector) if value.imag >= 0 else np.imag(vector)
            found.append(direction / np.linalg.norm(direction))
    return found


def _kind(unstable: int, size: int) -> str:
    """Return what a point is with so many unstable directions of all."""
    if unstable == 0:
        return "stable"
    if unstable == size:
        return "repeller"
    return f"saddle, {unstable} unstable direction{'s' * (unstable > 1)}"


def _finding(shown: FixedPoints) -> str:
    size = shown.jacobians.shape[-1]
    of = shown.unstable.tolist()
    stable, repellers = of.count(0), of.count(size)
    saddles = len(of) - stable - repellers
    words = [f"{stable or 'no'} stable fixed point{'s' * (stable != 1)}"]
    words += [f"{saddles} saddle{'s' * (saddles != 1)}"] * bool(saddles)
    words += [f"{repellers} repeller{'s' * (repellers != 1)}"] * bool(repellers)
    return ", ".join(words)


def as_vectors(states: PyTree, axes: int) -> np.ndarray:
    """Return states [..., D] as the Jacobians of `FixedPoints` read them, behind leading axes."""
    parts = []
    for leaf in map(np.asarray, jax.tree.leaves(states)):
        if np.issubdtype(leaf.dtype, np.inexact):
            flat = leaf.reshape(*leaf.shape[:axes], math.prod(leaf.shape[axes:]))
            parts += [np.real(flat), np.imag(flat)] if np.iscomplexobj(flat) else [flat]
    return np.concatenate(parts, axis=-1)
