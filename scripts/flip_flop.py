"""How a network keeps three bits: the fixed points of a trained flip-flop.

Sussillo and Barak (2013): pulses set three bits, and a network that answers what they are has eight
stable states, one for each pattern, with saddles between, on the border of what is drawn to one and
to another. This trains a network of 16 units, searches while no pulse comes, from between the
states of a run, with noise, and prints what there is.
"""

import functools
import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from benchmarks import pages, pictures

import jax_bptt as jb
from jax_bptt.diagnostics import FixedPoints, Trajectory, fixed_points, trajectory
from jax_bptt.testing import tables
from jax_bptt.testing.arguments import Parser, output, positive
from jax_bptt.training import loop, losses, tasks

BITS = 3
CELLS = {"gru": jb.gru, "lstm": jb.lstm, "elman": jb.elman}
LENGTH, BATCH = 50, 64
SEQUENCES = 128
"""In the run from whose states the search begins."""

NOISE = 0.3
"""Standard deviation of what is added to those states, in units of the state."""

NEAR = 0.5
"""An output less than this from zero is of no bit."""


def trained(cell: jb.Cell, updates: int, seed: int) -> tuple[Any, float]:
    """Return parameters of a network that keeps bits, and its mean squared error at the end."""
    layer = jb.layer(cell)
    draw = functools.partial(tasks.flip_flop, length=LENGTH, batch=BATCH, bits=BITS)

    def score(ys, targets):
        return jnp.mean((ys - targets) ** 2)

    settings = loop.Settings(1e-2, 1.0, updates)
    begun = loop.start(layer.init(jax.random.key(seed)), None, settings)
    *_, last = loop.fit(losses.fresh(layer, score), begun, tasks.drawn(draw, seed), settings)
    return last.learner.params, last.loss


def searched(cell: jb.Cell, params: Any, count: int, seed: int) -> tuple[Trajectory, FixedPoints]:
    """Return a run on fresh data, and the fixed points found from between its states, with noise.

    Saddles that lie between several memories are far from the run itself, which hurries by.
    """
    rng = np.random.default_rng([seed, 1])
    xs, _ = tasks.flip_flop(rng, length=LENGTH, batch=SEQUENCES, bits=BITS)
    run = trajectory(cell, params, jnp.asarray(xs, jnp.result_type(float)))
    places = rng.integers(0, LENGTH, (2, count)), rng.integers(0, SEQUENCES, (2, count))
    share = rng.uniform(size=(count, 1))

    def candidates(states):
        one, other = np.asarray(states)[places]
        noise = NOISE * rng.normal(size=one.shape)
        return (share * one + (1 - share) * other + noise).astype(one.dtype)

    begun = jax.tree.map(candidates, run.states)
    return run, fixed_points(cell, params, jnp.zeros(BITS), begun)


def patterns(cell: jb.Cell, params: Any, found: FixedPoints) -> list[str]:
    """Return the bits that a point answers, 0 for one that is undecided."""
    states = jax.tree.map(jnp.asarray, found.states)
    ys = np.asarray(cell.readout(cell.prepare(params), states))
    return ["".join("0" if abs(y) < NEAR else "+" if y > 0 else "-" for y in each) for each in ys]


def table(bits: list[str], found: FixedPoints, title: str) -> tables.Table:
    """Return a line for every fixed point."""
    lines = []
    for k, unstable in enumerate(found.unstable):
        moduli = np.abs(found.eigenvalues[k, : BITS + 1])
        largest = ", ".join(f"{modulus:.3f}" for modulus in moduli)
        kind = "stable" if unstable == 0 else "saddle"
        speed, count = f"{found.speeds[k]:.0e}", str(found.counts[k])
        lines.append([bits[k], kind, str(unstable), largest, speed, count])
    header = ["bits", "kind", "unstable directions", "largest moduli", "q", "candidates"]
    return tables.Table(title, header, lines)


def summary(bits: list[str], found: FixedPoints) -> tables.Table:
    """Return how many points there are by unstable directions, and which patterns they answer."""
    lines = []
    for number in np.unique(found.unstable):
        answered = [b for b, of in zip(bits, found.unstable, strict=True) if of == number]
        undecided = Counter(b.count("0") for b in answered)
        words = ", ".join(f"{n} with {zeros} undecided" for zeros, n in sorted(undecided.items()))
        lines.append([str(number), str(len(answered)), str(len(set(answered))), words])
    header = ["unstable directions", "points", "patterns", "bits"]
    return tables.Table("Fixed points by the number of their unstable directions", header, lines)


def parser() -> Parser:
    """Return the parser of the command line."""
    top = Parser(prog="flip_flop", description=__doc__)
    top.add_argument("--cell", choices=CELLS, default="gru", help="default gru")
    top.add_argument("--units", type=positive, default=16, help="default 16")
    top.add_argument("--updates", type=positive, default=2000, help="default 2000")
    top.add_argument("--candidates", type=positive, default=1024, help="default 1024")
    top.add_argument("--seed", type=int, default=0, help="default 0")
    top.add_argument("--plot", type=output, metavar="FILE", help="draw the phase plane")
    pages.add_option(top)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Train, search and print; return the exit status."""
    args = parser().parse_args(argv)
    page = pages.opened(parser(), args.markdown, "flip_flop", argv)
    with jax.enable_x64(True):
        results, run, found = studied(args)
    pages.show(page, *results)
    if args.plot is not None:
        from jax_bptt.diagnostics import plots

        pictures.save(plots.fixed_points(found, run).figure, args.plot)
    return 0


def studied(args: Namespace) -> tuple[list[tables.Table], Trajectory, FixedPoints]:
    """Train and search, and return the tables, the run and the points that count."""
    cell = CELLS[args.cell](BITS, args.units, output_size=BITS)
    params, loss = trained(cell, args.updates, args.seed)
    run, all_found = searched(cell, params, args.candidates, args.seed)
    found = all_found.where(all_found.converged & ~all_found.outliers)
    left = len(all_found.speeds) - len(found.speeds)
    title = (
        f"{args.cell} of {args.units} units, mean squared error {loss:.1e}: fixed points without "
        f"input ({left} left out, as outliers or not converged)"
    )
    bits = patterns(cell, params, found)
    return [summary(bits, found), table(bits, found, title)], run, found


if __name__ == "__main__":
    sys.exit(main())
