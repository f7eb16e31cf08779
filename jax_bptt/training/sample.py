"""Text from a trained network."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jax_bptt.core.types import PyTree
from jax_bptt.training.model import Model


def sample(
    model: Model, params: PyTree, key: jax.Array, *, length: int, temperature: float = 1.0
) -> np.ndarray:
    """Return `length` characters drawn one after another, each the input for the next.

        x_t ~ softmax(y_t / temperature)

    The network starts from its initial state with character 0, the first of the alphabet and
    in most texts the line break.

    Args:
      model: a network from characters to logits.
      params: its parameters.
      key: a PRNG key.
      length: the number of characters.
      temperature: below 1 for likelier text, above 1 for more varied text; positive.

    Returns:
      [length] integers.
    """

    def advance(carry, key):
        state, x = carry
        state, logits = model.apply(params, x[None], state)
        x = jax.random.categorical(key, logits[0] / temperature).astype(x.dtype)
        return (state, x), x

    first = model.initial_state(params, ()), jnp.zeros((), jnp.int32)
    return np.asarray(
        jax.jit(lambda keys: lax.scan(advance, first, keys)[1])(jax.random.split(key, length))
    )
