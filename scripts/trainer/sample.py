"""Text from a trained network."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import jax_bptt as jb

FIRST = np.zeros(1, np.int32)
"""The prompt of a sample without one: the first of the alphabet, in most texts the line break."""


def sample(
    layer: jb.Layer,
    params: Any,
    prompt: np.ndarray,
    key: jax.Array,
    *,
    length: int,
    temperature: float = 1.0,
) -> np.ndarray:
    """Return `length` characters drawn one after another, each the input for the next.

        x_t ~ softmax(y_t / temperature)

    Args:
      layer: a network from characters to logits.
      params: its parameters.
      prompt: characters to read first, from the initial state; [N] int32, at least one.
      key: a PRNG key.
      length: the number of characters.
      temperature: below 1 for likelier text, above 1 for more varied text; positive.

    Returns:
      [length] integers.
    """

    def draw(key, logits):
        return jax.random.categorical(key, logits / temperature).astype(jnp.int32)

    def advance(carry, key):
        state, x = carry
        state, logits = layer.apply(params, x[None], state)
        following = draw(key, logits[0])
        return (state, following), x

    @jax.jit
    def run(prompt, keys):
        state, logits = layer.apply(params, prompt, layer.initial_state(params, ()))
        return lax.scan(advance, (state, draw(keys[0], logits[-1])), keys[1:])[1]

    return np.asarray(run(jnp.asarray(prompt), jax.random.split(key, length + 1)))
