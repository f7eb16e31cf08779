"""The kernels of diagonal linear recurrences, and their budgets."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from compile_for import kernels
from compile_for.sass import Needs
from compile_for.target import Target

STEPS, LANES = 1024, (64, 512)
"""T, and B and H; none of them changes a kernel but by its loop count and grid."""


class Kernel(NamedTuple):
    """A pair of kernels to compile."""

    dtype: str  # of the state
    fixed: bool  # whether all steps have the same factors

    def __str__(self) -> str:
        """Return the pair in a few words."""
        return f"diagonal {self.dtype}" + " fixed" * self.fixed


REGISTERS = {
    Kernel("float32", fixed=False): (40, 48),
    Kernel("float32", fixed=True): (56, 56),
    Kernel("complex64", fixed=False): (48, 48),
    Kernel("complex64", fixed=True): (64, 64),
}
"""Registers of a thread, forward and reverse: as compiled, and eight more."""

KERNELS = tuple(REGISTERS)


def budget(kernel: Kernel, direction: str) -> Needs:
    """Return what a kernel may need.

    A pass through its loop takes a block of steps: one wait for what was fetched of it, one fence
    before that is overwritten, and nothing to meet for in a block of one warpgroup.
    """
    from jax_bptt.kernels.gpu import diagonal

    return Needs(
        registers=REGISTERS[kernel][direction == "reverse"],
        shared_bytes=diagonal.DEPTH * diagonal.SLOT,
        fences=1,
        ring=1,
    )


def compiled(kernel: Kernel, target: Target) -> dict[str, Needs]:
    """Compile both kernels of a pair; return what each needs, by "forward" and "reverse"."""
    from jax_bptt.kernels.gpu import diagonal

    def scan(reverse):
        return lambda *args: diagonal.scan(*args, reverse=reverse)

    def shape(*steps):
        return jax.ShapeDtypeStruct((*steps, *LANES), jnp.dtype(kernel.dtype))

    args = shape(), shape(1 if kernel.fixed else STEPS), shape(STEPS)
    return {
        "forward": kernels.compiled(target, scan(False), *args),
        "reverse": kernels.compiled(target, scan(True), *args),
    }
