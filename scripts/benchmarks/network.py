"""Bidirectional LSTMs on one another over padded sequences: by the library, and by plain scans.

A row of these reads T, B, I and H as any other; `lengths` [B] says how long each sequence is. The
weights are a list with a pair (forward, backward) of an LSTM's weights per layer.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import jax_bptt as jb
from benchmarks import data, library, measure, models, plain
from benchmarks.data import Row, Weights

DEPTHS = {"two_bidirectional_lstm_with_lengths": 2, "three_bidirectional_lstm_with_lengths": 3}
"""How many layers each has, by what the tables call it in place of a cell."""

CELL = "lstm"


class Network(NamedTuple):
    """A way to run the layers, as pure functions."""

    # weights, as arrays -> the way's own parameters
    pack: Callable[[list[tuple[Weights, Weights]]], Any]
    # a gradient like the parameters -> one like the weights
    unpack: Callable[[Any], list[tuple[Weights, Weights]]]
    # `(params, xs [T, B, I], lengths [B]) -> ys [T, B, 2 H]`, zero beyond the lengths
    run: Callable[[Any, Any, Any], Any]


def _layer_rows(row: Row) -> list[Row]:
    """Return a row for each layer: the first reads I features, the others 2 H."""
    sizes = [row.I] + [2 * row.H] * (DEPTHS[row.cell] - 1)
    return [row._replace(cell=CELL, T=1, I=size) for size in sizes]


def weights(row: Row) -> list[tuple[Weights, Weights]]:
    """Draw the weights of a network, as arrays of the row's dtype."""
    drawn = [
        [data.draw(layer, seed=2 * k + direction).weights for direction in (0, 1)]
        for k, layer in enumerate(_layer_rows(row))
    ]
    return [(models.cast(f, row.dtype), models.cast(b, row.dtype)) for f, b in drawn]


def lengths(row: Row) -> jax.Array:
    """Draw the lengths of a row's sequences, from 1 to T."""
    return jnp.asarray(np.random.default_rng(0).integers(1, row.T + 1, row.B), jnp.int32)


def own(row: Row, algorithm: jb.Algorithm) -> Network:
    """Return the library's layers under an algorithm."""
    rows = _layer_rows(row)
    cells = [library.cell_of(layer) for layer in rows]
    stack = jb.stack(*(jb.bidirectional(cell, cell) for cell in cells))
    model = library.model(rows[0], algorithm)

    def pack(weights):
        return tuple(jb.Directions(model.pack(f), model.pack(b)) for f, b in weights)

    def unpack(d_params):
        return [(model.unpack(f), model.unpack(b)) for f, b in d_params]

    def run(params, xs, lengths):
        return stack.apply(params, xs, lengths=lengths, algorithm=algorithm)[1]

    return Network(pack, unpack, run)


def by_hand() -> Network:
    """Return the same layers, of any depth, as a JAX user writes them: plain scans."""
    model = plain.plain(CELL)

    def pack(weights):
        return [(model.pack(f), model.pack(b)) for f, b in weights]

    def unpack(d_params):
        return [(model.unpack(f), model.unpack(b)) for f, b in d_params]

    def run(params, xs, lengths):
        for forward, backward in params:
            ys = _direction(forward, xs, lengths)
            zs = _flip(_direction(backward, _flip(xs, lengths), lengths), lengths)
            xs = jnp.concatenate([ys, zs], axis=-1)
        return xs

    return Network(pack, unpack, run)


def _direction(weights: Weights, xs: Any, lengths: Any) -> Any:
    """Scan over the steps; beyond its length a sequence keeps its state and has outputs of zero."""

    def step(state, inputs):
        x, t = inputs
        live = (t < lengths)[:, None]
        new = plain.STEPS[CELL](weights, state, x @ weights["w_x"] + weights["b"])
        state = jax.tree.map(lambda a, b: jnp.where(live, a, b), new, state)
        return state, jnp.where(live, state[0], 0)

    start = plain.start(weights, xs.shape[1])
    return lax.scan(step, start, (xs, jnp.arange(len(xs), dtype=lengths.dtype)))[1]


def _flip(xs: Any, lengths: Any) -> Any:
    """Return each sequence with its last step first, the padding where it was."""
    t = jnp.arange(len(xs), dtype=lengths.dtype)[:, None]
    at = jnp.where(t < lengths, lengths - 1 - t, t)
    return jnp.take_along_axis(xs, at[..., None], axis=0)


def gradient(network: Network) -> Callable[..., Any]:
    """Return the gradient of sum(ys^2), `(params, xs, lengths) -> (d_params, d_xs)`."""

    def loss(params, xs, lengths):
        return jnp.sum(network.run(params, xs, lengths) ** 2)

    return jax.grad(loss, argnums=(0, 1))


def lowering(network: Network, row: Row) -> Callable[[], Any]:
    """Return what traces and lowers the gradient for a row's shapes."""
    params = network.pack(weights(row))
    xs = jax.ShapeDtypeStruct((row.T, row.B, row.I), jnp.dtype(row.dtype))
    return lambda: jax.jit(gradient(network)).lower(params, xs, lengths(row))


def require_agreement(row: Row, algorithm: jb.Algorithm) -> None:
    """Compare the two gradients in float64, on a few short sequences of the row.

    Raises:
      ValueError: they differ by more than rounding.
    """
    row = row._replace(T=min(row.T, 12), B=min(row.B, 4), dtype="float64")
    with jax.enable_x64(True):
        xs = jax.random.normal(jax.random.key(0), (row.T, row.B, row.I), row.dtype)

        def found(network):
            params = network.pack(weights(row))
            d_params, d_xs = jax.jit(gradient(network))(params, xs, lengths(row))
            return models.named((network.unpack(d_params), d_xs))

        errors = measure.errors(found(own(row, algorithm)), found(by_hand()))
    if why := measure.refusal(errors, row.dtype):
        raise ValueError(f"{row}: the library against plain scans: {why}")
