"""Newton's method over time, against the largest Lyapunov exponent of the network.

Random tanh networks of D units, s_t = tanh(W s_{t-1} + x_t) with W = g N(0, 1) / sqrt(D) and a
sinusoid as input, for gains g on either side of where the exponent crosses zero (X. Gonzalez et al.
2025, "Predictability enables parallelization of nonlinear state space models", arXiv:2508.16817).
In float64. What it takes in time: `python scripts/bench.py grad --algorithms bptt,newton`.
"""

import math
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from benchmarks import pages, pictures

import jax_bptt as jb
from jax_bptt.testing import tables
from jax_bptt.testing.arguments import Parser, positive

UNITS, STEPS, SEEDS = 32, 512, 3
LIMIT = 128
"""Iterations after which the plain scan takes over."""
GAINS = (0.5, 0.7, 0.9, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.8, 2.0)
INPUT = 0.1
"""Scale of the input weights: a strong input keeps a network from chaos."""
METHODS = {
    "full": dict(jacobian="full"),
    "diagonal": dict(jacobian="diagonal"),
    "damped": dict(damping=0.2),
    "diagonal, trust region": dict(jacobian="diagonal", trust_region=1.0),
}


class Point(NamedTuple):
    """A gain, the exponents [seeds] and, by method, the iterations [seeds], NaN for too many."""

    gain: float
    exponents: np.ndarray
    iterations: dict[str, np.ndarray]


def network(gain: float, seed: int, steps: int) -> tuple[jb.Cell, Any, jax.Array]:
    """Return the cell, its parameters and its inputs [T, 1]."""
    rng = np.random.default_rng([seed, 0])
    cell = jb.elman(1, UNITS, dtype=jnp.float64)
    params = cell.init(jax.random.key(seed))
    w_s = gain * rng.normal(size=(UNITS, 1, UNITS)) / np.sqrt(UNITS)
    w_x = INPUT * rng.normal(size=(1, 1, UNITS))
    params = params._replace(w_s=jnp.asarray(w_s), w_x=jnp.asarray(w_x))
    return cell, params, jnp.sin(jnp.arange(steps, dtype=jnp.float64) / 5)[:, None]


def measure(gain: float, methods: Sequence[str], steps: int) -> Point:
    """Return the exponents and the iterations of networks with a gain."""
    exponents, iterations = [], {name: [] for name in methods}
    for seed in range(SEEDS):
        cell, params, xs = network(gain, seed, steps)
        exponents.append(float(jb.largest_exponent(cell, params, xs)))
        for name in methods:
            options = METHODS[name] | {"max_iterations": LIMIT, "block_length": steps}
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that a block was run sequentially
                found = jb.newton_solution(cell, params, xs, algorithm=jb.newton(**options))
                jax.effects_barrier()
            iterations[name].append(int(found.iterations) if found.converged else math.nan)
    return Point(gain, np.array(exponents), {k: np.array(v) for k, v in iterations.items()})


def table(points: list[Point], steps: int) -> tables.Table:
    """Return the table: the medians over the seeds."""

    def count(iterations):
        median = np.median(np.where(np.isnan(iterations), np.inf, iterations))
        return f"{median:.0f}" if median <= LIMIT else f"more than {LIMIT}"

    methods = list(points[0].iterations)
    lines = [
        [f"{p.gain}", f"{np.median(p.exponents):.3f}", *(count(p.iterations[m]) for m in methods)]
        for p in points
    ]
    title = f"Iterations for T = {steps}, D = {UNITS}, medians of {SEEDS} networks"
    return tables.Table(title, ["gain", "largest exponent", *methods], lines)


def draw(points: list[Point], steps: int, path: Path) -> None:
    """Draw iterations against the exponent, a point for each network."""
    figure, axes = pictures.figure_of(figsize=(6, 3.6))
    exponents = np.concatenate([p.exponents for p in points])
    colours = "#1f6f8b", "#c9a14a", "#9aa5ab", "#b5651d"
    for name, colour, marker in zip(points[0].iterations, colours, "osD^", strict=False):
        iterations = np.concatenate([p.iterations[name] for p in points])
        shown = np.where(np.isnan(iterations), 1.3 * LIMIT, iterations)
        axes.plot(exponents, shown, marker, color=colour, label=name, markersize=4)
    axes.axvline(0, color="gray", linewidth=1)
    axes.axhline(LIMIT, color="gray", linewidth=1, linestyle=":")
    axes.set_yscale("log")
    axes.set_title("Below an exponent of zero Newton takes few iterations", fontsize=10)
    axes.set_xlabel("largest Lyapunov exponent, per step")
    axes.set_ylabel(f"iterations for T = {steps}; above {LIMIT}: none")
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    pictures.save(figure, path)


def parser() -> Parser:
    """Return the parser of the command line."""
    found = Parser(prog="newton", description=__doc__)
    found.add_argument("--steps", type=positive, default=STEPS, help=f"T, default {STEPS}")
    pages.add_option(found)
    found.add_argument("--plot", type=Path, metavar="FILE")
    found.add_argument("--smoke", action="store_true", help="two gains, two methods")
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Measure all gains, print the table; return the exit status."""
    args = parser().parse_args(argv)
    page = pages.opened(parser(), args.markdown, "newton", argv)
    gains, methods = (GAINS[::8], list(METHODS)[:2]) if args.smoke else (GAINS, list(METHODS))
    with jax.enable_x64(True):
        points = [measure(gain, methods, args.steps) for gain in gains]
    pages.show(page, table(points, args.steps))
    if args.plot is not None:
        draw(points, args.steps, args.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
