"""The options of the benchmark's command line."""

import argparse
from typing import Any

from benchmarks import library
from benchmarks.measure import TOLERANCE
from benchmarks.roster import PEERS
from jax_bptt.testing.arguments import names, positive

Shape = tuple[int, int, int, int]


def _shape(part: str) -> Shape:
    try:
        steps, batch, inputs, hidden = (int(size) for size in part.split(","))
    except ValueError:
        steps, batch, inputs, hidden = (0, 0, 0, 0)
    if min(steps, batch, inputs, hidden) < 1:
        raise argparse.ArgumentTypeError(f'{part!r} is not "T,B,I,H", four positive numbers')
    return steps, batch, inputs, hidden


def shapes(text: str) -> tuple[Shape, ...]:
    """Read sizes, T,B,I,H each, with semicolons in between."""
    return tuple(_shape(part) for part in text.split(";") if part.strip())


def algorithms(text: str) -> list[str]:
    """Read algorithms of the library, with commas in between."""
    found = [name for name in text.split(",") if name]
    try:
        for name in found:
            library.algorithm(name)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if not found:
        raise argparse.ArgumentTypeError("name at least one")
    return found


def counts(text: str) -> list[int]:
    """Read numbers of devices, with commas in between; return them in order, each once."""
    return sorted({positive(part) for part in text.split(",")})


OPTIONS: dict[str, dict[str, Any]] = {
    "algorithms": {
        "type": algorithms,
        "metavar": "A,A",
        "help": "of the library; settings as in bptt:block_length=64",
    },
    "dtype": {"choices": list(TOLERANCE), "default": "float32"},
    "peers": {
        "type": names(list(PEERS)),
        "default": list(PEERS),
        "metavar": "P,P",
        "help": f"of {', '.join(PEERS)}, or none; default all",
    },
    "rounds": {"type": positive, "help": "interleaved rounds, default 9"},
    "devices": {
        "type": counts,
        "metavar": "N,N",
        "help": "numbers of JAX devices over which the batch is split, each competitor at its "
        "better one; default 1 and, on a CPU, one per core",
    },
    "add": {"action": "store_true", "help": "keep the rows that the file of --json has already"},
}
"""Options of the modes, with their settings for argparse."""
