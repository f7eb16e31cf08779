"""The mode `scaling`: time and temporary memory of the gradient against T, B and H."""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from benchmarks import compiling, measure
from benchmarks.data import Row, draw

SHAPES = ((256, 4, 32, 64),)
AXES = {"T": 65_536, "B": 256, "H": 1024}
"""The axes that are varied, and how far each goes from where the row has it, or from above."""


def sizes(axis: str, row: Row, factor: int, points: int) -> list[int]:
    """Return `points` sizes of an axis, each `factor` times the one before, from the row's on."""
    return [getattr(row, axis) * factor**k for k in range(points)]


def points_to(axis: str, row: Row, factor: int) -> int:
    """Return how many sizes it takes from the row's to the end of the axis; at least two."""
    return max(2, 1 + round(np.log(AXES[axis] / getattr(row, axis)) / np.log(factor)))


def run(
    rows: list[Row], algorithms: list[str], rounds: int, points: int | None, tick: Callable
) -> dict[str, Any]:
    """Measure every row along each axis; return the JSON report.

    Args:
      rows: where the axes cross; each axis is varied from there upwards with the others fixed.
      algorithms: of the library.
      rounds: interleaved rounds per size.
      points: sizes per axis; None for as many as reach the end of the axis.
      tick: called after each size.
    """
    results = []
    for row in rows:
        for axis in AXES:
            factor = 4 if axis == "T" else 2
            count = points_to(axis, row, factor) if points is None else points
            values = sizes(axis, row, factor, count)
            at = [_measure(row._replace(**{axis: v}), algorithms, rounds, tick) for v in values]
            for name in at[0]:
                results.append(
                    {
                        **row._asdict(),
                        "axis": axis,
                        "sizes": values,
                        "name": name,
                        "seconds": [point[name][0] for point in at],
                        "temp_bytes": [point[name][1] for point in at],
                        "arrays_of_tbh": [point[name][2] for point in at],
                        "time_slope": slope(values, [point[name][0] for point in at]),
                        "memory_slope": slope(values, [point[name][1] for point in at]),
                    }
                )
    return {"rows": results}


def _measure(row, algorithms, rounds, tick):
    """Return name -> (median seconds, temporary bytes, the same in arrays of [T, B, H])."""
    data = draw(row)
    state = row.T * row.B * row.H * jnp.dtype(row.dtype).itemsize
    prepared = {
        name: measure.prepare(model, data, measure.GRADIENT, None)
        for name, model in compiling.models(row, algorithms).items()
    }
    seconds = measure.rounds({name: p.call for name, p in prepared.items()}, rounds, lambda: None)
    tick()
    temp = {name: p.temp_bytes or 1 for name, p in prepared.items()}  # 1: there is a logarithm
    return {
        name: (float(np.median(seconds[name])), temp[name], temp[name] / state) for name in prepared
    }


def slope(sizes: Sequence[int], values: Sequence[float]) -> float:
    """Return the slope of a straight line through log(values) against log(sizes)."""
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])
