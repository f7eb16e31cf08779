"""The mode `sequences`: what lengths, resets, a mask and telemetry add to the gradient's time."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jax_bptt as jb
from benchmarks import library, measure
from benchmarks.data import Row, draw
from benchmarks.models import cast
from benchmarks.race import Settings
from jax_bptt.cells.watched import WatchedParams, nothing_seen, watched

SHAPES = ((128, 32, 128, 256), (1024, 32, 64, 128), (512, 16, 64, 64))
"""Default (T, B, I, H)."""

WITHOUT, WATCHED = "none", "watched"


def options(row: Row) -> dict[str, dict[str, Any]]:
    """Return the options that are timed; each is data, and changes nothing of what is compiled."""
    rng = np.random.default_rng(0)
    return {
        WITHOUT: {},
        "lengths": {"lengths": jnp.asarray(rng.integers(1, row.T + 1, row.B))},
        "resets": {"resets": jnp.asarray(rng.random((row.T, row.B)) < 0.01)},
        "mask": {"mask": jnp.asarray(rng.random((row.T, row.B)) < 0.9)},
    }


def run_row(row: Row, settings: Settings, tick: Callable[[], Any]) -> list[dict[str, Any]]:
    """Time the gradient of a row with each option in interleaved rounds."""
    results = []
    data, cell = draw(row), library.cell_of(row)
    for text in settings.algorithms:
        algorithm = library.algorithm(text)
        params = library.model(row, algorithm).pack(cast(data.weights, row.dtype))
        xs = jnp.asarray(data.xs, row.dtype)
        calls = {
            name: _call(cell, algorithm, params, xs, given) for name, given in options(row).items()
        }
        seen = WatchedParams(params, nothing_seen())
        calls[WATCHED] = _call(watched(cell), algorithm, seen, xs, {})
        seconds = measure.rounds(calls, settings.rounds, tick)
        entries = [
            {
                "name": name,
                **measure.spread(times),
                "against_none": measure.ratio(times, seconds[WITHOUT]),
            }
            for name, times in seconds.items()
        ]
        results.append({**row._asdict(), "algorithm": text, "competitors": entries})
    return results


def _call(cell, algorithm, params, xs, given):
    def gradient(params, xs, given):
        def loss(params, xs):
            return jnp.sum(jb.unroll(cell, params, xs, algorithm=algorithm, **given)[1] ** 2)

        return jax.grad(loss, argnums=(0, 1))(params, xs)

    return measure.compiled(gradient, (params, xs, given)).call
