"""Benchmark of the library against what its users could pick instead.

Modes (`grad` if none is named):

    grad       time of the gradient of sum(ys^2) with respect to parameters and inputs
    forward    time of the outputs alone
    step       latency of one jitted streaming step at batch 1
    compile    time to trace, lower and compile the gradient at a short and a long T, against the
               plain scan; of cells, and of a network of bidirectional layers
    memory     temporary memory of the compiled gradient, against the plain scan
    budgets    temporary memory of the gradient by `checkpointed()` within six budgets, the steps
               run again, compile time, and time where they are few; one budget at T = 100,000
    accuracy   error of the gradient against float64 jax.grad of an independent naive loop
    scaling    time and memory of the gradient against T, B and H
    curve      time and memory of the whole truncation curve, against one gradient
    sequences  time of the gradient with lengths, resets or a mask, against that without
    cells      time of the gradient of every cell of the library, against the plain scan of its step
    associative  that of diagonal linear cells by `bptt()` and by `associative()`, with the memory
    devices    the gradient with the batch placed on several devices, by jit against shard_map:
               collectives, rows of the products, time, error; a process for each number of devices
    adaptors   the gradient through the modules for Flax and Equinox, against their own layers
    compile-for   h200, v5e or both: what their compilers make of the library, without such a device
    accelerator   groups of times on a GPU or a TPU, as scripts/bench_accelerator.py

Every competitor gets the same weights and inputs and is compared with a float64 reference before
anything is timed; one that disagrees is not timed. All are timed in turn, round after round.
"""

import importlib
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from benchmarks import environment, roster, sharding
from benchmarks.data import Row
from benchmarks.modes import MODES
from benchmarks.options import OPTIONS, shapes

from jax_bptt.testing import tables
from jax_bptt.testing.arguments import Parser, names, output
from jax_bptt.training.devices import cores

SMOKE_SHAPES = ((6, 4, 3, 5),)
COMMANDS = {"compile-for": "compile_for.command", "accelerator": "bench_accelerator"}
"""Modules of the modes that race no rows of (T, B, I, H): they have command lines of their own."""


def parser() -> Parser:
    """Return the parser of the command line, a subcommand per mode."""
    top = Parser(prog="bench", description=__doc__)
    modes = top.add_subparsers(dest="mode", required=True)
    for name, mode in MODES.items():
        sub = modes.add_parser(name, prog=f"bench {name}")
        # Of the options that the mode does not take, and of one whose default is the mode's.
        sub.set_defaults(dtype="float32", peers=[], rounds=None, devices=None, add=False)
        sub.set_defaults(algorithms=list(mode.algorithms))
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
        sub.add_argument("--json", type=output, metavar="FILE")
        sub.add_argument(
            "--markdown", type=Path, metavar="FILE", help="between the markers of a page"
        )
        for option in mode.options:
            sub.add_argument(f"--{option}", **OPTIONS[option])
    return top


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
        raise ValueError(f"--devices {max(counts)}: JAX has only {there}")
    return counts


def _kept(path: Path | None, mode: str, versions: dict[str, Any]) -> dict[Row, list[Any]]:
    """Return what a JSON file has of each row, for `--add`; nothing if there is no file."""
    if path is None:
        raise ValueError("--add adds to a file: name it by --json FILE")
    if not path.exists():
        return {}
    old = json.loads(path.read_text(encoding="utf-8"))
    if old["mode"] != mode:
        raise ValueError(f"--add: {path} has the mode {old['mode']}, not {mode}")
    if old["environment"]["versions"] != versions:
        raise ValueError(f"--add: {path} was measured with other versions")
    found: dict[Row, list[Any]] = {}
    for line in old["rows"]:
        found.setdefault(Row(*(line[field] for field in Row._fields)), []).append(line)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Run one mode; return the exit status: 0, 1 if the library disagrees, 2 for bad arguments."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or (argv[0].startswith("-") and argv[0] not in ("-h", "--help")):
        argv = ["grad", *argv]
    if argv[0] in COMMANDS:
        return importlib.import_module(COMMANDS[argv[0]]).main(argv[1:])
    args = parser().parse_args(argv)
    mode = MODES[args.mode]
    args.rounds = args.rounds or (2 if args.smoke else 9)
    try:
        if args.markdown is not None and (reason := tables.unwritable(args.markdown, args.mode)):
            raise ValueError(reason)
        args.devices = (
            _number_of_devices(args.devices, args.mode) if "devices" in mode.options else [1]
        )
        sizes = args.shapes or (SMOKE_SHAPES if args.smoke else mode.shapes)
        rows = [Row(cell, *size, dtype=args.dtype) for size in sizes for cell in args.cells]
        described = environment.describe(max(args.devices))
        args.kept = _kept(args.json, args.mode, described["versions"]) if args.add else {}
    except ValueError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    missing = roster.absent(args.peers)
    peers = [name for name in args.peers if name not in missing]
    heading = _heading(described, missing, rows, args.devices)
    print("\n".join(heading), flush=True)
    with jax.enable_x64(args.dtype == "float64"):
        results = mode.run(args, rows, peers)
    document = {
        "schema": 1,
        "mode": args.mode,
        "command": shlex.join(["python", "scripts/bench.py", *argv]),
        "environment": described,
        "rounds": args.rounds if "rounds" in mode.options else None,
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
        page = (mode.page or mode.tables)(document)
        tables.write_markdown(args.markdown, args.mode, page, caption)
    return 0 if document.get("agrees", True) else 1


def _heading(described, missing, rows, devices):
    """Return the lines that say where this ran, and who and what is missing from it."""
    lines = [environment.sentence(described)]
    lines += [f"absent: {name}, {reason}" for name, reason in missing.items()]
    lines += [
        f"B = {batch} is not split over {n} devices, which do not divide it"
        for batch in dict.fromkeys(row.B for row in rows)
        for n in devices
        if batch % n
    ]
    if (load := described["load_before"]) and load > 0.5:
        lines.append(f"other processes wanted {load} cores over the minute before the start")
    return lines


if __name__ == "__main__":
    sys.exit(main())
