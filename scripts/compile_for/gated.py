"""The kernels of gated cells, of heads and over a cluster, and their budgets."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import jax_bptt as jb
from compile_for import kernels
from compile_for.sass import Needs
from compile_for.target import Target
from jax_bptt.kernels.form import normal_form, stack_gates
from jax_bptt.kernels.gpu import cluster, heads
from jax_bptt.kernels.kernel import BackwardInputs, ForwardInputs, Settings

STEPS = 1024
"""T of what is compiled; it is the bound of a loop, as B is that of a grid."""

UNITS = 512
"""H of all heads together."""

SHARED = 226 * 1024
"""Bytes of shared memory that an SM has for the tiles of its blocks."""

CELLS: dict[str, Callable[..., jb.Cell]] = {"gru": jb.gru, "lstm": jb.lstm, "slstm": jb.slstm}
GATES = {"gru": 3, "lstm": 4, "slstm": 4}
MUFU = {"gru": 24, "lstm": 40, "slstm": 44}
"""Instructions for transcendental functions in a step, 8 for each of a unit that is tanh or a
sigmoid: an exponential and a reciprocal of four values. A GRU has three of them, an LSTM five."""


class Kernel(NamedTuple):
    """A pair of kernels to compile."""

    cell: str  # a name in `CELLS`
    size: int  # units that a recurrent matrix takes: D of a head, or H of a dense cell
    dtype: str  # of the operands
    flags: bool = False  # whether sequences have lengths, resets or a mask
    # whether a cluster is to share one matrix, or each block of threads to have a head
    dense: bool = False

    def __str__(self) -> str:
        """Return the pair in a few words."""
        size = f"{'H' if self.dense else 'D'}={self.size}"
        return f"{self.cell} {size} {self.dtype}" + " flags" * self.flags


KERNELS = (
    Kernel("lstm", 64, "bfloat16"),
    Kernel("lstm", 128, "bfloat16"),
    Kernel("gru", 64, "bfloat16"),
    Kernel("gru", 128, "bfloat16"),
    Kernel("lstm", 64, "float32"),
    Kernel("slstm", 64, "float32"),
    Kernel("lstm", 64, "bfloat16", flags=True),
    Kernel("lstm", 128, "bfloat16", flags=True),
    *(
        Kernel(cell, size, "bfloat16", dense=True)
        for cell in ("lstm", "gru")
        for size in (256, 384, 512)
    ),
)

CLUSTER = {
    ("lstm", 256): (32768, 43008),
    ("lstm", 384): (90112, 143360),
    ("lstm", 512): (163840, 217088),
    ("gru", 256): (28672, 38912),
    ("gru", 384): (49152, 81920),
    ("gru", 512): (94208, 151552),
}
"""Shared memory of a block over a cluster as compiled, forward and reverse."""

LENGTH = {"lstm": (490, 420), "gru": (335, 365)}
"""Instructions of a step with heads, in bfloat16 and without flags: a tenth more than were seen. A
forward step takes a third more with the transcendental functions of NVIDIA's library."""


def budget(kernel: Kernel, direction: str) -> Needs:
    """Return what a kernel may need: what its design says, and what an SM of an H200 has.

    - A warp has 16 rows of 8 units, four values a thread. The forward kernel does what `MUFU` says
      of it, and the reverse kernel no transcendental function again.
    - One HMMA is 16 rows x 16 x 8 units: one for each gate and 16 units of a matrix, and for
      float32, whose operands are three pieces, for each of the six products of pieces.
    - 65536 registers are 128 for each thread of a head of 128 units, or for each of two blocks of
      heads of 64. For these, half of the shared memory is a block's. In float32, and with the
      flags' masks beside the rest, heads of 64 take an SM for themselves.
    - Of a head, the threads meet once in a step, wait once for its tiles, and one fence keeps the
      copy that takes the place of these behind all that was read of them.
    - Over a cluster, a warpgroup sends a tile to every block, of which a warp has two parts, behind
      a fence for each block, and waits for what it is sent. In reverse there is besides one barrier
      of the whole cluster. A block has an SM for itself, so that a thread may have as many
      registers as there can be; from one run of ptxas to the next they vary by some ten.
    """
    counts = {
        "hmma": GATES[kernel.cell] * kernel.size // 16 * (6 if kernel.dtype == "float32" else 1),
        "mufu": MUFU[kernel.cell] if direction == "forward" else 0,
    }
    if kernel.dense:
        reverse = int(direction == "reverse")
        shared = CLUSTER[kernel.cell, kernel.size][reverse]
        blocks = cluster.blocks_of(kernel.size) or 0
        passing = {"sent": 2 * blocks, "releases": blocks, "cluster": reverse}
        return Needs(255, shared, barriers=1, fences=1, ring=2, **passing, **counts)
    wide = kernel.dtype == "float32" or kernel.flags
    two_blocks = kernel.size == 64 and not wide
    length = None if wide else LENGTH[kernel.cell][int(direction == "reverse")]
    return Needs(
        registers=255 if kernel.size == 64 and wide else 128,
        shared_bytes=SHARED // 2 if two_blocks else SHARED,
        # Known, and no more than a few registers: an LSTM's four matrices of 128 units fill them.
        spilled_bytes=44 if kernel.flags and kernel.size == 128 else 0,
        instructions=length,
        barriers=1,
        fences=1,
        ring=1,
        **counts,
    )


def compiled(kernel: Kernel, target: Target) -> dict[str, Needs]:
    """Compile both kernels of a pair; return what each needs, by "forward" and "reverse".

    Raises:
      ValueError: there is no kernel for it.
    """
    pair = cluster.KERNEL if kernel.dense else heads.KERNEL
    units, batch = (kernel.size, 32) if kernel.dense else (UNITS, 64)
    dtype = jnp.dtype(kernel.dtype)
    cell = CELLS[kernel.cell](input_size=units, hidden_size=units, dtype=dtype)
    if not kernel.dense:
        cell = jb.multi_head(cell, heads=units // kernel.size)
    xs = jax.ShapeDtypeStruct((STEPS, batch, units), dtype)
    weights = jax.eval_shape(lambda key: cell.prepare(cell.init(key)), jax.random.key(0))
    state = jax.eval_shape(lambda w: cell.initial_state(w, (batch,)), weights)
    drives = jax.eval_shape(lambda w, xs: stack_gates(cell.project(w, xs), 2), weights, xs)
    flags: Any = jax.ShapeDtypeStruct((STEPS, batch), jnp.int32) if kernel.flags else None

    def form(weights):
        found = normal_form(cell, weights, state, xs)
        reason = found if isinstance(found, str) else pair.unsupported(found)
        if isinstance(found, str) or reason:
            raise ValueError(f"no kernel takes {kernel}: {reason}")
        return found

    def forward(weights, inputs):
        return pair.forward(form(weights), inputs, Settings(), True)

    def reverse(weights, inputs):
        return pair.backward(form(weights), inputs, Settings())

    leaves = tuple(jax.tree.leaves(state))
    with jax.sharding.use_abstract_mesh(target.mesh.abstract_mesh):
        given = ForwardInputs(leaves, drives, flags)
        states, saved = jax.eval_shape(forward, weights, given)
    d_states = states[0], *[None] * (len(leaves) - 1)
    back = BackwardInputs(leaves, states, saved, flags, leaves, d_states)
    return {
        "forward": kernels.compiled(target, forward, weights, given),
        "reverse": kernels.compiled(target, reverse, weights, back),
    }
