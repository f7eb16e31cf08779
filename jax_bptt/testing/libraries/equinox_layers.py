"""Equinox: its cells under `jax.lax.scan` and `jax.vmap`, as its documentation has it."""

# The rivals are an optional extra, so that they may be absent where types are checked.
# pyright: reportMissingImports=false

import jax
import jax.numpy as jnp

from jax_bptt.testing.libraries.layers import Layer, Sizes, jax_adapter


def _build(name: str, inputs: int, sizes: Sizes) -> Layer:
    import equinox as eqx

    kind = {"lstm": eqx.nn.LSTMCell, "gru": eqx.nn.GRUCell}[name]
    cell = kind(inputs, sizes.H, dtype=jnp.float64, key=jax.random.key(0))
    params, rest = eqx.partition(cell, eqx.is_array)

    def advance(params, state, x):
        state = eqx.combine(params, rest)(x, state)
        return state, state[0] if name == "lstm" else state

    def run(params, xs, state):
        def sequence(xs, state):
            return jax.lax.scan(lambda s, x: advance(params, s, x), state, xs)

        return jax.vmap(sequence, in_axes=(1, 0), out_axes=(0, 1))(xs, state)

    def step(params, state, x):
        return jax.vmap(lambda s, x: advance(params, s, x))(state, x)

    h = jnp.zeros((sizes.B, sizes.H))
    return Layer(params, (h, h) if name == "lstm" else h, run, step)


ADAPTER = jax_adapter("equinox", "equinox", ("lstm", "gru"), _build)
