"""The modes `cells` and `associative`: cells of the library against a scan of their own step."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import jax_bptt as jb
from benchmarks import library, measure, race, roster
from benchmarks.data import Row
from benchmarks.measure import Prepared
from benchmarks.models import named
from benchmarks.race import Settings

SHAPES = ((512, 16, 64, 64),)
"""Default (T, B, I, H)."""

DIAGONAL_SHAPES = (
    (64, 1, 64, 64),
    (64, 32, 64, 64),
    (512, 1, 64, 64),
    (512, 1, 512, 512),
    (512, 32, 64, 64),
    (512, 32, 512, 512),
    (8192, 1, 64, 64),
    (8192, 1, 512, 512),
    (8192, 32, 64, 64),
)
"""Those of the mode `associative`: few sequences of few units, and many of many."""

PIXELS, SIDE = 16, 4
"""Pixels of a square image; a convolution has I / PIXELS channels for it, and H / PIXELS."""


def _conv_lstm(*, input_size: int, hidden_size: int, dtype: Any) -> jb.Cell:
    inputs, hidden = (max(1, size // PIXELS) for size in (input_size, hidden_size))
    return jb.conv_lstm(
        input_size=inputs, hidden_size=hidden, image_shape=(SIDE, SIDE), dtype=dtype
    )


def _lstm_projected(*, hidden_size: int, **sizes: Any) -> jb.Cell:
    size = max(1, hidden_size // 2)
    return jb.lstm_projected(hidden_size=hidden_size, projection_size=size, **sizes)


CELLS: dict[str, Callable[..., jb.Cell]] = {
    "elman": jb.elman,
    "lstm": jb.lstm,
    "gru": jb.gru,
    "gru_reset_before": jb.gru_reset_before,
    "lstm_peephole": jb.lstm_peephole,
    "lstm_projected": _lstm_projected,
    "layer_norm_lstm": jb.layer_norm_lstm,
    "layer_norm_gru": jb.layer_norm_gru,
    "mgu": jb.mgu,
    "ugrnn": jb.ugrnn,
    "slstm": jb.slstm,
    "indrnn": jb.indrnn,
    "ctrnn": jb.ctrnn,
    "ctrnn_euler": jb.ctrnn_euler,
    "lru": jb.lru,
    "min_gru": jb.min_gru,
    "min_lstm": jb.min_lstm,
    "conv_lstm": _conv_lstm,
}
"""Constructors by their public names; the projection has half of the units."""

KINKED = ("indrnn",)
"""Cells with a relu, whose derivative jumps: errors in the root of the mean square."""


def run_row(row: Row, settings: Settings, tick: Callable[[], Any]) -> dict[str, Any]:
    """Check a cell's gradient against float64, then time it beside the plain scan."""
    params, xs = _arguments(row)
    want = _reference(row, params, xs)
    cell = _cell(row, row.dtype)
    counts = race.usable(row, settings.devices)
    ways = {roster.own_name(text): _by(cell, text) for text in settings.algorithms}
    ways[roster.PLAIN] = _plain(cell)
    contestants = [
        race.Contestant(
            name,
            {n: _prepare(outputs, params, xs, n) for n in counts},
            want,
            row.cell in KINKED,
        )
        for name, outputs in ways.items()
    ]
    entries, _ = race.contest(row, contestants, settings.rounds, tick)
    return {**row._asdict(), "devices": counts, "competitors": entries}


def _prepare(outputs: Callable[..., Any], params: Any, xs: Any, devices: int) -> Prepared:
    mesh = measure.mesh_of(devices)
    args = measure.placed(params, xs, mesh)
    made = measure.compiled(measure.summed(_gradient(outputs), mesh), args)
    return Prepared(made.call, named, dict, measure.temporary(made.executable, mesh), made.seconds)


def _cell(row: Row, dtype: str) -> jb.Cell:
    sizes = {"input_size": row.I, "hidden_size": row.H}
    return CELLS[row.cell](**sizes, dtype=jnp.dtype(dtype))


def _arguments(row: Row) -> tuple[Any, Any]:
    """Return half of the parameters that the cell draws, and normal inputs [T, B, ...].

    With all of them the gradient of a layer-normalised LSTM explodes, and is another one in every
    arithmetic.
    """
    cell = _cell(row, row.dtype)
    params = jax.jit(lambda key: jax.tree.map(lambda p: p / 2, cell.init(key)))(jax.random.key(0))
    shape = jax.tree.leaves(cell.input_spec)[0].shape
    return params, jax.random.normal(jax.random.key(1), (row.T, row.B, *shape), row.dtype)


def _by(cell: jb.Cell, text: str) -> Callable[..., Any]:
    algorithm = library.algorithm(text)
    return lambda params, xs: jb.unroll(cell, params, xs, algorithm=algorithm)[1]


def _plain(cell: jb.Cell) -> Callable[..., Any]:
    """Return the outputs by a scan of whole steps, which JAX differentiates."""

    def outputs(params, xs):
        weights = cell.prepare(params)

        def advance(state, x):
            state = cell.step(weights, state, cell.project(weights, x))
            return state, cell.readout(weights, state)

        return lax.scan(advance, cell.initial_state(params, xs.shape[1:2]), xs)[1]

    return outputs


def _gradient(outputs: Callable[..., Any]) -> Callable[..., Any]:
    def loss(params, xs):
        ys = outputs(params, xs)
        return jnp.sum((ys * jnp.conj(ys)).real)

    return jax.grad(loss, argnums=(0, 1))


def _reference(row: Row, params: Any, xs: Any) -> dict[str, np.ndarray]:
    """Return the gradient of the plain scan in float64."""
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda a: jnp.asarray(np.asarray(a), "float64"), (params, xs))
        return named(jax.jit(_gradient(_plain(_cell(row, "float64"))))(*wide))
