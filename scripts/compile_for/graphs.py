"""The scan as XLA compiles it for a GPU: loops inside a CUDA graph, and what is in a loop.

Two texts say so. The sequence of thunks, what the host launches, nested as it runs: a
`kCommandBuffer` is a CUDA graph. And the optimized HLO, where every product has its shape.
"""

import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from benchmarks import hlo

import jax_bptt as jb
from compile_for.target import Target

STEPS, BATCH, UNITS = 1024, 64, 512
"""T, B and H = I; no two axes are of one length but the last two, and no product of some is B."""


class Thunk(NamedTuple):
    """Something that the host launches."""

    kind: str  # such as `kWhile`
    condition: bool  # whether it belongs to the condition of the loop around it
    children: list["Thunk"]  # what it launches itself


THUNK = re.compile(r"^(?P<indent> *)\d+: (?P<kind>k\w+)")
LABEL = re.compile(r"^(?P<indent> *)(?P<label>condition|body):\s*$")
NO_LAUNCH = ("kAsyncStart", "kAsyncDone")


def thunks(text: str) -> list[Thunk]:
    """Return the outermost thunks of a sequence as XLA dumps it.

    What a thunk launches is indented deeper; what a loop does is headed by `condition:`, which
    stands at the beginning of its line whatever the depth, and `body:`.
    """
    top: list[Thunk] = []
    stack: list[tuple[int, Thunk]] = []
    condition = False
    for line in text.splitlines():
        if label := LABEL.match(line):
            condition = label["label"] == "condition"
        elif match := THUNK.match(line):
            indent = len(match["indent"])
            while stack and indent <= stack[-1][0]:
                stack.pop()
            made = Thunk(match["kind"], condition, [])
            (stack[-1][1].children if stack else top).append(made)
            stack.append((indent, made))
    return top


def within(items: list[Thunk]) -> Iterator[Thunk]:
    """Yield thunks and all that they launch."""
    for item in items:
        yield item
        yield from within(item.children)


def loops(items: list[Thunk]) -> list[Thunk]:
    """Return all loops."""
    return [t for t in within(items) if t.kind == "kWhile"]


def step_loops(items: list[Thunk]) -> list[Thunk]:
    """Return the loops over steps, those without a loop inside: the others are over blocks."""
    return [t for t in loops(items) if not loops(t.children)]


def launches(items: list[Thunk]) -> int:
    """Return how many operations of the device are launched: kernels and copies."""
    return sum(not t.children and t.kind not in NO_LAUNCH for t in within(items))


def in_one_graph(items: list[Thunk]) -> bool:
    """Return whether one CUDA graph encloses all loops."""
    every = len(loops(items))
    graphs = (t for t in within(items) if t.kind == "kCommandBuffer")
    return every > 0 and any(len(loops(graph.children)) == every for graph in graphs)


def products_in_step_loops(text: str) -> list[tuple[int, ...]]:
    """Return the shapes of all products that loops over steps compute, from optimized HLO."""
    program = hlo.parse(text)
    found = []
    for loop in (i for body in program.values() for i in body if i.opcode == "while"):
        inside = [i for name in hlo.reached(program, loop.called) for i in program[name]]
        if not any(i.opcode == "while" for i in inside):
            found += [i.shape for i in inside if i.opcode == "dot" or "__cublas" in i.text]
    return found


def sums_over_batch(shape: tuple[int, ...]) -> bool:
    """Return whether a product has no axis of the batch: it is a gradient of weights.

    However XLA splits or joins the other axes, a step's own products are of [B, ...].
    """
    return BATCH not in shape


class Measured(NamedTuple):
    """Launches of a gradient."""

    one_graph: bool  # whether one CUDA graph encloses all loops
    loops: int  # how many there are, over steps and over blocks of steps
    # of each loop over steps in the order in which they run, the last one in reverse: kernels and
    # copies in its body
    launches: list[int]
    conditions: list[int]  # likewise, in its condition
    # shapes of the products in loops over steps that are gradients of weights
    weight_products: list[tuple[int, ...]]


def measured(sequence: str, optimized: str) -> Measured:
    """Read off what is launched from the dumped thunks and the optimized HLO."""
    items = thunks(sequence)
    steps = step_loops(items)
    parts = [[[t for t in s.children if t.condition == c] for s in steps] for c in (False, True)]
    return Measured(
        one_graph=in_one_graph(items),
        loops=len(loops(items)),
        launches=[launches(body) for body in parts[0]],
        conditions=[launches(condition) for condition in parts[1]],
        weight_products=[s for s in products_in_step_loops(optimized) if sums_over_batch(s)],
    )


def broken(found: Measured) -> list[str]:
    """Return what is not as the explicit reverse pass promises."""
    wrong = []
    if len(found.launches) < 2:
        wrong.append(f"{len(found.launches)} loops over steps, where forward and reverse have one")
    if not found.one_graph:
        wrong.append("no CUDA graph encloses all loops")
    wrong += [f"a product {list(s)} of a loop sums over the batch" for s in found.weight_products]
    return wrong


def compiled(
    cell: jb.Cell, algorithm: jb.Algorithm, options: dict[str, Any], target: Target
) -> Measured:
    """Compile the gradient of sum(ys^2) with respect to parameters and inputs."""
    params = jax.eval_shape(cell.init, jax.random.key(0))
    xs = jax.ShapeDtypeStruct((STEPS, BATCH, UNITS), params.w_x.dtype)

    def loss(params, xs):
        ys = jb.unroll(cell, params, xs, algorithm=algorithm)[1]
        return jnp.sum(ys.astype(jnp.float32) ** 2)

    with tempfile.TemporaryDirectory() as folder:
        dump = {"xla_dump_to": folder}
        gradient = jax.grad(loss, argnums=(0, 1))
        text = target.compile(gradient, params, xs, options=options | dump).as_text()
        paths = sorted(Path(folder).glob("*jit_*.thunk_sequence_after_thunk_passes.txt"))
        if len(paths) != 1:
            raise ValueError(f"XLA left {len(paths)} sequences of thunks, and not one")
        return measured(paths[0].read_text(encoding="utf-8"), text)
