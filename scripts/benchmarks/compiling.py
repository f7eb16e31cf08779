"""The modes `compile` and `memory`: what the gradient costs before and beside its run time."""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import library, measure, network, plain, roster
from benchmarks.data import Row, draw
from benchmarks.models import Model, cast
from benchmarks.race import Settings

COMPILE_SHAPES = ((100, 32, 64, 128), (100_000, 32, 64, 128))
NETWORK = "three_bidirectional_lstm_with_lengths"
COMPILE_CELLS = ("elman", "gru", "lstm", NETWORK)
MEMORY_SHAPES = ((2048, 32, 64, 128),)


def lowering(model: Model, row: Row) -> Callable[[], Any]:
    """Return what traces and lowers the gradient for a row's shapes."""
    params = model.pack(cast(draw(row._replace(T=1, B=1)).weights, row.dtype))
    xs = jax.ShapeDtypeStruct((row.T, row.B, row.I), jnp.dtype(row.dtype))
    gradient = measure.GRADIENT.function(model.run, None)
    return lambda: jax.jit(gradient).lower(params, xs)


def models(row: Row, algorithms: list[str]) -> dict[str, Model]:
    """Return the library under each algorithm, and the plain scan."""
    own = {
        roster.own_name(text): library.model(row, library.algorithm(text)) for text in algorithms
    }
    return own | {roster.PLAIN: plain.plain(row.cell)}


def lowerings(row: Row, algorithms: list[str]) -> dict[str, Callable[[], Any]]:
    """Return what traces and lowers the gradient by the library and by plain scans.

    Raises:
      ValueError: a network of the library and that of plain scans do not compute the same.
    """
    if row.cell not in network.DEPTHS:
        return {name: lowering(model, row) for name, model in models(row, algorithms).items()}
    found = {}
    for text in algorithms:
        algorithm = library.algorithm(text)
        network.require_agreement(row, algorithm)
        found[roster.own_name(text)] = network.lowering(network.own(row, algorithm), row)
    return found | {roster.PLAIN: network.lowering(network.by_hand(), row)}


def compile_times(
    rows: list[Row], algorithms: list[str], rounds: int, tick: Callable[[], Any]
) -> dict[str, Any]:
    """Compile every gradient afresh in interleaved rounds; return the JSON report.

    Caches are cleared before each compilation. One round before the first is not counted: it
    pays for what a process does once.
    """
    results = []
    for cell in dict.fromkeys(row.cell for row in rows):
        own_rows = [row for row in rows if row.cell == cell]
        jobs = [(r, name, job) for r in own_rows for name, job in lowerings(r, algorithms).items()]
        seconds = {(row, name): [] for row, name, _ in jobs}
        for turn in range(rounds + 1):
            for row, name, lower in jobs:
                jax.clear_caches()
                begin = time.perf_counter()
                lower().compile()
                if turn > 0:
                    seconds[row, name].append(time.perf_counter() - begin)
            if turn > 0:
                tick()
        results += [_compile_row(row, seconds, own_rows[0]) for row in own_rows]
    return {"rows": results}


def _compile_row(row, seconds, first):
    base = np.array(seconds[row, roster.PLAIN])
    entries = []
    for (at, name), values in seconds.items():
        if at == row:
            times = np.array(values)
            entries.append(
                {
                    "name": name,
                    **measure.spread(times),
                    "against_plain": measure.ratio(times, base),
                    "against_first": measure.ratio(times, np.array(seconds[first, name])),
                }
            )
    return {**row._asdict(), "competitors": entries}


def temporary_memory(row: Row, settings: Settings, tick: Callable[[], Any]) -> list[dict[str, Any]]:
    """Compile the gradients of a row and read off their temporary memory."""
    state = row.T * row.B * row.H * jnp.dtype(row.dtype).itemsize
    entries = []
    for name, model in models(row, settings.algorithms).items():
        temp = measure.temporary(lowering(model, row)().compile(), None)
        entries.append({"name": name, "temp_bytes": temp, "arrays_of_tbh": temp / state})
        tick()
    base = entries[-1]["temp_bytes"]
    for entry in entries:
        entry["share_of_plain"] = entry["temp_bytes"] / base if base else None
    return [{**row._asdict(), "competitors": entries}]
