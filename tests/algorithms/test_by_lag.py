"""The gradient by lag, and the window that is chosen from it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_bptt as jb
from tests.registry import CELLS, KINDS, assert_close, problem, slow_unless, without_int

EXACT = 1e-12
each_cell = pytest.mark.parametrize(
    "name", [slow_unless(name == "lstm_readout", name) for name in CELLS]
)


def given(name):
    """Return params, xs and d_ys, from the cell's own state."""
    p = problem(name)
    return p.params, p.xs, p.cotangents[1]


@each_cell
def test_all_lags_are_the_gradient_and_the_first_a_truncated_one(name):
    cell = CELLS[name].cell
    params, xs, d_ys = given(name)
    # The state is passed in: what it owes to the parameters is no lag's.
    state = cell.initial_state(params, (6,))
    parts = without_int(jb.gradient_by_lag(cell, params, xs, d_ys))
    for lags, algorithm in ((7, jb.bptt()), (3, jb.truncated(3, sliding=True))):
        got = jax.tree.map(lambda a, lags=lags: a[:lags].sum(0), parts)
        want = jb.bptt_gradients(cell, params, xs, state, d_ys, algorithm=algorithm)[0]
        assert_close(got, want, EXACT)
    few = jb.gradient_by_lag(cell, params, xs, d_ys, lags=2)
    assert_close(few, jax.tree.map(lambda a: a[:2], parts), EXACT)


@pytest.mark.slow
def test_later_lags_leave_out_the_steps_that_they_do_not_reach():
    """T = 300 is taken in parts, the last of them of the steps that 225 lags reach back to."""
    cell = jb.elman(1, 2, activation=lambda a: a, dtype=jnp.float64)
    params = jax.tree.map(lambda a: a + 0.1, cell.init(jax.random.key(0)))
    params = params._replace(w_s=jnp.eye(2)[:, None])
    xs, d_ys = jax.random.normal(jax.random.key(1), (2, 300, 2), jnp.float64)
    found = jb.gradient_by_lag(cell, params, xs[:, :1], d_ys).w_x
    xs, d_ys = np.asarray(xs), np.asarray(d_ys)
    # All Jacobians are the identity: lag k pairs each input with the gradient k steps later.
    want = [xs[: 300 - k, 0] @ d_ys[k:] for k in range(300)]
    np.testing.assert_allclose(found[:, 0, 0], want, rtol=1e-11, atol=1e-11)


def decaying(factor, steps):
    """Return a unit that keeps `factor` of its state, and the gradient of its last output."""
    cell = jb.indrnn(1, 1, activation=None, dtype=jnp.float64)
    params = jax.tree.map(jnp.zeros_like, cell.init(jax.random.key(0)))
    params = params._replace(w_s=jnp.array([factor]), w_x=jnp.ones((1, 1, 1)))
    return cell, params, jnp.zeros((steps, 1)), jnp.zeros((steps, 1)).at[-1].set(1.0)


def test_the_window_of_a_known_decay():
    """The bias' gradient by lag is w^k; cut after h of T steps, (w^h - w^T) / (1 - w) is left."""
    factor, steps = 0.8, 60
    found = jb.adaptive_truncation(*decaying(factor, steps), bias=0.05)
    powers = factor ** np.arange(steps)
    np.testing.assert_allclose(found.norms, powers, rtol=1e-12)
    np.testing.assert_allclose(found.decay, factor, rtol=1e-10)
    cut = np.array([powers[h + 1 :].sum() for h in range(steps)])
    bounds = cut / np.max(np.cumsum(powers) - cut)
    np.testing.assert_allclose(found.bounds, bounds, rtol=1e-9, atol=1e-13)
    window = int(np.argmax(bounds <= 0.05)) + 1
    assert int(found.window) == window and found.bias <= 0.05 < bounds[window - 2]


def test_what_lies_beyond_the_lags_is_extrapolated():
    all_lags, few = (
        jb.adaptive_truncation(*decaying(0.8, 200), bias=0.05, lags=lags) for lags in (None, 40)
    )
    assert int(few.window) == int(all_lags.window)
    np.testing.assert_allclose(few.bias, all_lags.bias, rtol=1e-3)


def test_a_gradient_that_does_not_decay_takes_all_steps():
    found = jb.adaptive_truncation(*decaying(1.0, 30), bias=0.1, lags=10)
    assert int(found.window) == 30 and found.bias == 0
    found = jb.adaptive_truncation(*decaying(0.8, 30), bias=1e-12)
    assert int(found.window) == 30


@pytest.mark.parametrize("name", [slow_unless(name == "lstm_readout", name) for name in KINDS])
def test_the_bias_is_within_the_bound(name):
    cell = CELLS[name].cell
    params, xs, d_ys = given(name)
    state = cell.initial_state(params, (6,))
    found = jb.adaptive_truncation(cell, params, xs, d_ys, bias=0.5)

    def flat(algorithm):
        found = jb.bptt_gradients(cell, params, xs, state, d_ys, algorithm=algorithm)[0]
        return np.concatenate([np.ravel(g) for g in jax.tree.leaves(found)])

    exact = flat(jb.bptt())
    for window in (1, 2, 4):
        error = np.linalg.norm(flat(jb.truncated(window, sliding=True)) - exact)
        assert error <= found.bounds[window - 1] * np.linalg.norm(exact) * (1 + 1e-12)


def test_messages():
    name = "lstm_readout"
    cell, (params, xs, d_ys) = CELLS[name].cell, given(name)
    with pytest.raises(ValueError, match="gradient_by_lag: lags must be a positive number"):
        jb.gradient_by_lag(cell, params, xs, d_ys, lags=0)
    with pytest.raises(ValueError, match="adaptive_truncation: bias must be a number above 0"):
        jb.adaptive_truncation(cell, params, xs, d_ys, bias=0)
    with pytest.raises(ValueError, match="adaptive_truncation: d_ys"):
        jb.adaptive_truncation(cell, params, xs, d_ys[:2])
