"""A tagger in Flax nnx: a tag for each symbol of a sequence."""

# pyright: reportMissingImports=false, reportArgumentType=false

import optax
from flax import nnx


class Tagger(nnx.Module):
    """Scores [B, T, tags] of sequences [B, T, inputs]."""

    def __init__(self, inputs, hidden, tags, rngs):
        """Draw the parameters."""
        self.rnn = nnx.RNN(nnx.GRUCell(inputs, hidden, rngs=rngs))
        self.out = nnx.Linear(hidden, tags, rngs=rngs)

    def __call__(self, xs):
        """Return the scores."""
        return self.out(self.rnn(xs))


def start(inputs, hidden, tags, seed):
    """Return the state of training: the model and its optimiser, split into graph and arrays."""
    model = Tagger(inputs, hidden, tags, nnx.Rngs(seed))
    optimizer = nnx.Optimizer(model, optax.adam(3e-3), wrt=nnx.Param)
    return nnx.split((model, optimizer))


def update(state, xs, tags):
    """Return the state after one update, and the loss before it."""
    model, optimizer = nnx.merge(*state)

    def loss(model):
        return optax.softmax_cross_entropy_with_integer_labels(model(xs), tags).mean()

    value, grads = nnx.value_and_grad(loss)(model)
    optimizer.update(model, grads)
    return nnx.split((model, optimizer)), value
