"""Replace the recurrent layer of short programs in Flax and Equinox, and train both variants.

`swaps/` has a tagger for each library as its users write it. A few of its lines are exchanged for
this library's layer, and both programs learn to name the symbol seen `BACK` steps ago: lines
changed, time of an update, temporary memory, and the learning curves, side by side.
"""

import difflib
import sys
import time
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from benchmarks import pages, roster
from benchmarks.progress import progress

from jax_bptt.testing import tables
from jax_bptt.testing.arguments import Parser, names, positive

PROGRAMS = Path(__file__).parent / "swaps"
IMPORT = ("\nimport optax\n", "\nimport jax_bptt as jb\nimport optax\n")
SWAPS = {
    "nnx": [
        IMPORT,
        (
            "nnx.RNN(nnx.GRUCell(inputs, hidden, rngs=rngs))",
            "jb.interop.nnx.Recurrent(jb.gru(inputs, hidden), rngs=rngs)",
        ),
    ],
    "linen": [
        IMPORT,
        (
            "nn.RNN(nn.GRUCell(self.hidden))(xs)",
            "jb.interop.linen.Recurrent(jb.gru(xs.shape[-1], self.hidden))(xs)",
        ),
    ],
    "equinox": [
        IMPORT,
        ("    rnn: eqx.nn.GRUCell\n", "    rnn: jb.interop.equinox.Recurrent\n"),
        (
            "eqx.nn.GRUCell(inputs, hidden, key=keys[0])",
            "jb.interop.equinox.Recurrent(jb.gru(inputs, hidden), key=keys[0])",
        ),
        (
            "\n        def step(state, x):\n            state = self.rnn(x, state)\n"
            "            return state, state\n\n"
            "        _, ys = jax.lax.scan(step, jnp.zeros(self.rnn.hidden_size), xs)\n",
            "        _, ys = self.rnn(xs)\n",
        ),
    ],
}
"""Pieces of text that are exchanged, each of which its program has once."""

PEERS = {"nnx": "nnx", "linen": "flax", "equinox": "equinox"}
"""How the benchmark calls the libraries."""

SYMBOLS, BACK = 8, 3
POINTS = 4
"""Points of a learning curve in the table."""


class Sizes(NamedTuple):
    """Sizes of a run: updates, sequences B, steps T, units H."""

    updates: int
    batch: int
    steps: int
    hidden: int


class Result(NamedTuple):
    """One variant: losses by update, seconds of an update, bytes of temporary memory."""

    losses: np.ndarray
    seconds: np.ndarray
    temp_bytes: int


def sources(library: str) -> tuple[str, str]:
    """Return the program of a library as it is, and with its layer replaced."""
    original = swapped = (PROGRAMS / f"{library}_tagger.py").read_text(encoding="utf-8")
    for old, new in SWAPS[library]:
        assert swapped.count(old) == 1, old
        swapped = swapped.replace(old, new)
    return original, swapped


def changes(original: str, swapped: str) -> list[str]:
    """Return the lines that differ, blank ones aside, after - or +."""
    lines = difflib.unified_diff(original.splitlines(), swapped.splitlines(), n=0, lineterm="")
    return [line for line in list(lines)[2:] if line[0] in "-+" and line[1:].strip()]


def lines_changed(found: list[str]) -> int:
    """Return how many lines of the original are changed: replaced, left out, or added."""
    return max(sum(line[0] == sign for line in found) for sign in "-+")


def batch(key: Any, sizes: Sizes) -> tuple[jax.Array, jax.Array]:
    """Draw symbols, [B, T, symbols], and the tags [B, T]: the symbol `BACK` steps before, or 0."""
    symbols = jax.random.randint(key, (sizes.batch, sizes.steps), 0, SYMBOLS, "int32")
    tags = jnp.pad(symbols, ((0, 0), (BACK, 0)))[:, : sizes.steps]
    return jax.nn.one_hot(symbols, SYMBOLS), tags


