"""Few states, the same gradient: the schedule, what is run again, and the bytes that it takes."""

import functools
import itertools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_bptt as jb
from jax_bptt.algorithms import checkpointed as module
from jax_bptt.algorithms.memory import Plan, filled, parsed
from jax_bptt.algorithms.schedule import runs, schedule
from tests import reference
from tests.core.test_budgets import OPTIONS
from tests.registry import (
    BATCH,
    CELLS,
    FEW,
    KINDS,
    STEPS,
    assert_close,
    expected,
    problem,
    slow_unless,
    without_int,
)

EXACT = 1e-12
SETTINGS: dict[str, dict[str, Any]] = {
    "sqrt": {},
    "count": dict(count=2),
    "binomial": dict(count=1, block_length=1),
    "blocks": dict(block_length=3),
    "all_steps": dict(block_length=10),
    "bytes": dict(memory_budget="1GB"),
    "on_host": dict(on_host=True),
    "on_host_bytes": dict(on_host=True, memory_budget="1GB"),
}


@functools.cache
def fewest(n, c):
    """Return t(n, c) by trying every first state that could be kept."""
    if n <= 1:
        return 0
    if c == 0:
        return n * (n - 1) // 2
    return min(y + fewest(n - y, c - 1) + fewest(y, c) for y in range(1, n))


@pytest.mark.parametrize("count", range(7))
def test_the_schedule_reverses_all_blocks_with_the_fewest_runs(count):
    for blocks in range(25):
        forward, backward = schedule(blocks, count)
        slots: dict[int, int] = {0: 0}
        for k, (block, load, store, reverse) in enumerate(zip(*forward, strict=True)):
            assert block == k == slots[load] and not reverse
            slots[store] = k + 1
        assert slots[max(slots)] == blocks and max(slots) <= count + 2
        left = list(range(blocks))
        for block, load, store, reverse in zip(*backward, strict=True):
            assert slots[load] == block
            slots[store] = block + 1
            assert not reverse or left.pop() == block
        assert not left
        if blocks:
            taken = len(forward.block) - 1 + int((~backward.reverse).sum())
            assert taken == runs(blocks, count) == fewest(blocks, count)


