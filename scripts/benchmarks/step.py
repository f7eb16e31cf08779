"""The mode `step`: what one streaming step costs, from the call until its output is there."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import library, plain, race, roster, torch_peer
from benchmarks.data import Data, Row, draw
from benchmarks.measure import Prepared
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
        _contestant(name, _steps(model, data), model.equations or row.cell, data)
        for name, model in models.items()
    ]
    if roster.TORCH in settings.peers and row.cell in torch_layers.CELLS:
        prepared = torch_peer.fastest(torch_peer.steps(data))
        contestants.append(_contestant(roster.TORCH, prepared, row.cell, data))
    rounds = settings.rounds
    entries, _ = race.contest(row, contestants, rounds, tick, calls_in_one=row.T)
    return {**row._asdict(), "competitors": entries}


def _contestant(name, prepared, equations, data):
    expected = {"ys": plain.reference(data, equations)["ys"]}
    return race.Contestant(name, {1: prepared}, expected)


def _steps(model: Model, data: Data) -> Prepared:
    """Return what takes the steps of the row's sequence one by one, each under `jax.jit`."""
    params = model.pack(cast(data.weights, data.row.dtype))
    xs = [jnp.asarray(x, data.row.dtype) for x in data.xs]
    step_jit = jax.jit(model.step)
    start = model.start(params, data.row.B)

    def call():
        state, ys = start, []
        for x in xs:
            state, y = step_jit(params, state, x)
            ys.append(jax.block_until_ready(y))
        return ys

    def results(ys):
        return {"ys": np.stack(host(ys))}

    with undisturbed():  # peers warn while they are traced
        call()
    return Prepared(call, results, dict, None, None, model.note)
