"""`contribution_map`: its sums over states, losses and lags are gradients found otherwise."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_bptt as jb
from tests.core.messages import check
from tests.registry import BATCH, CELLS, STEPS, assert_close, problem, slow_unless, without_int

EXACT = 1e-12
each_cell = pytest.mark.parametrize(
    "name", [slow_unless(name == "counted", name) for name in CELLS]
)
contribution_map = jb.diagnostics.contribution_map


def itself(gradient):
    return gradient


@functools.cache
def found(name):
    """Return a run from the cell's own state, passed in, d_ys, and every vector of its map."""
    p, cell = problem(name), CELLS[name].cell
    state = cell.initial_state(p.params, BATCH)
    run = jb.diagnostics.trajectory(cell, p.params, p.xs, state)
    vectors = contribution_map(run, p.cotangents[1], measure=itself)
    return run, p.cotangents[1], without_int(vectors)


@each_cell
def test_the_row_of_a_loss_is_the_lecture_s_sum(name):
    run, d_ys, vectors = found(name)
    step = 4
    sums = jax.jit(functools.partial(jb.contributions, run.cell, step=step))
    d_y = jax.tree.map(lambda d: d[step - 1], d_ys)
    want = sums(run.params, problem(name).xs, run.inputs.state, d_y)
    row = jax.tree.map(lambda a: a[step - 1], vectors)
    assert_close(jax.tree.map(lambda a: a[:step], row), without_int(want), EXACT)
    assert all(not np.any(a[step:]) for a in jax.tree.leaves(row))


@each_cell
def test_summed_over_all_it_is_the_gradient(name):
    run, d_ys, vectors = found(name)
    xs, state = problem(name).xs, run.inputs.state
    want = jb.bptt_gradients(run.cell, run.params, xs, state, d_ys)[0]
    assert_close(jax.tree.map(lambda a: a.sum((0, 1)), vectors), want, EXACT)


@each_cell
def test_along_a_diagonal_it_is_the_gradient_of_that_lag(name):
    run, d_ys, vectors = found(name)
    want = without_int(jb.gradient_by_lag(run.cell, run.params, problem(name).xs, d_ys))

    def diagonals(a):
        a = np.asarray(a)
        return np.stack([np.trace(a, -lag) for lag in range(STEPS)])

    assert_close(jax.tree.map(diagonals, vectors), want, EXACT)


LENGTHS = np.array([5, 3, 4])
RESETS = np.array([[0, 1, 0], [0, 0, 0], [0, 1, 1], [1, 0, 0], [0, 0, 0]], bool)
MASK = np.array([[1, 1, 0], [1, 1, 1], [0, 1, 1], [1, 1, 1], [1, 1, 1]], bool)


@pytest.mark.parametrize("name", [slow_unless(name == "gru", name) for name in ("gru", "elman")])
def test_lengths_resets_and_a_mask(name):
    cell, p = CELLS[name].cell, problem(name, (3,), 5)
    options: Any = dict(lengths=LENGTHS, resets=RESETS, mask=MASK)
    run = jb.diagnostics.trajectory(cell, p.params, p.xs, p.state, **options)
    d_ys = p.cotangents[1]
    vectors = contribution_map(run, d_ys, measure=itself)
    for t in range(5):
        of_t = np.zeros_like(d_ys)
        of_t[t] = d_ys[t]
        want = jb.bptt_gradients(cell, p.params, p.xs, p.state, of_t, **options)[0]
        assert_close(jax.tree.map(lambda a, t=t: a[t].sum(0), vectors), want, EXACT)


@pytest.mark.slow
def test_measures_lags_and_single_sequences():
    run, d_ys, vectors = found("lstm_readout")
    norms = contribution_map(run, d_ys)
    axes = tuple(range(2, 5))
    np.testing.assert_allclose(norms.w_s, jnp.sqrt((vectors.w_s**2).sum(axes)), rtol=1e-12)
    few = contribution_map(run, d_ys, lags=3, measure=lambda d: {"largest": abs(d.w_y).max()})
    assert few["largest"].shape == (STEPS, STEPS)
    times = np.arange(STEPS)
    beyond = times[:, None] - times >= 3
    few = contribution_map(run, d_ys, lags=3).w_s
    assert np.all(few[beyond] == 0)
    np.testing.assert_allclose(few[~beyond], norms.w_s[~beyond], rtol=1e-12)

    def alone(xs, d_ys):
        run_alone = jb.diagnostics.trajectory(run.cell, run.params, xs)
        return contribution_map(run_alone, d_ys, measure=itself)

    each = jax.vmap(alone, in_axes=1)(problem("lstm_readout").xs, d_ys)
    assert_close(jax.tree.map(lambda a: a.sum(0), each), vectors, EXACT)


def test_a_long_sequence_is_taken_in_parts():
    cell = jb.indrnn(1, 1, activation=None, dtype=jnp.float64)
    params = cell.init(jax.random.key(0))._replace(w_s=jnp.array([0.99]))
    xs, d_ys = jax.random.normal(jax.random.key(1), (2, 150, 1), jnp.float64)
    run = jb.diagnostics.trajectory(cell, params, xs)
    got = contribution_map(run, d_ys, measure=itself).w_x[..., 0, 0, 0]
    xs, d_ys, times = np.asarray(xs), np.asarray(d_ys), np.arange(150)
    lag = times[:, None] - times
    want = np.where(lag >= 0, 0.99 ** np.maximum(lag, 0) * d_ys * xs[:, 0], 0)
    np.testing.assert_allclose(got, want, rtol=1e-11)


def test_messages():
    run, d_ys, _ = found("lstm_readout")
    check(lambda: contribution_map(run, d_ys[:2]), ValueError, "contribution_map: d_ys is float64")
    check(
        lambda: contribution_map(run, d_ys, lags=0),
        ValueError,
        "contribution_map: lags must be a positive number",
    )
