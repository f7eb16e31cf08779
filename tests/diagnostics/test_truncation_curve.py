"""`truncation_curve` against the truncated gradients themselves, and where it is known."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_bptt as jb
from tests.core.messages import check
from tests.diagnostics.test_contribution_map import LENGTHS, MASK, RESETS
from tests.registry import BATCH, CELLS, assert_close, problem, slow_unless

CLOSE = 1e-10
TruncationCurve, trajectory = jb.diagnostics.TruncationCurve, jb.diagnostics.trajectory
truncation_curve = jb.diagnostics.truncation_curve


def flat(tree):
    """Return all numbers of a gradient, those of complex ones one part after the other."""
    parts, leaves = [], [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]
    leaf: Any
    for leaf in leaves:
        parts += [leaf.real, leaf.imag] if np.iscomplexobj(leaf) else [leaf]
    return np.concatenate([np.ravel(part) for part in parts])


def expected(cell, arguments, windows, **options):
    """Return the curve from gradients that run truncated, one window after the other."""
    exact = flat(jb.bptt_gradients(cell, *arguments, **options)[0])
    rows = []
    for window in windows:
        algorithm = jb.truncated(window, sliding=True)
        cut = flat(jb.bptt_gradients(cell, *arguments, algorithm=algorithm, **options)[0])
        norm, whole = np.linalg.norm(cut), np.linalg.norm(exact)
        bias = np.linalg.norm(cut - exact) / whole
        alike = np.mean(np.sign(cut) == np.sign(exact))
        rows.append((bias, cut @ exact / (norm * whole), alike, norm))
    return TruncationCurve(*np.array(rows).T)


def check_curve(got, want):
    np.testing.assert_allclose(got.bias, want.bias, rtol=CLOSE, atol=1e-13)
    for one, other in zip(got[1:], want[1:], strict=True):
        assert_close(np.asarray(one), other, CLOSE)


@pytest.mark.parametrize("name", [slow_unless(name == "lstm_readout", name) for name in CELLS])
def test_every_window(name):
    cell, p = CELLS[name].cell, problem(name)
    state = cell.initial_state(p.params, BATCH)
    arguments = p.params, p.xs, state, p.cotangents[1]
    curve = truncation_curve(trajectory(cell, *arguments[:3]), arguments[3])
    check_curve(curve, expected(cell, arguments, range(1, 8)))


@pytest.mark.parametrize(
    "options",
    [
        slow_unless(False, dict(lengths=LENGTHS)),
        slow_unless(False, dict(mask=MASK)),
        slow_unless(False, dict(lengths=LENGTHS, resets=RESETS)),
        slow_unless(True, dict(lengths=LENGTHS, resets=RESETS, mask=MASK)),
    ],
    ids=lambda options: "_".join(options),
)
def test_windows_count_the_steps_that_are_taken(options):
    cell, p = CELLS["gru"].cell, problem("gru", (3,), 5)
    arguments = p.params, p.xs, p.state, p.cotangents[1]
    curve = truncation_curve(trajectory(cell, *arguments[:3], **options), arguments[3])
    check_curve(curve, expected(cell, arguments, range(1, 6), **options))


@pytest.mark.slow
def test_it_ends_where_nothing_is_left():
    """The bias' gradient by lag is w^k; a window of K leaves out (w^K - w^T) / (1 - w^T)."""
    cell = jb.indrnn(1, 1, activation=None, dtype=jnp.float64)
    params = jax.tree.map(jnp.zeros_like, cell.init(jax.random.key(0)))
    params, steps = params._replace(w_s=jnp.array([0.7])), 400
    d_ys = jnp.zeros((steps, 1)).at[-1].set(1.0)
    curve = truncation_curve(trajectory(cell, params, jnp.zeros((steps, 1))), d_ys)
    windows = np.arange(1, steps + 1)
    np.testing.assert_allclose(curve.bias, 0.7**windows, rtol=1e-9, atol=1e-14)
    assert len(np.unique(curve.bias[:80])) > 80 - 5 and len(np.unique(curve.norm[150:])) == 1
    np.testing.assert_allclose(curve.norm, (1 - 0.7**windows) / 0.3, rtol=1e-12)
    assert int(curve.shortest(0.01)) == int(np.argmax(0.7**windows <= 0.01)) + 1
    few = truncation_curve(trajectory(cell, params, jnp.zeros((steps, 1))), d_ys, lags=5)
    np.testing.assert_allclose(few.bias, curve.bias[:5], rtol=1e-12)


def test_it_goes_on_where_a_gradient_comes_back():
    """Of the first input alone, 149 steps back, the weights learn anything."""
    cell = jb.from_step(
        lambda w, s, x: s + w * x,
        init=lambda key: jnp.ones(3),
        initial_state=lambda w, batch_shape: jnp.zeros((*batch_shape, 3)),
        input_shape=(3,),
    )
    xs = d_ys = jnp.zeros((150, 3))
    xs, d_ys = xs.at[0].set(1.0), d_ys.at[-1].set(1.0)
    curve = truncation_curve(trajectory(cell, jnp.ones(3), xs), d_ys)
    assert np.all(curve.bias[:-1] == 1) and curve.bias[-1] == 0 and curve.agreement[-1] == 1
    assert int(curve.shortest(0.5)) == 150 and np.all(curve.agreement[:-1] == 0)


def test_the_shortest_window():
    bias = jnp.array([0.5, 0.05, 0.2, 0.01, 0.0])
    curve = TruncationCurve(bias, bias, bias, bias)
    assert [int(curve.shortest(b)) for b in (0.6, 0.3, 0.1, 0.0, -1.0)] == [1, 2, 4, 5, 0]


@pytest.mark.slow
def test_memory():
    """A number of arrays [T, B, H] that does not depend on how many lags there are."""
    cell, steps, batch, hidden = jb.lstm(8, 16), 256, 8, 16
    params = cell.init(
        jax.random.key(0),
    )
    xs = jnp.ones((steps, batch, 8))

    def bytes_of(lags):
        def curve(params, xs):
            run = trajectory(cell, params, xs)
            return truncation_curve(run, jnp.ones_like(run.ys), lags=lags)

        analysis: Any = jax.jit(curve).lower(params, xs).compile().memory_analysis()
        return analysis.temp_size_in_bytes / (8 * steps * batch * hidden)

    assert bytes_of(256) <= 1.2 * bytes_of(64) and bytes_of(64) < 60


def test_messages():
    cell, p = CELLS["gru"].cell, problem("gru")
    run = trajectory(cell, p.params, p.xs)
    d_ys = p.cotangents[1]
    check(lambda: truncation_curve(run, d_ys[:2]), ValueError, "truncation_curve: d_ys is float64")
    check(
        lambda: truncation_curve(run, d_ys, lags=-1),
        ValueError,
        "truncation_curve: lags must be a positive number",
    )
