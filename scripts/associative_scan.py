"""Time of a diagonal linear cell's gradient: the sequential scan against the associative one.

Both compute the gradient of sum(ys^2) with respect to parameters and inputs. They are compared with
each other before they are timed, and timed in turn, round after round. A speedup above 1 is the
associative scan's.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from benchmarks import environment, measure

import jax_bptt as jb
from jax_bptt.testing import tables

CELLS = {"min_gru": jb.min_gru, "lru": jb.lru}
ALGORITHMS = {"sequential": jb.bptt(), "associative": jb.associative()}
SHAPES = (
    (64, 1, 64),
    (64, 32, 64),
    (512, 1, 64),
    (512, 1, 512),
    (512, 32, 64),
    (512, 32, 512),
    (8192, 1, 64),
    (8192, 1, 512),
    (8192, 32, 64),
)
SMOKE_SHAPES = ((8, 2, 4),)


def compiled(cell: jb.Cell, algorithm: jb.Algorithm, params: Any, xs: Any) -> Any:
    """Compile the gradient of sum(ys^2) with respect to parameters and inputs."""

    def loss(params, xs):
        return jnp.sum(jb.unroll(cell, params, xs, algorithm=algorithm)[1] ** 2)

    return jax.jit(jax.grad(loss, argnums=(0, 1))).lower(params, xs).compile()


def difference(got: Any, want: Any) -> float:
    """Return the largest difference of two gradients, relative to each leaf's largest entry."""

    def relative(g, w):
        return float(jnp.max(jnp.abs(g - w)) / jnp.max(jnp.abs(w)))

    return max(jax.tree.leaves(jax.tree.map(relative, got, want)))


def line(name: str, shape: tuple[int, int, int], rounds: int) -> list[str]:
    """Time both on one cell and shape; return the cells of the table's line."""
    steps, batch, hidden = shape
    cell = CELLS[name](input_size=hidden, hidden_size=hidden)
    params = cell.init(jax.random.key(0))
    xs = jax.random.normal(jax.random.key(1), (steps, batch, hidden))
    runs = {n: compiled(cell, a, params, xs) for n, a in ALGORITHMS.items()}
    off = difference(runs["associative"](params, xs), runs["sequential"](params, xs))
    if not off <= measure.TOLERANCE["float32"]:
        raise SystemExit(f"{name} {shape}: the gradients differ by {off:.1e}, nothing is timed")
    calls = {n: lambda r=r: jax.block_until_ready(r(params, xs)) for n, r in runs.items()}
    seconds = measure.rounds(calls, rounds, lambda: None)
    speedups = seconds["sequential"] / seconds["associative"]
    low, middle, high = np.quantile(speedups, [0.25, 0.5, 0.75])
    times = [f"{1e3 * np.median(seconds[n]):.3g}" for n in ALGORITHMS]
    memory = [runs[n].memory_analysis().temp_size_in_bytes / 2**20 for n in ALGORITHMS]
    return [
        name,
        *map(str, shape),
        *times,
        f"{middle:.2f}",
        f"{low:.2f} to {high:.2f}",
        *(f"{m:.3g}" for m in memory),
        f"{off:.0e}",
    ]


def shape(text: str) -> tuple[int, int, int]:
    """Read T,B,H."""
    sizes = text.split(",")
    if len(sizes) != 3 or not all(s.isdecimal() and int(s) > 0 for s in sizes):
        raise argparse.ArgumentTypeError(f"must be T,B,H such as 512,32,64, got {text!r}")
    steps, batch, hidden = map(int, sizes)
    return steps, batch, hidden


def make_parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    parser = argparse.ArgumentParser(
        prog="associative_scan.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--cells", nargs="+", choices=CELLS, default=list(CELLS), help="all")
    parser.add_argument(
        "--shapes", nargs="+", type=shape, default=SHAPES, metavar="T,B,H", help="sizes, I = H"
    )
    parser.add_argument("--rounds", type=int, default=9, metavar="N", help="turns of each (9)")
    parser.add_argument("--smoke", action="store_true", help="one tiny shape, one round")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    args = make_parser().parse_args(argv)
    shapes, rounds = (SMOKE_SHAPES, 1) if args.smoke else (args.shapes, args.rounds)
    header = ["cell", "T", "B", "H", "sequential ms", "associative ms", "speedup", "quartiles"]
    header += ["sequential MiB", "associative MiB", "difference"]
    lines = [line(name, shape, rounds) for name in args.cells for shape in shapes]
    print(tables.text(tables.Table("Gradient of a diagonal linear cell, float32", header, lines)))
    print(environment.sentence(environment.describe(1)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
