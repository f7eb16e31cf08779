"""The block-diagonal GPU kernels, interpreted with the race detector on, against a plain scan."""

import functools
import logging
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import pytest
from jax import lax

import jax_bptt as jb
from jax_bptt.kernels.form import Form, normal_form, split_gates, stack_gates
from jax_bptt.kernels.gpu import heads as gpu_heads
from jax_bptt.kernels.gpu import mosaic
from jax_bptt.kernels.kernel import BackwardInputs, ForwardInputs, Settings
from tests.kernels.lowering import lowered
from tests.registry import slow_unless

pytestmark = pytest.mark.skipif(mosaic.available() is not None, reason=str(mosaic.available()))

T, D = 3, 32
TOLERANCE = {jnp.float32: 2e-6, jnp.bfloat16: 5e-3, jnp.float16: 1e-3}
CELLS = [
    *(jb.elman, jb.gru, jb.lstm, jb.lstm_peephole, jb.mgu, jb.slstm, jb.ugrnn),
    *(jb.ctrnn, jb.ctrnn_euler),
]


QUICK = (jb.lstm, jnp.float32), (jb.gru, jnp.bfloat16)


class Case(NamedTuple):
    form: Form
    state: tuple
    drives: jax.Array
    flags: Any
    step: Any
    d_last: tuple
    d_states: tuple

    @property
    def forward_inputs(self):
        return ForwardInputs(self.state, self.drives, self.flags)

    def backward_inputs(self, states, saved):
        given = self.state, states, saved, self.flags, self.d_last, self.d_states
        return BackwardInputs(*given)


def make_case(constructor, dtype, batch, heads, flagged, units=D, steps=T):
    cell = constructor(input_size=3, hidden_size=heads * units, dtype=dtype)
    if heads > 1:
        cell = jb.multi_head(cell, heads=heads)
    params = cell.init(jax.random.key(0))
    weights = cell.prepare(params)
    leaves, structure = jax.tree.flatten(cell.initial_state(params, (batch,)))

    def draws(seed, shape):
        keys = jax.random.split(jax.random.key(seed), len(leaves))
        return tuple(jax.random.normal(key, shape, jnp.float32) for key in keys)

    size = heads * units
    state = tuple(0.3 * s for s in draws(1, (batch, size)))
    if len(state) > 2:
        state = tuple(jnp.exp(s) for s in state)  # an sLSTM divides by a leaf of its state
    xs = jax.random.normal(jax.random.key(2), (steps, batch, 3), jnp.float32)
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

    # Without flags the last leaf is one that no output reads, which has no cotangents.
    d_states = draws(4, (steps, batch, size))
    if not flagged:
        d_states = (*d_states[:-1], None)
    return Case(form, state, stack_gates(drive, 2), flags, step, draws(5, (batch, size)), d_states)


def scanned(case, state, start, drives):
    flags = case.flags
    if flags is None:
        flags = jnp.zeros(drives.shape[:2], jnp.int32)

    def advance(old, inputs):
        drive, flag = inputs
        reset, held = ((flag & bit) != 0 for bit in (1, 2))
        old = [jnp.where(reset[:, None], a, b) for a, b in zip(start, old, strict=True)]
        new = case.step(old, drive)
        new = [jnp.where(held[:, None], a, b) for a, b in zip(old, new, strict=True)]
        return new, new

    return lax.scan(advance, list(state), (drives, flags))[1]


def distance(found, wanted):
    found, wanted = (a.astype(jnp.float32) for a in (found, wanted))
    return float(jnp.linalg.norm(found - wanted) / jnp.linalg.norm(wanted))


def interpreted():
    return Settings(interpret=mosaic.plgpu.InterpretGPUParams(detect_races=True))


def check(case, tolerance, kernel: Any = gpu_heads):
    states, saved = jax.jit(
        lambda: kernel.forward(case.form, case.forward_inputs, interpreted(), save=True)
    )()
    wanted_states = scanned(case, case.state, case.state, case.drives)
    for found, wanted in zip(states, wanted_states, strict=True):
        assert distance(found, wanted) <= tolerance

    def loss(state, start, drives):
        made = scanned(case, state, start, drives)
        terms = [(s[-1] * d).sum() for s, d in zip(made, case.d_last, strict=True)]
        pairs = zip(made, case.d_states, strict=True)
        return sum(terms) + sum((s * d).sum() for s, d in pairs if d is not None)

    d_state, d_start, d_drives = jax.grad(loss, (0, 1, 2))(case.state, case.state, case.drives)
    made = jax.jit(
        lambda: kernel.backward(case.form, case.backward_inputs(states, saved), interpreted())
    )()
    if case.flags is None:
        assert made[1] is None
        found, wanted = made[0], d_state
    else:
        found, wanted = (*made[0], *made[1]), (*d_state, *d_start)
    for a, b in zip(found, wanted, strict=True):
        assert distance(a, b) <= tolerance
    for g, e in enumerate(case.form.step.d_drive):
        assert e is not None
        assert distance(made[2][:, :, e], d_drives[:, :, g]) <= tolerance


