"""Lyapunov exponents where they are known, and against a QR loop in NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_bptt as jb
from jax_bptt.algorithms import exponents
from tests.core.messages import check
from tests.registry import CELLS, problem, slow_unless

spectrum = jb.diagnostics.lyapunov_spectrum
MODULI = 1.2, 0.9, 0.5, 0.1


def linear(matrix):
    """Return a run of s_t = s_{t-1} W + x_t, two sequences of 400 steps."""
    size = len(matrix)
    cell = jb.elman(size, size, activation=lambda a: a, dtype=jnp.float64)
    params = cell.init(jax.random.key(0))
    params = params._replace(w_s=jnp.asarray(matrix, jnp.float64)[:, None])
    return jb.diagnostics.trajectory(cell, params, jnp.zeros((400, 2, size)))


def with_moduli():
    basis = np.random.default_rng(0).normal(size=(4, 4))
    return basis @ np.diag([1.2, -0.9, 0.5, 0.1]) @ np.linalg.inv(basis)


def naive(jacobians, first, transient, every=1):
    """Return the exponents of one sequence by a loop, from J_1..J_T [T, D, D]."""
    q, total = np.linalg.qr(first)[0], np.zeros(first.shape[1])
    for t, jacobian in enumerate(jacobians, 1):
        q = jacobian @ q
        if (t - transient) % every == 0 or t == len(jacobians):
            q, r = np.linalg.qr(q)
            with np.errstate(divide="ignore"):
                total += np.log(np.abs(np.diag(r))) if t > transient else 0
    return total / (len(jacobians) - transient)


def test_a_linear_network_has_the_moduli_of_its_eigenvalues():
    found = spectrum(linear(with_moduli()), transient=100)
    assert found.exponents.shape == (2, 4) and found.running.shape == (300, 2, 4)
    np.testing.assert_allclose(found.exponents, np.log([MODULI] * 2), rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(found.times, np.arange(101, 401))
    assert (found.running[-1] == found.exponents).all() and (found.overshoot < 1e-10).all()
    # log 1.2 + log 0.9 > 0 > log 1.2 + log 0.9 + log 0.5
    dimension = 2 + np.log(1.2 * 0.9) / np.log(2)
    np.testing.assert_allclose(found.kaplan_yorke, dimension, rtol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("every, transient", [(7, 99), (3, 0)])
def test_fewer_orthogonalisations(every, transient):
    run = linear(with_moduli())
    found = spectrum(run, transient=transient, every=every)
    if transient:
        np.testing.assert_allclose(found.exponents[0], np.log(MODULI), rtol=1e-9)
    assert (np.diff(found.times)[:-1] == every).all()
    assert found.times[0] == transient + every and found.times[-1] == 400
    first = exponents.directions(run.space, run.inputs.state, 4)[0, 0]
    want = naive(np.asarray(run.jacobians()[:, 0, 0]), np.asarray(first), transient, every)
    np.testing.assert_allclose(found.exponents[0], np.sort(want)[::-1], rtol=1e-10)


def test_a_rotation_has_none():
    rotation = np.linalg.qr(np.random.default_rng(1).normal(size=(4, 4)))[0]
    found = spectrum(linear(rotation), transient=100)
    np.testing.assert_allclose(found.exponents, 0, atol=1e-14)


@pytest.mark.slow
def test_an_lstm_without_weights_keeps_c_and_forgets_h():
    cell = jb.lstm(2, 3, dtype=jnp.float64)
    params = jax.tree.map(jnp.zeros_like, cell.init(jax.random.key(0)))
    params = params._replace(b=params.b.at[1].set(0.7))
    found = spectrum(jb.diagnostics.trajectory(cell, params, jnp.ones((60, 2))))
    np.testing.assert_allclose(found.exponents[:3], jax.nn.log_sigmoid(0.7), rtol=1e-12)
    assert (found.exponents[3:] == -np.inf).all() and found.kaplan_yorke == 0
    cell = jb.elman(2, 3, dtype=jnp.float64)
    params = jax.tree.map(jnp.zeros_like, cell.init(jax.random.key(0)))
    found = spectrum(jb.diagnostics.trajectory(cell, params, jnp.ones((3, 2))))
    assert (found.exponents == -np.inf).all() and found.overshoot == 0


def lorenz(time_step):
    """Return the map of one Runge-Kutta step of Lorenz's equations."""

    def slope(s):
        x, y, z = s[..., 0], s[..., 1], s[..., 2]
        return jnp.stack([10 * (y - x), x * (28 - z) - y, x * y - 8 / 3 * z], -1)

    def step(weights, s, drive):
        k1 = slope(s)
        k2 = slope(s + time_step / 2 * k1)
        k3 = slope(s + time_step / 2 * k2)
        k4 = slope(s + time_step * k3)
        return s + time_step / 6 * (k1 + 2 * k2 + 2 * k3 + k4)

    return jb.from_step(
        step,
        init=lambda key: (),
        initial_state=lambda weights, batch: jnp.ones((*batch, 3), jnp.float64),
        input_shape=(),
        any_batch=True,
    )


