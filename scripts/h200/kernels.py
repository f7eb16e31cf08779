"""A fused kernel as the compiler leaves it, and what it may need at the most."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from h200 import sass
from h200.target import Target, dumps


class Budget(NamedTuple):
    """The most that a kernel may need; attributes as in `Measured`, None for any number."""

    registers: int
    shared_bytes: int
    spilled_bytes: int = 0
    instructions: int | None = None
    barriers: int = 0
    cluster: int = 0
    fences: int = 0
    sent: int = 0
    releases: int = 0
    ring: int = 0
    hmma: int = 0
    mufu: int = 0
    calls: int = 0


class Measured(NamedTuple):
    """A compiled kernel.

    Attributes:
      registers: of a thread.
      shared_bytes: shared memory of a block.
      spilled_bytes: local memory of a thread, for registers that it had too few of.
      instructions: those of a pass through the loop, per warp; and likewise
      barriers: at which the warpgroups of a block meet,
      cluster: barriers at which those of a cluster meet,
      fences: between accesses of threads to shared memory and asynchronous copies,
      sent: stores into the shared memory of blocks of a cluster,
      releases: fences that the whole GPU sees,
      ring: waits for what is copied from global memory, or sent,
      hmma: products on the tensor cores,
      mufu: transcendental functions, square roots and reciprocals,
      calls: of subroutines.
    """

    registers: int
    shared_bytes: int
    spilled_bytes: int
    instructions: int
    barriers: int
    cluster: int
    fences: int
    sent: int
    releases: int
    ring: int
    hmma: int
    mufu: int
    calls: int


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
        **step._asdict(),
    )


def exceeded(found: Measured, budget: Budget) -> list[str]:
    """Return what a kernel has more of than its budget allows."""
    pairs = [(name, getattr(found, name), most) for name, most in budget._asdict().items()]
    return [f"{name} {n} > {most}" for name, n, most in pairs if most is not None and n > most]


def compiled(target: Target, fun: Callable, *args: Any) -> Measured:
    """Compile a function that launches one kernel; return what the kernel needs.

    Once a process: a kernel that Mosaic has compiled before is not compiled again.

    Raises:
      ValueError: there was not one kernel to compile.
    """
    with dumps() as folder:
        target.compile(fun, *args)
        return measured(*(_only(folder, kind) for kind in ("ptxas", "resources.txt", "sass*")))


def _only(folder: Path, kind: str) -> str:
    paths = sorted(folder.glob(f"*.{kind}"))
    if len(paths) != 1:
        raise ValueError(f"the compiler left {len(paths)} files *.{kind}, and not one")
    return paths[0].read_text(encoding="utf-8", errors="replace")
