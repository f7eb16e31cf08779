"""GradBench's `lstm` evaluation: a tool that speaks its protocol, and a driver that measures it.

    python scripts/gradbench.py                     the tool: messages on stdin, answers on stdout
    python scripts/gradbench.py drive               checks and times it beside plain JAX and PyTorch
    python scripts/gradbench.py write FILE          writes an input in ADBench's file format

GradBench runs a tool on one core unless it is told otherwise, and so does this. The exit status of
`drive` is 1 if a result is wrong or a tool failed, and that of bad arguments 2.
"""

import argparse
import functools
import itertools
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from benchmarks import pages
from gradbench_lstm import driver, instances, models, protocol
from gradbench_lstm.instances import InputError

from jax_bptt.testing import tables
from jax_bptt.testing.arguments import Parser, names, positive

TOOLS = tuple(driver.candidates(0))


def sizes(text: str) -> list[int]:
    """Read positive integers with commas between."""
    return [positive(part) for part in text.split(",")]


def seconds(text: str) -> float:
    """Read a number of seconds, zero or more."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds")
    return value


def make_parser() -> Parser:
    """Return the command line's parser."""
    parser = Parser(prog="gradbench", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    serve = commands.add_parser("serve", help="the tool, which is also the default")
    serve.add_argument("--model", choices=models.NAMES, default=driver.OWN, help="its own model")
    serve.add_argument("--multithreaded", action="store_true", help="do not stay on one core")
    drive = commands.add_parser("drive", help="check and time the tool and its rivals")
    drive.add_argument("--layers", type=sizes, default=[2, 4, 6], metavar="L,..")
    drive.add_argument("--chars", type=sizes, default=[1024, 4096, 8192], metavar="C,..")
    drive.add_argument("--seed", type=int, default=0, help="of the inputs, 0")
    drive.add_argument("--files", type=Path, nargs="+", default=[], help="inputs to take instead")
    drive.add_argument("--tools", type=names(TOOLS), default=list(TOOLS), help=f"{','.join(TOOLS)}")
    drive.add_argument("--seconds", type=seconds, default=1.0, help="a function is run for, 1")
    drive.add_argument(
        "--results", type=Path, help="JSON file of sizes; those in it are not measured again"
    )
    pages.add_option(drive)
    write = commands.add_parser("write", help="write an input in ADBench's format")
    write.add_argument("file", type=Path)
    write.add_argument("--layers", type=positive, default=2)
    write.add_argument("--chars", type=positive, default=1024)
    write.add_argument("--seed", type=int, default=0)
    write.add_argument("--rows", action="store_true", help="the sequence as rows of bits, not text")
    return parser


def serve(args: Any) -> int:
    """Answer messages until the input ends."""
    if not args.multithreaded and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    jax.config.update("jax_enable_x64", True)
    tool = protocol.Tool(args.model, functools.partial(models.load, args.model))
    write = functools.partial(print, end="", flush=True)
    protocol.serve(tool, sys.stdin.buffer, write)
    return 0


def drive(args: Any) -> int:
    """Measure, print and write the tables."""
    page = pages.opened(make_parser(), args.markdown, "gradbench", args.argv)
    rows = driver.merged(args.results, [])
    if args.files:
        inputs = [instances.read(path) for path in args.files]
    else:
        done = [(row["l"], row["c"]) for row in rows]
        shapes = [size for size in itertools.product(args.layers, args.chars) if size not in done]
        inputs = [instances.generate(*shape, args.seed)[0] for shape in shapes]
    for instance in inputs:
        row = driver.measure(instance, args.tools, args.seconds)
        rows = driver.merged(args.results, [*rows, row])
        print(tables.text(driver.here([row])), flush=True)
    failures = [text for row in rows for text in driver.wrong(row)]
    print()
    pages.show(page, *driver.tables(rows))
    print("\n".join(failures), end="\n" * bool(failures), file=sys.stderr)
    return 1 if failures else 0


def write(args: Any) -> int:
    """Write a generated input."""
    instance, text = instances.generate(args.layers, args.chars, args.seed)
    try:
        instances.write(args.file, instance, None if args.rows else text)
    except OSError as error:
        raise InputError(f"cannot write {args.file}: {error}") from None
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return its exit status."""
    argv = sys.argv[1:] if argv is None else list(argv)
    if not argv or (argv[0].startswith("-") and argv[0] not in ("-h", "--help")):
        argv = ["serve", *argv]
    args: Any = make_parser().parse_args(argv)
    args.argv = argv
    try:
        return {"serve": serve, "drive": drive, "write": write}[args.command](args)
    except InputError as error:
        print(f"gradbench: {error}", file=sys.stderr)
        return 2
    except driver.ToolError as error:
        print(f"gradbench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # whoever read the answers is gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


if __name__ == "__main__":
    sys.exit(main())
