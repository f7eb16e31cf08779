"""Cells linear in their state, by hand: numbers on paper, special cases, initialisation."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_bptt as jb
from tests.core.messages import check

I, H, O = 3, 5, 2  # noqa: E741 - the axis letters of the package


def sigmoid(a):
    return 1 / (1 + math.exp(-a))


def test_lru_by_hand():
    """Half the state is left after a step, turned by a right angle."""
    cell = jb.lru(input_size=1, hidden_size=1, output_size=1)
    params = cell.init(jax.random.key(0))._replace(
        nu=jnp.log(jnp.log(jnp.full(1, 2.0))),
        theta=jnp.log(jnp.full(1, math.pi / 2)),
        log_gamma=jnp.log(jnp.full(1, 3.0)),
        w_x=jnp.array([[[1.0], [2.0]]]),
        w_y=jnp.array([[[10.0]], [[100.0]]]),
    )
    last_state, ys = jb.unroll(cell, params, jnp.array([[1.0], [0.0], [-1.0]]))
    # s: 3+6i;  (3+6i) i/2 = -3+1.5i;  (-3+1.5i) i/2 - 3-6i = -3.75-7.5i.  y: 10 Re s - 100 Im s
    np.testing.assert_allclose(ys[:, 0], [-570.0, -180.0, 712.5], rtol=1e-14)
    np.testing.assert_allclose(last_state, [-3.75 - 7.5j], rtol=1e-14)


def test_lru_starts_on_the_ring_and_normalised():
    cell = jb.lru(input_size=I, hidden_size=2000, min_radius=0.5, max_radius=0.9, max_phase=1.0)
    params = cell.init(jax.random.key(0))
    eigenvalues = np.asarray(cell.prepare(params).eigenvalues)
    radius, phase = np.abs(eigenvalues), np.angle(eigenvalues)
    assert 0.5 <= radius.min() < 0.51 and 0.89 < radius.max() <= 0.9
    assert 0 < phase.min() < 0.01 and 0.99 < phase.max() <= 1.0
    # Uniform by area: half of them lie within the circle that halves the ring.
    assert abs(np.mean(radius**2 < (0.5**2 + 0.9**2) / 2) - 0.5) < 0.05
    np.testing.assert_allclose(np.exp(2 * params.log_gamma), 1 - radius**2, rtol=1e-13)


@pytest.mark.slow
def test_lru_keeps_white_noise_at_its_size():
    cell = jb.lru(input_size=8, hidden_size=100, max_radius=0.95)
    xs = jax.random.normal(jax.random.key(1), (200, 100, 8))
    last_state, _ = jb.unroll(cell, cell.init(jax.random.key(0)), xs)
    assert 0.9 < np.mean(np.abs(last_state) ** 2) < 1.1


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.float64])
def test_lru_is_finite_on_the_whole_disc(dtype):
    cell = jb.lru(input_size=1, hidden_size=5000, dtype=dtype)
    params = cell.init(jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(dtype)}

    def total(params):
        return jnp.abs(cell.prepare(params).eigenvalues).sum()

    for leaf in jax.tree.leaves((params, jax.grad(total)(params))):
        assert np.isfinite(leaf).all()


def test_lru_without_a_readout_shows_the_real_part():
    cell = jb.lru(input_size=I, hidden_size=H)
    last_state, ys = jb.unroll(cell, cell.init(jax.random.key(0)), np.ones((4, 2, I)))
    np.testing.assert_array_equal(ys[-1], last_state.real)


@pytest.mark.parametrize("radii", [(0.9, 0.5), (0.5, 0.5), (-0.1, 1.0), (0.0, 1.1), ("0", 1.0)])
def test_lru_radii(radii):
    low, high = radii
    pieces = "lru: radii must have 0 <= min_radius < max_radius <= 1", repr(low)
    make: Any = dict(input_size=I, hidden_size=H, min_radius=low, max_radius=high)
    check(lambda: jb.lru(**make), ValueError, *pieces)


@pytest.mark.parametrize("max_phase", [0.0, -1.0, math.inf, "1"])
def test_lru_phase(max_phase):
    pieces = "lru: max_phase must be a positive number of radians", repr(max_phase)
    make: Any = dict(input_size=I, hidden_size=H, max_phase=max_phase)
    check(lambda: jb.lru(**make), ValueError, *pieces)


def _biases(cell, *values):
    params = jax.tree.map(jnp.zeros_like, cell.init(jax.random.key(0)))
    return params._replace(b=jnp.array(values)[:, None])


def test_min_gru_by_hand():
    cell = jb.min_gru(input_size=1, hidden_size=1)
    state, _ = jb.unroll(cell, _biases(cell, 0.2, 3.0), jnp.zeros((1, 1)), jnp.array([0.7]))
    z = sigmoid(0.2)
    np.testing.assert_allclose(state, [(1 - z) * 0.7 + z * 3.0], rtol=1e-15)


def test_min_lstm_by_hand():
    cell = jb.min_lstm(input_size=1, hidden_size=1)
    state, _ = jb.unroll(cell, _biases(cell, 0.2, 0.5, 3.0), jnp.zeros((1, 1)), jnp.array([0.7]))
    i, f = sigmoid(0.2), sigmoid(0.5)
    np.testing.assert_allclose(state, [(f * 0.7 + i * 3.0) / (f + i)], rtol=1e-15)


def test_min_lstm_is_exact_where_both_gates_are_closed():
    """sigmoid(-800) is zero in any precision, but the ratio of two of them is not."""
    cell = jb.min_lstm(input_size=1, hidden_size=1)
    params = _biases(cell, -800.0, -800.0 + math.log(3), 4.0)

    def last(params):
        return jb.unroll(cell, params, jnp.zeros((1, 1)), jnp.array([8.0]))[0].sum()

    value, gradient = jax.value_and_grad(last)(params)
    np.testing.assert_allclose(value, 8 * 0.75 + 4 * 0.25, rtol=1e-13)
    # d/d log(f/i) = (8 - 4) 3/16
    np.testing.assert_allclose(gradient.b[:, 0], [-0.75, 0.75, 0.25], rtol=1e-12)


@pytest.mark.parametrize("constructor, gates", [(jb.min_gru, 2), (jb.min_lstm, 3)])
def test_minimal_cells_start(constructor, gates):
    params = constructor(input_size=I, hidden_size=H, output_size=O).init(jax.random.key(0))
    assert params.w_x.shape == (I, gates, H) and params.w_y.shape == (H, O)
    assert not params.b.any() and params.b.shape == (gates, H)
    assert np.abs(params.w_x).max() <= math.sqrt(6 / (I + H))
    assert np.abs(params.w_y).max() <= math.sqrt(6 / (H + O))
    assert len({float(params.w_x[0, g, 0]) for g in range(gates)}) == gates
