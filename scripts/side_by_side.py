"""Whether XLA runs the two halves of a split batch side by side, and what that is worth.

For each cell, the gradient of sum(ys^2) with respect to parameters and inputs is timed with the
batch whole and in halves, in turn, and a profile of the latter says in which part of the time of
the loops over steps another core was at work as well. 0.8 and more is what it should be; near 0,
something makes one half wait for the other (two operations that write the same memory, most
likely), and halves cost time.
"""

import argparse
import gzip
import json
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from benchmarks import environment, measure, report

import jax_bptt as jb

CELLS = ("elman", "gru", "lstm", "lstm_peephole", "mgu", "ugrnn", "ctrnn", "slstm")
SHAPE = 512, 32, 64, 128
SMOKE_SHAPE = 64, 4, 2, 8


def compiled(name: str, shape: tuple[int, ...], split: bool) -> Any:
    """Compile the gradient of one cell; return a function without arguments that computes it."""
    steps, batch, inputs, hidden = shape
    cell = getattr(jb, name)(input_size=inputs, hidden_size=hidden)
    params = cell.init(jax.random.key(0))
    xs = jax.random.normal(jax.random.key(1), (steps, batch, inputs))
    algorithm = jb.bptt(split_batch=split)

    def loss(params, xs):
        return jnp.sum(jb.unroll(cell, params, xs, algorithm=algorithm)[1] ** 2)

    executable = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(params, xs).compile()
    return lambda: jax.block_until_ready(executable(params, xs))


class Span(NamedTuple):
    """What a thread did: the operation's name, the thread, from when to when in microseconds."""

    name: str
    thread: int
    start: float
    end: float


def operations(run: Any) -> list[Span]:
    """Return the operations of one run, from XLA's profiler."""
    options = jax.profiler.ProfileOptions()
    options.host_tracer_level = 3
    options.python_tracer_level = 0
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, profiler_options=options):
            run()
        (trace,) = Path(folder).rglob("*.trace.json.gz")
        with gzip.open(trace) as file:
            events = json.load(file)["traceEvents"]
    # Operations of a program have names in lower case, and the parts of the executor do not.
    return [
        Span(e["name"], e["tid"], e["ts"], e["ts"] + e["dur"])
        for e in events
        if e.get("ph") == "X" and re.fullmatch(r"[a-z][a-z0-9_.-]*", e["name"])
    ]


def share_beside(spans: list[Span]) -> float:
    """Return in which part of the time of the loops over steps another thread was at work.

    A loop over blocks runs once, is entered and left by several threads, and does not count.
    """
    times = Counter(span.name for span in spans)
    loops = [s for s in spans if s.name.startswith("while") and times[s.name] > 1]
    work = [s for s in spans if not s.name.startswith("while")]
    total = sum(loop.end - loop.start for loop in loops)
    beside = 0.0
    for loop in loops:
        reached = loop.start
        others = (s for s in work if s.thread != loop.thread)
        for start, end in sorted((s.start, s.end) for s in others):
            start, end = max(start, reached), min(end, loop.end)
            if start < end:
                beside, reached = beside + end - start, end
    return beside / total if total else 0.0


def line(name: str, shape: tuple[int, ...], rounds: int) -> list[str]:
    """Measure one cell; return the cells of the table's line."""
    calls = {"whole": compiled(name, shape, False), "halves": compiled(name, shape, True)}
    seconds = measure.rounds(calls, rounds, lambda: None)
    low, middle, high = np.quantile(seconds["whole"] / seconds["halves"], [0.25, 0.5, 0.75])
    return [
        name,
        *(f"{1e3 * np.median(seconds[call]):.3g}" for call in calls),
        f"{middle:.2f}",
        f"{low:.2f} to {high:.2f}",
        f"{share_beside(operations(calls['halves'])):.2f}",
    ]


def shape(text: str) -> tuple[int, ...]:
    """Read T,B,I,H."""
    sizes = text.split(",")
    if len(sizes) != 4 or not all(s.isdecimal() and int(s) > 0 for s in sizes):
        raise argparse.ArgumentTypeError(f"must be T,B,I,H such as 512,32,64,128, got {text!r}")
    if int(sizes[0]) < 2 or int(sizes[1]) < 2:
        raise argparse.ArgumentTypeError(f"T and B must be 2 or more to be split, got {text!r}")
    return tuple(map(int, sizes))


def make_parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    parser = argparse.ArgumentParser(
        prog="side_by_side.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--cells", nargs="+", choices=CELLS, default=list(CELLS), help="all")
    parser.add_argument("--shape", type=shape, default=SHAPE, metavar="T,B,I,H", help="sizes")
    parser.add_argument("--rounds", type=int, default=9, metavar="N", help="turns of each (9)")
    parser.add_argument("--smoke", action="store_true", help="a tiny shape, one round")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    args = make_parser().parse_args(argv)
    sizes, rounds = (SMOKE_SHAPE, 1) if args.smoke else (args.shape, args.rounds)
    title = "Gradient in float32 at T, B, I, H = " + ", ".join(map(str, sizes))
    header = ["cell", "whole ms", "halves ms", "speedup", "quartiles", "both cores at work"]
    lines = [line(name, sizes, rounds) for name in args.cells]
    print(report.text(report.Table(title, header, lines)))
    print(environment.sentence(environment.describe(1)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