@pytest.mark.slow
def test_lorenz():
    """The exponents that J. C. Sprott (2003), "Chaos and Time-Series Analysis", gives."""
    time_step, lanes = 0.01, 16
    state = jnp.asarray(np.random.default_rng(0).normal(size=(lanes, 3)) + 5)
    run = jb.diagnostics.trajectory(lorenz(time_step), (), jnp.zeros((20_000, lanes)), state)
    found = spectrum(run, transient=2000, every=5)
    rates = found.exponents.mean(0) / time_step
    np.testing.assert_allclose(rates, [0.9056, 0, -14.572], rtol=0.01, atol=0.003)
    np.testing.assert_allclose(found.kaplan_yorke.mean(), 2.062, rtol=0.01)


@pytest.mark.slow
def test_a_random_network_against_a_loop():
    """N = 200, g = 2: the same directions, the same Jacobians; and in single precision."""
    size, steps, transient = 200, 60, 10
    cell = jb.elman(1, size, dtype=jnp.float64)
    params = cell.init(jax.random.key(0))
    w_s = 2 / np.sqrt(size) * np.random.default_rng(0).normal(size=(size, 1, size))
    params = params._replace(w_s=jnp.asarray(w_s))
    state = jnp.asarray(np.random.default_rng(1).normal(size=size))
    run = jb.diagnostics.trajectory(cell, params, jnp.zeros((steps, 1)), state)
    found = spectrum(run, transient=transient)
    slopes = 1 - np.asarray(run.states) ** 2
    jacobians = slopes[:, :, None] * w_s[:, 0].T
    first = exponents.directions(run.space, state, size)[0]
    want = naive(jacobians, np.asarray(first), transient)
    np.testing.assert_allclose(found.exponents, np.sort(want)[::-1], rtol=1e-10, atol=1e-10)
    first = np.asarray(exponents.directions(run.space, state, 20)[0])
    some = spectrum(run, transient=transient, count=20)
    want_some = np.sort(naive(jacobians, first, transient))[::-1]
    np.testing.assert_allclose(some.exponents, want_some, rtol=1e-10, atol=1e-10)
    assert found.exponents[0] > 0
    single = jax.tree.map(lambda a: a.astype(jnp.float32), (params, state))
    cell = jb.elman(1, size, dtype=jnp.float32)
    run = jb.diagnostics.trajectory(cell, single[0], jnp.zeros((steps, 1), jnp.float32), single[1])
    found = spectrum(run, transient=transient)
    # Two runs of a chaotic network: the sum, the mean contraction, is what they share.
    np.testing.assert_allclose(found.exponents.sum(), want.sum(), rtol=0.01)


@pytest.mark.parametrize("name", [slow_unless(name == "elman", name) for name in CELLS])
def test_every_cell_against_a_loop(name):
    """Each group's exponents by a loop over its Jacobians; those of the run are their union."""
    p, cell = problem(name), CELLS[name].cell
    run = jb.diagnostics.trajectory(cell, p.params, p.xs, p.state)
    *_, groups, size = run.space.shape
    found = spectrum(run, transient=1)
    first = exponents.directions(run.space, run.inputs.state, size)
    jacobians = np.asarray(run.jacobians())
    for index in np.ndindex(*run.space.shape[:-2]):
        each = [
            naive(jacobians[:, *index, n], np.asarray(first[*index, n]), 1) for n in range(groups)
        ]
        want = np.sort(np.concatenate(each))[::-1]
        known = np.asarray(found.exponents[index])
        # A direction that a step loses leaves what rounding makes of it, -36 in one of six steps.
        clear = want > -3
        assert clear.sum() >= size / 2 and (known[~clear] < -3).all()
        np.testing.assert_allclose(known[clear], want[clear], rtol=1e-9, atol=1e-9)


