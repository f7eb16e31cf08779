"""Compile for a TPU v5e without one, and count what a step takes.

The compiler for TPUs is a package, `libtpu`, that needs no TPU. It packs instructions into bundles,
one of which is issued at each cycle; the bundles in the loop over the steps of a block are the
cycles of a step if nothing waits, and those around it are spent once a block. They are printed
beside the least that the matrix units allow: four units of 128 x 128 multiply 65536 pairs of
numbers a cycle, 197 TFLOP/s at 1.5 GHz. Where bundles are fewer, the units make them wait. The time
that HBM takes for what moves at each step, at 819 GB/s, is printed as well: a step takes the
largest of the three.
"""

import argparse
import importlib.util
import os
import re
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import jax_bptt as jb
from compile_for.target import Found
from jax_bptt.kernels.form import Form, normal_form, stack_gates
from jax_bptt.kernels.kernel import BackwardInputs, ForwardInputs, Settings
from jax_bptt.kernels.tpu import resident
from jax_bptt.testing.tables import Table

TOPOLOGY = "v5e:2x2"
PAIRS = 4 * 128 * 128
HERTZ = 1.5e9
BYTES_PER_SECOND = 819e9
STEPS = 1024
"""T. Results of a short sequence are left in VMEM, which takes a kernel other instructions."""

MODE = "tpu"
"""Name of the page's table."""

CELLS = {"lstm": jb.lstm, "gru": jb.gru, "elman": jb.elman}


class Target(NamedTuple):
    """A TPU that is not there."""

    sharding: NamedSharding  # of an array on one device of it
    dump: Path  # where its compiler writes


class Line(NamedTuple):
    """Facts about one compiled kernel."""

    units: int  # H
    name: str  # of the kernel
    around: int  # bundles of a block, besides those of its steps
    bundles: int  # of a step
    floor: float  # cycles that the matrix units need for the same products
    moved: int  # bytes between HBM and VMEM at each step

    @property
    def ratio(self) -> float:
        """Bundles of a step, over the floor."""
        return self.bundles / self.floor


def obstacle(args: argparse.Namespace) -> str | None:
    """Return what is not installed that this needs, None if nothing."""
    if importlib.util.find_spec("libtpu") is None:
        return "the TPU's compiler is not installed: pip install libtpu (no TPU is needed)"
    return None


def target(dump: Path) -> Target:
    """Start the compiler, which reads where to write to but once."""
    os.environ["LIBTPU_INIT_ARGS"] = f"--xla_jf_dump_to={dump} --xla_jf_dump_llo_text=true"
    return Target(NamedSharding(Mesh(topology().devices[:1], ("d",)), PartitionSpec()), dump)


def topology() -> Any:
    """Return four TPUs."""
    # It would else look for the machine's own TPU, by asking a server for metadata.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    return topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGY)


def bundles(listing: str) -> tuple[int, int] | None:
    """Return how many bundles a listing has in the loop over blocks, and in that over steps in it.

    A line is a bundle: its address, a mark where loops begin and end, and as many `>` as it is deep
    in loops. None unless there are just these two loops.
    """
    lines = re.finditer(r"^ *0?x?[0-9a-f]+ [A-Z ]*: (>*) ?\{", listing, re.M)
    depths = [len(line[1]) for line in lines]
    if set(depths) != {0, 1, 2}:
        return None
    return depths.count(1), depths.count(2)


def compiled(target: Target, function: Any, *arguments: Any) -> tuple[int, int]:
    """Compile `function` for arrays like `arguments`; return the bundles of its kernel's loops."""

    def described(a):
        return jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=target.sharding)

    before = set(target.dump.iterdir())
    jax.jit(function).lower(*jax.tree.map(described, arguments)).compile()
    written = set(target.dump.iterdir()) - before
    listings = [f.read_text() for f in written if re.search(r"\d-final_bundles", f.name)]
    found = [loops for loops in map(bundles, listings) if loops is not None]
    if len(found) != 1:
        raise ValueError(f"{len(found)} kernels in what the compiler wrote, and not one")
    return found[0]


def moved_bytes(*trees: Any) -> int:
    """Return the bytes at each step of arrays [T, ...]."""
    return sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(trees)) // STEPS


