"""Figures on held-out data."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jax_bptt.core.types import PyTree
from jax_bptt.training.model import Model
from jax_bptt.training.text import Window


def bits_per_character(model: Model, params: PyTree, windows: Iterable[Window]) -> float:
    """Return the mean of -log2 P over the characters that count, the state carried throughout.

    Args:
      model: a network from characters to logits.
      params: its parameters.
      windows: as `text.held_out_windows` makes them, at least one.
    """

    @jax.jit
    def nats(params, state, window):
        state, logits = model.apply(params, window.inputs, state)
        each = optax.softmax_cross_entropy_with_integer_labels(logits, window.targets)
        return state, jnp.sum(jnp.where(window.counts, each, 0))

    state, total, count = None, 0.0, 0
    for window in windows:
        if state is None:
            state = model.initial_state(params, window.inputs.shape[1:])
        state, loss = nats(params, state, window)
        total += float(loss)
        count += int(window.counts.sum())
    return total / count / math.log(2)


def mean_score(
    model: Model,
    params: PyTree,
    batches: Sequence[tuple[Any, Any]],
    score: Callable[..., Array],
) -> float:
    """Return the mean score of whole sequences that start from the initial state.

    Args:
      model: the network.
      params: its parameters.
      batches: `(xs [T, B, ...], targets)`, all of one shape.
      score: `(ys, targets) -> number`, a loss or an accuracy.
    """

    @jax.jit
    def run(params, xs, targets):
        state = model.initial_state(params, (xs.shape[1],))
        return score(model.apply(params, xs, state)[1], targets)

    return sum(float(run(params, *batch)) for batch in batches) / len(batches)


def accuracy(logits: Array, targets: Array) -> Array:
    """Return the share of targets that have the largest logit: logits [..., O], targets [...]."""
    return jnp.mean(jnp.argmax(logits, axis=-1) == targets)
