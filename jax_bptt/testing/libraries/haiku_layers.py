"""Haiku: `hk.dynamic_unroll` of a core. `VanillaRNN` has a relu, whose kink no difference likes."""

# The rivals are an optional extra, so that they may be absent where types are checked.
# pyright: reportMissingImports=false

import jax
import jax.numpy as jnp

from jax_bptt.testing.libraries.layers import Layer, Sizes, jax_adapter


def _build(name: str, inputs: int, sizes: Sizes) -> Layer:
    import haiku as hk

    kind = {"lstm": hk.LSTM, "gru": hk.GRU}[name]

    def unrolled(xs, state):
        return hk.dynamic_unroll(kind(sizes.H), xs, state)

    def one(x, state):
        return kind(sizes.H)(x, state)

    layer = hk.without_apply_rng(hk.transform(unrolled))
    single = hk.without_apply_rng(hk.transform(one))

    def run(params, xs, state):
        ys, last_state = layer.apply(params, xs, state)
        return last_state, ys

    def step(params, state, x):
        y, state = single.apply(params, x, state)
        return state, y

    h = jnp.zeros((sizes.B, sizes.H))
    state = hk.LSTMState(h, h) if name == "lstm" else h
    params = layer.init(jax.random.key(0), jnp.ones((sizes.T, sizes.B, inputs)), state)
    return Layer(params, state, run, step)


ADAPTER = jax_adapter(
    "dm-haiku",
    "haiku",
    ("lstm", "gru"),
    _build,
    disclaims={"resets": "hk.ResetCore starts again from zeros, not from the state given"},
)
