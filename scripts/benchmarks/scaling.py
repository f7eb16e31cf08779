"""The mode `scaling`: time and temporary memory of the gradient against T, B and H."""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from benchmarks import compiling, measure
from benchmarks.data import Row, draw
from benchmarks.race import Settings

SHAPES = ((256, 4, 32, 64),)
AXES = {"T": 65_536, "B": 256, "H": 1024}
"""The axes that are varied, and how far each goes from where the row has it, or from above."""

SMOKE_POINTS = 2


def ticks(settings: Settings) -> int:
    """Return about how many sizes are measured for a row."""
    return len(AXES) * (SMOKE_POINTS if settings.smoke else 6)


def run_row(row: Row, settings: Settings, tick: Callable[[], Any]) -> list[dict[str, Any]]:
    """Measure along each axis, from the row upwards with the other axes fixed."""
    results = []
    for axis, end in AXES.items():
        first, factor = getattr(row, axis), 4 if axis == "T" else 2
        count = max(2, 1 + round(np.log(end / first) / np.log(factor)))
        values = [first * factor**k for k in range(SMOKE_POINTS if settings.smoke else count)]
        at = [_measure(row._replace(**{axis: value}), settings, tick) for value in values]
        for name in at[0]:
            columns = zip(*(point[name] for point in at), strict=True)
            seconds, temp, arrays = (list(column) for column in columns)
            results.append(
                {
                    **row._asdict(),
                    "axis": axis,
                    "sizes": values,
                    "name": name,
                    "seconds": seconds,
                    "temp_bytes": temp,
                    "arrays_of_tbh": arrays,
                    "time_slope": slope(values, seconds),
                    "memory_slope": slope(values, temp),
                }
            )
    return results


def _measure(row, settings, tick):
    """Return name -> (median seconds, temporary bytes, the same in arrays of [T, B, H])."""
    data = draw(row)
    state = row.T * row.B * row.H * jnp.dtype(row.dtype).itemsize
    prepared = {
        name: measure.prepare(model, data, measure.GRADIENT, None)
        for name, model in compiling.models(row, settings.algorithms).items()
    }
    calls = {name: p.call for name, p in prepared.items()}
    seconds = measure.rounds(calls, settings.rounds, lambda: None)
    tick()
    temp = {name: p.temp_bytes or 1 for name, p in prepared.items()}  # 1: there is a logarithm
    return {
        name: (float(np.median(seconds[name])), temp[name], temp[name] / state) for name in prepared
    }


def slope(sizes: Sequence[int], values: Sequence[float]) -> float:
    """Return the slope of a straight line through log(values) against log(sizes)."""
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])