@pytest.mark.slow
def test_the_largest_agrees_with_largest_exponent():
    cell = jb.gru(3, 6, dtype=jnp.float64)
    params, xs = cell.init(jax.random.key(0)), jax.random.normal(jax.random.key(1), (200, 3))
    found = spectrum(jb.diagnostics.trajectory(cell, params, xs), count=1)
    np.testing.assert_allclose(
        found.exponents[0], jb.largest_exponent(cell, params, xs), rtol=1e-12
    )


@pytest.mark.slow
def test_held_steps_do_not_count():
    """A sequence beside padding, or with steps left out, has the exponents that it has alone."""
    cell = jb.gru(2, 3, dtype=jnp.float64)
    params, xs = cell.init(jax.random.key(0)), jax.random.normal(jax.random.key(1), (30, 2, 2))
    mask = jnp.ones((30, 2), bool).at[10:15, 1].set(False)
    trajectory = functools.partial(jb.diagnostics.trajectory, cell, params)
    found = spectrum(trajectory(xs, lengths=jnp.array([30, 20]), mask=mask), transient=0)
    short = jnp.concatenate([xs[:10, 1], xs[15:20, 1]])
    for got, alone in zip(found.exponents, (xs[:, 0], short), strict=True):
        want = spectrum(trajectory(alone), transient=0).exponents
        np.testing.assert_allclose(got, want, rtol=1e-10)
    resets = jnp.zeros((30, 2), bool).at[20, 0].set(True)
    found = spectrum(trajectory(xs, resets=resets))
    assert (found.exponents[0] == -np.inf).all() and jnp.isfinite(found.exponents[1]).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["elman", "lstm", "gru"])
def test_the_gradient_against_finite_differences(name):
    p, cell = problem(name), CELLS[name].cell

    @jax.jit
    def flossing(w_s):
        run = jb.diagnostics.trajectory(cell, p.params._replace(w_s=w_s), p.xs, p.state)
        return jnp.mean(spectrum(run, count=2, every=2).exponents ** 2)

    w_s = jnp.asarray(p.params.w_s)
    step = 1e-5 * jax.random.normal(jax.random.key(1), w_s.shape)
    difference = (flossing(w_s + step) - flossing(w_s - step)) / 2
    slope = jnp.sum(jax.grad(flossing)(w_s) * step)
    np.testing.assert_allclose(slope, difference, rtol=1e-6)


def test_overshoot_of_a_growth_that_comes_first():
    """Twice as large for ten steps, and half of it for ten: 10 log 2 too much, at most."""
    cell = jb.from_step(
        lambda w, s, x: x[..., None] * s,
        init=lambda key: (),
        initial_state=lambda w, batch: jnp.ones((*batch, 1), jnp.float64),
        input_shape=(),
        any_batch=True,
    )
    xs = jnp.repeat(jnp.array([2.0, 0.5]), 10)
    found = spectrum(jb.diagnostics.trajectory(cell, (), xs), transient=0)
    np.testing.assert_allclose(found.overshoot, 10 * np.log(2), rtol=1e-12)
    np.testing.assert_allclose(found.exponents, 0, atol=1e-14)


def test_messages():
    cell = jb.elman(2, 3)
    run = jb.diagnostics.trajectory(cell, cell.init(jax.random.key(0)), jnp.ones((5, 2)))
    check(lambda: spectrum(run, count=4), ValueError, "lyapunov_spectrum: count", "1 to 3", "got 4")
    check(lambda: spectrum(run, transient=5), ValueError, "0 <= transient < T=5", "got 5")
    check(lambda: spectrum(run, every=0), ValueError, "every must be a positive", "got 0")
