"""The batch in halves: when `bptt` splits it, and what comes of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_bptt as jb
from jax_bptt.core.types import GatedStep
from tests.core.jaxprs import equations
from tests.core.messages import check
from tests.registry import split_where_possible

I, H, B, T = 2, 5, 4, 6  # noqa: E741 - the axis letters of the package


def _traced(cell, algorithm, batch=B, steps=T):
    params = cell.init(jax.random.key(0))

    def loss(params, xs):
        return jnp.sum(jb.unroll(cell, params, xs, algorithm=algorithm)[1] ** 2)

    return jax.make_jaxpr(jax.grad(loss))(params, np.ones((steps, batch, I)))


def _splits(*args, **kwargs):
    jaxpr = _traced(*args, **kwargs).jaxpr
    return any(eqn.primitive.name == "while" for eqn in equations(jaxpr))


@pytest.fixture
def one_device_two_cores(monkeypatch):
    monkeypatch.setattr("jax.local_device_count", lambda: 1)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1}, raising=False)
    monkeypatch.setattr("jax_bptt.core.bptt.SMALL", 0)
    monkeypatch.setattr("jax_bptt.core.bptt.SHORT", 0)


def test_small_products_have_the_batch_whole(one_device_two_cores, monkeypatch):
    lstm, algorithm = jb.lstm(input_size=I, hidden_size=H), jb.bptt(block_length=2)
    monkeypatch.setattr("jax_bptt.core.bptt.SMALL", B * H * 4 * H - 1)
    assert _splits(lstm, algorithm)
    monkeypatch.setattr("jax_bptt.core.bptt.SMALL", B * H * 4 * H)
    assert not _splits(lstm, algorithm)


def test_few_products_have_the_batch_whole(one_device_two_cores, monkeypatch):
    lstm = jb.lstm(input_size=I, hidden_size=H)
    monkeypatch.setattr("jax_bptt.core.bptt.SHORT", T * B * H * 4 * H)
    assert _splits(lstm, jb.bptt())
    monkeypatch.setattr("jax_bptt.core.bptt.SHORT", T * B * H * 4 * H + 1)
    assert not _splits(lstm, jb.bptt())


def test_a_half_has_two_rows_or_more(one_device_two_cores):
    lstm = jb.lstm(input_size=I, hidden_size=H)
    assert not _splits(lstm, jb.bptt(), batch=3)
    assert _splits(lstm, jb.bptt(), batch=4)
    assert _splits(lstm, jb.bptt(split_batch=True), batch=2)


def test_a_gated_cell_splits_the_batch_by_default(one_device_two_cores):
    lstm = jb.lstm(input_size=I, hidden_size=H)
    algorithm = jb.bptt(block_length=2)
    assert _splits(lstm, algorithm)
    assert not _splits(lstm, jb.bptt(block_length=2, split_batch=False))
    assert not _splits(lstm, algorithm, batch=1), "nothing to split"
    assert not _splits(lstm, algorithm, steps=2), "a single block"
    assert not _splits(jb.gru_reset_before(input_size=I, hidden_size=H), algorithm), "no gated step"


def test_large_products_have_the_batch_whole(one_device_two_cores, monkeypatch):
    monkeypatch.setattr("jax_bptt.core.bptt.WHOLE", H)
    assert not _splits(jb.lstm(input_size=I, hidden_size=H), jb.bptt(block_length=2))
    assert _splits(jb.lstm(input_size=I, hidden_size=H - 1), jb.bptt(block_length=2))


def test_large_steps_have_the_batch_whole(one_device_two_cores, monkeypatch):
    lstm, algorithm = jb.lstm(input_size=I, hidden_size=H), jb.bptt(block_length=2)
    monkeypatch.setattr("jax_bptt.core.bptt.LARGE", B * H * 4 * H + 1)
    assert _splits(lstm, algorithm)
    monkeypatch.setattr("jax_bptt.core.bptt.LARGE", B * H * 4 * H)
    assert not _splits(lstm, algorithm)


def test_without_a_second_core_the_batch_stays_whole(one_device_two_cores, monkeypatch):
    lstm, algorithm = jb.lstm(input_size=I, hidden_size=H), jb.bptt(block_length=2)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0})
    assert not _splits(lstm, algorithm)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr("jax.local_device_count", lambda: 2)
    assert not _splits(lstm, algorithm), "each device has a core already"


def test_the_registry_s_rows_are_split():
    assert _splits(jb.gru(input_size=I, hidden_size=H), split_where_possible(block_length=2))


def test_an_odd_batch_is_split_unevenly():
    cell = jb.gru(input_size=I, hidden_size=H)
    params, xs = cell.init(jax.random.key(0)), np.random.default_rng(0).normal(size=(T, 5, I))

    def gradient(**options):
        def loss(params, xs):
            algorithm = jb.bptt(block_length=2, **options)
            return jnp.sum(jb.unroll(cell, params, xs, algorithm=algorithm)[1] ** 2)

        return jax.jit(jax.grad(loss, (0, 1)))(params, xs)

    whole, halves = (gradient(split_batch=split) for split in (False, True))
    for a, b in zip(*map(jax.tree.leaves, (whole, halves)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14)


def test_what_is_left_over_takes_no_memory_for_all_steps():
    cell = jb.elman(input_size=I, hidden_size=16)
    params = cell.init(jax.random.key(0))

    def temporary(steps):
        def loss(params, xs):
            algorithm = jb.bptt(block_length=10, split_batch=True)
            return jnp.sum(jb.unroll(cell, params, xs, algorithm=algorithm)[1] ** 2)

        lowered = jax.jit(jax.grad(loss, (0, 1))).lower(params, np.ones((steps, B, I)))
        found = lowered.compile().memory_analysis()
        assert found is not None
        return found.temp_size_in_bytes

    assert temporary(409) < 1.1 * temporary(400)


def _gradients(cell, batch_shape):
    params, xs = cell.init(jax.random.key(0)), np.ones((T, *batch_shape, I))
    return lambda: jb.unroll(cell, params, xs, algorithm=jb.bptt(block_length=2, split_batch=True))


@pytest.mark.parametrize("batch_shape", [(), (1,), (1, 3)])
def test_a_batch_without_halves_is_an_error(batch_shape):
    cell = jb.lstm(input_size=I, hidden_size=H)
    pieces = "bptt: split_batch=True, but the batch shape", str(batch_shape), "split_batch at None"
    check(_gradients(cell, batch_shape), ValueError, *pieces)


def test_a_cell_without_a_free_batch_is_an_error():
    cell = jb.lstm(input_size=I, hidden_size=H)._replace(any_batch=False)
    check(_gradients(cell, (B,)), ValueError, "split_batch=True", "any_batch is False")


def test_a_state_without_the_batch_is_an_error():
    plain = jb.elman(input_size=I, hidden_size=H)
    cell = plain._replace(
        initial_state=lambda params, batch: (plain.initial_state(params, batch), jnp.int32(0)),
        step=lambda w, state, drive: (plain.step(w, state[0], drive), state[1] + 1),
        readout=lambda w, state: plain.readout(w, state[0]),
    )
    check(_gradients(cell, (B,)), ValueError, "not all leaves of the state", f"({B},)", "()")


def test_each_half_has_its_effects():
    seen, projected = [], []

    def pointwise(weights, state, drive, feedback):
        jax.debug.callback(lambda a: seen.append(a.shape), drive)
        return step.pointwise(weights, state, drive, feedback)

    def project(weights, x):
        jax.debug.callback(lambda a: projected.append(a.shape), x)
        return elman.project(weights, x)

    elman = jb.elman(input_size=I, hidden_size=H)
    assert isinstance(elman.step, GatedStep)
    step = elman.step
    cell = elman._replace(step=step._replace(pointwise=pointwise), project=project)
    params, xs = cell.init(jax.random.key(0)), np.ones((T, B, I))
    algorithm = jb.bptt(block_length=2, split_batch=True)
    jax.block_until_ready(jb.unroll(cell, params, xs, algorithm=algorithm))
    jax.effects_barrier()
    assert seen == [(B // 2, 1, H)] * 2 * T
    assert projected == [(2, B // 2, I)] * T
