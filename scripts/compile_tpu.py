"""Compile the TPU kernels for a v5e without one, and count what a step takes.

The compiler for TPUs is a package, `libtpu`, that needs no TPU. It packs instructions into bundles,
one of which is issued at each cycle; the bundles in the loop over the steps of a block are the
cycles of a step if nothing waits, and those around it are spent once a block. They are printed
beside the least that the matrix units allow: four units of 128 x 128 multiply 65536 pairs of
numbers a cycle, 197 TFLOP/s at 1.5 GHz. Where bundles are fewer, the units make them wait. The time
that HBM takes for what moves at each step, at 819 GB/s, is printed as well: a step takes the
largest of the three. Nothing is run, so that nothing is timed.
"""

import argparse
import importlib.util
import os
import re
import shlex
import sys
import tempfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import jax_bptt as jb
from jax_bptt.kernels.form import Form, normal_form, stack_gates
from jax_bptt.kernels.kernel import BackwardInputs, ForwardInputs, Settings
from jax_bptt.kernels.tpu import resident
from jax_bptt.testing import tables

TOPOLOGY = "v5e:2x2"
PAIRS = 4 * 128 * 128
HERTZ = 1.5e9
BYTES_PER_SECOND = 819e9
STEPS = 1024
"""T. Results of a short sequence are left in VMEM, which takes a kernel other instructions."""

MODE = "tpu"
"""Name of the README's table."""

CELLS = {"lstm": jb.lstm, "gru": jb.gru, "elman": jb.elman}


class Target(NamedTuple):
    """A TPU that is not there.

    Attributes:
      sharding: of an array on one device of it.
      dump: where its compiler writes.
    """

    sharding: NamedSharding
    dump: Path


class Line(NamedTuple):
    """Facts about one compiled kernel.

    Attributes:
      units: H.
      name: of the kernel.
      around: bundles of a block, besides those of its steps.
      bundles: of a step.
      floor: cycles that the matrix units need for the same products.
      moved: bytes between HBM and VMEM at each step.
    """

    units: int
    name: str
    around: int
    bundles: int
    floor: float
    moved: int

    @property
    def ratio(self) -> float:
        """Bundles of a step, over the floor."""
        return self.bundles / self.floor


def missing() -> str | None:
    """Return what is not installed that this needs, None if nothing."""
    if importlib.util.find_spec("libtpu") is None:
        return "compile_tpu needs the TPU's compiler: pip install libtpu (no TPU is needed)"
    return None


def target(dump: Path) -> Target:
    """Start the compiler, which reads where to write to but once."""
    os.environ["LIBTPU_INIT_ARGS"] = f"--xla_jf_dump_to={dump} --xla_jf_dump_llo_text=true"
    # It would else look for the machine's own TPU, by asking a server for metadata.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    devices = topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGY).devices
    return Target(NamedSharding(Mesh(devices[:1], ("d",)), PartitionSpec()), dump)


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
        raise SystemExit(f"compile_tpu: {len(found)} kernels in what the compiler wrote, not one")
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


def title(options: argparse.Namespace) -> str:
    """Return what all kernels have in common, and what compiles them."""
    versions = f"jax {jax.__version__}, libtpu {metadata.version('libtpu')}"
    return f"{options.cell}, {options.dtype}, B = {options.batch}, {TOPOLOGY}, {versions}"


def table(target: Target, options: argparse.Namespace) -> list[Line]:
    """Print a line for each kernel and size, and return them."""
    lines = []
    print(title(options))
    print("   H  kernel   bundles  a block  floor  ratio  us/step  HBM us")
    for units in options.units:
        cell = CELLS[options.cell](
            input_size=units, hidden_size=units, dtype=getattr(jnp, options.dtype)
        )
        if options.heads > 1:
            cell = jb.multi_head(cell, heads=options.heads)
        for line in measure(target, cell, options.batch):
            seconds = max(line.bundles, line.floor) / HERTZ
            lines.append(line)
            print(
                f"{units:4}  {line.name}  {line.bundles:8}  {line.around:7}  {line.floor:5.0f}  "
                f"{line.ratio:5.2f}  {1e6 * seconds:7.2f}  "
                f"{1e6 * line.moved / BYTES_PER_SECOND:6.2f}",
                flush=True,
            )
    return lines


def readme_table(lines: list[Line]) -> tables.Table:
    """Return the README's table."""
    header = ["H", "kernel", "bundles of a step", "floor of the matrix units", "ratio"]
    cells = [
        [str(line.units), line.name, str(line.bundles), f"{line.floor:.0f}", f"{line.ratio:.2f}"]
        for line in lines
    ]
    return tables.Table("", header, cells)


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--units", type=int, nargs="+", default=[512, 1024, 2048], help="H")
    parser.add_argument("--batch", type=int, default=64, help="B")
    parser.add_argument("--heads", type=int, default=1, help="N")
    parser.add_argument("--cell", choices=CELLS, default="lstm")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--budget", type=float, help="fail where a ratio is larger")
    parser.add_argument("--keep", type=Path, help="folder for the compiler's listings")
    parser.add_argument(
        "--markdown", type=Path, metavar="FILE", help="between the markers of a page"
    )
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    options = parser.parse_args(arguments)
    if options.markdown is not None and (reason := tables.unwritable(options.markdown, MODE)):
        print(f"compile_tpu: {reason}", file=sys.stderr)
        return 1
    if reason := missing():
        print(reason, file=sys.stderr)
        return 1
    jax.config.update("jax_platforms", "cpu")
    with tempfile.TemporaryDirectory() as folder:
        dump = options.keep or Path(folder)
        dump.mkdir(parents=True, exist_ok=True)
        lines = table(target(dump), options)
    if options.markdown is not None:
        command = shlex.join(["python", "scripts/compile_tpu.py", *arguments])
        caption = f"{title(options)}  \n`{command}`"
        tables.write_markdown(options.markdown, MODE, [readme_table(lines)], caption)
    largest = max(line.ratio for line in lines)
    if options.budget is not None and largest > options.budget:
        print(f"compile_tpu: {largest:.2f} x the floor is over the budget", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
