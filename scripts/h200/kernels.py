"""The fused kernels as the compiler leaves them, against their budgets."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from benchmarks.data import GATES

import jax_bptt as jb
from h200 import sass
from h200.target import Target, dumps
from jax_bptt.kernels.form import normal_form, stack_gates

STEPS, BATCH, UNITS = 1024, 64, 512
"""T, B and H of what is compiled; none of them changes a kernel but by its loop count and grid."""

SHARED = 226 * 1024
"""Bytes of shared memory that an SM has for the tiles of its blocks."""

CELLS: dict[str, Callable[..., jb.Cell]] = {"gru": jb.gru, "lstm": jb.lstm}
TRANSCENDENTAL = {"gru": 3, "lstm": 5}
"""Functions of every unit in a step: of the gates, and tanh of an LSTM's cell state."""


class Kernel(NamedTuple):
    """A pair of kernels to compile.

    Attributes:
      cell: a name in `CELLS`.
      head: D.
      dtype: of the operands.
      flags: whether sequences have lengths, resets or a mask.
    """

    cell: str
    head: int
    dtype: str
    flags: bool = False

    def __str__(self) -> str:
        """Return the pair in a few words."""
        return f"{self.cell} D={self.head} {self.dtype}" + " flags" * self.flags


class Budget(NamedTuple):
    """The most that a kernel may need; attributes as in `Measured`."""

    registers: int
    shared_bytes: int
    spilled_bytes: int
    barriers: int
    ring: int
    hmma: int
    mufu: int
    calls: int


class Measured(NamedTuple):
    """A compiled kernel.

    Attributes:
      registers: of a thread.
      shared_bytes: shared memory of a block.
      spilled_bytes: local memory of a thread, for registers that it had too few of.
      instructions: those of a step, per warp; and likewise
      barriers: at which the threads of a block meet,
      ring: waits for tiles from global memory,
      hmma: products on the tensor cores,
      mufu: transcendental functions, square roots and reciprocals,
      calls: of subroutines.
    """

    registers: int
    shared_bytes: int
    spilled_bytes: int
    instructions: int
    barriers: int
    ring: int
    hmma: int
    mufu: int
    calls: int


KERNELS = (
    Kernel("lstm", 64, "bfloat16"),
    Kernel("lstm", 128, "bfloat16"),
    Kernel("gru", 64, "bfloat16"),
    Kernel("gru", 128, "bfloat16"),
    Kernel("lstm", 64, "float32"),
    Kernel("lstm", 64, "bfloat16", flags=True),
    Kernel("lstm", 128, "bfloat16", flags=True),
)


def budget(kernel: Kernel, direction: str) -> Budget:
    """Return what a kernel may need: what its design says, and what an SM of an H200 has.

    - A warp has 16 rows of 8 units, four values a thread. Of a transcendental function of one value
      two instructions are MUFU (an exponential and a reciprocal), and the reverse kernel does none.
    - One HMMA is 16 rows x 16 x 8 units: one for each gate and 16 units of the head, and for
      float32, whose operands are three pieces, for each of the six products of pieces.
    - 65536 registers are 128 for each thread of a head of 128 units, or for each of two blocks of
      heads of 64. For these, half of the shared memory is a block's. In float32, and with the
      flags' masks beside the rest, heads of 64 take an SM for themselves.
    - The threads meet once in a step, and wait once for its tiles.
    """
    wide = kernel.dtype == "float32" or kernel.flags
    two_blocks = kernel.head == 64 and not wide
    products = GATES[kernel.cell] * kernel.head // 16 * (6 if kernel.dtype == "float32" else 1)
    return Budget(
        registers=255 if kernel.head == 64 and wide else 128,
        shared_bytes=SHARED // 2 if two_blocks else SHARED,
        # Known, and no more than a few registers: an LSTM's four matrices of 128 units fill them.
        spilled_bytes=44 if kernel.flags and kernel.head == 128 else 0,
        barriers=1,
        ring=1,
        hmma=products,
        mufu=8 * TRANSCENDENTAL[kernel.cell] if direction == "forward" else 0,
        calls=0,
    )


