"""The mode `curve`: the whole truncation curve, against one gradient."""

from collections.abc import Callable
from typing import Any

import numpy as np

import jax_bptt as jb
from benchmarks import library, measure
from benchmarks.data import Row, draw
from benchmarks.race import Settings
from jax_bptt.diagnostics import trajectory, truncation_curve

SHAPES = ((1024, 32, 64, 128),)


def run_row(row: Row, settings: Settings, tick: Callable[[], Any]) -> list[dict[str, Any]]:
    """Time the curve of the loss sum(ys^2) and its gradient in turn, after both are compiled."""
    cell, model, data = library.cell_of(row), library.model(row, jb.bptt()), draw(row)
    arguments = measure.arguments(model, data, None)

    def curve(params, xs):
        run = trajectory(cell, params, xs)
        return truncation_curve(run, 2 * run.ys)

    functions = {"gradient": measure.GRADIENT.function(model.run, None), "curve": curve}
    made = {name: measure.compiled(fun, arguments) for name, fun in functions.items()}
    found = made["curve"].call()
    seconds = measure.rounds(
        {name: each.call for name, each in made.items()}, settings.rounds, tick
    )
    whole = np.asarray(found.bias) == np.asarray(found.bias)[-1]
    entries = [
        {
            "name": name,
            **measure.spread(seconds[name]),
            "gradients": float(np.median(seconds[name] / seconds["gradient"])),
            "temp_bytes": measure.temporary(each.executable, None),
            "compile_seconds": each.seconds,
        }
        for name, each in made.items()
    ]
    # The lags that were gone through: from there on the curve is constant.
    lags = int(np.argmax(whole)) + 1
    window = int(found.shortest(0.01))
    return [{**row._asdict(), "competitors": entries, "lags": lags, "window": window}]
