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
from jax_bptt.diagnostics.effective_rank import EffectiveRank, effective_rank
from jax_bptt.diagnostics.first_nonfinite import FirstNonfinite, first_nonfinite
from jax_bptt.diagnostics.fixed_points import FixedPoints, fixed_points
from jax_bptt.diagnostics.jacobian_spectrum import JacobianSpectrum, jacobian_spectrum
from jax_bptt.diagnostics.lyapunov_spectrum import LyapunovSpectrum, lyapunov_spectrum
from jax_bptt.diagnostics.memory_capacity import MemoryCapacity, memory_capacity
from jax_bptt.diagnostics.report import Report, report
from jax_bptt.diagnostics.saturation import Saturation, saturation
from jax_bptt.diagnostics.state_gradients import state_gradients
from jax_bptt.diagnostics.trajectory import Trajectory, trajectory
from jax_bptt.diagnostics.truncation_curve import TruncationCurve, truncation_curve

__all__ = [
    "Clipping",
    "EffectiveRank",
    "FirstNonfinite",
    "FixedPoints",
    "JacobianSpectrum",
    "LyapunovSpectrum",
    "MemoryCapacity",
    "Report",
    "Saturation",
    "Seen",
    "Trajectory",
    "TruncationCurve",
    "WatchedParams",
    "adjoint_norms",
    "adjoint_norms_by_layer",
    "clipping",
    "contribution_map",
    "contributions",
    "effective_rank",
    "first_nonfinite",
    "fixed_points",
    "jacobian_spectrum",
    "lyapunov_spectrum",
    "memory_capacity",
    "report",
    "saturation",
    "state_gradients",
    "telemetry",
    "trajectory",
    "truncation_curve",
    "watched",
]
