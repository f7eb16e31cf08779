"""The exact gradient from few states: what came between them is run again in the reverse pass."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jax_bptt.algorithms.bptt import begin_total, run_block
from jax_bptt.algorithms.memory import (
    Plan,
    by_bytes,
    by_count,
    in_words,
    made_of,
    parsed,
    part,
    slices,
)
from jax_bptt.algorithms.schedule import schedule
from jax_bptt.core import blocks, devices, reverse, trees
from jax_bptt.core.checks import batch_shape, is_integer, require, shown
from jax_bptt.core.forward import forward_scan, over_time
from jax_bptt.core.types import Algorithm, Cell, Gradient, Inputs, PyTree
from jax_bptt.core.values import as_value


class Saved(NamedTuple):
    """Residuals of the forward pass, for the reverse pass.

    Attributes:
      inputs: of the run.
      slots: states, [slots, *batch, ...], as `schedule` numbers them; of parked ones the last.
      parked: states that enter the blocks, [blocks, *batch, ...], on the host; None for none.
      kept: states and residuals of the last blocks, [kept, K, *batch, ...]; None for none.
      plan: by which they were kept.
    """

    inputs: Inputs
    slots: PyTree
    parked: PyTree
    kept: PyTree
    plan: Plan


@as_value
def checkpointed(
    *,
    count: int | None = None,
    block_length: int | None = None,
    memory_budget: str | int | None = None,
    on_host: bool = False,
) -> Algorithm:
    """Return exact backpropagation through time that keeps few states and runs blocks again.

        lambda_{t-1} = J_t^T lambda_t + g_{t-1}           t = T..1
        dL/dW        = sum_t (d+ s_t / dW)^T lambda_t

    Time is in blocks of K steps. The forward pass keeps the states at the beginnings of some of
    them. The reverse pass takes the blocks last to first, and runs each again, from its first
    state, for what it has to know of its steps. Where that state is not kept it is come to from
    the nearest one before it that is, and states are kept on the way in room that has become free:
    by the schedule of Griewank and Walther: no other runs fewer blocks for so many states.

    Exact, the same as `bptt()` but for rounding. Beside inputs and outputs memory takes `count`
    states and a few more, and what is made of one block; compile time does not depend on T. In
    forward mode nothing is kept. A second derivative takes the memory of about sqrt(T) states and
    of what JAX saves of sqrt(T) steps, whatever the arguments.

    Args:
      count: states kept at a time, beside the first and the last. By default those of all blocks,
        so that each step is run again once.
      block_length: K, in steps. By default about sqrt(T), or T / (count + 1) where `count` is
        given; 1 is the schedule over single steps.
      memory_budget: bytes, or text such as "64MB" (10^6 bytes) or "1.5GiB" (2^30), that the
        compiled gradient may take beside inputs and outputs, in place of the other two. K and
        `count` are chosen for the shapes and dtypes of the run such that few steps are run again;
        where the first states of all blocks leave room, the last blocks keep all states and
        unit-wise Jacobians, and are not run again. States come first, which is no more than one
        block from the optimum where what a block makes is as large as 16 states. Under `jax.vmap`
        the budget is that of one example, and where XLA splits the batch over devices that of all
        of them. What a block takes is counted in its traced reverse pass, and a quarter added for
        what a compiler copies.
      on_host: whether the first states of all blocks are parked in the memory of the host, each of
        them on its way while the next block runs. They are no part of a budget, and each step is
        run again once. On a CPU it is the same memory.

    Returns:
      An `Algorithm` for `unroll`; `explain` says what it keeps and runs again.

    Raises:
      ValueError: a number is not positive, or `memory_budget` is given besides, no size, or below
        the least possible, which the message names; or `count` is given with `on_host`.
      TypeError: `on_host` is not a bool.

    References:
      A. Griewank and A. Walther (2000), "Algorithm 799: revolve". A. Gruslys, R. Munos, I.
      Danihelka, M. Lanctot and A. Graves (2016), "Memory-efficient backpropagation through time".

    Example:
      >>> import jax, jax.numpy as jnp, jax_bptt as jb
      >>> cell = jb.lstm(input_size=3, hidden_size=4)
      >>> params, xs = cell.init(jax.random.key(0)), jnp.ones((100, 2, 3))
      >>> algorithm = jb.checkpointed(count=4, block_length=5)
      >>> jb.unroll(cell, params, xs, algorithm=algorithm)[1].shape
      (100, 2, 4)
      >>> jb.explain(cell, params, xs, algorithm=algorithm).splitlines()[-2]
      'the reverse pass runs 170 steps forward again'
    """
    for name, number in (("count", count), ("block_length", block_length)):
        least = 0 if name == "count" else 1
        require(
            number is None or (is_integer(number) and number >= least),
            f"checkpointed: {name} must be a whole number, {least} or more, or None, got "
            f"{shown(number)}",
        )
    require(
        memory_budget is None or (count is None and block_length is None),
        "checkpointed: memory_budget chooses count and block_length; pass it alone, or these",
    )
    require(
        isinstance(on_host, bool),
        f"checkpointed: on_host must be True or False, got {shown(on_host)}",
        TypeError,
    )
    require(
        not (on_host and count is not None),
        "checkpointed: on_host keeps the first states of all blocks; pass it or count, not both",
    )
    budget = None if memory_budget is None else parsed(memory_budget)

    def plan(cell, inputs):
        if budget is not None:
            return by_bytes(cell, inputs, budget, on_host)
        return by_count(inputs, count, block_length)._replace(on_host=on_host)

    def forward(cell, inputs):
        return _forward(cell, inputs, plan(cell, inputs))

    def explain(cell, inputs):
        return in_words(cell, inputs, plan(cell, inputs))

    return Algorithm(_run, forward, _backward, explain=explain)


def _run(cell: Cell, inputs: Inputs) -> tuple[PyTree, PyTree]:
    """Return (last_state, ys), in blocks that JAX runs again for its own reverse mode."""
    weights, state, xs, start, controls = inputs

    @jax.checkpoint
    def block(state, xs, controls):
        return _outputs(cell, Inputs(weights, state, xs, start, controls))

    def each(state, steps):
        return block(state, *steps[1])

    length = by_count(inputs, None, None).length
    return blocks.scan_blocks(each, state, (None, (xs, controls)), length)


def _outputs(cell: Cell, inputs: Inputs) -> tuple[PyTree, PyTree]:
    last_state, states, _ = forward_scan(cell, inputs)
    return last_state, over_time(cell, cell.readout)(inputs.weights, states)


def _forward(cell: Cell, inputs: Inputs, plan: Plan) -> tuple[tuple[PyTree, PyTree], Saved]:
    """Run all blocks, each state into the slot that the schedule has for it."""
    steps, length, first = plan.steps, plan.length, plan.blocks - plan.kept

    def block(carry, action):
        state, slots, kept, ys = carry
        at = action.block * length
        parked = _moved(state, jax.memory.Space.Host) if plan.on_host else None
        state, made = run_block(cell, part(inputs, state, at, length), keep=plan.kept > 0)
        if plan.kept:
            # What a block before them writes is written over.
            kept = _put(kept, made, jnp.maximum(action.block - first, 0))
        own = over_time(cell, cell.readout)(inputs.weights, made[0])
        slots = _put(slots, state, -1 if plan.on_host else action.store)
        return (state, slots, kept, _write(ys, own, at)), parked

    # Made of what they hold, so that they lie on devices as that does.
    slots = _repeated(inputs.state, plan.slots)
    ys = _repeated(cell.readout(inputs.weights, inputs.state), steps)
    actions = schedule(plan.blocks, plan.states)[0]
    carry = inputs.state, slots, _room(cell, inputs, plan), ys
    parked = None
    if plan.blocks:
        carry, parked = lax.scan(block, carry, actions)
    last_state, slots, kept, ys = carry
    if plan.rest:
        at = steps - plan.rest
        last_state, own = _outputs(cell, part(inputs, last_state, at, plan.rest))
        ys = _write(ys, own, at)
    return (last_state, ys), Saved(inputs, slots, parked, kept, plan)


def _backward(cell: Cell, saved: Saved, lam: PyTree, d_ys: PyTree) -> Gradient:
    """Run and reverse the blocks as scheduled, what is left over of T first."""
    inputs, slots, parked, whole, plan = saved
    actions = schedule(plan.blocks, plan.states)[1]
    first = plan.blocks - plan.kept
    straight = bool(actions.reverse.all())  # then the states that are kept stay as they are

    def again(state, at, length, index=None):
        own = part(inputs, state, at, length)
        if plan.kept == 0 or index is None:
            return own, *run_block(cell, own, keep=True)
        made = lax.cond(
            index >= 0, lambda: _read(whole, index), lambda: run_block(cell, own, keep=True)[1]
        )
        return own, state, made

    def pull(own, made, total, at, length):
        (states, residuals), g = made, slices(d_ys, at, length)
        around = reverse.surroundings(cell, own, states, g, residuals)
        return total.with_block(reverse.gradient(own, around, total.lam))

    def block(carry, steps):
        kept, total, d_xs = carry
        action, state = steps
        at = action.block * plan.length
        if plan.on_host:
            state = _moved(state, jax.memory.Space.Device)
        else:
            state = _read(slots if straight else kept, action.load)
        own, last_state, made = again(state, at, plan.length, action.block - first)

        def reversed_block(total):
            return pull(own, made, total, at, plan.length)

        if straight:
            total, d_x = reversed_block(total)
        else:
            kept = _put(kept, last_state, action.store)
            # What a block that is only passed by writes is written over when it is reversed.
            before = slices(d_xs, at, plan.length)
            total, d_x = lax.cond(
                action.reverse, reversed_block, lambda total: (total, before), total
            )
        return (kept, total, _write(d_xs, d_x, at)), None

    total = begin_total(saved, lam)
    zeros = jax.tree.map(lambda a: jnp.zeros_like(a) if trees.is_inexact(a) else None, inputs.xs)
    d_xs = devices.vary_alike(zeros, saved)
    if plan.rest:
        at = plan.steps - plan.rest
        own, _, made = again(_read(slots, -1), at, plan.rest)
        total, d_x = pull(own, made, total, at, plan.rest)
        d_xs = _write(d_xs, d_x, at)
    carry = None if straight else slots, total, d_xs
    if plan.blocks:
        # Parked states lie as time does, and are not copied to be turned round.
        from_last = jax.tree.map(lambda a: a[::-1], actions)
        carry, _ = lax.scan(block, carry, (from_last, parked), reverse=True)
    _, total, d_xs = carry
    return total.gradient(inputs.weights, d_xs)


def _room(cell: Cell, inputs: Inputs, plan: Plan) -> PyTree:
    """Return room for what the last blocks make, laid out on devices as the inputs are."""
    if not plan.kept:
        return None
    _, residuals = made_of(cell, inputs, plan.length)
    room = jax.tree.map(lambda a: jnp.zeros((plan.kept, *a.shape), a.dtype), residuals)
    batch = len(batch_shape(cell, inputs.xs))
    room = devices.shard_alike(devices.vary_alike(room, inputs), inputs.xs, batch, time=2)
    return _repeated(_repeated(inputs.state, plan.length), plan.kept), room


def _write(tree: PyTree, steps: PyTree, at: Any) -> PyTree:
    """Return `tree` [T, ...] with these steps from step `at` on."""
    return jax.tree.map(lambda a, s: lax.dynamic_update_slice_in_dim(a, s, at, 0), tree, steps)


def _moved(state: PyTree, space: Any) -> PyTree:
    return jax.tree.map(lambda a: jax.device_put(a, space), state)


def _read(slots: PyTree, slot: Any) -> PyTree:
    return jax.tree.map(lambda a: lax.dynamic_index_in_dim(a, slot, keepdims=False), slots)


def _put(slots: PyTree, state: PyTree, slot: Any) -> PyTree:
    return jax.tree.map(lambda a, s: lax.dynamic_update_index_in_dim(a, s, slot, 0), slots, state)


def _repeated(tree: PyTree, times: int) -> PyTree:
    return jax.tree.map(lambda a: jnp.broadcast_to(a, (times, *a.shape)), tree)
