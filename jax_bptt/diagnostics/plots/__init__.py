"""Pictures of what `jax_bptt.diagnostics` finds, for the extra `plot`.

Each takes what a function of the same name returned and the axes to draw on, None for those of a
new figure, and returns the axes: `plot(found).figure.savefig("found.svg")`.
"""

from jax_bptt.diagnostics.plots.adjoint_norms import adjoint_norms, adjoint_norms_by_layer
from jax_bptt.diagnostics.plots.contribution_map import contribution_map
from jax_bptt.diagnostics.plots.contributions import plot_contributions
from jax_bptt.diagnostics.plots.fixed_points import fixed_points
from jax_bptt.diagnostics.plots.jacobian_spectrum import jacobian_spectrum
from jax_bptt.diagnostics.plots.lyapunov_spectrum import lyapunov_spectrum
from jax_bptt.diagnostics.plots.saturation import saturation
from jax_bptt.diagnostics.plots.telemetry import telemetry, telemetry_decades
from jax_bptt.diagnostics.plots.truncation_curve import truncation_curve
from jax_bptt.diagnostics.plots.unfolded import unfolded

__all__ = [
    "adjoint_norms",
    "adjoint_norms_by_layer",
    "contribution_map",
    "fixed_points",
    "jacobian_spectrum",
    "lyapunov_spectrum",
    "plot_contributions",
    "saturation",
    "telemetry",
    "telemetry_decades",
    "truncation_curve",
    "unfolded",
]
