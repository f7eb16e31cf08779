"""A fused kernel as the compiler leaves it, and what it may need at the most."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from compile_for import sass
from compile_for.sass import Needs
from compile_for.target import Target, dumps


def measured(assembler: str, resources: str, code: str) -> Needs:
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
    return step._replace(
        registers=number(r"Used (\d+) registers", assembler),
        shared_bytes=number(r"smem_scratch_bytes=(\d+)", resources),
        spilled_bytes=max(number(rf"(\d+) bytes {what}", assembler) for what in local),
    )


def exceeded(found: Needs, budget: Needs) -> list[str]:
    """Return what a kernel has more of than its budget allows, of which None is any number."""
    pairs = [(name, getattr(found, name), most) for name, most in budget._asdict().items()]
    return [f"{name} {n} > {most}" for name, n, most in pairs if most is not None and n > most]


def compiled(target: Target, fun: Callable, *args: Any) -> Needs:
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
