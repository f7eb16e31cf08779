"""Flax: `RNN` over a cell, of `flax.linen` and of `flax.nnx`."""

# The rivals are an optional extra, so that they may be absent where types are checked.
# pyright: reportMissingImports=false

import re
from typing import Any

import jax
import jax.numpy as jnp

from jax_bptt.testing.libraries.layers import Layer, Sizes, jax_adapter, zero_beyond

CELLS = ("lstm", "gru", "elman")


def _zeros(name: str, sizes: Sizes) -> Any:
    h = jnp.zeros((sizes.B, sizes.H))
    return (h, h) if name == "lstm" else h


def _linen(name: str, inputs: int, sizes: Sizes) -> Layer:
    import flax.linen as nn

    cells = {"elman": nn.SimpleCell, "gru": nn.GRUCell, "lstm": nn.OptimizedLSTMCell}
    cell = cells[name](sizes.H, param_dtype=jnp.float64)
    rnn = nn.RNN(cell, time_major=True, return_carry=True)
    xs, state = jnp.ones((sizes.T, sizes.B, inputs)), _zeros(name, sizes)

    def run(params, xs, state, lengths=None):
        # Outputs beyond the length "are NOT zeroed out", its documentation says; users do.
        last, ys = rnn.apply(params, xs, initial_carry=state, seq_lengths=lengths)
        return last, ys if lengths is None else zero_beyond(ys, lengths)

    def step(params, state, x):
        return cell.apply({"params": params["params"]["cell"]}, state, x)

    return Layer(rnn.init(jax.random.key(0), xs), state, run, step)


def _nnx(name: str, inputs: int, sizes: Sizes) -> Layer:
    from flax import nnx

    cells = {"elman": nnx.SimpleCell, "gru": nnx.GRUCell, "lstm": nnx.OptimizedLSTMCell}
    # Of these cells SimpleCell alone would otherwise compute in float32, whatever it is given.
    cell = cells[name](inputs, sizes.H, dtype=None, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    rnn = nnx.RNN(cell, time_major=True, return_carry=True)
    graph, own, rest = nnx.split(rnn, nnx.Param, ...)
    named, layout = jax.tree_util.tree_flatten_with_path(own)
    names = [_dotted(path) for path, _ in named]

    def layer(params):
        leaves = [params[name] for name in names]
        return nnx.merge(graph, jax.tree.unflatten(layout, leaves), rest)

    def run(params, xs, state, lengths=None):
        last, ys = layer(params)(xs, initial_carry=state, seq_lengths=lengths)
        return last, ys if lengths is None else zero_beyond(ys, lengths)

    def step(params, state, x):
        return layer(params).cell(state, x)

    leaves = [leaf for _, leaf in named]
    return Layer(dict(zip(names, leaves, strict=True)), _zeros(name, sizes), run, step)


def _dotted(path: Any) -> str:
    """Return cell.dense_h.bias for the path of a parameter; some versions append a .value."""
    return ".".join(re.findall(r"\w+", jax.tree_util.keystr(path).removesuffix(".value")))


LINEN = jax_adapter("flax", "flax.linen", CELLS, _linen, supports={"lengths"})
NNX = jax_adapter("flax", "flax.nnx", CELLS, _nnx, supports={"lengths"})
