"""`trajectory`: its push and pull against the Jacobians of the naive step, and each other."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_bptt as jb
from tests import registry
from tests.core.messages import check
from tests.registry import BATCH, CELLS, STEPS, assert_close, problem, slow_unless

TOLERANCE = 1e-12  # relative, float64
each_cell = pytest.mark.parametrize(
    "name", [slow_unless(name == "lstm_readout", name) for name in CELLS]
)


def run_of(name):
    p = problem(name)
    return jb.diagnostics.trajectory(CELLS[name].cell, p.params, p.xs, p.state)


def tangent(run, seed):
    """Return random numbers like the state, None at integers."""
    leaves, structure = jax.tree.flatten(run.inputs.state)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    return jax.tree.unflatten(
        structure,
        [
            jax.random.normal(key, leaf.shape, leaf.dtype) if registry.is_inexact(leaf) else None
            for key, leaf in zip(keys, leaves, strict=True)
        ],
    )


@each_cell
def test_values_are_those_of_unroll(name):
    p, cell, run = problem(name), CELLS[name].cell, run_of(name)
    last_state, ys = jb.unroll(cell, p.params, p.xs, p.state)
    assert_close(jax.tree.map(lambda s: s[-1], run.states), last_state, TOLERANCE)
    assert_close(run.ys, ys, TOLERANCE)


@each_cell
def test_pull_is_what_bptt_gradients_returns_and_push_its_transpose(name):
    run, cell = run_of(name), CELLS[name].cell
    u, v = tangent(run, 0), tangent(run, 1)
    for first, last in ((0, STEPS), (2, 5), (3, 3)):
        start = run.inputs.state
        if first:
            start = jax.tree.map(lambda s, t=first: s[t - 1], run.states)
        xs = jax.tree.map(lambda x, a=first, b=last: x[a:b], problem(name).xs)
        want = jb.bptt_gradients(cell, run.params, xs, start, d_last_state=u)[2]
        got = run.pull(u, first, last)
        assert_close(got, want, TOLERANCE)
        pushed = run.push(v, first, last)
        np.testing.assert_allclose(inner(pushed, u), inner(v, got), rtol=TOLERANCE)


def inner(a, b):
    return sum(
        np.sum(np.asarray(x) * np.asarray(y))
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    ).real


@each_cell
def test_jacobians_are_the_matrices_of_push(name):
    run = run_of(name)
    matrices = run.jacobians(1, 4)
    assert matrices.shape == (3, *run.space.shape, run.space.shape[-1])
    vector = run.space.flat(tangent(run, 2))
    want = run.space.flat(run.push(run.space.tree(vector), 1, 4))
    for each in matrices:
        vector = jnp.einsum("...ij,...j->...i", each, vector)
    np.testing.assert_allclose(vector, want, rtol=1e-11, atol=1e-13)


@pytest.mark.slow
def test_options():
    """Beyond the length and where held the Jacobian is the identity, across a reset zero."""
    cell = jb.gru(2, 3)
    params, xs = cell.init(jax.random.key(0)), jnp.ones((5, 2, 2))
    v = jnp.arange(6.0).reshape(2, 3)
    run = jb.diagnostics.trajectory(cell, params, xs, lengths=jnp.array([5, 3]))
    assert (run.push(v, 3, 5)[1] == v[1]).all() and not (run.push(v, 3, 5)[0] == v[0]).any()
    assert (run.ys[3:, 1] == 0).all()
    resets = jnp.zeros((5, 2), bool).at[2, 0].set(True)
    run = jb.diagnostics.trajectory(cell, params, xs, resets=resets)
    assert (run.push(v)[0] == 0).all() and (run.pull(v, 2)[0] == 0).all()
    assert not (run.push(v)[1] == 0).any()


@pytest.mark.slow
def test_it_is_a_pytree_and_differentiable():
    cell = jb.lstm(2, 3)
    params, xs = cell.init(jax.random.key(0)), jnp.ones((5, 2))
    run = jax.jit(functools.partial(jb.diagnostics.trajectory, cell))(params, xs)
    v = jax.tree.map(jnp.ones_like, run.inputs.state)
    np.testing.assert_allclose(jax.jit(lambda r: r.push(v))(run).h, run.push(v).h, rtol=1e-6)

    def growth(w):
        pushed = jb.diagnostics.trajectory(cell, params._replace(w_s=w), xs).push(v)
        return jnp.sum(pushed.h)

    step = 1e-3 * jax.random.normal(jax.random.key(1), params.w_s.shape)
    difference = (growth(params.w_s + step) - growth(params.w_s - step)) / 2
    slope = jnp.sum(jax.grad(growth)(params.w_s) * step)
    np.testing.assert_allclose(slope, difference, rtol=1e-3)


def test_a_step_that_closes_over_what_is_differentiated():
    def growth(scale):
        cell = jb.from_step(
            lambda w, s, x: jnp.tanh(scale * s + w * x),
            init=lambda key: jnp.ones(3),
            initial_state=lambda w, batch_shape: jnp.zeros((*batch_shape, 3)),
            input_shape=(3,),
        )
        run = jb.diagnostics.trajectory(cell, jnp.ones(3), jnp.zeros((4, 3)))
        return jnp.sum(run.push(jnp.ones(3)))

    np.testing.assert_allclose(jax.grad(growth)(0.5), 3 * 4 * 0.5**3, rtol=1e-5)


def test_messages():
    run = run_of("lstm_readout")
    v = tangent(run, 0)
    check(
        lambda: run.push(v, 3, 2),
        ValueError,
        f"first and last must be 0 <= first <= last <= T={STEPS}",
    )
    check(lambda: run.pull(v, 0, STEPS + 1), ValueError, "Trajectory.pull: first and last")
    check(lambda: run.jacobians(-1), ValueError, "Trajectory.jacobians: first and last")
    check(lambda: run.push(v.h), TypeError, "Trajectory.push: d_state is an array")
    cell = CELLS["lstm_readout"].cell
    xs = jnp.ones((3, *BATCH, 9))
    check(lambda: jb.diagnostics.trajectory(cell, run.params, xs), ValueError, "trajectory: xs")
