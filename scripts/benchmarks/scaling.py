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


def sizes(axis: str, row: Row, factor: int, points: int) -> list[int]:
    """Return `points` sizes of an axis, each `factor` times the one before, from the row's on."""
    return [getattr(row, axis) * factor**k for k in range(points)]


def points_to(axis: str, row: Row, factor: int) -> int:
    """Return how many sizes it takes from the row's to the end of the axis; at least two."""
    return max(2, 1 + round(np.log(AXES[axis] / getattr(row, axis)) / np.log(factor)))


def run_row(row: Row, settings: Settings, tick: Callable[[], Any]) -> list[dict[str, Any]]:
    """Measure along each axis, from the row upwards with the other axes fixed."""
    results = []
    for axis in AXES:
        factor = 4 if axis == "T" else 2
        count = SMOKE_POINTS if settings.smoke else points_to(axis, row, factor)
        values = sizes(axis, row, factor, count)
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
