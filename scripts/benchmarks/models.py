"""The competitors: a model is a library's way to run one cell, as pure functions of its weights."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jax_bptt as jb
from benchmarks.data import Row, Weights
from jax_bptt.testing.libraries.layers import Layer


class Model(NamedTuple):
    """A recurrent layer of some library under JAX."""

    pack: Callable[[Weights], Any]  # shared weights, as arrays -> the library's own parameters
    # a gradient like the parameters -> a dict like the shared weights. Leaves that the library has
    # no parameter for are missing
    unpack: Callable[[Any], Weights]
    # `(params, xs [T, B, I]) -> ys [T, B, H]`, from a state of zeros
    run: Callable[[Any, Any], Any]
    start: Callable[[Any, int], Any]  # `(params, batch) -> state`, that state
    # `(params, state, x [B, I]) -> (state, y [B, H])`, one streaming step
    step: Callable[[Any, Any, Any], Any]
    # the name in `plain.STEPS` of what it computes; None if that is the row's cell
    equations: str | None = None
    note: str = ""  # what a reader has to know about the model to judge its row


def of_layer(layer: Layer, row: Row) -> Model:
    """Return the layer of a library as a model of a row."""

    def pack(weights):
        return layer.from_params(parameters(weights))

    def unpack(d_params):
        grads = layer.to_gradients(d_params)._asdict()
        return {name: d for name, d in grads.items() if d is not None}

    def run(params, xs):
        return layer.run(params, xs, layer.start(params, xs.shape[1]))[1]

    equations = None if layer.equations == row.cell else layer.equations
    return Model(pack, unpack, run, layer.start, layer.step, equations, layer.note)


def parameters(weights: Weights) -> jb.Params | jb.GRUParams:
    """Return shared weights as the parameters of this library's cell."""
    return jb.GRUParams(**weights) if "b_n" in weights else jb.Params(**weights)


def cast(weights: Weights, dtype: str) -> Weights:
    """Return the weights as JAX arrays of a dtype."""
    return {name: jnp.asarray(w, dtype) for name, w in weights.items()}


def host(tree: Any) -> Any:
    """Return a tree of JAX arrays as NumPy arrays of float64, or of complex128."""

    def wide(a):
        return np.asarray(a).astype(np.complex128 if np.iscomplexobj(a) else np.float64)

    return jax.tree.map(wide, tree)


def named(tree: Any) -> dict[str, np.ndarray]:
    """Return the leaves of a tree of JAX arrays by their paths, as NumPy arrays of float64."""
    leaves = jax.tree_util.tree_leaves_with_path(host(tree))
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def flat(w: Any) -> Any:
    """Join gates and units: [..., G, H] -> [..., G H]."""
    return w.reshape(*w.shape[:-2], -1)


def gated(w: Any, gates: int) -> Any:
    """Split the last axis into gates and units: [..., G H] -> [..., G, H]."""
    return w.reshape(*w.shape[:-1], gates, -1)
