"""Who competes on a row: the library, the two baselines, and the peers that are installed."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from benchmarks import library, measure, plain, torch_peer
from benchmarks.data import Data, Row
from benchmarks.measure import Prepared, Task
from benchmarks.models import Model, of_layer
from jax_bptt.testing.libraries import roster, torch_layers

OWN = roster.OWN
PEERS = ("flax", "nnx", "haiku", "equinox", "torch")
"""Libraries that compete, by their names in `python -m jax_bptt.testing`."""

PLAIN = "plain scan"
STRONG = "strong scan"
TORCH = "torch"
UNROLLS = (1, 2, 4, 8)


class Competitor(NamedTuple):
    """One way to do a task on a row."""

    name: str  # for the tables
    prepare: Callable[[Data, Task, Mesh | None], Prepared]  # `(data, task, mesh) -> Prepared`
    equations: str  # the name in `plain.STEPS` of what it computes
    splits: bool = True  # whether it runs on JAX's devices, over which the batch can be split


def absent(names: list[str]) -> dict[str, str]:
    """Import the named peers; return those that cannot take part, with the reason."""
    reasons = {name: roster.absence(name) for name in names}
    if TORCH in names and jax.default_backend() != "cpu":
        reasons[TORCH] = f"compared on a CPU only, and JAX runs on {jax.default_backend()}"
    return {name: reason for name, reason in reasons.items() if reason is not None}


def jax_model(name: str, row: Row) -> Model | None:
    """Return the layer of a peer under JAX, None where it has no such cell."""
    make = roster.ADAPTERS[name].layer
    assert make is not None, name
    with roster.undisturbed():
        layer = make(row.cell, row.I, row.H)
    return None if layer is None else of_layer(layer, row)


def competitors(row: Row, algorithms: list[str], names: list[str]) -> list[Competitor]:
    """Return who competes on a row: each algorithm, the baselines, the named peers with the cell.

    Args:
      row: the cell and its sizes.
      algorithms: texts for `library.algorithm`; the first is what the others are compared with.
      names: of peers that can be imported.
    """
    entries = [
        _of_model(own_name(text), library.model(row, library.algorithm(text)), row)
        for text in algorithms
    ]
    entries += [_of_model(PLAIN, plain.plain(row.cell), row)]
    entries += [Competitor(STRONG, _strongest, row.cell)]
    for name in names:
        if name == TORCH:
            if row.cell in torch_layers.CELLS:
                entries.append(Competitor(name, _torch, row.cell, splits=False))
        elif (model := jax_model(name, row)) is not None:
            entries.append(_of_model(name, model, row))
    return entries


def own_name(text: str) -> str:
    """Return how the tables call the library under an algorithm."""
    return f"{OWN} {text}"


def _of_model(name, model, row):
    def prepare(data, task, mesh):
        with roster.undisturbed():
            return measure.prepare(model, data, task, mesh)

    return Competitor(name, prepare, model.equations or row.cell)


def _strongest(data, task, mesh):
    """Prepare the hoisted scan with each unroll, and keep the fastest of a short run."""
    prepared = {
        str(n): measure.prepare(plain.hoisted(data.row.cell, n), data, task, mesh) for n in UNROLLS
    }
    calls = {name: p.call for name, p in prepared.items()}
    seconds = measure.rounds(calls, 3, lambda: None)
    return prepared[min(seconds, key=lambda name: np.median(seconds[name]))]


def _torch(data, task, mesh):
    del mesh  # its threads are its own
    prepare = torch_peer.forward if task is measure.FORWARD else torch_peer.gradient
    return torch_peer.fastest(prepare(data))
