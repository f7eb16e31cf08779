"""The network of a run: its sizes, the layers made of them, and whether memory can hold it."""

import os
from pathlib import Path
from typing import NamedTuple

import jax

import jax_bptt as jb
from trainer.errors import require


class Network(NamedTuple):
    """Cells on top of one another, as numbers and names that can be written down."""

    cell: str  # name of a constructor of jax_bptt
    hidden_size: int  # H of every cell
    depth: int  # the number of cells
    precision: str  # float32, float64 or bfloat16, which is of products over float32 parameters
    input_size: int  # I of the first cell
    output_size: int  # O of the readout of the last one
    vocabulary_size: int | None = None  # V where the inputs are tokens, not features
    watched: bool = False  # whether the cells are watched, for telemetry


def build(network: Network) -> jb.Layer:
    """Return the stack of the network's cells."""
    cells = []
    for place in range(network.depth):
        cell = getattr(jb, network.cell)(
            input_size=network.hidden_size if place else network.input_size,
            hidden_size=network.hidden_size,
            output_size=network.output_size if place == network.depth - 1 else None,
        )
        if network.precision == "bfloat16":
            # Inside the embedding, whose gradient is a long sum that stays in float32.
            cell = jb.mixed_precision(cell)
        if network.vocabulary_size and not place:
            cell = jb.embedding(cell, vocabulary_size=network.vocabulary_size)
        if network.watched:
            cell = jb.diagnostics.watched(cell)
        cells.append(jb.layer(cell))
    return jb.stack(*cells)


def require_memory(network: Network, steps: int, batch: int) -> None:
    """Raise `InputError` for a network that cannot be trained here on batches of T and B.

    A lower bound: parameters, gradient and Adam's two moments, and the states of one batch. Without
    it the kernel would end the process, and no line would say why.
    """
    units, there = network.hidden_size * network.depth, memory()
    states = steps * batch * units

    def check(weights: int) -> None:
        needed = (4 * weights + states) * (8 if network.precision == "float64" else 4)
        require(
            needed <= there,
            f"out of memory: parameters, optimiser and states take {needed / 2**30:,.0f} GiB or "
            f"more, and this machine has {there / 2**30:,.1f}; take a smaller --hidden, --layers, "
            "--batch or length",
        )

    # The smallest recurrent matrices first: an array of more than 2^31 rows is none to JAX.
    check(units * network.hidden_size)
    drawn = jax.eval_shape(build(network).init, jax.random.key(0))
    check(sum(leaf.size for leaf in jax.tree.leaves(drawn)))


def memory() -> int:
    """Return the bytes of memory that this process may use, as far as the system tells."""
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.exists() and (text := limit.read_text().strip()).isdigit():
        there = min(there, int(text))
    return there
