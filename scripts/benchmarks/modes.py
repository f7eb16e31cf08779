"""The modes of the benchmark: what each measures by default, and how it runs and shows its rows."""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import (
    accuracy,
    adaptors,
    budgets,
    compiling,
    curve,
    every_cell,
    measure,
    network,
    race,
    report,
    roster,
    scaling,
    sequences,
    sharding,
    step,
)
from benchmarks.data import GATES, GRID, Row
from benchmarks.options import Shape
from benchmarks.progress import progress
from jax_bptt.testing import tables
from jax_bptt.testing.tables import Table

SCRIPT = Path(__file__).parents[1] / "bench.py"

Report = dict[str, Any]


class Mode(NamedTuple):
    """A mode of the script."""

    shapes: tuple[Shape, ...]  # default (T, B, I, H)
    # `(arguments, rows, peers that can be imported) -> report`
    run: Callable[[argparse.Namespace, list[Row], list[str]], Report]
    tables: Callable[[Report], list[Table]]  # the report for a terminal
    options: tuple[str, ...]  # names of the options it takes beside the ones that all take
    # the report for a Markdown file, None where it is that for a terminal
    page: Callable[[Report], list[Table]] | None = None
    cells: tuple[str, ...] = tuple(GATES)  # what `--cells` can name
    default_cells: tuple[str, ...] = ("elman", "gru", "lstm")  # what it names by default
    algorithms: tuple[str, ...] = ("bptt",)  # of the library, by default


def _settings(args: argparse.Namespace, peers: list[str]) -> race.Settings:
    return race.Settings(args.algorithms, peers, args.rounds, args.devices, args.smoke)


def _measured(args, rows, ticks, measure):
    """Return the lines of all rows, kept ones as they are, others by `measure(row, tick)`.

    A row that is measured takes so many ticks of the bar; kept ones that are not asked for are
    last.
    """
    kept = args.kept
    with progress(sum(row not in kept for row in rows) * ticks) as tick:
        asked = [kept[row] if row in kept else measure(row, tick) for row in rows]
    others = [lines for row, lines in kept.items() if row not in rows]
    return [line for lines in asked + others for line in lines]


def _raced(
    measure: Callable[[Row, race.Settings, Callable[[], Any]], Report],
    own_name: Callable[[str], str] = roster.own_name,
) -> Callable[..., Report]:
    """Return what runs a race and prints its rows as they come; ratios are to `own_name`."""

    def run(args, rows, peers):
        settings = _settings(args, peers)

        def shown(row, tick):
            found = measure(row, settings, tick)
            print("\n" + tables.text(report.race_row(found)), flush=True)
            return [found]

        found = _measured(args, rows, args.rounds, shown)
        return race.report(found, own_name(args.algorithms[0]))

    return run


def _adaptors(args, rows, libraries):
    settings = _settings(args, libraries)

    def measure(row, tick):
        return [adaptors.run_row(row, settings, tick)]

    return adaptors.report(_measured(args, rows, args.rounds, measure))


def _compile(args, rows, _):
    cells = {row.cell for row in rows}
    with progress(len(cells) * args.rounds) as tick:
        return compiling.compile_times(rows, args.algorithms, args.rounds, tick)


def _each(
    measure: Callable[[Row, race.Settings, Callable[[], Any]], list[Report]],
    ticks: Callable[[race.Settings], int],
) -> Callable[..., Report]:
    """Return what measures row by row, each in so many ticks, and joins the lines of the report."""

    def run(args, rows, _):
        settings = _settings(args, [])

        def lines(row, tick):
            return measure(row, settings, tick)

        found = _measured(args, rows, ticks(settings), lines)
        return {"rows": found, "agrees": all(line.get("met", True) for line in found)}

    return run


def _devices(args, rows, _):
    if len(args.devices) > 1:
        sizes = dict.fromkeys(row[1:5] for row in rows)
        command = [sys.executable, str(SCRIPT), "devices", "--cells", ",".join(args.cells)]
        command += ["--shapes", ";".join(",".join(map(str, shape)) for shape in sizes)]
        command += ["--dtype", args.dtype, "--rounds", str(args.rounds)]
        return sharding.run_in_processes(command, args.devices)
    return _each(sharding.run_row, lambda settings: 1)(args, rows, _)


_GRAD = Mode(
    GRID,
    _raced(partial(race.run_row, measure.GRADIENT)),
    report.race,
    ("algorithms", "dtype", "peers", "rounds", "devices", "add"),
    page=report.race_readme,
)
_CELLS = Mode(
    every_cell.SHAPES,
    _raced(every_cell.run_row),
    report.race,
    ("algorithms", "dtype", "rounds", "devices", "add"),
    page=report.race_readme,
    cells=tuple(every_cell.CELLS),
    default_cells=tuple(every_cell.CELLS),
)
MODES = {
    "grad": _GRAD,
    "forward": _GRAD._replace(run=_raced(partial(race.run_row, measure.FORWARD))),
    "step": _GRAD._replace(
        shapes=step.SHAPES,
        run=_raced(step.run_row, lambda _: roster.OWN),
        options=("dtype", "peers", "rounds", "add"),
    ),
    "cells": _CELLS,
    "associative": _CELLS._replace(
        shapes=every_cell.DIAGONAL_SHAPES,
        cells=("min_gru", "min_lstm", "lru"),
        default_cells=("min_gru", "lru"),
        algorithms=("bptt", "associative"),
    ),
    "compile": Mode(
        compiling.COMPILE_SHAPES,
        _compile,
        report.compile_times,
        ("algorithms", "dtype", "rounds"),
        cells=(*GATES, *network.DEPTHS),
        default_cells=compiling.COMPILE_CELLS,
    ),
    "memory": Mode(
        compiling.MEMORY_SHAPES,
        _each(compiling.temporary_memory, lambda settings: 1 + len(settings.algorithms)),
        report.memory,
        ("algorithms", "dtype", "add"),
    ),
    "budgets": Mode(
        budgets.SHAPES,
        _each(budgets.run_row, lambda settings: 1 + budgets.BUDGETS),
        report.budgets,
        ("dtype", "rounds"),
        default_cells=("gru", "lstm"),
    ),
    "accuracy": Mode(
        accuracy.SHAPES,
        _each(accuracy.run_row, lambda settings: len(accuracy.LIMITS) * len(settings.algorithms)),
        report.accuracy,
        ("algorithms",),
    ),
    "scaling": Mode(
        scaling.SHAPES,
        _each(scaling.run_row, scaling.ticks),
        report.scaling,
        ("algorithms", "dtype", "rounds", "add"),
    ),
    "curve": Mode(
        curve.SHAPES,
        _each(curve.run_row, lambda settings: settings.rounds),
        report.curve,
        ("dtype", "rounds", "add"),
        default_cells=("lstm",),
    ),
    "sequences": Mode(
        sequences.SHAPES,
        _each(sequences.run_row, lambda settings: len(settings.algorithms) * settings.rounds),
        report.sequences,
        ("algorithms", "dtype", "rounds", "add"),
    ),
    "devices": Mode(
        sharding.SHAPES,
        _devices,
        report.devices,
        ("dtype", "rounds", "devices"),
        cells=(*GATES, *network.DEPTHS),
        default_cells=sharding.CELLS,
    ),
    "adaptors": Mode(
        adaptors.SHAPES,
        _adaptors,
        adaptors.tables,
        ("dtype", "peers", "rounds", "devices", "add"),
        page=adaptors.readme,
        cells=adaptors.CELLS,
        default_cells=adaptors.CELLS,
    ),
}
