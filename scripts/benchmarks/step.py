"""The mode `step`: what one streaming step costs, from the call until its output is there."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import library, measure, plain, roster, torch_peer
from benchmarks.data import Data, Row, draw
from benchmarks.measure import Stepper, ratio, spread
from benchmarks.models import Model, cast, host
from benchmarks.race import Settings
from jax_bptt.testing.libraries import torch_layers
from jax_bptt.testing.libraries.roster import undisturbed

SHAPES = ((64, 1, 64, 128), (64, 1, 128, 256), (64, 1, 512, 1024))
"""Default (T, B, I, H); a turn of the benchmark takes the T steps of a sequence one by one."""


def run_row(row: Row, settings: Settings, tick: Callable[[], Any]) -> dict[str, Any]:
    """Check the outputs of all steps against float64, then time a step in interleaved rounds."""
    data = draw(row)
    models: dict[str, Model] = {roster.OWN: library.model(row, library.algorithm("bptt"))}
    models[roster.PLAIN] = plain.plain(row.cell)
    for name in settings.peers:
        if name != roster.TORCH and (model := roster.jax_model(name, row)) is not None:
            models[name] = model
    entries, calls = [], {}
    for name, model in models.items():
        own = stepper(model, data)
        entry = _check(name, own, data, model.equations or row.cell) | {"note": model.note}
        entries.append(entry)
        calls[name] = _sequence(own, row.T)
    if roster.TORCH in settings.peers and row.cell in torch_layers.CELLS:
        own = torch_peer.stepper(data)
        entry = _check(roster.TORCH, own, data, row.cell)
        calls[roster.TORCH], entry["note"] = torch_peer.fastest(_sequence(own, row.T))
        entries.append(entry)
    timed = {e["name"]: calls[e["name"]] for e in entries if e["refused"] is None}
    seconds = measure.rounds(timed, settings.rounds, tick, last=[roster.TORCH])
    for entry in entries:
        if entry["refused"] is None:
            entry |= spread(seconds[entry["name"]] / row.T)
            entry["ratio"] = ratio(seconds[entry["name"]], seconds.get(roster.OWN))
    return {**row._asdict(), "competitors": entries}


def _check(name, own, data, equations):
    expected = plain.reference(data, equations)["ys"]
    own.restart()
    ys = np.stack([own.array(own.step(t)) for t in range(data.row.T)])
    errors = measure.errors({"ys": ys}, {"ys": expected})
    return {"name": name, "error": errors["ys"], "refused": measure.refusal(errors, data.row.dtype)}


def stepper(model: Model, data: Data) -> Stepper:
    """Return a model's step under `jax.jit`."""
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

    with undisturbed():  # peers warn while they are traced
        step(0)
    return Stepper(step, restart, host)


def _sequence(stepper, steps):
    def call():
        stepper.restart()
        for t in range(steps):
            stepper.step(t)

    return call
