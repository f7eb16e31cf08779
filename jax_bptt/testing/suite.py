"""The conformance suite: a list of properties, run one by one on a subject."""

from collections.abc import Callable, Iterable

import numpy as np

from jax_bptt.core.types import PyTree
from jax_bptt.testing import cotangents, derivatives, sequences, stability
from jax_bptt.testing.problem import Problem, pose
from jax_bptt.testing.report import Report, Result, not_applicable, raised
from jax_bptt.testing.subject import Subject, from_jax

Property = Callable[[Subject, Problem], Result]
"""One property, named like the function, stated in its docstring."""

PROPERTIES: tuple[Property, ...] = (
    derivatives.finite_differences,
    derivatives.naive_loop,
    derivatives.adjoint_identity,
    derivatives.order_of_products,
    derivatives.per_layer_gradients,
    derivatives.every_bias,
    cotangents.zero_cotangents,
    cotangents.final_state_only,
    cotangents.closed_over,
    cotangents.integer_state,
    cotangents.strided_cotangents,
    sequences.ragged_lengths,
    sequences.nan_padding,
    sequences.zero_lengths,
    sequences.per_step_masks,
    sequences.resets,
    derivatives.second_derivatives,
    derivatives.third_derivatives,
    stability.repeatability,
    stability.batch_permutation,
    stability.error_growth,
)
"""All properties, in the order in which they are run."""

RAISED = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""Errors of a layer that cannot do what is asked of it: a failure, and not the end of the suite."""


def conformance(
    run: Subject | Callable[..., tuple[PyTree, PyTree]],
    params: PyTree,
    xs: PyTree,
    state: PyTree,
    *,
    properties: Iterable[Property] = PROPERTIES,
    seed: int = 0,
) -> Report:
    """Check the gradients of a recurrent layer, property by property.

    The layer is examined in float64 (and once in float32) at the given point, with random
    cotangents for its last state and its outputs. Choose a small point, T about 5 and a few units,
    with no weight or state at zero, behind which an error could hide. Everything is repeatable.

    Args:
      run: `(params, xs, state) -> (last_state, ys)`, any differentiable JAX function, taken as
        `from_jax(run)`; or a `Subject`, which says more about the layer (a single step for the
        naive loop, the options it takes) and may come from any library.
      params: any pytree; a list or tuple of several is read as a stack of layers.
      xs: [T, B, ...], a pytree of floating-point or integer arrays.
      state: every leaf [B, ...]; leaves of integers are held to stay integers.
      properties: which, of `PROPERTIES` or of one's own.
      seed: of all random numbers.

    Returns:
      A `Report`: each property passed, failed or did not apply, with its error, its tolerance and
      a line of explanation. What the layer raises is a failure of the property that asked for it.

    Raises:
      ValueError: the arguments or the outputs are not in double precision.

    Example:
      >>> import jax, jax.numpy as jnp, numpy as np
      >>> from jax_bptt.testing import PROPERTIES, conformance
      >>> def run(w, xs, s):
      ...     return jax.lax.scan(lambda s, x: (jnp.tanh(s @ w + x),) * 2, s, xs)
      >>> rng = np.random.default_rng(0)
      >>> w, xs, s = (rng.normal(size=shape) for shape in ((2, 2), (5, 3, 2), (3, 2)))
      >>> with jax.enable_x64(True):
      ...     report = conformance(run, w, xs, s, properties=PROPERTIES[:4])
      >>> [(result.name, result.verdict) for result in report.results][1:3]
      [('naive_loop', 'n/a'), ('adjoint_identity', 'ok')]
    """
    subject = run if isinstance(run, Subject) else from_jax(run)
    problem = pose(subject, params, xs, state, seed)
    return Report(subject.name, tuple(_examine(p, subject, problem) for p in properties))


def _examine(check: Property, subject: Subject, problem: Problem) -> Result:
    name = getattr(check, "__name__", repr(check))
    if name in subject.disclaims:
        return not_applicable(subject.disclaims[name])._replace(name=name)
    try:
        # NaN and infinity are looked for on purpose, and found in the result.
        with np.errstate(all="ignore"):
            return check(subject, problem)._replace(name=name)
    except RAISED as error:
        return raised(name, error)
