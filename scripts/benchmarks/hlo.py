"""Facts about an optimized program, from the HLO text that XLA prints of it."""

import math
import re
from collections.abc import Collection
from typing import NamedTuple

COLLECTIVES = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")

COMPUTATION = re.compile(r"^(?:ENTRY )?%(?P<name>[\w.-]+) \(.*\{$")
INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%(?P<name>[\w.-]+) = (?P<rest>.*)$")
ARRAY = re.compile(r"\w+\[(?P<shape>[\d,]*)\]")
NAME = re.compile(r"%([\w.-]+)")
CALLED = re.compile(
    r"\b(?:calls|to_apply|body|condition|branch_computations|called_computations)="
    r"\{?(%[\w.-]+(?:, %[\w.-]+)*)"
)


class Instruction(NamedTuple):
    """An instruction of a computation."""

    name: str  # unique in its computation
    opcode: str  # such as `dot`; what XLA runs as a start and an end has the opcode of the whole
    shape: tuple[int, ...]  # of the result; of its first array if it is a tuple
    operands: list[str]  # names
    called: list[str]  # names of the computations it calls
    text: str  # behind the operands


Program = dict[str, list[Instruction]]
"""Instructions by the name of their computation."""


def parse(text: str) -> Program:
    """Return the instructions of a program; the end of what was started is left out."""
    program: Program = {}
    name = ""
    for line in text.splitlines():
        if match := COMPUTATION.match(line):
            name = match["name"]
            program[name] = []
        elif (match := INSTRUCTION.match(line)) and (made := _instruction(match)) is not None:
            program[name].append(made)
    return program


def _instruction(match: re.Match) -> Instruction | None:
    kind, rest = _first_word(match["rest"])
    opcode, parenthesis, rest = rest.strip().partition("(")
    if not parenthesis or opcode.endswith("-done"):
        return None
    operands, rest = _first_word(parenthesis + rest)
    called = [name for names in CALLED.findall(rest) for name in NAME.findall(names)]
    array = ARRAY.search(kind)
    shape = tuple(int(n) for n in array["shape"].split(",") if n) if array else ()
    opcode = opcode.removesuffix("-start")
    return Instruction(match["name"], opcode, shape, NAME.findall(operands), called, rest)


def _first_word(text: str) -> tuple[str, str]:
    """Split a text behind its first word, or first pair of parentheses and all they enclose."""
    depth = 0
    for k, character in enumerate(text):
        depth += (character in "({") - (character in ")}")
        if depth == 0 and (character == " " or (character == ")" and text[0] == "(")):
            return text[: k + 1], text[k + 1 :]
    return text, ""


def reached(program: Program, called: Collection[str]) -> set[str]:
    """Return the names of the computations called, and of all that these call in turn."""
    found, new = set(), set(called)
    while new:
        found |= new
        new = {c for name in new for i in program.get(name, []) for c in i.called} - found
    return found


def in_loops(program: Program) -> list[Instruction]:
    """Return all instructions that some loop repeats, each once."""
    loops = [i for body in program.values() for i in body if i.opcode == "while"]
    names = reached(program, [name for loop in loops for name in loop.called])
    return [i for name in sorted(names) for i in program.get(name, [])]


def collectives(program: Program) -> dict[str, dict[str, int]]:
    """Return how many instructions of each kind exchange data, and how many of them in loops."""
    everything = [i.opcode for body in program.values() for i in body]
    repeated = [i.opcode for i in in_loops(program)]
    return {
        kind: {"all": everything.count(kind), "in_loops": repeated.count(kind)}
        for kind in COLLECTIVES
    }


def rows(program: Program, features: Collection[int]) -> list[int]:
    """Return the numbers of rows that the program's matrix products have, each once.

    A product has three lengths: those of its result, and the one that is summed over. Two of them
    are numbers of features, as of the weights it reads or of the gradient it is. The third counts
    rows: sequences, or time steps of sequences.

    Args:
      program: from `parse`.
      features: the numbers of features, which should not be numbers of rows as well.

    Raises:
      ValueError: a product of which none of the lengths, or more than one, can be that of rows.
    """
    found = set()
    for body in program.values():
        shapes = {i.name: i.shape for i in body}
        for i in body:
            if i.opcode == "dot":
                lengths = _lengths(i, shapes)
                others = [n for n in lengths if n not in features]
                if len(others) != 1:
                    raise ValueError(f"a product of lengths {lengths}, features {sorted(features)}")
                found.add(others[0])
    return sorted(found)


def _lengths(dot: Instruction, shapes: dict[str, tuple[int, ...]]) -> list[int]:
    """Return the lengths of a product: of the left's own axes, the right's own, those summed."""

    def axes(name):
        match = re.search(rf"\b{name}=\{{([\d,]*)\}}", dot.text)
        return [int(n) for n in match[1].split(",") if n] if match else []

    lengths = []
    for side, operand in zip(("lhs", "rhs"), dot.operands, strict=True):
        used = axes(f"{side}_contracting_dims") + axes(f"{side}_batch_dims")
        shape = shapes[operand]
        lengths.append(math.prod(n for k, n in enumerate(shape) if k not in used))
    left = shapes[dot.operands[0]]
    return [*lengths, math.prod(left[k] for k in axes("lhs_contracting_dims"))]
