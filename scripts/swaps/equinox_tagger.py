"""A tagger in Equinox: a tag for each symbol of a sequence."""

# pyright: reportMissingImports=false

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

OPTIMIZER = optax.adam(3e-3)


class Tagger(eqx.Module):
    """Scores [T, tags] of a sequence [T, inputs]."""

    rnn: eqx.nn.GRUCell
    out: eqx.nn.Linear

    def __init__(self, inputs, hidden, tags, key):
        """Draw the parameters."""
        keys = jax.random.split(key)
        self.rnn = eqx.nn.GRUCell(inputs, hidden, key=keys[0])
        self.out = eqx.nn.Linear(hidden, tags, key=keys[1])

    def __call__(self, xs):
        """Return the scores."""

        def step(state, x):
            state = self.rnn(x, state)
            return state, state

        _, ys = jax.lax.scan(step, jnp.zeros(self.rnn.hidden_size), xs)
        return jax.vmap(self.out)(ys)


def start(inputs, hidden, tags, seed):
    """Return the state of training: the model, and the state of its optimiser."""
    model = Tagger(inputs, hidden, tags, jax.random.key(seed))
    return model, OPTIMIZER.init(eqx.filter(model, eqx.is_array))


def update(state, xs, tags):
    """Return the state after one update, and the loss before it."""
    model, moments = state

    def loss(model):
        scores = jax.vmap(model)(xs)
        return optax.softmax_cross_entropy_with_integer_labels(scores, tags).mean()

    value, grads = eqx.filter_value_and_grad(loss)(model)
    changes, moments = OPTIMIZER.update(grads, moments)
    return (eqx.apply_updates(model, changes), moments), value
