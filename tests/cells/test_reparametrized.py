"""Recurrent matrices made of other parameters, learned starts, noise on weights."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_bptt
from jax_bptt.testing import check_gated_step
from tests.core.messages import check
from tests.registry import assert_close, slow_unless

jb: Any = jax_bptt  # some calls are wrong on purpose
T, B, I, H = 5, 4, 2, 5  # noqa: E741 - the axis letters of the package
LSTM = jb.lstm(input_size=I, hidden_size=H)
WRAPPED = {
    "low_rank": lambda cell: jb.low_rank(cell, rank=2),
    "orthogonal": jb.orthogonal,
    "weight_norm": jb.weight_norm,
    "spectral_norm": jb.spectral_norm,
}


def params_of(cell, seed=0):
    """Return parameters away from the initial ones."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda w: w + 0.3 * rng.normal(size=w.shape), cell.init(jax.random.key(0)))


def matrices(cell, params):
    w_s = np.asarray(cell.prepare(params).w_s)
    return [w_s[:, g] for g in range(w_s.shape[1])]


@pytest.mark.slow
def test_low_rank_has_that_rank():
    for rank in (1, 2, H):
        cell = jb.low_rank(LSTM, rank=rank)
        assert [np.linalg.matrix_rank(w) for w in matrices(cell, params_of(cell))] == 4 * [rank]


def test_low_rank_starts_as_the_best_approximation():
    """An orthogonal matrix has as many singular values of one as its rank, at full rank all."""
    for rank in (2, H):
        cell = jb.low_rank(LSTM, rank=rank)
        params = cell.init(jax.random.key(0))
        for w in matrices(cell, params):
            values = np.linalg.svd(w, compute_uv=False)
            np.testing.assert_allclose(values, [1] * rank + [0] * (H - rank), atol=1e-14)
        u, v = (np.moveaxis(np.asarray(a), 1, 0) for a in params.w_s)
        np.testing.assert_allclose(
            u.swapaxes(1, 2) @ u, v @ v.swapaxes(1, 2), atol=1e-14, err_msg="evenly shared"
        )


@pytest.mark.parametrize("size", [slow_unless(False, 1), slow_unless(False, 2), 5])
def test_orthogonal_is_orthogonal_wherever_its_parameters_are(size):
    cell = jb.orthogonal(jb.gru(input_size=I, hidden_size=size))
    for params in (cell.init(jax.random.key(0)), params_of(cell)):
        for w in matrices(cell, params):
            np.testing.assert_allclose(w.T @ w, np.eye(size), atol=1e-14)
            np.testing.assert_allclose(np.linalg.det(w), 1, rtol=1e-13)


def test_orthogonal_starts_as_rotations_of_pairs():
    cell = jb.orthogonal(LSTM)
    params = cell.init(jax.random.key(0))
    angles = set()
    for w in matrices(cell, params):
        for k in (0, 2):
            angle = np.arctan2(w[k + 1, k], w[k, k])
            c, s = np.cos(angle), np.sin(angle)
            np.testing.assert_allclose(w[k : k + 2, k : k + 2], [[c, -s], [s, c]], atol=1e-14)
            assert 0 < abs(angle) < np.pi / 2
            angles.add(round(abs(angle), 8))
        assert w[4, 4] == 1 and np.count_nonzero(np.abs(w) > 1e-14) == 9
    assert len(angles) == 8


def test_weight_norm_starts_as_the_cell_and_its_lengths_are_g():
    cell = jb.weight_norm(LSTM)
    params = cell.init(jax.random.key(0))
    np.testing.assert_allclose(cell.prepare(params).w_s, params.w_s.v, rtol=1e-14)
    params = params_of(cell)
    lengths = np.linalg.norm(cell.prepare(params).w_s, axis=0)
    np.testing.assert_allclose(lengths, np.abs(params.w_s.g), rtol=1e-14)
    longer = params._replace(w_s=params.w_s._replace(v=3 * params.w_s.v))
    assert_close(cell.prepare(longer), cell.prepare(params), 1e-14)


def test_spectral_norm_has_a_largest_singular_value_of_one():
    cell = jb.spectral_norm(LSTM)
    params = params_of(cell)
    largest = np.array([np.linalg.norm(w, 2) for w in matrices(cell, params)])
    np.testing.assert_allclose(largest, 1, rtol=1e-14)
    tripled = params._replace(w_s=3 * params.w_s)
    assert_close(cell.prepare(tripled), cell.prepare(params), 1e-14)


