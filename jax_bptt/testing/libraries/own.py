"""This library, by the constructors that its users call."""

from typing import Any

import jax.numpy as jnp

import jax_bptt as jb
from jax_bptt.testing.libraries.layers import CELLS, Adapter, Layer, jax_adapter


def layer_of(cell: jb.Cell, equations: str) -> Layer:
    """Return a layer whose single step is made of the cell's functions, without `unroll`."""

    def run(params, xs, state, **options):
        return jb.unroll(cell, params, xs, state, **options)

    def step(params, state, x):
        weights = cell.prepare(params)
        state = cell.step(weights, state, cell.project(weights, x))
        return state, cell.readout(weights, state)

    def start(params, batch):
        return cell.initial_state(params, (batch,))

    return Layer(_same, _same, start, run, step, equations)


def _same(params: Any) -> Any:
    return params


def _layer(name: str, inputs: int, units: int) -> Layer:
    if name == "counter":
        return layer_of(_counter(input_size=inputs, hidden_size=units), "gru")
    return layer_of(CELLS[name](input_size=inputs, hidden_size=units), name)


def _counter(*, input_size: int, hidden_size: int) -> jb.Cell:
    """Return a cell of one's own that counts its steps, in an integer beside its GRU."""
    gru = jb.gru(input_size=input_size, hidden_size=hidden_size)

    def step(weights, state, drive):
        hidden, count = state
        return gru.step(weights, hidden, drive), count + 1

    def initial_state(params, batch_shape):
        return gru.initial_state(params, batch_shape), jnp.zeros(batch_shape, int)

    return gru._replace(
        step=step,
        initial_state=initial_state,
        readout=lambda weights, state: gru.readout(weights, state[0]),
    )


ADAPTER: Adapter = jax_adapter(
    "jax_bptt",
    "jax_bptt",
    ("counter", *CELLS),
    _layer,
    supports={"lengths", "resets", "mask", "reset_state"},
)
