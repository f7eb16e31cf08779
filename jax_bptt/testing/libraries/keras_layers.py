"""Keras on its JAX backend: `LSTM`, `GRU` and `SimpleRNN` through `stateless_call`.

A layer is asked for float64, and computes in it but for one function: `keras.ops.tanh` of a float64
array is float32 (3.15), whatever `keras.config.set_floatx` says. Differences of 1e-7 are its doing.
"""

# The rivals are an optional extra, so that they may be absent where types are checked.
# pyright: reportMissingImports=false

import os

import jax
import jax.numpy as jnp
import numpy as np

from jax_bptt import interop
from jax_bptt.testing.libraries.layers import Layer, arrays, jax_adapter, zeros

# Keras reads its backend when it is imported; a user's own choice is left alone.
os.environ.setdefault("KERAS_BACKEND", "jax")


def _layer(name: str, inputs: int, units: int) -> Layer | None:
    import keras

    kinds = {"lstm": keras.layers.LSTM, "gru": keras.layers.GRU, "elman": keras.layers.SimpleRNN}
    if name not in kinds:
        return None

    def built(dtype):
        settings = dict(return_sequences=True, return_state=True, zero_output_for_mask=True)
        layer = kinds[name](units, dtype=dtype, **settings)
        layer.build((None, None, inputs))
        return layer

    # A Keras layer casts what it is given to a dtype of its own.
    layers = {np.dtype(dtype): built(dtype) for dtype in ("float32", "float64")}
    names = [variable.name for variable in layers[np.dtype("float64")].trainable_variables]

    def call(part, params, *arguments, **options):
        own = [params[name] for name in names]
        rest = [variable.value for variable in part.non_trainable_variables]
        return part.stateless_call(own, rest, *arguments, **options)[0]

    def run(params, xs, state, lengths=None, mask=None):
        if lengths is not None:
            mask = jnp.arange(xs.shape[0])[:, None] < lengths
        ys, *last = call(
            layers[xs.dtype],
            params,
            jnp.swapaxes(xs, 0, 1),
            initial_state=list(state),
            mask=None if mask is None else mask.T,
        )
        return tuple(last), jnp.swapaxes(ys, 0, 1)

    def step(params, state, x):
        y, new = call(layers[x.dtype].cell, params, x, list(state))
        return tuple(jax.tree.leaves(new)), y

    def start(params, batch):
        return tuple(jax.tree.leaves(zeros(name, units)(params, batch)))

    def from_params(params):
        return dict(zip(names, arrays(interop.keras.from_params(params)), strict=True))

    def to_gradients(d_params):
        return interop.keras.to_gradients([d_params[name] for name in names])

    return Layer(from_params, to_gradients, start, run, step, name)


ADAPTER = jax_adapter(
    "keras", "keras", ("lstm", "gru", "elman"), _layer, supports={"lengths", "mask"}
)