def measure(target: Target, cell: jb.Cell, batch: int) -> list[Line]:
    """Compile both kernels of `cell`."""
    shape = jax.ShapeDtypeStruct
    params = jax.eval_shape(cell.init, jax.random.key(0))
    weights = jax.eval_shape(cell.prepare, params)
    state = jax.eval_shape(lambda p: cell.initial_state(p, (batch,)), params)
    xs = shape((STEPS, batch, *cell.input_spec.shape), jnp.float32)
    leaves = tuple(jax.tree.leaves(state))
    found: list[Form] = []

    def form_of(weights):
        form = normal_form(cell, weights, state, xs)
        assert isinstance(form, Form), form
        found.append(form)
        return form.matrix, form.bias, form.units

    traced = jax.eval_shape(form_of, weights)
    heads, size, gates, _ = traced[0].shape
    step = found[0].step
    tile = STEPS, batch, heads * size
    drive = jax.eval_shape(lambda *a: stack_gates(cell.project(*a), 2), weights, xs)
    drives: Any = shape(drive.shape, drive.dtype)

    def with_form(arrays):
        matrix, bias, units = arrays
        return found[0]._replace(matrix=matrix, bias=bias, units=units)

    def forward(arrays, inputs):
        return resident.KERNEL.forward(with_form(arrays), inputs, Settings(), True)

    def backward(arrays, inputs):
        return resident.KERNEL.backward(with_form(arrays), inputs, Settings())

    given = ForwardInputs(leaves, drives, None)
    states, saved = jax.eval_shape(forward, traced, given)
    d_states: Any = tuple(
        shape(tile, jnp.float32) if k == found[0].recurrent else None for k in range(len(leaves))
    )
    back = BackwardInputs(leaves, states, saved, None, leaves, d_states)
    cotangents = jax.eval_shape(backward, traced, back)
    read = [s for k, s in enumerate(states) for r in (step.reads_prev, step.reads_new) if r[k]]
    products = batch * heads * size * size / PAIRS
    crossing = sum(e is not None for e in step.d_feedback)
    return [
        Line(
            heads * size,
            "forward",
            *compiled(target, forward, traced, given),
            products * gates,
            moved_bytes(drives, states, saved),
        ),
        Line(
            heads * size,
            "reverse",
            *compiled(target, backward, traced, back),
            products * crossing,
            moved_bytes(saved, read, d_states, cotangents.emitted, cotangents.lambdas),
        ),
    ]


def table(lines: list[Line]) -> Table:
    """Return the table for a terminal, a line for each kernel and size."""
    header = ["H", "kernel", "bundles", "a block", "floor", "ratio", "us/step", "HBM us"]
    cells = [
        [
            *page_line(line)[:3],
            str(line.around),
            *page_line(line)[3:],
            f"{1e6 * max(line.bundles, line.floor) / HERTZ:.2f}",
            f"{1e6 * line.moved / BYTES_PER_SECOND:.2f}",
        ]
        for line in lines
    ]
    return Table("", header, cells)


def page_line(line: Line) -> list[str]:
    """Return the cells of a kernel in the page's table."""
    floor, ratio = f"{line.floor:.0f}", f"{line.ratio:.2f}"
    return [str(line.units), line.name, str(line.bundles), floor, ratio]


def page_table(lines: list[Line]) -> Table:
    """Return the page's table."""
    header = ["H", "kernel", "bundles of a step", "floor of the matrix units", "ratio"]
    return Table("", header, [page_line(line) for line in lines])


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what can be chosen."""
    parser.add_argument("--units", type=int, nargs="+", default=[512, 1024, 2048], help="H")
    parser.add_argument("--batch", type=int, default=64, help="B")
    parser.add_argument("--heads", type=int, default=1, help="N")
    parser.add_argument("--cell", choices=CELLS, default="lstm")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--budget", type=float, help="fail where a ratio is larger")
    parser.add_argument("--keep", type=Path, help="folder for the compiler's listings")


def check(args: argparse.Namespace) -> Found:
    """Compile and count."""
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        dump = args.keep or Path(folder)
        dump.mkdir(parents=True, exist_ok=True)
        device = target(dump)
        for units in args.units:
            dtype = jnp.dtype(args.dtype)
            cell = CELLS[args.cell](input_size=units, hidden_size=units, dtype=dtype)
            if args.heads > 1:
                cell = jb.multi_head(cell, heads=args.heads)
            lines += measure(device, cell, args.batch)
    versions = f"jax {jax.__version__}, libtpu {metadata.version('libtpu')}"
    most = float("inf") if args.budget is None else args.budget
    return Found(
        {"schema": 1, "target": TOPOLOGY, "kernels": [line._asdict() for line in lines]},
        [table(lines)],
        [page_table(lines)],
        f"{args.cell}, {args.dtype}, B = {args.batch}, {TOPOLOGY}, {versions}",
        [
            f"H={line.units} {line.name}: {line.ratio:.2f} x the floor is over the budget"
            for line in lines
            if line.ratio > most
        ],
    )
