"""The TPU kernels, interpreted, against a plain scan; what lies beyond an array's end is NaN."""

import functools
import types
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.pallas import tpu as pltpu

import jax_bptt as jb
from jax_bptt.kernels.form import Form, normal_form, split_gates, stack_gates
from jax_bptt.kernels.kernel import Settings
from jax_bptt.kernels.tpu import resident, resident_parts
from tests.kernels.gpu.test_heads import Case, distance, scanned
from tests.registry import slow_unless

pytestmark = pytest.mark.skipif(
    resident_parts.available() is not None, reason=str(resident_parts.available())
)
TOLERANCE = {jnp.float32: 2e-6, jnp.bfloat16: 5e-3}


def by_heads(constructor, heads):
    def construct(**options):
        return jb.multi_head(constructor(**options), heads=heads)

    return construct


ACTIVE = {"elu": functools.partial(jb.elman, activation=jax.nn.elu)}
CELLS = ACTIVE | {
    "elman": jb.elman,
    "gru": jb.gru,
    "lstm": jb.lstm,
    "lstm_peephole": jb.lstm_peephole,
    "mgu": jb.mgu,
    "ugrnn": jb.ugrnn,
    "slstm": jb.slstm,
    "indrnn": functools.partial(jb.indrnn, activation=jnp.tanh),
    "ctrnn": jb.ctrnn,
    "heads": by_heads(jb.gru, 3),
}


def make_case(constructor, dtype, steps, batch, size, flagged):
    cell = constructor(input_size=2, hidden_size=size, dtype=dtype)
    params = cell.init(jax.random.key(0))
    weights = cell.prepare(params)
    leaves, structure = jax.tree.flatten(cell.initial_state(params, (batch,)))

    def draws(seed, shape):
        keys = jax.random.split(jax.random.key(seed), len(leaves))
        return tuple(jax.random.normal(key, shape, jnp.float32) for key in keys)

    state = tuple(0.3 * s for s in draws(1, (batch, size)))
    if len(state) > 2:
        state = tuple(jnp.exp(s) for s in state)  # an sLSTM divides by a leaf of its state
    xs = jax.random.normal(jax.random.key(2), (steps, batch, 2), jnp.float32)
    form = normal_form(cell, weights, jax.tree.unflatten(structure, state), xs)
    assert isinstance(form, Form), form
    drive = cell.project(weights, xs)
    like = jax.tree.map(lambda a: a[0], drive)
    flags = None
    if flagged:
        flags = jax.random.randint(jax.random.key(3), (steps, batch), 0, 4, jnp.int32)

    def step(state, drive):
        state = jax.tree.unflatten(structure, state)
        return jax.tree.leaves(cell.step(weights, state, split_gates(drive, like, 1)))

    d_states: list[Any] = list(draws(4, (steps, batch, size)))
    if len(d_states) > 1:
        d_states[-1] = None
    d_last = draws(5, (batch, size))
    return Case(form, state, stack_gates(drive, 2), flags, step, d_last, tuple(d_states))


def run(case, interpret):
    """Return (states, what the reverse kernel makes)."""
    settings = Settings(interpret=interpret)
    states, saved = resident.forward(case.form, case.forward_inputs, settings, save=True)
    return states, resident.backward(case.form, case.backward_inputs(states, saved), settings)


def check(case, tolerance, interpret: Any = True):
    states, (d_first, d_start, emitted, lambdas) = jax.jit(lambda: run(case, interpret))()

    def loss(state, start, drives):
        made = scanned(case, state, start, drives)
        terms = [(s[-1] * d).sum() for s, d in zip(made, case.d_last, strict=True)]
        pairs = zip(made, case.d_states, strict=True)
        return sum(terms) + sum((s * d).sum() for s, d in pairs if d is not None), made

    function = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))
    (d_state, begun, d_drives), made = function(case.state, case.state, case.drives)
    found, wanted = [*states, *d_first], [*made, *d_state]
    if case.flags is None:
        assert d_start is None
    else:
        found, wanted = [*found, *d_start], [*wanted, *begun]
    for g, e in enumerate(case.form.step.d_drive):
        assert e is not None
        found.append(emitted[:, :, e])
        wanted.append(d_drives[:, :, g])
    assert (lambdas is None) == (case.form.step.units == 0)
    for a, b in zip(found, wanted, strict=True):
        assert distance(a, b) <= tolerance


@pytest.mark.slow
@pytest.mark.parametrize("flagged", [False, True])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", CELLS)
def test_equals_scan(name, dtype, flagged):
    check(make_case(CELLS[name], dtype, 3, 5, 6, flagged), TOLERANCE[dtype])