@pytest.mark.parametrize("name", WRAPPED)
def test_the_step_is_the_inner_cells(name):
    cell = WRAPPED[name](LSTM)
    assert cell.step is LSTM.step
    params, xs = params_of(cell), np.ones((T, B, I))
    inner = cell.prepare(params)
    assert_close(jb.unroll(cell, params, xs), jb.unroll(LSTM, inner, xs), 1e-15)


@pytest.mark.slow
@pytest.mark.parametrize("name", WRAPPED)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_narrow_types(name, dtype):
    cell = WRAPPED[name](jb.gru(input_size=I, hidden_size=H, dtype=dtype))
    params = cell.init(jax.random.key(0))
    for tree in (params, cell.prepare(params)):
        assert {w.dtype for w in jax.tree.leaves(tree)} == {jnp.dtype(dtype)}
    _, ys = jb.unroll(cell, params, np.ones((T, B, I), np.float32))
    assert ys.dtype == np.float32
    mixed = jb.mixed_precision(WRAPPED[name](LSTM), dtype=dtype)
    assert mixed.prepare(mixed.init(jax.random.key(0))).w_s.dtype == dtype


@pytest.mark.parametrize(
    "constructor", [slow_unless(False, jb.elman), slow_unless(False, jb.lstm), jb.gru]
)
@pytest.mark.parametrize("heads", [slow_unless(heads == 2, heads) for heads in (1, 2, 3)])
def test_a_head_is_a_cell_of_its_own(constructor, heads):
    """The units of one head see no other head: alone, with its part of everything, it is it."""
    units = 2
    cell = constructor(input_size=I, hidden_size=heads * units)
    wrapped, alone = jb.multi_head(cell, heads=heads), constructor(input_size=I, hidden_size=units)
    params = params_of(wrapped)
    assert params.w_s.shape[:2] == (heads, units)
    xs = np.random.default_rng(1).normal(size=(T, B, I))
    ys = jb.unroll(wrapped, params, xs)[1]
    for k in range(heads):
        own = slice(k * units, (k + 1) * units)
        part = params._replace(w_x=params.w_x[..., own], w_s=params.w_s[k], b=params.b[..., own])
        if constructor is jb.gru:
            part = part._replace(b_n=params.b_n[own])
        assert_close(ys[..., own], jb.unroll(alone, part, xs)[1], 1e-13)


@pytest.mark.slow
@pytest.mark.parametrize("constructor", [jb.elman, jb.lstm, jb.gru])
def test_heads_keep_the_gated_step_and_its_pair(constructor):
    cell = constructor(input_size=I, hidden_size=6)
    wrapped = jb.multi_head(cell, heads=3)
    inner: Any = cell.step
    outer: Any = wrapped.step
    assert outer == inner._replace(mix=outer.mix, heads=3)
    check_gated_step(wrapped, params_of(wrapped), np.ones((B, I)))
    w_s = wrapped.init(jax.random.key(0)).w_s
    for w in w_s.swapaxes(1, 2).reshape(-1, 2, 2):
        np.testing.assert_allclose(w.T @ w, np.eye(2), atol=1e-14)


@pytest.mark.slow
def test_wrappers_in_one_another():
    cell = jb.embedding(jb.learned_state(jb.low_rank(LSTM, rank=2)), vocabulary_size=7)
    params = cell.init(jax.random.key(0))
    assert params.cell.cell.w_s.u.shape == (H, 4, 2)
    assert jb.unroll(cell, params, np.ones((T, B), int))[1].shape == (T, B, H)
    single = jb.lstm(input_size=I, hidden_size=H, dtype=jnp.float32)
    cell = jb.mixed_precision(jb.learned_state(jb.multi_head(single, heads=H)))
    xs = np.ones((T, B, I), np.float32)
    assert jb.unroll(cell, cell.init(jax.random.key(0)), xs)[1].shape == (T, B, H)


@pytest.mark.slow
@pytest.mark.parametrize("resets", [False, True])
def test_a_learned_state_has_the_gradient_of_the_starts(resets):
    cell = jb.learned_state(LSTM)
    params = params_of(cell)
    rng = np.random.default_rng(2)
    xs, lengths = rng.normal(size=(T, B, I)), np.array([T, 0, 3, 1])
    options = dict(lengths=lengths, resets=rng.random((T, B)) < 0.4 if resets else None)

    def loss(params, state):
        begin = state if resets else None
        last_state, ys = jb.unroll(cell, params, xs, state, reset_state=begin, **options)
        return jnp.sum(ys**2) + jnp.sum(last_state.c)

    start = cell.initial_state(params, (B,))
    np.testing.assert_array_equal(start.h, np.broadcast_to(params.start.h, (B, H)))
    inner, d_start = jax.grad(loss, (0, 1))(params, start)
    got = jax.grad(loss)(params, None)
    assert_close(got.cell, inner.cell, 1e-13)
    assert_close(got.start, jax.tree.map(lambda d: d.sum(0), d_start), 1e-13)
    assert not np.any(inner.start.h), "a state that is passed takes the place of the start"