def train(programs: dict[str, str], sizes: Sizes) -> dict[str, Result]:
    """Train all programs, in turns and on the same batches."""
    keys = jax.random.split(jax.random.key(0), sizes.updates)
    states, compiled, losses, seconds = {}, {}, {}, {}
    for name, source in programs.items():
        module: Any = types.ModuleType(f"swaps_{len(states)}")
        sys.modules[module.__name__] = module  # where Equinox looks for a class's annotations
        exec(compile(source, name, "exec"), module.__dict__)
        states[name] = module.start(SYMBOLS, sizes.hidden, SYMBOLS, 0)
        lowered = jax.jit(module.update).lower(states[name], *batch(keys[0], sizes))
        compiled[name] = lowered.compile()
        losses[name], seconds[name] = [], []
    with progress(sizes.updates) as tick:
        for k, key in enumerate(keys):
            xs, tags = jax.block_until_ready(batch(key, sizes))
            for name in list(programs)[:: -1 if k % 2 else 1]:
                begin = time.perf_counter()
                states[name], loss = jax.block_until_ready(compiled[name](states[name], xs, tags))
                seconds[name].append(time.perf_counter() - begin)
                losses[name].append(float(loss))
            tick()
    return {
        name: Result(
            np.array(losses[name]),
            np.array(seconds[name]),
            compiled[name].memory_analysis().temp_size_in_bytes,
        )
        for name in programs
    }


def table(found: dict[str, tuple[int, Result, Result]], updates: int) -> tables.Table:
    """Return the table: a line for each library and variant."""
    marks = [updates * (k + 1) // POINTS for k in range(POINTS)]
    header = ["library", "lines changed", "layer", "ms an update", "times as fast", "temp MiB"]
    header += [f"loss at {mark}" for mark in marks]
    lines = []
    for library, (count, theirs, ours) in found.items():
        ratio = float(np.median(theirs.seconds / ours.seconds))
        for name, result, factor in (("its own", theirs, ""), ("ours", ours, f"{ratio:.2f}")):
            losses = [f"{result.losses[max(0, m - 10) : m].mean():.3f}" for m in marks]
            milliseconds = f"{1e3 * np.median(result.seconds):.1f}"
            memory = f"{result.temp_bytes / 2**20:.1f}"
            lines.append([library, str(count), name, milliseconds, factor, memory, *losses])
    title = f"Programs with the layer replaced (loss of a guess: {np.log(SYMBOLS):.3f})"
    return tables.Table(title, header, lines)


def parser() -> Parser:
    """Return the parser of the command line."""
    found = Parser(prog="swap", description=__doc__)
    every = ",".join(SWAPS)
    found.add_argument(
        "--libraries", type=names(list(SWAPS)), default=list(SWAPS), help=f"default {every}"
    )
    for name, default in (("updates", 200), ("batch", 32), ("steps", 100), ("hidden", 128)):
        found.add_argument(f"--{name}", type=positive, default=default, help=f"default {default}")
    pages.add_option(found)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Train all variants and print them; return the exit status."""
    args = parser().parse_args(argv)
    page = pages.opened(parser(), args.markdown, "swap", argv)
    for reason in roster.absent([PEERS[library] for library in args.libraries]).values():
        parser().error(reason)
    sizes = Sizes(args.updates, args.batch, args.steps, args.hidden)
    found, blocks = {}, []
    for library in args.libraries:
        original, swapped = sources(library)
        lines = changes(original, swapped)
        theirs, ours = train({"its own": original, "ours": swapped}, sizes).values()
        found[library] = lines_changed(lines), theirs, ours
        blocks.append("\n".join([f"{library}:", "", "```diff", *lines, "```"]))
        print("\n".join([library, *lines, ""]), flush=True)
    pages.show(page, table(found, args.updates), more=blocks)
    return 0


if __name__ == "__main__":
    sys.exit(main())
