"""`clipped` against a loop that clips the adjoint between steps, and what it says it clipped."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_bptt as jb
from jax_bptt.core import trees
from tests import reference
from tests.core.messages import check
from tests.registry import BATCH, CELLS, STEPS, assert_close, problem, slow_unless, without_int

EXACT = 1e-12  # relative, float64
each_cell = pytest.mark.parametrize(
    "name", [slow_unless(name == "lstm_readout", name) for name in CELLS]
)


def lengths_of(lam):
    """Return |lambda| of each sequence of the batch, [B]."""
    return np.sqrt(sum((np.abs(a) ** 2).reshape(BATCH[0], -1).sum(1) for a in jax.tree.leaves(lam)))


def clip(limits, lam):
    if "norm" in limits:
        factor = np.minimum(1, limits["norm"] / lengths_of(lam))
        return jax.tree.map(lambda a: a * factor.reshape((-1,) + (1,) * (a.ndim - 1)), lam)

    def leaf(a):
        bound = limits["value"]
        if np.iscomplexobj(a):
            return np.clip(a.real, -bound, bound) + 1j * np.clip(a.imag, -bound, bound)
        return np.clip(a, -bound, bound)

    return jax.tree.map(leaf, lam)


def by_hand(name, limits):
    """Return (d_params, d_xs, d_state) and the lambdas before and after clipping, by a loop."""
    p, naive = problem(name), CELLS[name].reference

    def one(params, state, x):
        x = jax.tree.map(lambda a: a[None], x)
        last, ys = reference.unroll(jnp, naive, params, state, x, BATCH)
        return last, jax.tree.map(lambda y: y[0], ys)

    states, xs = [jax.tree.map(jnp.asarray, p.state)], jax.tree.map(jnp.asarray, p.xs)
    params = jax.tree.map(jnp.asarray, p.params)
    for t in range(STEPS):
        x = jax.tree.map(lambda a, t=t: a[t], xs)
        states.append(one(params, states[-1], x)[0])
    lam, d_ys = p.cotangents
    total, d_xs, before, after = None, [], [], []
    for t in reversed(range(STEPS)):
        x = jax.tree.map(lambda a, t=t: a[t], xs)
        d_y = jax.tree.map(lambda d, t=t: d[t], d_ys)

        def readout(params, state):
            return naive.readout(jnp, naive.prepare(jnp, params), state)

        d_params, g = trees.inexact_vjp(readout, params, states[t + 1])[1](d_y)
        lam = trees.add(lam, g)
        before.append(lam)
        lam = clip(limits, lam)
        after.append(lam)
        step = trees.inexact_vjp(lambda *args: one(*args)[0], params, states[t], x)[1]
        d_step, lam, d_x = step(jax.tree.map(jnp.asarray, lam))
        total = (
            trees.add(trees.add(d_step, d_params), total) if total else trees.add(d_step, d_params)
        )
        d_xs.append(d_x)
    d_xs = jax.tree.map(lambda *d: np.stack(d[::-1]), *d_xs)
    return (total, d_xs, lam), before[::-1], after[::-1]


@each_cell
@pytest.mark.parametrize("kind", ["norm", "value"])
def test_against_a_loop_that_clips(name, kind):
    p, cell = problem(name), CELLS[name].cell
    with jax.numpy_dtype_promotion("standard"):
        everything = by_hand(name, {"norm": np.inf})[1]
        sizes = [lengths_of(lam) for lam in everything]
        limit = {kind: float(np.median(sizes)) / (1 if kind == "norm" else 4)}
        want, before, after = by_hand(name, limit)
    algorithm = jb.clipped(**limit)
    d_last_state, d_ys = p.cotangents
    got = jb.bptt_gradients(cell, p.params, p.xs, p.state, d_ys, d_last_state, algorithm=algorithm)
    assert_close(without_int(got), without_int(want), EXACT)

    run = jb.diagnostics.trajectory(cell, p.params, p.xs, p.state)
    found = jb.diagnostics.clipping(run, algorithm, d_ys, d_last_state)
    norms, clipped = ([lengths_of(lam) for lam in lambdas] for lambdas in (before, after))
    np.testing.assert_allclose(found.norms, norms, rtol=EXACT)
    np.testing.assert_allclose(found.left, np.divide(clipped, norms), rtol=EXACT)
    assert found.share > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("limit", [dict(norm=1e6), dict(value=1e6)])
def test_nothing_to_clip_is_exact_with_every_option(limit):
    cell = jb.layer_norm_lstm(2, 3, output_size=2)
    params, xs = cell.init(jax.random.key(0)), jax.random.normal(jax.random.key(1), (40, 3, 2))
    flags = jax.random.bernoulli(jax.random.key(2), 0.3, (2, 40, 3))
    options: Any = dict(lengths=jnp.array([40, 11, 0]), resets=flags[0], mask=flags[1])
    d_ys = jnp.ones((40, 3, 2))

    def gradients(algorithm):
        return jb.bptt_gradients(cell, params, xs, None, d_ys, algorithm=algorithm, **options)

    assert_close(gradients(jb.clipped(**limit)), gradients(jb.bptt()), 1e-6)
    run = jb.diagnostics.trajectory(cell, params, xs, **options)
    assert jb.diagnostics.clipping(run, jb.clipped(**limit), d_ys).share == 0


def test_not_a_number_is_not_repaired_and_forward_mode_does_not_clip():
    cell = jb.indrnn(1, 1, activation=None)
    params = cell.init(jax.random.key(0))._replace(w_s=jnp.array([2.0]))

    def last(state, algorithm):
        return jb.unroll(cell, params, jnp.zeros((5, 1)), state, algorithm=algorithm)[0].sum()

    algorithm = jb.clipped(norm=1.0)
    one = jnp.ones(1, params.b.dtype)
    assert jax.jvp(lambda s: last(s, algorithm), (one,), (one,))[1] == 32
    huge = one * 1e200  # its square is infinite
    pulled = jb.bptt_gradients(
        cell, params, jnp.zeros((1, 1)), one, d_last_state=huge, algorithm=algorithm
    )
    np.testing.assert_allclose(pulled[2], 2, rtol=1e-6)
    pulled = jb.bptt_gradients(
        cell, params, jnp.zeros((5, 1)), one, d_last_state=one * jnp.nan, algorithm=algorithm
    )
    assert jnp.isnan(pulled[2]).all()


def test_messages():
    for arguments in ({}, {"norm": 1.0, "value": 1.0}):
        check(lambda a=arguments: jb.clipped(**a), ValueError, "clipped: give either norm or value")
    wrongs: Any = (0, -1.0, float("nan"), True, "1")
    for wrong in wrongs:
        check(lambda w=wrong: jb.clipped(norm=w), ValueError, "clipped: norm must be a number")
    cell = jb.gru(2, 3)
    run = jb.diagnostics.trajectory(cell, cell.init(jax.random.key(0)), jnp.ones((4, 2)))
    check(
        lambda: jb.diagnostics.clipping(run, jb.bptt()),
        TypeError,
        "clipping: algorithm must be jb.clipped(...), got bptt()",
    )
    check(
        lambda: jb.diagnostics.clipping(run, jb.clipped(norm=1.0), jnp.ones((4, 2))),
        ValueError,
        "clipping: d_ys is float64[4, 2], but the output it belongs to is float64[4, 3]",
    )
