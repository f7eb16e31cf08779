"""States by Newton's method: the scan's, in how many iterations, and what happens without."""

import functools
import itertools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_bptt as jb
from jax_bptt.algorithms.kalman import smoothed
from tests import reference
from tests.registry import (
    CELLS,
    KINDS,
    assert_close,
    expected,
    gradient,
    problem,
    slow_unless,
    without_int,
)

EXACT = 1e-10
METHODS = {
    "full": jb.newton(),
    "blocks": jb.newton(block_length=3),
    "diagonal": jb.newton(jacobian="diagonal", block_length=4),
    "damped": jb.newton(damping=0.3),
    "trust_region": jb.newton(trust_region=100.0),
    "diagonal_trust_region": jb.newton(jacobian="diagonal", trust_region=100.0),
}
# The others have integers in their state.
FITTING = [name for name in CELLS if name not in ("clockwork", "counted", "counted_gated")]
QUICK = {("lstm_readout", "full"), ("gru_reset_before", "blocks"), ("elman", "trust_region")}
ROWS = [(name, method) for name in FITTING for method in ("full", "diagonal")]
ROWS += [(name, method) for name in KINDS if name in FITTING for method in METHODS]


@pytest.mark.parametrize(
    "name, method", [slow_unless(row in QUICK, *row) for row in sorted({*ROWS, *QUICK})]
)
def test_values_and_gradients(name, method):
    got = jax.jit(functools.partial(gradient, name, METHODS[method]))(problem(name))
    assert_close(got, expected(name), EXACT)


def options():
    rng = np.random.default_rng(0)
    return dict(
        lengths=np.array([7, 3, 0, 1, 6, 5]),
        resets=rng.random((7, 6)) < 0.3,
        mask=rng.random((7, 6)) < 0.7,
        reverse=True,
    )


@pytest.mark.parametrize(
    "name", [slow_unless(name == "gru_reset_before", name) for name in FITTING]
)
def test_sequence_options(name):
    cell, p = CELLS[name].cell, problem(name)

    def pulled(algorithm):
        def loss(arguments):
            outputs = jb.unroll(cell, *arguments, algorithm=algorithm, **options())
            return reference.pair(jnp, p.cotangents, outputs)

        given = p.params, p.xs, p.state
        value, gradients = jax.jit(jax.value_and_grad(loss, allow_int=True))(given)
        return value, without_int(gradients)

    assert_close(pulled(jb.newton()), pulled(jb.bptt()), EXACT)


@pytest.mark.slow
@pytest.mark.parametrize("name", FITTING)
def test_both_modes_are_transposes(name):
    p = problem(name)
    arguments = jax.tree.map(jnp.asarray, (p.params, p.xs, p.state))
    rng = np.random.default_rng(1)

    def direction(a):
        if not reference.is_inexact(a):
            return np.zeros(a.shape, jax.dtypes.float0)
        return jnp.asarray(rng.normal(size=a.shape), a.dtype)

    u = jax.tree.map(direction, arguments)

    def outputs(*arguments):
        return reference.pair(
            jnp, p.cotangents, jb.unroll(CELLS[name].cell, *arguments, algorithm=jb.newton())
        )

    pushed = jax.jit(lambda: jax.jvp(outputs, arguments, u)[1])()
    pulled = jax.jit(lambda: jax.grad(outputs, (0, 1, 2), allow_int=True)(*arguments))()
    pairs = zip(jax.tree.leaves(pulled), jax.tree.leaves(u), strict=True)
    terms = [np.sum(np.asarray(g) * d).real for g, d in pairs if d.dtype != jax.dtypes.float0]
    assert abs(pushed - sum(terms)) <= 1e-12 * np.abs(terms).sum()


def solution(cell, algorithm, steps=50, scale=1.0):
    params = jax.tree.map(lambda p: scale * p, cell.init(jax.random.key(0)))
    xs = jax.random.normal(jax.random.key(1), (steps, 2, 2))
    found = jb.newton_solution(cell, params, xs, algorithm=algorithm)
    want = jb.unroll(cell, params, xs)
    assert_close((found.last_state, found.ys), want, EXACT)
    return found