def measured(assembler: str, resources: str, code: str) -> Measured:
    """Read off a compiled kernel from the three texts that its compiler leaves.

    Args:
      assembler: the log of ptxas.
      resources: what Pallas allocated.
      code: the disassembly.

    Raises:
      ValueError: one of them is not of the expected form.
    """

    def number(pattern, text):
        found = re.findall(pattern, text)
        if not found:
            raise ValueError(f"no {pattern!r} in what the compiler said: {text[:200]!r}")
        return max(map(int, found))

    local = ("stack frame", "spill stores", "spill loads")
    step = sass.summary(sass.main_loop(sass.parse(code)))
    return Measured(
        registers=number(r"Used (\d+) registers", assembler),
        shared_bytes=number(r"smem_scratch_bytes=(\d+)", resources),
        spilled_bytes=max(number(rf"(\d+) bytes {what}", assembler) for what in local),
        instructions=step.instructions,
        barriers=step.barriers,
        ring=step.ring,
        hmma=step.hmma,
        mufu=step.mufu,
        calls=step.calls,
    )


def exceeded(found: Measured, budget: Budget) -> list[str]:
    """Return what a kernel has more of than its budget allows."""
    pairs = [(name, getattr(found, name), most) for name, most in budget._asdict().items()]
    return [f"{name} {value} > {most}" for name, value, most in pairs if value > most]


def compiled(kernel: Kernel, target: Target) -> dict[str, Measured]:
    """Compile both kernels of a pair; return what each needs, by "forward" and "reverse".

    Once a process: a kernel that Mosaic has compiled before is not compiled again.

    Raises:
      ValueError: there is no kernel for it.
    """
    from jax_bptt.kernels import gpu_heads

    make, dtype = CELLS[kernel.cell], jnp.dtype(kernel.dtype)
    cell = jb.multi_head(
        make(input_size=UNITS, hidden_size=UNITS, dtype=dtype), heads=UNITS // kernel.head
    )
    xs = jax.ShapeDtypeStruct((STEPS, BATCH, UNITS), dtype)
    weights = jax.eval_shape(lambda key: cell.prepare(cell.init(key)), jax.random.key(0))
    state = jax.eval_shape(lambda w: cell.initial_state(w, (BATCH,)), weights)
    drives = jax.eval_shape(lambda w, xs: stack_gates(cell.project(w, xs), 2), weights, xs)
    flags = jax.ShapeDtypeStruct((STEPS, BATCH), jnp.int32) if kernel.flags else None

    def form(weights):
        found = normal_form(cell, weights, state, xs)
        reason = found if isinstance(found, str) else gpu_heads.unsupported(found)
        if isinstance(found, str) or reason:
            raise ValueError(f"no kernel takes {kernel}: {reason}")
        return found

    def forward(weights, state, drives, flags):
        return gpu_heads.forward(form(weights), state, drives, flags, save=True)

    def reverse(weights, state, states, saved, flags, d_h):
        d_states = (d_h, *[None] * (len(state) - 1))
        return gpu_heads.backward(form(weights), state, states, saved, flags, state, d_states)

    leaves = tuple(jax.tree.leaves(state))
    with jax.sharding.use_abstract_mesh(target.mesh.abstract_mesh):
        states, saved = jax.eval_shape(forward, weights, leaves, drives, flags)
    return {
        "forward": _measure(target, forward, weights, leaves, drives, flags),
        "reverse": _measure(target, reverse, weights, leaves, states, saved, flags, states[0]),
    }


def _measure(target: Target, fun: Callable, *args: Any) -> Measured:
    with dumps() as folder:
        target.compile(fun, *args)
        return measured(*(_only(folder, kind) for kind in ("ptxas", "resources.txt", "sass*")))


def _only(folder: Path, kind: str) -> str:
    paths = sorted(folder.glob(f"*.{kind}"))
    if len(paths) != 1:
        raise ValueError(f"the compiler left {len(paths)} files *.{kind}, and not one")
    return paths[0].read_text(encoding="utf-8", errors="replace")
