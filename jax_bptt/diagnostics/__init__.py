"""Looking at the gradient through time: which past it flows from, and how far it reaches.

`trajectory` runs a cell and keeps what the other functions read. Pictures are drawn by
`jax_bptt.diagnostics.plots`.
"""

from jax_bptt.cells.watched import Seen, WatchedParams, telemetry, watched
from jax_bptt.diagnostics.clipping import Clipping, clipping
from jax_bptt.diagnostics.contributions import contributions
from jax_bptt.diagnostics.fixed_points import FixedPoints, fixed_points
from jax_bptt.diagnostics.state_gradients import state_gradients
from jax_bptt.diagnostics.trajectory import Trajectory, trajectory

__all__ = [
    "Clipping",
    "FixedPoints",
    "Seen",
    "Trajectory",
    "WatchedParams",
    "clipping",
    "contributions",
    "fixed_points",
    "state_gradients",
    "telemetry",
    "trajectory",
    "watched",
]