@pytest.mark.parametrize(
    "cell, method",
    [
        slow_unless(False, jb.elman(2, 3, activation=lambda a: a), "full"),
        (jb.lru(2, 3), "full"),
        (jb.min_gru(2, 3), "diagonal"),
        slow_unless(False, jb.indrnn(2, 3, activation=None), "diagonal"),
    ],
    ids=["elman", "lru", "min_gru", "indrnn"],
)
def test_what_is_affine_takes_one_iteration(cell, method):
    """Its Jacobian is the same everywhere, and for the diagonal method has to be diagonal."""
    algorithm = {"full": jb.newton(), "diagonal": jb.newton(jacobian="diagonal")}[method]
    found = solution(cell, algorithm)
    assert (int(found.iterations), bool(found.converged)) == (1, True)


@pytest.mark.slow
def test_it_never_takes_more_iterations_than_steps():
    """After i iterations the first i states are exact, whatever the Jacobian."""
    for steps, method in itertools.product((1, 4), ("full", "diagonal")):
        found = solution(jb.gru(2, 3), jb.newton(jacobian=method), steps, scale=4.0)
        assert found.converged and found.iterations <= steps


def test_what_does_not_converge_is_run_sequentially_and_says_so():
    with pytest.warns(RuntimeWarning, match="newton: not converged after 1 iterations"):
        found = solution(jb.gru(2, 3), jb.newton(max_iterations=1), scale=6.0)
        jax.effects_barrier()
    assert not found.converged and found.residual > 1e-6
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        solution(jb.gru(2, 3), jb.newton())
        jax.effects_barrier()


def test_no_steps():
    cell = jb.gru(2, 3)
    params, state = cell.init(jax.random.key(0)), jnp.ones((2, 3))
    found = jb.newton_solution(cell, params, jnp.ones((0, 2, 2)), state)
    assert found.ys.shape == (0, 2, 3) and found.iterations == 0 and found.converged
    assert_close(found.last_state, state, 0)


@pytest.mark.slow
def test_the_smoother_minimises_its_sum_of_squares():
    """By a dense least-squares problem over all steps."""
    rng = np.random.default_rng(0)
    steps, size, variance = 5, 3, 0.7
    a, b, y, first = (
        rng.normal(size=shape)
        for shape in ((steps, size, size), (steps, size), (steps, size), (size,))
    )
    rows, right = [], []
    for t in range(steps):
        dynamics = np.zeros((size, steps, size))
        dynamics[:, t] = np.eye(size)
        if t > 0:
            dynamics[:, t - 1] = -a[t]
        rows.append(dynamics)
        right.append(b[t] + (a[t] @ first if t == 0 else 0))
        observation = np.zeros((size, steps, size))
        observation[:, t] = np.eye(size) / np.sqrt(variance)
        rows.append(observation)
        right.append(y[t] / np.sqrt(variance))
    matrix = np.concatenate(rows).reshape(-1, steps * size)
    want = np.linalg.lstsq(matrix, np.concatenate(right))[0].reshape(steps, size)
    a, b, first, y = map(jnp.asarray, (a, b, first, y))
    assert_close(smoothed(a, b, first, y, variance), want, 1e-12)


@pytest.mark.parametrize(
    "options, error, message",
    [
        (
            dict(jacobian="dense"),
            ValueError,
            'jacobian must be "full" or "diagonal", got \'dense\'',
        ),
        (dict(damping=1.0), ValueError, "damping must be at least 0 and below 1, got 1.0"),
        (dict(damping=None), TypeError, "damping must be a number, got None"),
        (dict(trust_region=0), ValueError, "trust_region must be above 0 and finite, got 0"),
        (dict(tolerance="1"), TypeError, "tolerance must be a number or None, got '1'"),
        (dict(max_iterations=0), ValueError, "max_iterations must be a positive integer, got 0"),
        (dict(block_length=1.5), ValueError, "block_length must be a positive number of steps"),
    ],
)
def test_messages(options, error, message):
    with pytest.raises(error) as raised:
        jb.newton(**options)
    assert str(raised.value).startswith("newton: " + message)


def test_what_it_cannot_run():
    name = "counted"
    with pytest.raises(TypeError, match="newton: every leaf of the state must be floating-point"):
        gradient(name, jb.newton(), problem(name))
    cell = jb.gru(2, 3)
    params, xs = cell.init(jax.random.key(0)), jnp.ones((3, 2))
    with pytest.raises(TypeError, match=r"newton_solution: algorithm must be jb.newton\(...\)"):
        jb.newton_solution(cell, params, xs, algorithm=jb.bptt())
