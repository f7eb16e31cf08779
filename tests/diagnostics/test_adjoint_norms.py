"""`adjoint_norms` and `adjoint_norms_by_layer` against perturbed states and outputs."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_bptt as jb
from tests.core.messages import check
from tests.diagnostics.test_contribution_map import LENGTHS, MASK, RESETS
from tests.registry import CELLS, problem, slow_unless

adjoint_norms, by_layer = jb.diagnostics.adjoint_norms, jb.diagnostics.adjoint_norms_by_layer


def norms(tree, rank):
    squares = [
        np.sum(np.abs(a) ** 2, axis=tuple(range(rank, a.ndim))) for a in jax.tree.leaves(tree)
    ]
    return np.sqrt(sum(squares))


@pytest.mark.parametrize("name", [slow_unless(name == "lstm_readout", name) for name in CELLS])
def test_they_are_those_of_state_gradients(name):
    cell, p = CELLS[name].cell, problem(name)
    d_last_state, d_ys = p.cotangents
    run = jb.diagnostics.trajectory(cell, p.params, p.xs, p.state)
    want = jb.state_gradients(cell, p.params, p.xs, p.state, d_ys, d_last_state)
    np.testing.assert_allclose(adjoint_norms(run, d_ys, d_last_state), norms(want, 2), rtol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("name", [slow_unless(name == "gru", name) for name in ("gru", "lstm")])
def test_options(name):
    cell, p = CELLS[name].cell, problem(name, (3,), 5)
    options: Any = dict(lengths=LENGTHS, resets=RESETS, mask=MASK)
    run = jb.diagnostics.trajectory(cell, p.params, p.xs, p.state, **options)
    d_last_state, d_ys = p.cotangents
    want = jb.state_gradients(cell, p.params, p.xs, p.state, d_ys, d_last_state, **options)
    got = adjoint_norms(run, d_ys, d_last_state)
    np.testing.assert_allclose(got, norms(want, 2), rtol=1e-12)
    assert np.all(got[3:, 1] == 0)


def test_of_the_naive_loop_with_perturbed_states():
    cell = jb.elman(2, 3)
    params = cell.init(jax.random.key(0))
    xs, d_ys = jax.random.normal(jax.random.key(1), (2, 6, 4, 3))
    xs = xs[..., :2]

    def loss(offsets):
        state, total = jnp.zeros((4, 3)), 0.0
        for t in range(6):
            drive = xs[t] @ params.w_x[:, 0] + params.b
            state = jnp.tanh(drive + state @ params.w_s[:, 0]) + offsets[t]
            total += jnp.sum(d_ys[t] * state)
        return total

    want = norms(jax.grad(loss)(jnp.zeros((6, 4, 3))), 2)
    run = jb.diagnostics.trajectory(cell, params, xs)
    np.testing.assert_allclose(adjoint_norms(run, d_ys), want, rtol=1e-12)


@pytest.mark.slow
def test_by_layer():
    """Each entry of a stack, run by hand with what is added to its outputs."""
    cell = jb.gru(3, 3)
    entries = (
        jb.layer(cell),
        jb.residual(jb.layer(cell)),
        jb.dropout(rate=0.3),
        jb.bidirectional(cell, cell),
    )
    deep = jb.stack(*entries)
    params = deep.init(jax.random.key(0))
    xs, d_ys = jax.random.normal(jax.random.key(1), (2, 5, 3, 6))
    xs, key = xs[..., :3], jax.random.key(2)
    keys = jax.random.split(key, 4)
    options = dict(lengths=LENGTHS, resets=RESETS)

    @jax.jit
    def wanted(offsets):
        def loss(offsets):
            ys = xs
            for k, (each, own, offset) in enumerate(zip(entries, params, offsets, strict=True)):
                ys = each.apply(own, ys, key=keys[k], **options)[1] + offset
            return jnp.sum(ys * d_ys)

        return jax.grad(loss)(offsets)

    sizes = 3, 3, 3, 6
    offsets = [jnp.zeros((5, 3, size)) for size in sizes]
    want = np.stack([norms(d, 2) for d in wanted(offsets)])
    got = by_layer(deep, params, xs, d_ys, key=key, **options)
    np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(got[-1], norms(d_ys, 2), rtol=1e-12)


def test_a_layer_alone_is_a_stack_of_one():
    layer = jb.layer(jb.gru(2, 3))
    params, xs = layer.init(jax.random.key(0)), jnp.ones((5, 2))
    state, d_ys = jnp.ones(3), jnp.ones((5, 3))
    np.testing.assert_allclose(by_layer(layer, params, xs, d_ys, state), np.full((1, 5), 3**0.5))


def test_messages():
    cell, p = CELLS["gru"].cell, problem("gru")
    run = jb.diagnostics.trajectory(cell, p.params, p.xs)
    d_ys = p.cotangents[1]
    not_a_layer: Any = cell
    check(lambda: adjoint_norms(run, d_ys[:2]), ValueError, "adjoint_norms: d_ys is float64")
    check(lambda: adjoint_norms(run, None, d_ys), ValueError, "adjoint_norms: d_last_state is")
    check(
        lambda: by_layer(not_a_layer, p.params, p.xs, d_ys),
        TypeError,
        "adjoint_norms_by_layer: layer must be a Layer",
    )
    deep = jb.stack(jb.layer(cell))
    check(
        lambda: by_layer(deep, (p.params,), p.xs, d_ys[:2]),
        ValueError,
        "adjoint_norms_by_layer: d_ys is float64",
    )
