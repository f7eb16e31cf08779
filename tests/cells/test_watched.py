"""`watched`: the gradient of the cell alone, and a histogram of its adjoints."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_bptt as jb
from jax_bptt.cells.watched import LEAST, WatchedParams, nothing_seen
from jax_bptt.core import trees
from jax_bptt.diagnostics import telemetry, watched
from tests.core.messages import check
from tests.registry import BATCH, CELLS, STEPS, assert_close, problem, slow_unless, without_int

each_cell = pytest.mark.parametrize(
    "name",
    [slow_unless(name == "lstm_readout", name) for name in CELLS],
)


@each_cell
@pytest.mark.parametrize("algorithm", [jb.bptt(block_length=3), jb.autodiff()], ids=str)
def test_the_gradient_is_that_of_the_cell_and_what_is_seen_its_adjoints(name, algorithm):
    p, cell = problem(name), CELLS[name].cell

    given = p.params, p.xs, p.state, p.cotangents[1], p.cotangents[0]
    want = jax.jit(functools.partial(jb.bptt_gradients, cell))(*given)[0]
    params = WatchedParams(p.params, nothing_seen())

    def run(params):
        return jb.unroll(watched(cell), params, p.xs, p.state, algorithm=algorithm)

    inexact = jax.tree.map(lambda a: a if np.issubdtype(a.dtype, np.inexact) else None, params)

    def loss(inexact):
        whole = jax.tree.map(
            lambda a, b: b if a is None else a, inexact, params, is_leaf=lambda a: a is None
        )
        last_state, ys = run(whole)
        total = 0.0
        for output, cotangent in zip((last_state, ys), p.cotangents, strict=True):
            for d, y in zip(
                jax.tree.leaves(cotangent), jax.tree.leaves(trees.partition(output)[0]), strict=True
            ):
                total += jnp.sum(jnp.real(d * y))
        return total

    gradient, seen = telemetry(jax.jit(jax.grad(loss))(inexact))
    assert_close(without_int(gradient.cell), without_int(want), 1e-12)
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(gradient.seen))

    lambdas = jax.jit(functools.partial(jb.state_gradients, cell))(*given)
    rows = [np.abs(a).reshape(STEPS, BATCH[0], -1) ** 2 for a in jax.tree.leaves(lambdas)]
    norms = np.sqrt(np.concatenate(rows, -1).sum(-1))
    counts = np.bincount(np.floor(np.log10(norms)).astype(int).ravel() - LEAST, minlength=32)
    np.testing.assert_array_equal(seen[""].decades, counts)
    np.testing.assert_allclose(seen[""].squares, np.sum(norms**2), rtol=1e-6)
    assert seen[""].nonfinite == 0


def test_what_is_watched_in_a_stack_is_told_by_its_path():
    first, second = watched(jb.lstm(2, 4)), watched(jb.min_gru(4, 3))
    net = jb.stack(jb.layer(first), jb.dropout(rate=0.5), jb.bidirectional(second, jb.gru(4, 2)))
    params, xs = net.init(jax.random.key(0)), jnp.ones((5, 2, 2))

    def loss(params):
        return jnp.sum(net.apply(params, xs, key=jax.random.key(1))[1] ** 2)

    gradient, seen = telemetry(jax.jit(jax.grad(loss))(params))
    assert list(seen) == ["[0]", "[2].forward"]
    assert all(each.decades.sum() == 10 for each in seen.values())
    assert jax.tree.structure(gradient) == jax.tree.structure(params)


@pytest.mark.slow
def test_what_vanishes_overflows_or_is_not_finite():
    cell = watched(jb.indrnn(1, 1, activation=None, dtype=jnp.float32))
    params = cell.init(jax.random.key(0))
    for factor, decades, nonfinite in ((0.0, {0: 8, 16: 1}, 0), (1e9, {16: 1, 25: 1, 31: 1}, 6)):
        params = params._replace(cell=params.cell._replace(w_s=jnp.array([factor], jnp.float32)))

        def last(params):
            return jb.unroll(cell, params, jnp.zeros((9, 1), jnp.float32))[1][-1].sum()

        seen = telemetry(jax.grad(last)(params))[1][""]
        assert {d: n for d, n in enumerate(seen.decades.tolist()) if n} == decades
        assert seen.nonfinite == nonfinite


def test_a_cell_that_is_not_watched_has_nothing_of_it_in_its_program():
    """A training step compiles to the same with and without a look for telemetry."""
    cell = jb.lstm(2, 3)
    params, xs = cell.init(jax.random.key(0)), jnp.ones((6, 2, 2))

    def loss(params):
        return jb.unroll(cell, params, xs)[1].sum()

    def lowered(gradient):
        def step(params):
            return jax.tree.map(jnp.subtract, params, gradient(params))

        return jax.jit(step).lower(params).as_text()

    looked = lowered(lambda params: telemetry(jax.grad(loss)(params))[0])
    assert looked == lowered(jax.grad(loss))


def test_messages():
    wrong: Any = jb.layer(jb.gru(2, 3))
    check(lambda: watched(wrong), TypeError, "watched: cell must be a Cell")
    assert repr(watched(jb.gru(2, 3))) == "watched(cell=gru(input_size=2, hidden_size=3))"
    assert watched(jb.gru(2, 3)) == watched(jb.gru(2, 3))
