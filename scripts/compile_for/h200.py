"""Compile for an H200 without one, and hold what comes out against what is promised.

graphs     gradients by the explicit reverse pass, with `jb.gpu_compiler_options()`: one CUDA
graph encloses all loops, and no product in a loop over steps is a gradient of
weights; those of the plain scan are shown beside them
kernels    the kernels of gated cells, of heads and over a cluster, and of diagonal linear
recurrences: registers, spills, shared memory, and what a pass through the loop does
(a step; of a diagonal one a block of steps), against a budget
"""

import argparse
from collections.abc import Callable
from importlib import metadata
from typing import Any

import jax.numpy as jnp
from benchmarks.progress import progress

import jax_bptt as jb
from compile_for import diagonal, gated, graphs, kernels, target
from compile_for.sass import Needs
from compile_for.target import Found
from jax_bptt.kernels.gpu import mosaic
from jax_bptt.testing.tables import Table

CELLS: dict[str, Callable[..., jb.Cell]] = {"lstm": jb.lstm, "gru": jb.gru, "elman": jb.elman}
# What is recomputed is said, since by default the device at hand decides.
ALGORITHMS = {"bptt": jb.bptt(recompute=True), "autodiff": jb.autodiff()}
DTYPES = ("float32", "bfloat16")
PARTS = ("graphs", "kernels")
MODE = "cuda"
"""Name of the page's table."""
FAMILIES = (gated, diagonal)
PACKAGES = ("jax", "jaxlib", "jax-cuda13-plugin", "nvidia-cuda-nvcc", "nvidia-cuda-nvdisasm")


def check_graphs(device: target.Target, tick: Callable[[], Any]) -> list[dict[str, Any]]:
    """Compile the gradients; return what was found and what of it is broken."""
    found = []
    for name, make in CELLS.items():
        for dtype in DTYPES:
            size = graphs.UNITS
            cell = make(input_size=size, hidden_size=size, dtype=jnp.dtype(dtype))
            for algorithm, run in ALGORITHMS.items():
                made = graphs.compiled(cell, run, jb.gpu_compiler_options(), device)
                row = {"cell": name, "dtype": dtype, "algorithm": algorithm}
                broken = graphs.broken(made) if algorithm == "bptt" else []
                row |= made._asdict() | {"broken": broken}
                found.append(row)
                tick()
    return found


def check_kernels(device: target.Target, tick: Callable[[], Any]) -> list[dict[str, Any]]:
    """Compile the kernels; return what each needs and what of it is over the budget."""
    found = []
    for family in FAMILIES:
        for kernel in family.KERNELS:
            for direction, made in family.compiled(kernel, device).items():
                budget = family.budget(kernel, direction)
                row = {**kernel._asdict(), "name": str(kernel), "direction": direction}
                row |= {"measured": made._asdict(), "budget": budget._asdict()}
                found.append(row | {"broken": kernels.exceeded(made, budget)})
            tick()
    return found


def graph_table(rows: list[dict[str, Any]]) -> Table:
    """Return the table of the gradients."""

    def per_step(row):
        pairs = zip(row["launches"], row["conditions"], strict=True)
        return ", ".join(f"{body} + {condition}" for body, condition in pairs)

    header = ["gradient", "loops", "in one graph", "launches a step", "weight products a step"]
    lines = [
        [
            f"{row['cell']} {row['dtype']} {row['algorithm']}()",
            str(row["loops"]),
            "yes" if row["one_graph"] else "no",
            per_step(row),
            str(len(row["weight_products"])),
        ]
        for row in rows
    ]
    sizes = f"T={graphs.STEPS} B={graphs.BATCH} I=H={graphs.UNITS}"
    title = f"Gradients with gpu_compiler_options(), {sizes}; launches of body + condition, "
    return Table(title + "forward, reverse", header, lines)


def kernel_table(rows: list[dict[str, Any]]) -> Table:
    """Return the table of the kernels: what each needs, and its budget where it has one."""
    columns = Needs._fields

    def entry(row, name):
        most = row["budget"].get(name)  # None where any number will do
        return str(row["measured"][name]) + ("" if most is None else f" / {most}")

    lines = [
        [f"{row['name']} {row['direction']}", *(entry(row, name) for name in columns)]
        for row in rows
    ]
    header = ["kernel", *(name.replace("_", " ") for name in columns)]
    return Table("Fused kernels, found / allowed", header, lines)


def page_table(rows: list[dict[str, Any]]) -> Table:
    """Return the page's table: kernels of gated cells without flags, a line for a pair."""
    pairs: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if not row.get("flags", True) and row["size"] != 384:
            pairs.setdefault(row["name"], []).append(row["measured"])

    def both(pair, name, unit=1):
        return ", ".join(str(measured[name] // unit) for measured in pair)

    lines = [
        [
            name,
            both(pair, "registers"),
            both(pair, "spilled_bytes"),
            both(pair, "shared_bytes", 1024),
            both(pair, "instructions"),
            both(pair, "barriers"),
            both(pair, "cluster"),
        ]
        for name, pair in pairs.items()
    ]
    header = ["kernel", "registers", "spilled bytes", "shared KiB", "instructions of a step"]
    return Table("", [*header, "barriers of a block", "of a cluster"], lines)


CHECKS = {"graphs": (check_graphs, graph_table), "kernels": (check_kernels, kernel_table)}


def obstacle(args: argparse.Namespace) -> str | None:
    """Return what is missing to compile, and how to get it; None if nothing."""
    if args.markdown is not None and "kernels" not in args.parts:
        return "--markdown takes the kernels"
    if missing := target.missing():
        return f"{', '.join(missing)} not installed; {target.INSTALL}"
    return mosaic.available()


def versions() -> dict[str, str]:
    """Return the versions of what compiles."""
    return {name: metadata.version(name) for name in PACKAGES}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what can be chosen."""
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="both")


def check(args: argparse.Namespace) -> Found:
    """Compile and read."""
    device = target.h200()
    document: dict[str, Any] = {"schema": 1, "target": "NVIDIA H200", "versions": versions()}
    pairs = sum(len(family.KERNELS) for family in FAMILIES)
    total = {"graphs": 2 * len(CELLS) * len(DTYPES), "kernels": pairs}
    with progress(sum(total[part] for part in args.parts), "kernel") as tick:
        for part in args.parts:
            document[part] = CHECKS[part][0](device, tick)
    return Found(
        document,
        [CHECKS[part][1](document[part]) for part in args.parts],
        [page_table(document.get("kernels", []))],
        "compiled for an NVIDIA H200 by " + ", ".join(f"{k} {v}" for k, v in versions().items()),
        [
            f"{part}: {name(row)}: {why}"
            for part in args.parts
            for row in document[part]
            for why in row["broken"]
        ],
    )


def name(row: dict[str, Any]) -> str:
    """Return what a row is about."""
    if "direction" in row:
        return f"{row['name']} {row['direction']}"
    return f"{row['cell']} {row['dtype']} {row['algorithm']}()"
