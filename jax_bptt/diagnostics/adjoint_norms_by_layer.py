"""The size of the gradient that travels down through the layers of a network."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jax_bptt.algorithms.argument_checks import cotangents
from jax_bptt.algorithms.clipped import norms
from jax_bptt.algorithms.tree_checks import as_arrays
from jax_bptt.core.types import PyTree
from jax_bptt.layers.layer import Layer, check_layer
from jax_bptt.layers.stack import stack


def adjoint_norms_by_layer(
    layer: Layer,
    params: PyTree,
    xs: PyTree,
    d_ys: Array,
    state: PyTree | None = None,
    **options: Any,
) -> Array:
    """Return |dL/dy_t| of the outputs of every layer of a stack: where in it a gradient is lost.

    Of every entry of a `stack` it is the derivative by what that entry puts out, whatever reads it:
    of a `residual` one by the sum of its inputs and of what it adds, of a `bidirectional` one by
    the outputs of both directions together. An entry that is a stack again is one entry, and a
    layer that is no stack, or one that was changed by hand, a stack of one.

    The norm is Euclidean, over the units of an output. Time is that of one gradient.

    Args:
      layer: a `Layer`, such as `stack(...)`.
      params: `layer.init(key)`.
      xs: [T, *batch, I].
      d_ys: dL/dy_t of the last outputs, [T, *batch, O]. It is also the last entry's derivative.
      state: as in `Layer.apply`.
      options: `lengths`, `resets`, `mask`, `reset_state`, `key` and `algorithm`, as in
        `Layer.apply`.

    Returns:
      [L, T, *batch], for L entries from the first on, in units of the loss per unit of an output.

    Raises:
      TypeError: an argument is of the wrong kind, structure or dtype.
      ValueError: a shape does not fit.

    Example:
      >>> import jax, jax.numpy as jnp, jax_bptt as jb
      >>> deep = jb.stack(jb.layer(jb.elman(3, 5)), jb.layer(jb.elman(5, 4)))
      >>> params, xs = deep.init(jax.random.key(0)), jnp.ones((7, 2, 3))
      >>> d_ys, lengths = jnp.ones((7, 2, 4)), jnp.array([7, 5])
      >>> jb.diagnostics.adjoint_norms_by_layer(deep, params, xs, d_ys, lengths=lengths).shape
      (2, 7, 2)
    """
    name = "adjoint_norms_by_layer"
    check_layer(name, layer)
    made = layer.made_by
    entries = (layer,)
    if made is not None and made.constructor is stack:
        entries = made.args
    else:
        params = (params,)
        state = None if state is None else (state,)
        if options.get("reset_state") is not None:
            options["reset_state"] = (options["reset_state"],)

    def outputs(offsets):
        found = []
        tapped = [
            _tapped(each, offset, found) for each, offset in zip(entries, offsets, strict=True)
        ]
        ys = stack(*tapped).apply(params, xs, state, **options)[1]
        return ys, tuple(found)

    spec = jax.eval_shape(lambda: outputs([None] * len(entries)))[1]
    offsets = [jnp.zeros(y.shape, y.dtype) for y in spec]
    ys, pull, _ = jax.vjp(outputs, offsets, has_aux=True)
    (found,) = pull(cotangents(name, "d_ys", as_arrays(name, "d_ys", d_ys), ys))
    return jnp.stack([norms(d, d.ndim - 1) for d in found])


def _tapped(layer: Layer, offset: Array | None, found: list[Array]) -> Layer:
    """Return a layer to whose outputs `offset` is added, and which appends them to `found`."""

    def apply(*arguments, **options):
        last_state, ys = layer.apply(*arguments, **options)
        found.append(ys)
        return last_state, ys if offset is None else ys + offset

    return layer._replace(apply=apply)
