"""Block length and number of states of `checkpointed`, by count or by bytes of memory."""

import math
import re
from typing import Any, NamedTuple

import jax
from jax import lax

from jax_bptt.algorithms.bptt import Total, block_length_of, even_length, run_block
from jax_bptt.algorithms.live_bytes import peak_bytes, size
from jax_bptt.algorithms.schedule import repetitions, runs
from jax_bptt.core import reverse, trees
from jax_bptt.core.checks import is_integer, require, shown
from jax_bptt.core.forward import over_time
from jax_bptt.core.types import Cell, Inputs, PyTree
from jax_bptt.core.values import Value

COPIES = 5 / 4
"""Bytes that XLA takes for a block over those that its operations need one by one."""

BEGINNING = 4
"""Steps that take as long as beginning a block does, which adds up the weights' gradient."""

UNITS = {"B": 1} | {
    f"{prefix}{binary}B": (1024 if binary else 1000) ** power
    for power, prefix in enumerate("KMGT", start=1)
    for binary in ("", "i")
}


class _Plan(NamedTuple):
    steps: int
    length: int
    states: int
    kept: int = 0
    on_host: bool = False


class Plan(Value, _Plan):
    """The choice of what a run keeps.

    Attributes:
      steps: T.
      length: K, steps of a block.
      states: how many are kept at a time, beside the first, the last and the latest.
      kept: blocks, the last ones, of which all states and residuals are kept.
      on_host: whether the states are kept in the host's memory, those of all blocks.
    """

    @property
    def blocks(self) -> int:
        """Blocks of K steps."""
        return self.steps // self.length

    @property
    def rest(self) -> int:
        """Steps that are left over of T."""
        return self.steps % self.length

    @property
    def slots(self) -> int:
        """States that there is room for on the device."""
        return 1 if self.on_host else self.states + 3

    @property
    def again(self) -> int:
        """Steps that the reverse pass runs forward."""
        n = self.blocks
        return self.rest + (self.length * (runs(n, self.states) + 1 - self.kept) if n else 0)


