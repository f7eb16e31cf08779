"""The explicit gradient against `jax.grad` of the plain scan, on a run's own model and batch."""

from typing import Any

import jax
import jax.numpy as jnp

from jax_bptt.cells.watched import telemetry
from jax_bptt.training.losses import Loss

TOLERANCE = {"float64": 1e-12, "float32": 1e-5, "bfloat16": 0.05}
"""Largest relative error of a gradient that rounding explains, by the dtype of the products.

Both gradients sum the same terms in different orders, so that they differ by some tens of units in
the last place, and more where terms cancel. With products in bfloat16 each side rounds a weight's
gradient at its own places, to 8 bits.
"""


def gradient_errors(
    explicit: Loss, plain: Loss, params: Any, state: Any, batch: Any
) -> dict[str, float]:
    """Return for each parameter max |explicit - plain| / max |plain|, by the parameter's path."""

    @jax.jit
    def errors(params, state, batch):
        found, _ = jax.grad(explicit, has_aux=True)(params, state, batch)
        wanted, _ = jax.grad(plain, has_aux=True)(params, state, batch)
        # What a watched cell has seen is no gradient.
        return jax.tree.map(_relative_error, telemetry(found)[0], telemetry(wanted)[0])

    paths = jax.tree_util.tree_leaves_with_path(errors(params, state, batch))
    return {jax.tree_util.keystr(path): float(error) for path, error in paths}


def _relative_error(found: jax.Array, wanted: jax.Array) -> jax.Array:
    difference = jnp.max(jnp.abs(found - wanted))
    # A gradient that is zero on both sides has no error; on one side only, an infinite one.
    return jnp.where(difference == 0, 0, difference / jnp.max(jnp.abs(wanted)))