@pytest.fixture
def small_blocks(monkeypatch):
    """Cut everything up: blocks of 16 rows and two steps, chunks of four units."""
    for name, value in dict(ROWS=16, STEPS=2, FORWARD_CHUNK=4, REVERSE_CHUNK=4, LANES=8).items():
        monkeypatch.setattr(resident_parts, name, value)


@pytest.mark.slow
@pytest.mark.parametrize(
    "constructor, size",
    [
        (jb.lstm, 10),
        slow_unless(False, by_heads(jb.gru, 4), 16),
        slow_unless(False, CELLS["indrnn"], 6),
    ],
)
def test_blocks_that_do_not_divide(constructor, size, small_blocks):
    case = make_case(constructor, jnp.float32, 5, 18, size, True)
    plan = resident_parts.plan_of(case.form, case.drives, [jnp.float32], 1)
    assert plan.grid == (2, 3) and plan.rows * 2 > 18 and plan.block * 3 > 5
    check(case, TOLERANCE[jnp.float32])


@pytest.mark.slow
def test_in_the_simulator_of_a_tpu(small_blocks):
    case = make_case(jb.lstm_peephole, jnp.bfloat16, 3, 18, 6, True)
    check(case, TOLERANCE[jnp.bfloat16], pltpu.InterpretParams())


def test_heads_are_grouped_up_to_a_matrix_unit():
    width = resident_parts.group_width
    assert [width(8, 64), width(8, 96), width(3, 96), width(4, 128), width(1, 5)] == [
        128,
        384,
        288,
        128,
        5,
    ]
    assert width(7, 1) == 1


def test_no_step_keeps_a_transposition():
    case = make_case(jb.lstm, jnp.float32, 3, 5, 6, False)
    jaxpr = jax.make_jaxpr(lambda: run(case, None))()
    kernels = [e for e in jaxpr.eqns if e.primitive.name == "pallas_call"]
    assert len(kernels) == 2
    assert not any("transpose[" in str(e.params["jaxpr"]) for e in kernels)


@pytest.mark.parametrize("name", [slow_unless(n == "slstm", n) for n in CELLS])
def test_lowers_for_a_tpu(name):
    case = make_case(CELLS[name], jnp.bfloat16, 3, 5, 6, True)
    lowered = jax.jit(lambda: run(case, None)).trace().lower(lowering_platforms=("tpu",))
    assert lowered.as_text().count("tpu_custom_call") == 2


def test_says_what_does_not_fit():
    form = make_case(jb.lstm, jnp.float32, 3, 5, 6, False).form
    assert resident.unsupported(form) is None

    def with_matrix(shape, dtype):
        return resident.unsupported(
            form._replace(matrix=jax.ShapeDtypeStruct(shape, dtype))  # pyright: ignore
        )

    assert "bfloat16 or float32, not float16" in str(with_matrix((1, 8, 4, 8), jnp.float16))
    assert with_matrix((1, 2048, 4, 2048), jnp.bfloat16) is None
    assert with_matrix((32, 128, 4, 128), jnp.float32) is None
    reason = str(with_matrix((1, 4096, 4, 4096), jnp.bfloat16))
    assert "4 matrices [4096, 4096] of bfloat16 take 128 MiB" in reason and "the 128 that" in reason


def test_the_memory_is_that_of_the_tpu_at_hand(monkeypatch):
    info = pltpu.get_tpu_info_for_chip(pltpu.ChipVersion.TPU_V5E, 1)
    assert info.vmem_capacity_bytes == resident_parts.capacity()
    smaller = types.SimpleNamespace(vmem_capacity_bytes=32 << 20)
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    monkeypatch.setattr(pltpu, "get_tpu_info", lambda: smaller)
    assert resident_parts.capacity() == 32 << 20


def test_a_plan_fits_into_the_memory():
    form = make_case(jb.lstm, jnp.float32, 3, 5, 6, False).form
    wide = form._replace(matrix=jax.ShapeDtypeStruct((1, 2048, 4, 2048), jnp.bfloat16))
    for batch in (1, 64, 1000):
        like = jax.ShapeDtypeStruct((1024, batch, 4, 2048), jnp.bfloat16)
        plan = resident_parts.plan_of(wide, like, [jnp.float32] * 20, 8)  # pyright: ignore
        assert plan.needed <= resident_parts.CAPACITY
        assert plan.rows * plan.grid[0] >= batch and plan.block * plan.grid[1] >= 1024