@pytest.mark.parametrize(
    "constructor, dtype",
    [
        slow_unless((constructor, dtype) in QUICK, constructor, dtype)
        for constructor in CELLS
        for dtype in (jnp.float32, jnp.bfloat16)
    ],
)
def test_equals_scan(constructor, dtype):
    case = make_case(constructor, dtype, batch=18, heads=1, flagged=dtype == jnp.float32)
    check(case, TOLERANCE[dtype])


@pytest.mark.slow
@pytest.mark.parametrize("exponent", [-0.5, -0.3])
def test_activation_with_a_power(exponent):
    """The inverse square root unit (Carlile et al. 2017, "Improving deep learning by inverse
    square root linear units") and another, for which Pallas would need the `pow` it has not."""
    unit = functools.partial(jb.elman, activation=lambda a: a * (1.0 + a * a) ** exponent)
    check(make_case(unit, jnp.float32, 16, 1, True), TOLERANCE[jnp.float32])


@pytest.mark.slow
def test_two_heads_of_two_warpgroups_in_half_precision():
    check(make_case(jb.lstm, jnp.float16, 16, 2, True, units=64), TOLERANCE[jnp.float16])


@pytest.mark.slow
@pytest.mark.parametrize("constructor, side_by_side", [(jb.lstm, False), (jb.gru, True)])
def test_products_beside_stores_where_there_are_registers(constructor, side_by_side):
    """Heads of 128 units have 128 registers a thread, of which an LSTM's matrix takes half."""
    case = make_case(constructor, jnp.bfloat16, 16, 1, True, units=128)
    assert gpu_heads._side_by_side(case.form) == side_by_side
    check(case, TOLERANCE[jnp.bfloat16])


@pytest.mark.slow
def test_more_steps_than_are_fetched_ahead():
    case = make_case(jb.gru, jnp.bfloat16, 16, 1, True, units=64, steps=gpu_heads.DEPTH + 1)
    check(case, TOLERANCE[jnp.bfloat16])


@pytest.mark.slow
def test_fetches_fewer_steps_ahead_where_a_step_has_many_tiles():
    case = make_case(jb.slstm, jnp.float32, 16, 1, False, units=64, steps=4)
    assert gpu_heads.unsupported(case.form) is None
    assert 2 <= gpu_heads._plan(case.form, case.drives).depth < gpu_heads.DEPTH
    check(case, TOLERANCE[jnp.float32])


def check_caught(run, caplog, spoil):
    """Check that `run` has no race, and has one after `spoil()`."""
    warns = Settings(interpret=mosaic.plgpu.InterpretGPUParams(detect_races=True, on_race="warn"))
    with caplog.at_level(logging.WARNING):
        jax.block_until_ready(jax.jit(lambda: run(settings=warns))())
        assert "RACE DETECTED" not in caplog.text
        spoil()
        jax.block_until_ready(jax.jit(lambda: run(settings=warns))())
    assert "RACE DETECTED" in caplog.text


def test_missing_barrier_is_caught(monkeypatch, caplog):
    case = make_case(jb.lstm, jnp.bfloat16, 16, 1, False, units=64)
    run = functools.partial(gpu_heads.forward, case.form, case.forward_inputs, save=False)
    spoil = functools.partial(monkeypatch.setattr, mosaic, "sync", lambda barrier: None)
    check_caught(run, caplog, spoil)


def test_lowers_for_a_gpu():
    case = make_case(jb.gru, jnp.bfloat16, 16, 1, True)
    assert "mosaic_gpu" in lowered(
        lambda inputs: gpu_heads.forward(case.form, inputs, Settings(), save=True),
        case.forward_inputs,
    )


def test_says_what_does_not_fit():
    case = make_case(jb.lstm, jnp.float32, 16, 1, False)
    form = case.form
    wide = form._replace(matrix=jnp.zeros((1, 48, 4, 48), jnp.bfloat16))
    assert "32, 64, 96 or 128 units, not 48" in str(gpu_heads.unsupported(wide))
    heavy = form._replace(matrix=jnp.zeros((1, 128, 4, 128), jnp.float32))
    assert "registers" in str(gpu_heads.unsupported(heavy))
    full = form._replace(matrix=jnp.zeros((1, 64, 4, 64), jnp.float32))
    assert gpu_heads.unsupported(full) is None
    many = full._replace(step=full.step._replace(saved=100))
    assert "KiB of shared memory" in str(gpu_heads.unsupported(many))
    assert gpu_heads.unsupported(form) is None


@pytest.mark.slow
def test_reverse_kernel_that_reads_nothing_but_the_last_cotangent():
    """A linear step has nothing to fetch, so that there is no ring to wait for."""

    def linear(**sizes):
        return jb.elman(**sizes, activation=lambda a: a)

    check(make_case(linear, jnp.float32, 16, 1, False), TOLERANCE[jnp.float32])
