"""The mode `step`: what one streaming step costs, from the call until its output is there."""

import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import library, measure, plain, roster, torch_peer
from benchmarks.data import Data, Row, draw
from benchmarks.models import Model, cast
from benchmarks.race import Settings, summary

SHAPES = ((64, 1, 64, 128), (64, 1, 128, 256), (64, 1, 512, 1024))
"""Default (T, B, I, H); a turn of the benchmark takes the T steps of a sequence one by one."""

Stepper = tuple[Callable[[int], Any], Callable[[], Any]]


def run(rows: list[Row], settings: Settings, tick: Callable[[], Any]) -> dict[str, Any]:
    """Time a step of every competitor on every row; return the JSON report."""
    results = [run_row(row, settings, tick) for row in rows]
    return {"rows": results, "summary": summary(results, "jax_bptt")}


def run_row(row: Row, settings: Settings, tick: Callable[[], Any]) -> dict[str, Any]:
    """Check the outputs of all steps against float64, then time a step in interleaved rounds."""
    data = draw(row)
    models: dict[str, Model] = {"jax_bptt": library.model(row, library.algorithm("bptt"))}
    models[roster.PLAIN] = plain.plain(row.cell)
    steppers: dict[str, Stepper] = {}
    for name in settings.peers:
        if name == "torch":
            if row.cell in torch_peer.CELLS:
                steppers[name] = torch_peer.stepper(data)
        elif (model := roster.jax_model(name, row)) is not None:
            models[name] = model
    steppers = {name: stepper(model, data) for name, model in models.items()} | steppers
    entries, calls = [], {}
    for name, (step, restart) in steppers.items():
        model = models.get(name)
        equations = (model.equations if model else None) or row.cell
        expected = plain.reference(data, equations)["ys"]
        restart()
        ys = np.stack([np.asarray(step(t)).astype(np.float64) for t in range(row.T)])
        error = measure.errors({"ys": ys}, {"ys": expected})["ys"]
        limit = measure.TOLERANCE[row.dtype]
        refused = None if error <= limit else f"error {error:.1e}, more than {limit:.0e}: not timed"
        if refused is None:
            calls[name] = _sequence(step, restart, row.T)
        note = model.note if model else ""
        entries.append({"name": name, "note": note, "error": error, "refused": refused})
    seconds = measure.rounds(calls, settings.rounds, tick)
    own = seconds.get("jax_bptt")
    for entry in entries:
        if entry["refused"] is None:
            times = seconds[entry["name"]]
            low, middle, high = np.quantile(times / row.T, [0.25, 0.5, 0.75])
            entry |= {
                "seconds": float(middle),
                "seconds_q1": float(low),
                "seconds_q3": float(high),
                "ratio": None if own is None else float(np.median(times / own)),
            }
    return {**row._asdict(), "competitors": entries}


def stepper(model: Model, data: Data) -> Stepper:
    """Return a jitted step on the input of time t, which returns y, and a way to start over."""
    params = model.pack(cast(data.weights, data.row.dtype))
    xs = [jnp.asarray(x, data.row.dtype) for x in data.xs]
    step_jit = jax.jit(model.step)
    start = model.start(params, data.row.B)
    state = [start]

    def restart():
        state[0] = start

    def step(t):
        state[0], y = step_jit(params, state[0], xs[t])
        return jax.block_until_ready(y)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peers warn while they are traced
        step(0)
    return step, restart


def _sequence(step, restart, steps):
    def call():
        restart()
        for t in range(steps):
            step(t)

    return call
