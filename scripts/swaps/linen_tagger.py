"""A tagger in Flax linen: a tag for each symbol of a sequence."""

# pyright: reportMissingImports=false

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax.training.train_state import TrainState


class Tagger(nn.Module):
    """Scores [B, T, tags] of sequences [B, T, inputs]."""

    hidden: int
    tags: int

    @nn.compact
    def __call__(self, xs):
        """Return the scores."""
        ys = nn.RNN(nn.GRUCell(self.hidden))(xs)
        return nn.Dense(self.tags)(ys)


def start(inputs, hidden, tags, seed):
    """Return the state of training."""
    model = Tagger(hidden, tags)
    params = model.init(jax.random.key(seed), jnp.zeros((1, 1, inputs)))
    return TrainState.create(apply_fn=model.apply, params=params, tx=optax.adam(3e-3))


def update(state, xs, tags):
    """Return the state after one update, and the loss before it."""

    def loss(params):
        scores = state.apply_fn(params, xs)
        return optax.softmax_cross_entropy_with_integer_labels(scores, tags).mean()

    value, grads = jax.value_and_grad(loss)(state.params)
    return state.apply_gradients(grads=grads), value
