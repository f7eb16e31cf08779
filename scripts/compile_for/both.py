"""Compile the gradient for four H200 and for four TPU v5e without one, and read the program.

With the batch split by `jit`, how many collectives there are, and how many of them in loops; and
where the states of `checkpointed(on_host=True)` lie.
"""

import argparse
import importlib.util
from collections.abc import Callable
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from benchmarks import hlo, sharding
from benchmarks.data import Row
from benchmarks.sharding import Problem
from jax.sharding import Mesh, NamedSharding

import jax_bptt as jb
from compile_for import h200, target, v5e
from compile_for.target import Found
from jax_bptt.testing.tables import Table

MODE = "compiled"
"""Name of the page's table."""

STEPS, BATCH, UNITS = 1024, 64, 128
DEVICES = 4
BLOCK = 8
"""Steps of a block of `checkpointed`, so that its states take a while."""

CELLS = "gru", "lstm", "two_bidirectional_lstm_with_lengths"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add no options: there are none."""


def obstacle(args: argparse.Namespace) -> str | None:
    """Return what is missing to compile, and how to get it; None if nothing."""
    if missing := target.missing():
        return f"{', '.join(missing)} not installed; {target.INSTALL}"
    if importlib.util.find_spec("libtpu") is None:
        return "libtpu is not installed; pip install 'jax_bptt[tpu-compile]'"
    return None


def check(args: argparse.Namespace) -> Found:
    """Compile and read."""
    described: dict[str, Callable[[], Any]] = {
        "H200": lambda: target.topology(DEVICES),
        "TPU v5e": v5e.topology,
    }
    rows = []
    for kind, topology in described.items():
        mesh = Mesh(np.array(topology().devices), ("batch",))
        for name, gradient in gradients().items():
            rows.append({"device": kind, "gradient": name, **facts(gradient, mesh)})
    versions = h200.versions() | {"libtpu": metadata.version("libtpu")}
    named = ", ".join(f"{k} {v}" for k, v in versions.items())
    found = table(rows)
    return Found(
        {"schema": 1, "versions": versions, "rows": rows},
        [found],
        [found],
        f"T = {STEPS}, B = {BATCH}, I = H = {UNITS}, float32; compiled by {named}",
        [f"{row['device']}, {row['gradient']}: {why}" for row in rows for why in broken(row)],
    )


def gradients() -> dict[str, Problem]:
    """Return what is compiled: networks by `bptt()`, and one with states that are parked."""
    found = {
        cell: sharding.problem(Row(cell, STEPS, BATCH, UNITS, UNITS, "float32")) for cell in CELLS
    }
    cell, lstm = jb.lstm(UNITS, UNITS, dtype=jnp.float32), found["lstm"]
    params = cell.init(jax.random.key(0))
    for on_host in (False, True):
        algorithm = jb.checkpointed(block_length=BLOCK, on_host=on_host)

        def loss(params, xs, targets, lengths, algorithm=algorithm):
            return jnp.sum((jb.unroll(cell, params, xs, algorithm=algorithm)[1] - targets) ** 2)

        found[f"lstm, {algorithm}"] = Problem(loss, (params, *lstm.args[1:]))
    return found


def facts(gradient: Problem, mesh: Mesh) -> dict[str, Any]:
    """Compile a gradient with the batch split over a mesh, and read the program."""

    def described(a, spec):
        return jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=NamedSharding(mesh, spec))

    args = [
        jax.tree.map(lambda a, spec=spec: described(a, spec), arg)
        for arg, spec in zip(gradient.args, sharding.SPECS, strict=True)
    ]
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        compiled = jax.jit(jax.grad(gradient.loss, argnums=(0, 1))).lower(*args).compile()
    memory, text = compiled.memory_analysis(), compiled.as_text()
    assert memory is not None and text is not None
    return {
        "collectives": hlo.collectives(hlo.parse(text)),
        "temp_bytes": memory.temp_size_in_bytes,
        "host_bytes": memory.host_temp_size_in_bytes,
    }


def broken(row: dict[str, Any]) -> list[str]:
    """Return the promises that a row does not keep."""
    found = []
    for kind, count in row["collectives"].items():
        if count["in_loops"] or (kind != "all-reduce" and count["all"]):
            found.append(f"{count['all']} times {kind}, {count['in_loops']} in loops")
    # The states h and c that enter the blocks, of a device's part of the batch.
    states = 4 * (STEPS // BLOCK) * (BATCH // DEVICES) * 2 * UNITS
    wanted = states if "on_host" in row["gradient"] else 0
    if row["host_bytes"] < wanted:
        found.append(f"{row['host_bytes']} bytes on the host, not {wanted}")
    return found


def table(rows: list[dict[str, Any]]) -> Table:
    """Return the table of all rows."""
    lines = []
    for row in rows:
        reduced = row["collectives"]["all-reduce"]
        others = sum(c["all"] for kind, c in row["collectives"].items() if kind != "all-reduce")
        lines.append(
            [
                row["device"],
                row["gradient"],
                f"{reduced['all']}, {reduced['in_loops']}",
                str(others),
                f"{row['temp_bytes'] / 2**20:.1f}",
                f"{row['host_bytes'] / 2**20:.1f}",
            ]
        )
    header = ["four of", "gradient", "all-reduces, in loops", "other collectives"]
    return Table("", [*header, "temp MiB of a device", "of its host"], lines)
