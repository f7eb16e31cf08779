"""A point at which a subject is examined, and the subject's outputs and gradients there."""

from typing import NamedTuple

import jax
import numpy as np

from jax_bptt.core.types import PyTree
from jax_bptt.testing import numerics
from jax_bptt.testing.numerics import Leaves
from jax_bptt.testing.subject import ARGUMENTS, Arguments, Outputs, Subject


class Problem(NamedTuple):
    """Arguments in NumPy, cotangents for the outputs there, and the seed of all else random.

    Attributes:
      arguments: params, xs [T, B, ...] and state [B, ...], in double precision.
      cotangents: like (last_state, ys), with None at leaves without a gradient.
      seed: of NumPy's generator.
    """

    arguments: Arguments
    cotangents: Outputs
    seed: int

    @property
    def steps(self) -> int:
        """T."""
        return jax.tree.leaves(self.arguments.xs)[0].shape[0]

    @property
    def batch(self) -> int:
        """B."""
        return jax.tree.leaves(self.arguments.xs)[0].shape[1]

    def generator(self) -> np.random.Generator:
        """Return a generator of random numbers, in the same state at every call."""
        return np.random.default_rng(self.seed + 1)


def pose(subject: Subject, params: PyTree, xs: PyTree, state: PyTree, seed: int) -> Problem:
    """Return a problem with random cotangents.

    Raises:
      ValueError: the arguments are not in double precision, or the outputs do not stay in it.
    """
    arguments = Arguments(*jax.tree.map(np.asarray, (params, xs, state)))
    _require_double("takes", arguments)
    outputs = Outputs(*subject.forward(*arguments))
    _require_double("returned", outputs)
    cotangents = numerics.noise(np.random.default_rng(seed), numerics.leaves(outputs))
    return Problem(arguments, numerics.filled(outputs, cotangents), seed)


def _require_double(verb: str, tree: PyTree) -> None:
    for path, leaf in numerics.leaves(tree).items():
        if leaf.dtype not in (np.float64, np.complex128):
            raise ValueError(
                f"conformance: the subject {verb} {path[1:]} of dtype {leaf.dtype}, but is "
                "examined in float64. Convert the arguments, and with JAX call it inside "
                "`with jax.enable_x64(True):`."
            )


def outputs(subject: Subject, arguments: Arguments, **options) -> Leaves:
    """Return the leaves of (last_state, ys)."""
    return numerics.leaves(Outputs(*subject.forward(*arguments, **options)))


def gradients(
    subject: Subject, arguments: Arguments, cotangents: Outputs, wrt=ARGUMENTS, **options
) -> Leaves:
    """Return the leaves of the gradient with respect to the arguments."""
    found = subject.gradient(*arguments, cotangents, wrt=wrt, **options)
    return numerics.leaves(Arguments(*found))
