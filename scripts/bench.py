"""Benchmark of the library against what its users could pick instead.

Modes (`grad` if none is named):

    grad       time of the gradient of sum(ys^2) with respect to parameters and inputs
    forward    time of the outputs alone
    step       latency of one jitted streaming step at batch 1
    compile    time to trace, lower and compile the gradient at a short and a long T, against the
               plain scan; of cells, and of a network of bidirectional layers
    memory     temporary memory of the compiled gradient, against the plain scan
    accuracy   error of the gradient against float64 jax.grad of an independent naive loop
    scaling    time and memory of the gradient against T, B and H
    sequences  time of the gradient with lengths, resets or a mask, against that without
    cells      time of the gradient of every cell of the library, against the plain scan of its step
    devices    the gradient with the batch placed on several devices, by jit against shard_map:
               collectives, rows of the products, time, error; a process for each number of devices
    adaptors   the gradient through the modules for Flax and Equinox, against their own layers

Every competitor gets the same weights and inputs and is compared with a float64 reference before
anything is timed; one that disagrees is not timed. All are timed in turn, round after round.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from benchmarks import (
    accuracy,
    adaptors,
    compiling,
    environment,
    kept,
    network,
    plots,
    race,
    report,
    roster,
    sharding,
)
from benchmarks import every_cell as every
from benchmarks import scaling as scale
from benchmarks import sequences as sequence_options
from benchmarks import step as streaming
from benchmarks.data import GATES, GRID, Row
from benchmarks.options import OPTIONS, Shape, shapes
from benchmarks.progress import progress

from jax_bptt.testing import tables
from jax_bptt.testing.arguments import Parser, names
from jax_bptt.testing.tables import Table
from jax_bptt.training.devices import cores

DEFAULT_CELLS = "elman", "gru", "lstm"
SMOKE_SHAPES = ((6, 4, 3, 5),)
SMOKE_SIDE, SIDE = 64, 1024


class BadArgument(Exception):
    """An argument that cannot be used; the message is for the user."""


class Mode(NamedTuple):
    """A mode of the script.

    Attributes:
      shapes: default (T, B, I, H).
      run: `(arguments, rows, peers that can be imported) -> report`.
      tables: the report for a terminal.
      readme: the report for a Markdown file.
      plot: draws the report to a path; None if there is nothing to draw.
      options: names of the options it takes beside the ones that all take.
      cells: what `--cells` can name.
      default_cells: what it names by default.
    """

    shapes: tuple[Shape, ...]
    run: Callable[[argparse.Namespace, list[Row], list[str]], dict[str, Any]]
    tables: Callable[[dict[str, Any]], list[Table]]
    readme: Callable[[dict[str, Any]], list[Table]]
    plot: Callable[[dict[str, Any], Path], None] | None
    options: tuple[str, ...]
    cells: tuple[str, ...] = tuple(GATES)
    default_cells: tuple[str, ...] = DEFAULT_CELLS


def _settings(args, peers):
    side = SMOKE_SIDE if args.smoke else SIDE
    resident = getattr(args, "rss", False)
    return race.Settings(args.algorithms, peers, args.rounds, args.devices, resident, side)


def _measured(args, rows, measure):
    """Return the rows, those that are kept as they are, the others by `measure(row, tick)`."""
    rest = [row for row in rows if row not in args.kept]
    with progress(len(rest) * args.rounds) as tick:
        return kept.completed(rows, args.kept, lambda row: measure(row, tick))


def _shown(row):
    print("\n" + tables.text(report.race_row(row)), flush=True)
    return row


def _cells(args, rows, _):
    settings = _settings(args, [])
    found = _measured(args, rows, lambda row, tick: _shown(every.run_row(row, settings, tick)))
    return race.report(found, roster.own_name(args.algorithms[0]))


def _race(args, rows, peers):
    settings, task = _settings(args, peers), race.TASKS[args.mode]
    found = _measured(args, rows, lambda row, tick: _shown(race.run_row(row, task, settings, tick)))
    return race.report(found, roster.own_name(args.algorithms[0]))


def _step(args, rows, peers):
    settings = _settings(args, peers)
    found = _measured(args, rows, lambda row, tick: _shown(streaming.run_row(row, settings, tick)))
    return race.report(found, roster.OWN)


def _compile(args, rows, _):
    cells = {row.cell for row in rows}
    with progress(len(cells) * args.rounds) as tick:
        return compiling.compile_times(rows, args.algorithms, args.rounds, tick)


def _memory(args, rows, _):
    with progress(len(rows) * (1 + len(args.algorithms))) as tick:
        return compiling.temporary_memory(rows, args.algorithms, tick)


def _accuracy(args, rows, _):
    with progress(len(rows) * len(accuracy.LIMITS) * len(args.algorithms)) as tick:
        return accuracy.run(rows, args.algorithms, tick)


def _scaling(args, rows, _):
    points = 2 if args.smoke else None
    with progress(len(rows) * 3 * (points or 6)) as tick:
        return scale.run(rows, args.algorithms, args.rounds, points, tick)


def _sequences(args, rows, _):
    with progress(len(rows) * len(args.algorithms) * args.rounds) as tick:
        return sequence_options.run(rows, args.algorithms, args.rounds, tick)


def _devices(args, rows, _):
    if len(args.devices) > 1:
        sizes = dict.fromkeys(row[1:5] for row in rows)
        command = [sys.executable, __file__, "devices", "--cells", ",".join(args.cells)]
        command += ["--shapes", ";".join(",".join(map(str, shape)) for shape in sizes)]
        command += ["--dtype", args.dtype, "--rounds", str(args.rounds)]
        return sharding.run_in_processes(command, args.devices)
    with progress(len(rows)) as tick:
        return sharding.run(rows, args.devices[0], args.rounds, tick)


def _adaptors(args, rows, libraries):
    settings = _settings(args, libraries)
    return adaptors.report(
        _measured(args, rows, lambda row, tick: adaptors.run(row, settings, tick))
    )


RACE_OPTIONS = ("algorithms", "dtype", "peers", "rounds", "devices", "rss", "plot", "add")
MODES = {
    "grad": Mode(GRID, _race, report.race, report.race_readme, plots.race, RACE_OPTIONS),
    "forward": Mode(GRID, _race, report.race, report.race_readme, plots.race, RACE_OPTIONS),
    "step": Mode(
        streaming.SHAPES,
        _step,
        report.race,
        report.race_readme,
        plots.race,
        ("dtype", "peers", "rounds", "plot", "add"),
    ),
    "compile": Mode(
        compiling.COMPILE_SHAPES,
        _compile,
        report.compile_times,
        report.compile_times,
        None,
        ("algorithms", "dtype", "rounds"),
        (*GATES, *network.DEPTHS),
        compiling.COMPILE_CELLS,
    ),
    "memory": Mode(
        compiling.MEMORY_SHAPES,
        _memory,
        report.memory,
        report.memory,
        None,
        ("algorithms", "dtype"),
    ),
    "accuracy": Mode(
        accuracy.SHAPES, _accuracy, report.accuracy, report.accuracy, None, ("algorithms",)
    ),
    "scaling": Mode(
        scale.SHAPES,
        _scaling,
        report.scaling,
        report.scaling,
        plots.scaling,
        ("algorithms", "dtype", "rounds", "plot"),
    ),
    "sequences": Mode(
        sequence_options.SHAPES,
        _sequences,
        report.sequences,
        report.sequences,
        None,
        ("algorithms", "dtype", "rounds"),
    ),
    "cells": Mode(
        every.SHAPES,
        _cells,
        report.race,
        report.race_readme,
        None,
        ("algorithms", "dtype", "rounds", "devices", "add"),
        tuple(every.CELLS),
        tuple(every.CELLS),
    ),
    "devices": Mode(
        sharding.SHAPES,
        _devices,
        report.devices,
        report.devices,
        None,
        ("dtype", "rounds", "devices"),
        (*GATES, *network.DEPTHS),
        sharding.CELLS,
    ),
    "adaptors": Mode(
        adaptors.SHAPES,
        _adaptors,
        adaptors.tables,
        adaptors.readme,
        None,
        ("dtype", "peers", "rounds", "devices", "add"),
        adaptors.CELLS,
        adaptors.CELLS,
    ),
}


def parser() -> Parser:
    """Return the parser of the command line, a subcommand per mode."""
    top = Parser(prog="bench", description=__doc__)
    modes = top.add_subparsers(dest="mode", required=True)
    for name, mode in MODES.items():
        sub = modes.add_parser(name, prog=f"bench {name}")
        sub.add_argument(
            "--shapes",
            type=shapes,
            metavar='"T,B,I,H;..."',
            help=f"default {';'.join(','.join(map(str, shape)) for shape in mode.shapes)}",
        )
        sub.add_argument(
            "--cells",
            type=names(mode.cells),
            default=list(mode.default_cells),
            metavar="C,C",
            help=f"of {', '.join(mode.cells)}; default {','.join(mode.default_cells)}",
        )
        sub.add_argument("--smoke", action="store_true", help="tiny sizes, two rounds")
        sub.add_argument("--json", type=Path, metavar="FILE")
        sub.add_argument(
            "--markdown", type=Path, metavar="FILE", help="between the markers of a page"
        )
        for option in mode.options:
            flag, settings = OPTIONS[option]
            sub.add_argument(flag, **settings)
    return top


def _check_files(args):
    for path in (args.json, getattr(args, "plot", None)):
        if path is not None and not path.parent.is_dir():
            raise BadArgument(f"no folder {path.parent} to write {path.name} in")
    if args.markdown is not None and (reason := tables.unwritable(args.markdown, args.mode)):
        raise BadArgument(reason)
    if getattr(args, "plot", None) is not None:
        try:
            import matplotlib  # noqa: F401
        except ModuleNotFoundError:
            raise BadArgument("--plot needs matplotlib: pip install 'jax_bptt[plot]'") from None


def _number_of_devices(asked: list[int] | None, mode: str) -> list[int]:
    """Return on how many devices to run; on a CPU, make them before JAX has looked for any."""
    counts = asked or sorted({1, cores()})
    if mode == "devices":
        counts = asked or list(sharding.DEVICES)
        if len(counts) > 1:
            return counts  # of other processes
    try:
        if max(counts) > 1:
            jax.config.update("jax_num_cpu_devices", max(counts))
    except RuntimeError:
        pass  # it has looked: there are as many as there are
    there = len(jax.devices())
    if asked is None and mode != "devices":
        return [n for n in counts if n == 1 or (jax.default_backend() == "cpu" and n <= there)]
    if max(counts) > there:
        raise BadArgument(f"--devices {max(counts)}: JAX has only {there}")
    return counts


def _rows(args: argparse.Namespace, mode: Mode) -> list[Row]:
    shapes: tuple[Shape, ...] = args.shapes or (SMOKE_SHAPES if args.smoke else mode.shapes)
    dtype = getattr(args, "dtype", "float32")
    return [Row(cell, *shape, dtype=dtype) for shape in shapes for cell in args.cells]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one mode; return the exit status: 0, 1 if the library disagrees, 2 for bad arguments."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or (argv[0].startswith("-") and argv[0] not in ("-h", "--help")):
        argv = ["grad", *argv]
    args = parser().parse_args(argv)
    mode = MODES[args.mode]
    if "rounds" in mode.options and args.rounds is None:
        args.rounds = 2 if args.smoke else 9
    args.algorithms = getattr(args, "algorithms", ["bptt"])
    asked = getattr(args, "devices", None)
    try:
        _check_files(args)
        args.devices = [1]
        if "devices" in mode.options:
            args.devices = _number_of_devices(asked, args.mode)
        rows = _rows(args, mode)
        described = environment.describe(max(args.devices))
        args.kept = {}
        if getattr(args, "add", False):
            args.kept = kept.kept(args.json, args.mode, described["versions"])
    except (BadArgument, ValueError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    missing = roster.absent(getattr(args, "peers", []))
    peers = [name for name in getattr(args, "peers", []) if name not in missing]
    heading = _heading(described, missing, _left_out(rows, args.devices))
    print("\n".join(heading), flush=True)
    with jax.enable_x64(getattr(args, "dtype", "float32") == "float64"):
        results = mode.run(args, rows, peers)
    document = {
        "schema": 1,
        "mode": args.mode,
        "command": shlex.join(["python", "scripts/bench.py", *argv]),
        "environment": described,
        "rounds": getattr(args, "rounds", None),
        "absent": missing,
        "devices": args.devices,
        **results,
    }
    for table in mode.tables(document):
        print("\n" + tables.text(table))
    if args.json is not None:
        args.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    if args.markdown is not None:
        caption = "  \n".join([*heading, f"`{document['command']}`"])
        tables.write_markdown(args.markdown, args.mode, mode.readme(document), caption)
    if getattr(args, "plot", None) is not None and mode.plot is not None:
        mode.plot(document, args.plot)
    return 0 if document.get("agrees", True) else 1


def _left_out(rows, devices):
    """Return a sentence for every batch that some number of devices does not divide."""
    return [
        f"B = {batch} is not split over {n} devices, which do not divide it"
        for batch in dict.fromkeys(row.B for row in rows)
        for n in devices
        if batch % n
    ]


def _heading(described, missing, left_out):
    """Return the lines that say where this ran, and who and what is missing from it."""
    lines = [environment.sentence(described)]
    lines += [f"absent: {name}, {reason}" for name, reason in missing.items()]
    lines += left_out
    if (load := described["load_before"]) and load > 0.5:
        lines.append(f"other processes wanted {load} cores over the minute before the start")
    return lines


if __name__ == "__main__":
    sys.exit(main())
