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

from jax_bptt.testing.libraries.layers import Layer, Sizes, jax_adapter

# Keras reads its backend when it is imported; a user's own choice is left alone.
os.environ.setdefault("KERAS_BACKEND", "jax")


def _build(name: str, inputs: int, sizes: Sizes) -> Layer:
    import keras

    kinds = {"lstm": keras.layers.LSTM, "gru": keras.layers.GRU, "elman": keras.layers.SimpleRNN}

    def built(dtype):
        settings = dict(return_sequences=True, return_state=True, zero_output_for_mask=True)
        layer = kinds[name](sizes.H, dtype=dtype, **settings)
        layer.build((sizes.B, sizes.T, inputs))
        return layer

    # A Keras layer casts what it is given to a dtype of its own.
    layers = {np.dtype(dtype): built(dtype) for dtype in ("float32", "float64")}
    variables = layers[np.dtype("float64")].trainable_variables
    names = [variable.name for variable in variables]

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

    params = dict(zip(names, (variable.value for variable in variables), strict=True))
    h = jnp.zeros((sizes.B, sizes.H))
    return Layer(params, (h, h) if name == "lstm" else (h,), run, step)


ADAPTER = jax_adapter(
    "keras", "keras", ("lstm", "gru", "elman"), _build, supports={"lengths", "mask"}
)
