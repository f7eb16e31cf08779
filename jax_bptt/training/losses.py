"""Losses of a layer, `(params, state, batch) -> (loss, state)`, with the state carried or fresh."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax
from jax import Array

from jax_bptt.core.types import Algorithm, PyTree
from jax_bptt.layers.layer import Layer

Loss = Callable[[PyTree, PyTree, Any], tuple[Array, PyTree]]
"""`(params, state, batch) -> (loss, next state)`.

A batch is `(xs, targets)`, or `(xs, targets, options)` with a dict of options of `Layer.apply`:
`lengths` of a ragged batch, the `key` from which masks are drawn.
"""


def carried(layer: Layer, score: Callable[..., Array], algorithm: Algorithm | None = None) -> Loss:
    """Return the loss of a window that starts from the state in which the last one ended.

    No gradient crosses from window to window: the state is data.

    Args:
      layer: the network.
      score: `(ys, targets) -> loss`.
      algorithm: how the gradient is computed; `unroll`'s default if None.
    """

    def loss(params, state, batch):
        state, ys = _run(layer, params, state, batch, algorithm)
        return score(ys, batch[1]), state

    return loss


def fresh(layer: Layer, score: Callable[..., Array], algorithm: Algorithm | None = None) -> Loss:
    """Return the loss of sequences that each start from the initial state.

    The state that goes in and comes out is handed through, unread.

    Args:
      layer: the network.
      score: `(ys, targets) -> loss`.
      algorithm: how the gradient is computed; `unroll`'s default if None.
    """

    def loss(params, state, batch):
        return score(_run(layer, params, None, batch, algorithm)[1], batch[1]), state

    return loss


def _run(layer, params, state, batch, algorithm):
    xs, _, *options = batch
    given = options[0] if options else {}
    return layer.apply(params, xs, state, algorithm=algorithm, **given)


def cross_entropy(logits: Array, targets: Array) -> Array:
    """Return the mean of -ln P(target), in nats: logits [..., O], targets [...] integers."""
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, targets))


def last_cross_entropy(logits: Array, targets: Array) -> Array:
    """Return the cross-entropy of the last step alone: logits [T, B, O], targets [B]."""
    return cross_entropy(logits[-1], targets)


def last_squared_error(ys: Array, targets: Array) -> Array:
    """Return the mean squared error of the last step alone: ys [T, B, 1], targets [B]."""
    return jnp.mean((ys[-1, :, 0] - targets) ** 2)
