"""Recurrent PPO on a task that needs memory, with this library's layer and with Flax's.

A cue is shown once and is to be named after a delay (`recurrent_ppo/memory_task.py`): the return of
an episode is 1 at best, and 1/4 at best without memory. Both layers, `jb.interop.linen.ScannedRNN`
and a GRU of Flax under `nn.scan`, start from the same numbers and draw the same random numbers, so
that their curves part by rounding alone. They are trained in turns, a few updates each, so that
their times compare.
"""

import sys
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from benchmarks import pages
from benchmarks.progress import progress
from recurrent_ppo import memory_task as task
from recurrent_ppo import network, ppo

from jax_bptt.testing import tables
from jax_bptt.testing.arguments import Parser, positive

TEST_STEPS = 256


class Run(NamedTuple):
    """A finished run: its seed and layer, the returns by update, the last test, seconds by turn."""

    seed: int
    layer: str
    returns: np.ndarray
    final: float
    seconds: list[float]


def parser() -> Parser:
    """Return the parser of the command line."""
    found = Parser(prog="ppo", description=__doc__)
    found.add_argument("--layer", choices=(*network.LAYERS, "both"), default="both")
    found.add_argument("--seeds", type=positive, default=3, help="how many, default 3")
    for name, default, about in (
        ("updates", 80, "windows of acting and learning"),
        ("turn", 10, "updates that a layer does in turn"),
        ("envs", 64, f"environments, a multiple of {ppo.MINIBATCHES}"),
        ("steps", 32, "of a window"),
        ("hidden", 64, "units"),
    ):
        found.add_argument(f"--{name}", type=positive, default=default, help=f"{about}, {default}")
    pages.add_option(found)
    return found


def compiled(layer: str, sizes: ppo.Sizes, turn: int) -> tuple[Any, Any]:
    """Return the compiled turn of training and the compiled test of a layer."""

    def train(runner):
        return jax.lax.scan(lambda r, _: ppo.update(layer, r, sizes.steps), runner, length=turn)

    def test(runner):
        return ppo.final_return(layer, runner, TEST_STEPS)

    like = ppo.start(layer, sizes, 0)
    return jax.jit(train).lower(like).compile(), jax.jit(test).lower(like).compile()


def train(
    layers: Sequence[str], seeds: int, sizes: ppo.Sizes, updates: int, turn: int
) -> list[Run]:
    """Train every layer from every seed, in turns; return the runs, seed by seed."""
    programs = {layer: compiled(layer, sizes, turn) for layer in layers}
    runs, turns = [], -(-updates // turn)
    with progress(seeds * turns * len(layers)) as tick:
        for seed in range(seeds):
            runners = {layer: ppo.start(layer, sizes, seed) for layer in layers}
            returns = {layer: [] for layer in layers}
            seconds = {layer: [] for layer in layers}
            for k in range(turns):
                for layer in layers if k % 2 else layers[::-1]:
                    begin = time.perf_counter()
                    runners[layer], curve = jax.block_until_ready(
                        programs[layer][0](runners[layer])
                    )
                    seconds[layer].append((time.perf_counter() - begin) / turn)
                    returns[layer].append(np.asarray(curve.returns))
                    tick()
            for layer in layers:
                final = float(programs[layer][1](runners[layer]))
                curve = np.concatenate(returns[layer])
                runs.append(Run(seed, layer, curve, final, seconds[layer]))
    return runs


def curves(runs: list[Run], turn: int) -> tables.Table:
    """Return the table of returns, a line a turn and a column a run."""
    by_turn = [run.returns.reshape(-1, turn).mean(1) for run in runs]
    header = ["updates", *(f"seed {run.seed}, {run.layer}" for run in runs)]
    lines = [
        [str((k + 1) * turn), *(f"{each[k]:.3f}" for each in by_turn)]
        for k in range(len(by_turn[0]))
    ]
    title = (
        "Return of the mean episode while training "
        f"(optimum {task.OPTIMUM:g}, without memory at most {task.WITHOUT_MEMORY:g})"
    )
    return tables.Table(title, header, lines)


def results(runs: list[Run]) -> tables.Table:
    """Return the table of layers: time of an update, and who reached the optimum."""
    lines = []
    for layer in dict.fromkeys(run.layer for run in runs):
        own = [run for run in runs if run.layer == layer]
        milliseconds = 1e3 * np.median([s for run in own for s in run.seconds])
        finals = ", ".join(f"{run.final:.3f}" for run in own)
        reached = sum(run.final == task.OPTIMUM for run in own)
        lines.append([layer, f"{milliseconds:.1f}", finals, f"{reached} of {len(own)}"])
    header = ["layer", "ms an update", "return of the likeliest actions, by seed", "at the optimum"]
    return tables.Table("Layers", header, lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Train; return the exit status: 0, 1 if a run missed the optimum, 2 for bad arguments."""
    args = parser().parse_args(argv)
    if args.envs % ppo.MINIBATCHES:
        parser().error(f"--envs {args.envs} is not a multiple of {ppo.MINIBATCHES}")
    page = pages.opened(parser(), args.markdown, "ppo", argv)
    layers = network.LAYERS if args.layer == "both" else (args.layer,)
    sizes = ppo.Sizes(args.envs, args.steps, args.hidden)
    runs = train(layers, args.seeds, sizes, args.updates, args.turn)
    pages.show(page, curves(runs, args.turn), results(runs))
    return 0 if all(run.final == task.OPTIMUM for run in runs) else 1


if __name__ == "__main__":
    sys.exit(main())
