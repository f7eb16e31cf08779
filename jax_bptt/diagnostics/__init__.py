"""Looking at the gradient through time: which past it flows from, and how far it reaches.

`trajectory` runs a cell and keeps what the other functions read. Pictures are drawn by
`jax_bptt.diagnostics.plots`.
"""

from jax_bptt.cells.watched import Seen, WatchedParams, telemetry, watched
from jax_bptt.diagnostics.adjoint_norms import adjoint_norms
from jax_bptt.diagnostics.adjoint_norms_by_layer import adjoint_norms_by_layer
from jax_bptt.diagnostics.clipping import Clipping, clipping
from jax_bptt.diagnostics.contribution_map import contribution_map
from jax_bptt.diagnostics.contributions import contributions
from jax_bptt.diagnostics.first_nonfinite import FirstNonfinite, first_nonfinite
from jax_bptt.diagnostics.fixed_points import FixedPoints, fixed_points
from jax_bptt.diagnostics.state_gradients import state_gradients
from jax_bptt.diagnostics.trajectory import Trajectory, trajectory
from jax_bptt.diagnostics.truncation_curve import TruncationCurve, truncation_curve

__all__ = [
    "Clipping",
    "FirstNonfinite",
    "FixedPoints",
    "Seen",
    "Trajectory",
    "TruncationCurve",
    "WatchedParams",
    "adjoint_norms",
    "adjoint_norms_by_layer",
    "clipping",
    "contribution_map",
    "contributions",
    "first_nonfinite",
    "fixed_points",
    "state_gradients",
    "telemetry",
    "trajectory",
    "truncation_curve",
    "watched",
]
