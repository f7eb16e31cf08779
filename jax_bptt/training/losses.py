"""What a run minimises: a loss of (params, state, batch), with the state carried or fresh."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax
from jax import Array

from jax_bptt.core.types import PyTree
from jax_bptt.training.model import Model

Loss = Callable[[PyTree, PyTree, Any], tuple[Array, PyTree]]
"""`(params, state, batch) -> (loss, next state)`; a batch is (xs, targets) and then anything."""


def carried(model: Model, score: Callable[..., Array]) -> Loss:
    """Return the loss of a window that starts from the state in which the last one ended.

    No gradient crosses from window to window: the state is data.

    Args:
      model: the network.
      score: `(ys, targets) -> loss`.
    """

    def loss(params, state, batch):
        state, ys = model.apply(params, batch[0], state)
        return score(ys, batch[1]), state

    return loss


def fresh(model: Model, score: Callable[..., Array], *, batch: int) -> Loss:
    """Return the loss of sequences that each start from the initial state.

    The state that goes in and comes out is handed through, unread.

    Args:
      model: the network.
      score: `(ys, targets) -> loss`.
      batch: B.
    """

    def loss(params, state, batch_):
        _, ys = model.apply(params, batch_[0], model.initial_state(params, (batch,)))
        return score(ys, batch_[1]), state

    return loss


def cross_entropy(logits: Array, targets: Array) -> Array:
    """Return the mean of -ln P(target), in nats: logits [..., O], targets [...] integers."""
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, targets))


def last_cross_entropy(logits: Array, targets: Array) -> Array:
    """Return the cross-entropy of the last step alone: logits [T, B, O], targets [B]."""
    return cross_entropy(logits[-1], targets)


def last_squared_error(ys: Array, targets: Array) -> Array:
    """Return the mean squared error of the last step alone: ys [T, B, 1], targets [B]."""
    return jnp.mean((ys[-1, :, 0] - targets) ** 2)
