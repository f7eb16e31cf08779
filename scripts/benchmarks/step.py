"""The mode `step`: what one streaming step costs, from the call until its output is there."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import library, plain, race, roster, torch_peer
from benchmarks.data import Data, Row, draw
from benchmarks.measure import Prepared, Stepper
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
    contestants = [
        _contestant(name, _stepper(model, data), model.equations or row.cell, data, model.note)
        for name, model in models.items()
    ]
    if roster.TORCH in settings.peers and row.cell in torch_layers.CELLS:
        made = _contestant(roster.TORCH, torch_peer.stepper(data), row.cell, data, "")
        call, note = torch_peer.fastest(made.prepared[1].call)
        prepared = made.prepared[1]._replace(call=call, note=note)
        contestants.append(made._replace(prepared={1: prepared}))
    rounds = settings.rounds
    entries, _ = race.contest(row, contestants, rounds, tick, calls_in_one=row.T)
    return {**row._asdict(), "competitors": entries}


def _contestant(name, stepper, equations, data, note):
    """Return what takes the steps of the row's sequence one by one."""

    def call():
        stepper.restart()
        return [stepper.step(t) for t in range(data.row.T)]

    def results(ys):
        return {"ys": np.stack([stepper.array(y) for y in ys])}

    prepared = Prepared(call, results, dict, None, None, note)
    expected = {"ys": plain.reference(data, equations)["ys"]}
    return race.Contestant(name, {1: prepared}, expected)


def _stepper(model: Model, data: Data) -> Stepper:
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
