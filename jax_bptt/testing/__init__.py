"""Checks for recurrent layers: their gradients, of this library or any other, and gated steps.

`conformance` runs a list of properties that the gradient of a recurrent layer has when it is right;
`check_gated_step` checks that a `GatedStep` of one's own is what the library takes it for.
"""

from jax_bptt.testing.gated_step import check_gated_step
from jax_bptt.testing.report import Report, Result
from jax_bptt.testing.subject import Subject, from_jax
from jax_bptt.testing.suite import PROPERTIES, RAISED, conformance

__all__ = [
    "PROPERTIES",
    "RAISED",
    "Report",
    "Result",
    "Subject",
    "check_gated_step",
    "conformance",
    "from_jax",
]
