"""The mode `budgets`: `checkpointed` within budgets of memory, against `bptt`."""

import re
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jax_bptt as jb
from benchmarks import library, measure
from benchmarks.data import Row
from benchmarks.race import Settings

SHAPES = ((8192, 8, 256, 256),)
BUDGETS = 6
"""From the least possible to what `bptt` takes, in equal ratios."""

LONG, SHARE = 100_000, 0.02
"""Steps from which there is one budget alone, and its share of the memory of all states."""


def run_row(row: Row, settings: Settings, tick: Callable[[], Any]) -> list[dict[str, Any]]:
    """Compile the gradient within each budget, then time all that run few steps twice."""
    cell = library.cell_of(row)
    params = cell.init(jax.random.key(0))
    xs = jax.random.normal(jax.random.key(1), (row.T, row.B, row.I), row.dtype)
    states = row.T * _bytes(jax.eval_shape(lambda p: cell.initial_state(p, (row.B,)), params))

    _, ys = jax.eval_shape(lambda p, x: jb.unroll(cell, p, x), params, xs)
    args = params, xs, jnp.ones(ys.shape, ys.dtype)

    call, found = _compiled(cell, jb.bptt(), args)
    calls, entries = [call], [{"name": "bptt", "budget": None, **found}]
    tick()
    for budget in _budgets(cell, params, xs, states, found["temp_bytes"]):
        algorithm = jb.checkpointed(memory_budget=budget)
        told = jb.explain(cell, params, xs, algorithm=algorithm)
        again = int(re.findall(r"runs (\d+) steps", told)[0])
        call, found = _compiled(cell, algorithm, args)
        calls.append(call if again <= 2 * row.T else None)
        entries.append({"name": "checkpointed", "budget": budget, "again": again, **found})
        tick()

    seconds = [[] for _ in calls]
    warm_up = row.T < LONG  # a run of a minute needs none
    for turn in range(settings.rounds + warm_up):
        for call, own in zip(calls, seconds, strict=True):
            if call is None:
                continue
            begin = time.perf_counter()
            call()
            if turn >= warm_up:
                own.append(time.perf_counter() - begin)
    for entry, own in zip(entries, seconds, strict=True):
        entry["seconds"] = float(np.median(own)) if own else None
        entry["share_of_states"] = entry["temp_bytes"] / states
        entry["time_ratio"] = entry["seconds"] / entries[0]["seconds"] if own else None
    met = all(e["budget"] is None or e["temp_bytes"] <= e["budget"] for e in entries)
    return [{**row._asdict(), "competitors": entries, "met": met}]


def _budgets(cell: jb.Cell, params: Any, xs: Any, states: int, most: int) -> list[int]:
    if xs.shape[0] >= LONG:
        return [int(SHARE * states)]
    try:
        jb.explain(cell, params, xs, algorithm=jb.checkpointed(memory_budget=1))
    except ValueError as error:
        least = int(re.findall(r"shapes, (\d+) bytes", str(error))[0])
    else:
        raise AssertionError("a byte is enough")
    return [int(np.ceil(b)) for b in np.geomspace(least, max(most, 2 * least), BUDGETS)]


def _compiled(cell: jb.Cell, algorithm: jb.Algorithm, args: Any) -> tuple[Any, dict[str, Any]]:
    def program(params, xs, d_ys):
        def outputs(params, xs):
            return jb.unroll(cell, params, xs, algorithm=algorithm)[1]

        ys, pull = jax.vjp(outputs, params, xs)
        return ys, pull(d_ys)

    made = measure.compiled(program, args)
    temp = measure.temporary(made.executable, None)
    return made.call, {"compile_seconds": made.seconds, "temp_bytes": temp}


def _bytes(tree: Any) -> int:
    return sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(tree))
