"""Figures on held-out data."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jax_bptt.core.types import PyTree
from jax_bptt.layers.layer import Layer


def carried_cross_entropy(
    layer: Layer, params: PyTree, windows: Iterable[tuple[Any, Any, Any]]
) -> float:
    """Return the mean of -ln P(target), in nats, over windows that continue one another.

    The state is carried from each window to the next, from the initial state at the first.

    Args:
      layer: a network whose outputs are logits.
      params: its parameters.
      windows: `(xs [T, B, ...], targets [T, B], counts [T, B])`, at least one. Where `counts` is
        False the target does not count.
    """

    @jax.jit
    def nats(params, state, xs, targets, counts):
        state, logits = layer.apply(params, xs, state)
        each = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
        return state, jnp.sum(jnp.where(counts, each, 0))

    state, total, count = None, 0.0, 0
    for xs, targets, counts in windows:
        if state is None:
            state = layer.initial_state(params, counts.shape[1:])
        state, loss = nats(params, state, xs, targets, counts)
        total += float(loss)
        count += int(counts.sum())
    return total / count


def mean_score(
    layer: Layer,
    params: PyTree,
    batches: Sequence[tuple[Any, Any]],
    score: Callable[..., Array],
) -> float:
    """Return the mean score of whole sequences that start from the initial state.

    Args:
      layer: the network.
      params: its parameters.
      batches: `(xs [T, B, ...], targets)`, all of one shape.
      score: `(ys, targets) -> number`, a loss or an accuracy.
    """

    @jax.jit
    def run(params, xs, targets):
        return score(layer.apply(params, xs)[1], targets)

    return sum(float(run(params, *batch)) for batch in batches) / len(batches)


def accuracy(logits: Array, targets: Array) -> Array:
    """Return the share of targets that have the largest logit: logits [..., O], targets [...]."""
    return jnp.mean(jnp.argmax(logits, axis=-1) == targets)