@functools.cache
def fewest_of_both(n, room, block):
    """Return the fewest blocks to run for n of them, by states of size 1 and blocks of `block`.

    The dynamic programme of Gruslys et al.: run y blocks and keep the state they came to, or run y
    blocks and keep all that the last of them made. The run of a block within its reversal counts.
    """
    if n == 0:
        return 0
    found = [n * (n + 1) // 2]
    for y in range(1, n + 1):
        if room >= 1 and y < n:
            state = fewest_of_both(n - y, room - 1, block) + fewest_of_both(y, room, block)
            found.append(y + state)
        if room >= block:
            rest = fewest_of_both(n - y, room - block, block)
            found.append(y + rest + fewest_of_both(y - 1, room, block))
    return min(found)


def test_states_before_blocks_is_one_block_from_the_dynamic_programme():
    block, most = 16, 14
    for n in range(1, most + 1):
        for room in range(n * (block + 1)):
            plan = filled(Plan(n, 1, 0), room, 1, block)
            assert plan.states + plan.kept * block <= room
            # All are run once in the forward pass, and unless all are kept the last again, which
            # the programme spares.
            ran = max(n + plan.again - 1, n)
            assert ran - fewest_of_both(n, room, block) in (0, 1)


def pulled(name, algorithm, p):
    def loss(args):
        outputs = jb.unroll(CELLS[name].cell, *args, algorithm=algorithm)
        return reference.pair(jnp, p.cotangents, outputs), outputs

    arguments = p.params, p.xs, p.state
    gradients, outputs = jax.grad(loss, has_aux=True, allow_int=True)(arguments)
    return outputs, without_int(gradients)


@pytest.mark.parametrize(
    "name, setting",
    [
        slow_unless(row == ("lstm_readout", "sqrt"), *row)
        for row in itertools.product(KINDS, SETTINGS)
    ],
)
def test_exact_at_every_setting(name, setting):
    p, algorithm = problem(name), jb.checkpointed(**SETTINGS[setting])
    got = jax.jit(functools.partial(pulled, name, algorithm))(p)
    assert_close(got, expected(name), EXACT)


@pytest.mark.parametrize("name", [slow_unless(name in FEW[:1], name) for name in KINDS])
def test_modes_and_second_derivatives(name):
    """Forward mode is the transpose of the reverse pass; a Hessian-vector product is bptt's."""
    p = problem(name)
    rng = np.random.default_rng(5)
    leaves = jax.tree.leaves(p.params)
    directions = [jnp.asarray(rng.normal(size=a.shape), a.dtype) for a in leaves]

    def derivatives(algorithm, leaves):
        def loss(leaves):
            params = jax.tree.unflatten(jax.tree.structure(p.params), leaves)
            outputs = jb.unroll(CELLS[name].cell, params, p.xs, p.state, algorithm=algorithm)
            return reference.pair(jnp, p.cotangents, outputs)

        pushed = jax.jvp(loss, (leaves,), (directions,))[1]
        gradients, hessian = jax.jvp(jax.grad(loss), (leaves,), (directions,))
        return pushed, gradients, hessian

    algorithms = jb.checkpointed(count=0, block_length=2), jb.bptt()
    got, want = (jax.jit(functools.partial(derivatives, a))(leaves) for a in algorithms)
    terms = [float((g * d).sum().real) for g, d in zip(got[1], directions, strict=True)]
    assert abs(float(got[0]) - sum(terms)) <= EXACT * np.abs(terms).sum()
    assert_close(got[2], want[2], 1e-11)


@pytest.mark.parametrize("setting", [{}, dict(memory_budget="1MB")])
def test_no_steps(setting):
    p = problem("lstm_readout")
    cell, xs = CELLS["lstm_readout"].cell, p.xs[:0]
    last_state, ys = jb.unroll(cell, p.params, xs, p.state, algorithm=jb.checkpointed(**setting))
    assert_close(last_state, p.state, 0)
    assert ys.shape == (0, *BATCH, 2)


@pytest.mark.parametrize("setting", [dict(count=0, block_length=2), dict(count=1, block_length=1)])
def test_as_many_steps_are_run_again_as_explain_says(setting, monkeypatch):
    name, ran = "elman", []

    def counted(cell, inputs, keep, run_block=module.run_block):
        steps = inputs.xs.shape[0]
        if keep:  # as the reverse pass does
            jax.debug.callback(lambda _: ran.append(steps), inputs.xs[0, 0, 0])
        return run_block(cell, inputs, keep)

    monkeypatch.setattr(module, "run_block", counted)
    p, algorithm = problem(name), jb.checkpointed(**setting)
    jax.block_until_ready(jax.jit(functools.partial(pulled, name, algorithm))(p))
    jax.effects_barrier()
    blocks, length = divmod(STEPS, setting["block_length"])[0], setting["block_length"]
    again = length * (fewest(blocks, setting["count"]) + 1) + STEPS % length
    assert sum(ran) == again
    told = jb.explain(CELLS[name].cell, p.params, p.xs, algorithm=algorithm)
    assert f"T = {STEPS} in {blocks} blocks of {length} steps" in told
    assert f"runs {again} steps forward again" in told


T, B, H = 2000, 4, 32
SIZES: Any = dict(input_size=H, hidden_size=H, dtype=jnp.float32)
BUDGETED = {
    name: getattr(jb, name)(**SIZES)
    for name in ("elman", "gru", "gru_reset_before", "layer_norm_lstm", "lru", "lstm", "slstm")
}


def temporary_bytes(cell, algorithm):
    """Return what the compiled gradient takes for given cotangents, XLA as it comes."""

    def program(params, xs, cotangents):
        run = functools.partial(jb.unroll, cell, algorithm=algorithm)
        outputs, pull = jax.vjp(run, params, xs)
        return outputs, pull(cotangents)

    xs = jax.ShapeDtypeStruct((T, B, H), jnp.float32)
    params = jax.eval_shape(cell.init, jax.random.key(0))
    outputs = jax.eval_shape(functools.partial(jb.unroll, cell), params, xs)
    compiled = jax.jit(program).lower(params, xs, outputs).compile(OPTIONS)
    memory = compiled.memory_analysis()
    assert memory is not None
    return memory.temp_size_in_bytes


def least_budget(cell):
    params = jax.eval_shape(cell.init, jax.random.key(0))
    xs = jax.ShapeDtypeStruct((T, B, H), jnp.float32)
    with pytest.raises(ValueError, match="checkpointed: memory_budget of 1 bytes is below") as info:
        jb.explain(cell, params, xs, algorithm=jb.checkpointed(memory_budget=1))
    (least,) = re.findall(r"shapes, (\d+) bytes", str(info.value))
    return int(least)


@pytest.mark.parametrize(
    "name, times",
    [
        slow_unless(row == ("lstm", 2), *row)
        for row in itertools.product(BUDGETED, (1, 2, 4, 16, 64))
    ],
)
def test_a_compiled_gradient_stays_within_its_budget(name, times):
    cell = BUDGETED[name]
    budget = times * least_budget(cell)
    assert temporary_bytes(cell, jb.checkpointed(memory_budget=budget)) <= budget


@pytest.mark.parametrize("times", [slow_unless(times == 30, times) for times in (1, 3, 30, 300)])
def test_exact_within_a_budget(times):
    cell = jb.lstm(input_size=2, hidden_size=H)
    params = cell.init(jax.random.key(0))
    xs = jax.random.normal(jax.random.key(1), (T, B, 2))
    with pytest.raises(ValueError, match="checkpointed: memory_budget of 1 bytes is below") as info:
        jb.explain(cell, params, xs, algorithm=jb.checkpointed(memory_budget=1))
    (least,) = re.findall(r"shapes, (\d+) bytes", str(info.value))
    algorithm = jb.checkpointed(memory_budget=times * int(least))
    told = jb.explain(cell, params, xs, algorithm=algorithm)
    if times == 30:
        (blocks, kept) = map(int, re.findall(r"(\d+) blocks", told))
        assert 0 < kept < blocks

    @jax.jit
    def gradients(params, xs):
        _, ys = jb.unroll(cell, params, xs)
        arguments: Any = dict(d_ys=ys, d_last_state=None)
        return tuple(
            jb.bptt_gradients(cell, params, xs, algorithm=a, **arguments)
            for a in (algorithm, jb.bptt())
        )

    got, want = gradients(params, xs)
    assert_close(got, want, EXACT)


@pytest.mark.parametrize(
    "size, number",
    [(5, 5), ("5B", 5), ("64MB", 64_000_000), ("1.5 GiB", 3 * 2**29), ("2KiB", 2048)],
)
def test_sizes(size, number):
    assert parsed(size) == number


@pytest.mark.parametrize("size", ["64 potatoes", "MB", "-1MB", "1iB", 0, -3, 1.5, True, "64mb"])
def test_what_is_no_size(size):
    with pytest.raises(ValueError, match="memory_budget must be a positive number of bytes, or te"):
        jb.checkpointed(memory_budget=size)


@pytest.mark.parametrize("name, value", [("count", -1), ("count", 1.5), ("block_length", 0)])
def test_what_is_no_number(name, value):
    with pytest.raises(ValueError, match=f"checkpointed: {name} must be a whole number"):
        jb.checkpointed(**{name: value})


def test_a_budget_is_given_alone():
    with pytest.raises(ValueError, match="memory_budget chooses count and block_length"):
        jb.checkpointed(count=2, memory_budget="1MB")


@pytest.mark.parametrize("on_host", [True, False])
def test_states_go_to_the_host_and_come_back(on_host):
    """A CPU has one memory: the program is lowered for a device that has another."""
    cell = CELLS["elman"].cell
    p = problem("elman")

    def loss(params):
        algorithm = jb.checkpointed(block_length=2, on_host=on_host)
        return jb.unroll(cell, params, p.xs, p.state, algorithm=algorithm)[1].sum()

    lowered = jax.jit(jax.grad(loss)).trace(p.params).lower(lowering_platforms=("cuda",))
    assert ("pinned_host" in lowered.as_text()) == on_host


def test_states_on_the_host_are_no_part_of_the_budget():
    cell = BUDGETED["elman"]
    params = jax.eval_shape(cell.init, jax.random.key(0))
    xs = jax.ShapeDtypeStruct((T, B, H), jnp.float32)
    budget = 2 * least_budget(cell)

    def again(on_host):
        algorithm = jb.checkpointed(memory_budget=budget, on_host=on_host)
        told = jb.explain(cell, params, xs, algorithm=algorithm)
        assert ("in the memory of the host" in told) == on_host
        return int(re.findall(r"runs (\d+) steps", told)[0])

    assert again(True) <= T < again(False)


def test_the_host_keeps_all_or_none():
    with pytest.raises(ValueError, match="on_host keeps the first states of all blocks"):
        jb.checkpointed(count=2, on_host=True)
    with pytest.raises(TypeError, match="on_host must be True or False, got 1"):
        jb.checkpointed(on_host=1)  # type: ignore


def test_an_unknown_number_of_steps_is_refused():
    cell = CELLS["elman"].cell
    params = jax.eval_shape(cell.init, jax.random.key(0))
    xs = jax.ShapeDtypeStruct((*jax.export.symbolic_shape("t"), 1, 2), jnp.float64)
    with pytest.raises(ValueError, match="checkpointed: what to keep depends on T"):
        jax.eval_shape(functools.partial(jb.unroll, cell, algorithm=jb.checkpointed()), params, xs)