def by_count(inputs: Inputs, count: int | None, block_length: int | None) -> Plan:
    """Return the plan for a number of states and a block length, None for the default."""
    steps = _steps(inputs)
    if block_length is None:
        block_length = math.isqrt(steps) if count is None else -(-steps // (count + 1))
    length = max(min(block_length, steps), 1)
    most = max(steps // length - 2, 0)
    return Plan(steps, length, most if count is None else min(count, most))


def by_bytes(cell: Cell, inputs: Inputs, budget: int, on_host: bool) -> Plan:
    """Return the plan that runs the fewest steps again within `budget` bytes of the device."""
    steps, state = _steps(inputs), size(inputs.state)
    fixed, each = block_bytes(cell, inputs)
    made = size(made_of(cell, inputs, 1)) if steps else 0
    longest = max(min(block_length_of(cell, inputs.weights, inputs.xs), steps), 1)
    halves = [longest >> times for times in range(longest.bit_length())]
    near = [even_length(steps, k, -(-3 * k // 4), 4 * k // 3) for k in halves]
    lengths = [min(k, max(steps, 1)) for k in near]

    def needed(length):
        return math.ceil(fixed + length * each) + 3 * state

    one = 0 if on_host else state
    least = {k: needed(k) + _fewest(steps // k) * one for k in lengths}
    require(
        budget >= min(least.values()),
        f"checkpointed: memory_budget of {budget} bytes is below the least possible for these "
        f"shapes, {min(least.values())} bytes. Pass that or more, or a smaller batch.",
    )
    plans = [
        filled(Plan(steps, k, 0, on_host=on_host), budget - needed(k), one, k * made)
        for k in lengths
        if least[k] <= budget
    ]
    return min(plans, key=lambda plan: plan.again + BEGINNING * plan.blocks)


def filled(plan: Plan, room: int, state: int, block: int) -> Plan:
    """Return a plan with states in `room` bytes, and whole blocks where these leave some of it.

    Args:
      plan: without either.
      room: bytes for both.
      state: bytes of a state, 0 where they take none of the room.
      block: bytes of what a block makes.
    """
    most = max(plan.blocks - 2, 0)
    states = most if state == 0 else min(room // state, most)
    spare = (room - states * state) // max(block, 1) if states == most else 0
    return plan._replace(states=states, kept=min(spare, plan.blocks))


def block_bytes(cell: Cell, inputs: Inputs) -> tuple[int, float]:
    """Return bytes of the reverse pass through a block: of any, and for each step.

    An upper bound for blocks of any length, since what is there at any point is so many bytes and
    so many for each step: the most of the former and the most of the latter.
    """
    one, many = 2, 2**16

    def peak(length):
        def block(weights, state, xs, start, controls, lam):
            own = part(Inputs(weights, state, xs, start, controls), state, 0, length)
            last_state, (states, residuals) = run_block(cell, own, keep=True)
            # Of the shapes of the cotangents that they stand for.
            ys = over_time(cell, cell.readout)(weights, states)
            around = reverse.surroundings(cell, own, states, trees.partition(ys)[0], residuals)
            total = Total(lam, trees.zero_gradient(start), trees.zero_gradient(weights))
            return last_state, total.with_block(reverse.gradient(own, around, lam))

        def of(a, steps=None):
            shape = a.shape if steps is None else (steps, *a.shape[1:])
            return jax.ShapeDtypeStruct(shape, a.dtype)

        weights, state, xs, start, controls = inputs
        xs, controls = jax.tree.map(lambda a: of(a, 2 * length), (xs, controls))
        own, lam = jax.tree.map(of, (weights, state, start)), trees.partition(state)[0]
        weights, state, start = own
        jaxpr = jax.make_jaxpr(block)(weights, state, xs, start, controls, jax.tree.map(of, lam))
        return peak_bytes(jaxpr.jaxpr)

    each = (peak(2 * many) - peak(many)) / many
    return math.ceil(COPIES * peak(one)), COPIES * each


def made_of(cell: Cell, inputs: Inputs, length: int) -> PyTree:
    """Return descriptions of the states and residuals of a block."""

    def block(inputs):
        return run_block(cell, part(inputs, inputs.state, 0, length), keep=True)[1]

    return jax.eval_shape(block, inputs)


def in_words(cell: Cell, inputs: Inputs, plan: Plan) -> str:
    """Return what is kept and what is run again."""
    whole = f", all of {plan.kept} blocks" if plan.kept else ""
    left = f" and {plan.rest} that are left over" if plan.rest else ""
    fixed, each = block_bytes(cell, inputs)
    made = plan.length * size(made_of(cell, inputs, 1)) if plan.kept else 0
    kept = plan.slots * size(inputs.state) + plan.kept * made
    parked = f" and {plan.blocks} in the memory of the host" if plan.on_host else ""
    return (
        f"checkpointed() takes T = {plan.steps} in {plan.blocks} blocks of {plan.length} steps"
        f"{left}, and is exact\n"
        f"it keeps {plan.slots} states at a time{whole}, {kept} bytes{parked}, and "
        f"needs no more than {math.ceil(fixed + plan.length * each)} bytes for a block\n"
        f"the reverse pass runs {plan.again} steps forward again"
    )


def parsed(size: Any) -> int:
    """Return `memory_budget` in bytes."""
    number: Any = size
    if isinstance(size, str):
        found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMGT]?i?B)", size)
        number = 0
        if found is not None and found[2] in UNITS:
            number = int(float(found[1]) * UNITS[found[2]])
    if not is_integer(number) or number <= 0:
        raise ValueError(
            "checkpointed: memory_budget must be a positive number of bytes, or text such as "
            f"'64MB' or '1.5GiB' with one of {', '.join(UNITS)}; got {shown(size)}"
        )
    return int(number)


def part(inputs: Inputs, state: PyTree, at: Any, length: int) -> Inputs:
    """Return the inputs of `length` steps from step `at` on, which `state` enters."""
    xs, controls = slices((inputs.xs, inputs.controls), at, length)
    return inputs._replace(state=state, xs=xs, controls=controls)


def slices(tree: PyTree, at: Any, length: int) -> PyTree:
    """Return `length` steps of every leaf [T, ...] from step `at` on."""
    return jax.tree.map(lambda a: lax.dynamic_slice_in_dim(a, at, length), tree)


def _steps(inputs: Inputs) -> int:
    """Return T, which has to be known."""
    steps = jax.tree.leaves(inputs.xs)[0].shape[0]
    require(
        is_integer(steps),
        f"checkpointed: what to keep depends on T, which is unknown here, {steps}. Export with a "
        "known T, or with jb.bptt().",
    )
    return steps


def _fewest(blocks: int) -> int:
    """Return the fewest states with which no block is run more than one time as often as that."""
    count = 0
    while repetitions(blocks, count) > count + 1:
        count += 1
    return count
