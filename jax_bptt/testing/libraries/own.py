"""This library, by the constructors that its users call."""

import functools

import jax

import jax_bptt as jb
from jax_bptt.testing.libraries.layers import Adapter, Layer, Sizes, jax_adapter

CELLS = {
    "lstm": jb.lstm,
    "gru": jb.gru,
    "gru_reset_before": jb.gru_reset_before,
    "elman": jb.elman,
}


def _build(name: str, inputs: int, sizes: Sizes) -> Layer:
    """Return a layer whose single step is made of the cell's functions, without `unroll`."""
    sized = _counter if name == "counter" else CELLS[name]
    cell = sized(input_size=inputs, hidden_size=sizes.H)
    params = cell.init(jax.random.key(0))

    def step(params, state, x):
        weights = cell.prepare(params)
        state = cell.step(weights, state, cell.project(weights, x))
        return state, cell.readout(weights, state)

    run = functools.partial(jb.unroll, cell)
    return Layer(params, cell.initial_state(params, (sizes.B,)), run, step)


def _counter(*, input_size: int, hidden_size: int) -> jb.Cell:
    """Return a cell of one's own that counts its steps, in an integer beside its GRU."""
    gru = jb.gru(input_size=input_size, hidden_size=hidden_size)

    def step(weights, state, drive):
        hidden, count = state
        return gru.step(weights, hidden, drive), count + 1

    def initial_state(params, batch_shape):
        hidden = gru.initial_state(params, batch_shape)
        return hidden, jax.numpy.zeros(batch_shape, int)

    return gru._replace(
        step=step,
        initial_state=initial_state,
        readout=lambda weights, state: gru.readout(weights, state[0]),
    )


ADAPTER: Adapter = jax_adapter(
    "jax_bptt",
    "jax_bptt",
    ("counter", *CELLS),
    _build,
    supports={"lengths", "resets", "mask", "reset_state"},
)
