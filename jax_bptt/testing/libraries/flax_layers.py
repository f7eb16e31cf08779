"""Flax: `RNN` over a cell, of `flax.linen` and of `flax.nnx`."""

# The rivals are an optional extra, so that they may be absent where types are checked.
# pyright: reportMissingImports=false

from typing import Any

import jax

from jax_bptt import interop
from jax_bptt.testing.libraries.layers import (
    Layer,
    arrays,
    jax_adapter,
    without_b_n,
    zero_beyond,
    zeros,
)

CELLS = ("lstm", "gru", "elman")


def _linen(name: str, inputs: int, units: int) -> Layer | None:
    import flax.linen as nn

    if name not in CELLS:
        return None
    cells = {"elman": nn.SimpleCell, "gru": nn.GRUCell, "lstm": nn.OptimizedLSTMCell}
    cell = cells[name](units)
    rnn = nn.RNN(cell, time_major=True, return_carry=True)

    def run(params, xs, state, lengths=None):
        # Outputs beyond the length "are NOT zeroed out", its documentation says; users do.
        last, ys = rnn.apply(params, xs, initial_carry=state, seq_lengths=lengths)
        return last, ys if lengths is None else zero_beyond(ys, lengths)

    def step(params, state, x):
        return cell.apply({"params": params["params"]["cell"]}, state, x)

    def from_params(params):
        return {"params": {"cell": arrays(interop.flax.from_params(params))}}

    def to_gradients(d_params):
        return interop.flax.to_gradients(d_params["params"]["cell"])

    return Layer(from_params, to_gradients, zeros(name, units), run, step, name)


def _nnx(name: str, inputs: int, units: int) -> Layer | None:
    from flax import nnx

    if name not in CELLS:
        return None
    cells = {"elman": nnx.SimpleCell, "gru": nnx.GRUCell, "lstm": nnx.OptimizedLSTMCell}
    # SimpleCell would otherwise compute in float32 whatever it is given. Its weights are replaced,
    # and an orthogonal matrix takes long to draw.
    settings: dict[str, Any] = {
        "dtype": None,
        "recurrent_kernel_init": nnx.initializers.zeros_init(),
    }
    cell = cells[name](inputs, units, rngs=nnx.Rngs(0), **settings)
    rnn = nnx.RNN(cell, time_major=True, return_carry=True)
    graph, own, rest = nnx.split(rnn, nnx.Param, ...)
    layout = jax.tree.structure(own)

    def layer(params):
        return nnx.merge(graph, jax.tree.unflatten(layout, jax.tree.leaves(params)), rest)

    def run(params, xs, state, lengths=None):
        last, ys = layer(params)(xs, initial_carry=state, seq_lengths=lengths)
        return last, ys if lengths is None else zero_beyond(ys, lengths)

    def step(params, state, x):
        return layer(params).cell(state, x)

    def from_params(params):
        tree = interop.nnx.from_params(params)
        return arrays(interop.nnx.to_optimized_lstm(tree) if name == "lstm" else tree)

    def to_gradients(d_params):
        return without_b_n(interop.nnx.to_gradients(d_params))

    return Layer(from_params, to_gradients, zeros(name, units), run, step, name)


LINEN = jax_adapter("flax", "flax.linen", CELLS, _linen, supports={"lengths"})
NNX = jax_adapter("flax", "flax.nnx", CELLS, _nnx, supports={"lengths"})
