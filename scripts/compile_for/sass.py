"""Machine code of a GPU kernel: its loops, and what a pass through one does.

A loop is a natural one: an edge back to an instruction through which all ways to it lead, and what
reaches that edge without passing there. Spinning on a barrier that is not complete lies beside the
code, in loops of one instruction or two; what a loop does in a pass is what it has outside the
loops within it.

Threads wait for one another in three ways, which are counted apart:

    SYNCS.ARRIVE...A1T0     arrival at a barrier in shared memory, where the warpgroups of a block
                            meet; with `.RED` at those of several blocks, where a cluster does
    BAR.SYNC 0x0            a barrier of the hardware, for all threads of a block
    BAR.SYNC k, 0x80        number k of these, for the 128 threads of one warpgroup: it ends a fence
                            between what its threads and what asynchronous copies do in shared
                            memory (MEMBAR, FENCE.VIEW.ASYNC)

What blocks of a cluster send one another (STAS) is announced to the receiver's barrier before it is
sent, behind a fence that the whole GPU sees (MEMBAR.ALL.GPU).
"""

import re
from collections import Counter
from typing import NamedTuple


class Instruction(NamedTuple):
    """One instruction."""

    name: str  # with all its suffixes, as `HMMA.16816.F32.BF16`
    operands: str  # the rest of the line
    guarded: bool  # whether a predicate decides if it is executed
    target: int | None  # the number of the instruction that a branch leads to, None for others


LINE = re.compile(r"/\*(?P<address>[0-9a-f]{4,})\*/\s+(?P<guard>@!?\w+\s+)?(?P<rest>[A-Z].*)")
LABEL = re.compile(r"^\s*\.(L_x_\w+):")
BRANCH = re.compile(r"`\(\.(L_x_\w+)\)")
FENCE, RELEASE = "FENCE.VIEW.ASYNC", "MEMBAR.ALL.GPU"
WARPGROUP = 128
"""Threads."""


def parse(text: str) -> list[Instruction]:
    """Return the instructions of a kernel, from the disassembly with labels."""
    labels: dict[str, int] = {}
    found: list[tuple[str, str, bool]] = []
    for line in text.splitlines():
        if label := LABEL.match(line):
            labels[label[1]] = len(found)
        elif match := LINE.search(line):
            name, _, operands = match["rest"].rstrip(" ;").partition(" ")
            found.append((name, operands.strip(), match["guard"] is not None))
    return [
        Instruction(name, operands, guarded, _target(name, operands, labels))
        for name, operands, guarded in found
    ]


def _target(name: str, operands: str, labels: dict[str, int]) -> int | None:
    label = BRANCH.search(operands)
    return labels[label[1]] if name.startswith("BRA") and label else None


def successors(code: list[Instruction]) -> list[list[int]]:
    """Return for each instruction those that can follow it."""
    found = []
    for k, (name, _, guarded, target) in enumerate(code):
        ends = name.split(".")[0] in ("BRA", "EXIT", "RET") and not guarded
        following = [] if ends or k + 1 == len(code) else [k + 1]
        found.append(following + ([] if target is None else [target]))
    return found


def loops(code: list[Instruction]) -> dict[int, set[int]]:
    """Return the loops of a kernel: first instruction -> numbers of its instructions."""
    after = successors(code)
    before: list[list[int]] = [[] for _ in code]
    for k, ends in enumerate(after):
        for end in ends:
            before[end].append(k)
    found: dict[int, set[int]] = {}
    backward = [(k, end) for k, ends in enumerate(after) for end in ends if end <= k]
    for start in sorted({end for _, end in backward}):
        around = _reached(after, [0], without=start)
        tails = [k for k, end in backward if end == start and k not in around]
        if tails:
            found[start] = {start} | _reached(before, tails, without=start)
    return found


def _reached(after: list[list[int]], todo: list[int], without: int) -> set[int]:
    """Return what can be reached from some without passing `without`."""
    found: set[int] = set()
    while todo:
        k = todo.pop()
        if k not in found and k != without:
            found.add(k)
            todo += after[k]
    return found


def main_loop(code: list[Instruction]) -> list[Instruction]:
    """Return what a pass through the longest loop does, loops within it left out.

    Raises:
      ValueError: there is no loop.
    """
    every = loops(code)
    if not every:
        raise ValueError("the kernel has no loop over steps")
    start = max(every, key=lambda k: len(every[k]))
    inner = set().union(*(b for k, b in every.items() if k != start and b < every[start]))
    return [code[k] for k in sorted(every[start] - inner)]


class Needs(NamedTuple):
    """The needs of a kernel, or the most that it may need: then None stands for any number."""

    registers: int = 0  # of a thread
    shared_bytes: int = 0  # shared memory of a block
    spilled_bytes: int = 0  # local memory of a thread, for registers that it had too few of
    instructions: int | None = None  # of a pass through the loop, per warp; and likewise:
    barriers: int = 0  # at which the warpgroups of a block meet
    cluster: int = 0  # barriers at which those of a cluster meet
    # between accesses of threads to shared memory and asynchronous copies, each with the barrier of
    # its warpgroup
    fences: int = 0
    sent: int = 0  # stores into the shared memory of blocks of a cluster
    # fences that the whole GPU sees, one before each announcement of what is sent
    releases: int = 0
    ring: int = 0  # waits for what is copied from global memory, or sent
    hmma: int = 0  # products on the tensor cores
    mufu: int = 0  # transcendental functions, square roots and reciprocals
    calls: int = 0  # of subroutines, whose instructions are not counted


def summary(body: list[Instruction]) -> Needs:
    """Count what a pass does.

    A thread arrives at a barrier in shared memory by an arrival of one (`A1T0`); who fetches says
    besides how many bytes will come, by another instruction. Both are waited for in the same way.
    """
    kinds = Counter(i.name.split(".")[0] for i in body)
    arrivals = [i for i in body if i.name.startswith("SYNCS.ARRIVE") and ".A1T0" in i.name]
    waits = sum(i.name.startswith("SYNCS.PHASECHK") for i in body)
    cluster = sum(".RED" in i.name for i in arrivals)
    return Needs(
        instructions=len(body),
        barriers=len(arrivals) - cluster + _met(body),
        cluster=cluster,
        fences=sum(i.name.startswith(FENCE) for i in body),
        sent=kinds["STAS"],
        releases=sum(i.name == RELEASE for i in body),
        ring=waits - len(arrivals),
        hmma=kinds["HMMA"] + kinds["HGMMA"],
        mufu=kinds["MUFU"],
        calls=kinds["CALL"],
    )


def _met(body: list[Instruction]) -> int:
    """Count the barriers of the hardware that do not end a fence of one warpgroup."""
    count, begun = 0, False
    for name, operands, _, _ in body:
        if name.startswith(FENCE):
            begun = True
        elif name.startswith("BAR."):
            count += not (begun and operands.endswith(f", {WARPGROUP:#x}"))
            begun = False
    return count