def test_a_learned_state_with_integers_and_narrow_weights():
    counted = jb.from_step(
        lambda w, s, x: (w.astype(x.dtype) * s[0] + x, s[1] + 1),
        init=lambda key: jnp.ones((), jnp.bfloat16),
        initial_state=lambda w, b: (jnp.full((*b, 3), 2.0, jnp.float32), jnp.ones(b, jnp.int32)),
        input_shape=(3,),
        any_batch=True,
    )
    cell = jb.learned_state(counted)
    params = cell.init(jax.random.key(0))
    assert params.start[1] is None and params.start[0].dtype == jnp.float32
    state = cell.initial_state(params, (2,))
    np.testing.assert_array_equal(state[0], np.full((2, 3), 2.0))
    np.testing.assert_array_equal(state[1], [1, 1])


@pytest.mark.slow
def test_weight_noise():
    params = LSTM.init(jax.random.key(0))
    key = jax.random.key(3)
    noisy = jb.weight_noise(key, params, scale=0.1)
    again = jb.weight_noise(key, params, scale=0.1)
    assert_close(again, noisy, 0)
    noise = jax.tree.map(lambda a, b: (a - b) / 0.1, noisy, params)
    numbers = np.concatenate([np.ravel(n) for n in jax.tree.leaves(noise)])
    assert abs(numbers.mean()) < 4 / np.sqrt(numbers.size)
    assert abs(numbers.std() - 1) < 4 / np.sqrt(2 * numbers.size)
    assert len(np.unique(numbers.round(9))) == numbers.size, "no two weights share a number"
    assert_close(jb.weight_noise(key, params, scale=0), params, 0)

    def loss(params, scale):
        last_state, _ = jb.unroll(
            LSTM, jb.weight_noise(key, params, scale=scale), np.ones((T, B, I))
        )
        return jnp.sum(last_state.h)

    d_params, d_scale = jax.grad(loss, (0, 1))(params, 0.1)
    d_noisy = jax.grad(loss)(noisy, 0.0)
    assert_close(d_params, d_noisy, 1e-13)
    along = sum(
        jnp.sum(a * b) for a, b in zip(*map(jax.tree.leaves, (d_noisy, noise)), strict=True)
    )
    np.testing.assert_allclose(d_scale, along, rtol=1e-11)


def test_weight_noise_leaves_integers_and_dtypes_alone():
    params = {"w": jnp.ones(3, jnp.bfloat16), "z": jnp.ones(3, jnp.complex64), "n": jnp.arange(3)}
    noisy = jb.weight_noise(jax.random.key(0), params, scale=0.5)
    assert [noisy[k].dtype for k in noisy] == [params[k].dtype for k in noisy]
    np.testing.assert_array_equal(noisy["n"], params["n"])
    assert np.all(noisy["z"].imag != 0) and np.any(noisy["w"] != 1)


def test_wrong_arguments_are_named():
    elsewhere = jb.embedding(LSTM, vocabulary_size=3)
    for name, make in {**WRAPPED, "multi_head": lambda c: jb.multi_head(c, heads=1)}.items():
        check(lambda m=make: m(jb.lstm), TypeError, f"{name}: cell must be a Cell")
        check(
            lambda m=make: m(elsewhere), TypeError, f"{name}: the cell's params, a EmbeddingParams"
        )
        check(lambda m=make: m(jb.low_rank(LSTM, rank=1)), TypeError, name, "LowRank")
    for rank in (0, H + 1, 2.0, True):
        check(
            lambda r=rank: jb.low_rank(LSTM, rank=r),
            ValueError,
            f"rank must be an integer from 1 to {H}",
        )
    for heads in (0, 2, -1, 1.0, True):
        check(lambda h=heads: jb.multi_head(LSTM, heads=h), ValueError, "multi_head: heads must be")
    plain = jb.gru_reset_before(input_size=I, hidden_size=H)
    check(lambda: jb.multi_head(plain, heads=1), TypeError, "multi_head: the cell's step must be")
    prepared = jb.mixed_precision(LSTM)
    check(lambda: jb.multi_head(prepared, heads=1), TypeError, "Wrap the other way round")
    check(lambda: jb.learned_state(jb.lstm), TypeError, "learned_state: cell must be a Cell")
