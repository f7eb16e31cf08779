"""Values and gradients of every cell under every algorithm, against independent sources."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jax_bptt as jb
from tests import reference
from tests.registry import (
    BATCH,
    CELLS,
    assert_close,
    compiled,
    each_cell_by_each_algorithm,
    each_cell_in_time,
    each_kind_in_time,
    expected,
    gradient,
    problem,
    run,
    slow_unless,
)

EXACT = 1e-12


@each_cell_by_each_algorithm
def test_values_and_gradients(name, algorithm):
    assert_close(compiled(name, algorithm)(problem(name)), expected(name), EXACT)


@each_cell_in_time
def test_finite_differences(name):
    p = problem(name)
    rng = np.random.default_rng(1)
    point = p.params, p.xs, p.state

    def loss(point):
        params, xs, state = point
        outputs = reference.unroll(np, CELLS[name].reference, params, state, xs, BATCH)
        return reference.pair(np, p.cotangents, outputs)

    def draw(leaf):
        return rng.normal(size=leaf.shape).astype(leaf.dtype)

    gradients = compiled(name, "bptt_3")(p)[1]
    for _ in range(3):
        direction = jax.tree.map(draw, point)
        directions = [d for d in jax.tree.leaves(direction) if reference.is_inexact(d)]
        along = [
            (np.asarray(g) * d).sum().real
            for g, d in zip(jax.tree.leaves(gradients), directions, strict=True)
        ]
        scale = np.abs(along).sum()  # the terms may cancel
        difference = reference.directional_derivative(loss, point, direction)
        assert abs(sum(along) - difference) <= 1e-9 * scale


@each_cell_in_time
def test_bptt_gradients(name):
    p = problem(name)
    d_last_state, d_ys = p.cotangents
    by_hand = jax.jit(functools.partial(jb.bptt_gradients, CELLS[name].cell))
    got = by_hand(p.params, p.xs, p.state, d_ys, d_last_state)
    assert_close(got, expected(name)[1], EXACT)


def test_a_learned_start_counts_into_the_parameters():
    name = "weight_norm"
    p = problem(name)
    cell = CELLS[name].cell
    start = cell.initial_state(p.params, BATCH)
    d_params, d_xs, d_state = expected_from(name, start)
    d_params[2] = d_params[2] + d_state.sum(0)
    d_last_state, d_ys = p.cotangents
    by_hand = jax.jit(lambda: jb.bptt_gradients(cell, p.params, p.xs, None, d_ys, d_last_state))()
    assert_close(by_hand, (d_params, d_xs, d_state), EXACT)
    by_grad = jax.grad(
        lambda params: reference.pair(jnp, p.cotangents, run(name, None, params, p.xs, None))
    )
    assert_close(jax.jit(by_grad)(p.params), d_params, EXACT)


def expected_from(name, start):
    p = problem(name)
    naive = CELLS[name].reference
    return reference.gradients(naive, p.params, start, p.xs, BATCH, p.cotangents)


def _only(cotangents, kept):
    """Put None in place of all cotangents but those numbered in `kept`."""
    leaves, structure = jax.tree.flatten(cotangents, is_leaf=lambda c: c is None)
    kept = [leaf if k in kept else None for k, leaf in enumerate(leaves)]
    return jax.tree.unflatten(structure, kept)


def _check_subset(name, kept):
    p = problem(name)
    subset = p._replace(cotangents=_only(p.cotangents, kept))
    assert any(c is not None for c in jax.tree.leaves(subset.cotangents))
    zeros = jax.tree.map(
        lambda c, d: None if d is None else np.zeros_like(d) if c is None else c,
        subset.cotangents,
        p.cotangents,
        is_leaf=lambda c: c is None,
    )
    want = compiled(name, "autodiff")(p._replace(cotangents=zeros))
    assert_close(compiled(name, "bptt")(subset), want, EXACT)


def _number_of_leaves(tree):
    return len(jax.tree.leaves(tree, is_leaf=lambda c: c is None))


@each_cell_in_time
def test_cotangents_on_the_outputs_alone(name):
    cotangents = problem(name).cotangents
    first = _number_of_leaves(cotangents[0])
    _check_subset(name, range(first, _number_of_leaves(cotangents)))


@each_cell_in_time
def test_cotangents_on_the_last_state_alone(name):
    _check_subset(name, range(_number_of_leaves(problem(name).cotangents[0])))


@pytest.mark.parametrize("name", ["lstm_readout", slow_unless(False, "minimal_gated")])
def test_a_cotangent_on_a_single_leaf(name):
    for k in range(_number_of_leaves(problem(name).cotangents)):
        _check_subset(name, [k])


@each_cell_in_time
def test_no_cotangents_give_zeros(name):
    p = problem(name)
    by_hand = jax.jit(functools.partial(jb.bptt_gradients, CELLS[name].cell))
    got = by_hand(p.params, p.xs, p.state)
    assert_close(got, jax.tree.map(np.zeros_like, expected(name)[1]), 0)


@each_kind_in_time
def test_a_loss_that_reads_no_output_has_a_gradient_of_zero(name):
    p = problem(name)

    def loss(params):
        run(name, None, params, p.xs, p.state)
        return 0.0

    assert_close(jax.jit(jax.grad(loss))(p.params), jax.tree.map(np.zeros_like, p.params), 0)


@pytest.mark.parametrize(
    "name, batch_shape, steps",
    [
        slow_unless(name == quick, name, shape, steps)
        for name in CELLS
        for shape, steps, quick in (((), 3, "lstm_readout"), ((2, 3), 1, None))
    ],
)
def test_batch_shapes_and_short_sequences(name, batch_shape, steps):
    p = problem(name, batch_shape, steps)
    assert_close(compiled(name, "bptt")(p), expected(name, batch_shape, steps), EXACT)


@pytest.mark.parametrize(
    "name, algorithm",
    [
        *(slow_unless(name == "lstm_readout", name, "bptt") for name in CELLS),
        ("lstm", "autodiff"),
    ],
)
def test_no_steps(name, algorithm):
    p = problem(name, BATCH, 0)
    (last_state, ys), (d_params, d_xs, d_state) = compiled(name, algorithm)(p)
    assert_close(last_state, p.state, 0)
    assert_close(ys, jax.tree.map(lambda y: y[:0], expected(name)[0][1]), 0)
    assert_close(d_params, jax.tree.map(np.zeros_like, p.params), 0)
    assert_close(d_xs, jax.tree.map(lambda d: d[:0], expected(name)[1][1]), 0)
    assert_close(d_state, p.cotangents[0], 0)


@functools.cache
def _blocked(name, block_length):
    return jax.jit(functools.partial(gradient, name, jb.bptt(block_length=block_length)))


@pytest.mark.slow
@settings(max_examples=12)
@given(
    name=st.sampled_from(["elman_readout", "lstm", "peephole"]),
    batch_shape=st.sampled_from([(), (1,), (2, 3)]),
    steps=st.integers(1, 5),
    block_length=st.integers(1, 6),
)
def test_any_shape_and_block_length(name, batch_shape, steps, block_length):
    p = problem(name, batch_shape, steps)
    assert_close(_blocked(name, block_length)(p), expected(name, batch_shape, steps), EXACT)


@pytest.mark.slow
@given(st.integers(1, 100))
def test_any_block_length_beyond_the_sequence_is_one_block(extra):
    p = problem("elman")
    by_hand = jax.make_jaxpr(functools.partial(gradient, "elman", jb.bptt(block_length=7)))
    longer = jax.make_jaxpr(functools.partial(gradient, "elman", jb.bptt(block_length=7 + extra)))
    assert str(by_hand(p)) == str(longer(p))
