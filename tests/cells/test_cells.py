"""Cells by hand: numbers on paper, special cases, initialisation, layouts."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_bptt as jb
from tests.registry import CELLS, each_cell_in_time

CONSTRUCTORS = {
    jb.elman: 1,
    jb.lstm: 4,
    jb.gru: 3,
    jb.gru_reset_before: 3,
    jb.lstm_peephole: 4,
    jb.mgu: 2,
    jb.ugrnn: 2,
    jb.slstm: 4,
    jb.ctrnn: 1,
    jb.ctrnn_euler: 1,
}
I, H, O = 3, 5, 2  # noqa: E741 - the axis letters of the package


def sigmoid(a):
    return 1 / (1 + math.exp(-a))


def _filled(cell, **values):
    """Return parameters of zeros, but for the given ones."""
    zeros = jax.tree.map(jnp.zeros_like, cell.init(jax.random.key(0)))
    return zeros._replace(**{k: jnp.asarray(v, jnp.float64) for k, v in values.items()})


def test_elman_by_hand():
    cell = jb.elman(input_size=1, hidden_size=1, output_size=1, activation=lambda a: a)
    params = _filled(cell, w_x=[[[2.0]]], w_s=[[[3.0]]], b=[[1.0]], w_y=[[10.0]])
    last_state, ys = jb.unroll(cell, params, jnp.array([[1.0], [0.0], [-1.0]]))
    # s: 2 + 1 = 3;  0 + 9 + 1 = 10;  -2 + 30 + 1 = 29
    assert ys.tolist() == [[30.0], [100.0], [290.0]] and last_state.tolist() == [29.0]


def test_lstm_by_hand():
    cell = jb.lstm(input_size=1, hidden_size=1)
    params = _filled(cell, b=[[0.1], [0.2], [0.3], [0.4]])
    last_state, _ = jb.unroll(cell, params, jnp.zeros((2, 1)))
    c = sigmoid(0.1) * math.tanh(0.3)
    c = sigmoid(0.2) * c + sigmoid(0.1) * math.tanh(0.3)
    np.testing.assert_allclose(last_state.c, [c], rtol=1e-15)
    np.testing.assert_allclose(last_state.h, [sigmoid(0.4) * math.tanh(c)], rtol=1e-15)


def test_gru_by_hand():
    cell = jb.gru(input_size=1, hidden_size=1)
    params = _filled(cell, b=[[0.1], [0.2], [0.3]], b_n=[0.5])
    state, _ = jb.unroll(cell, params, jnp.zeros((1, 1)), jnp.array([0.7]))
    z, n = sigmoid(0.2), math.tanh(0.3 + sigmoid(0.1) * 0.5)
    np.testing.assert_allclose(state, [(1 - z) * n + z * 0.7], rtol=1e-15)


def test_the_two_grus_agree_where_the_reset_gate_is_open():
    after = jb.gru(input_size=I, hidden_size=H)
    before = jb.gru_reset_before(input_size=I, hidden_size=H)
    params = before.init(jax.random.key(0))
    params = params._replace(b=params.b.at[0].set(50.0))
    xs = jax.random.normal(jax.random.key(1), (6, 2, I))
    with_b_n = jb.GRUParams(params.w_x, params.w_s, params.b, jnp.zeros(H))
    ys = [jb.unroll(*args, xs)[1] for args in ((after, with_b_n), (before, params))]
    np.testing.assert_allclose(*ys, rtol=1e-13, atol=1e-15)


def test_an_lstm_with_open_gates_is_a_sum():
    """Input and forget gates at one, output gate at one: c is the sum of the candidates."""
    cell = jb.lstm(input_size=1, hidden_size=1)
    params = _filled(cell, b=[[50.0], [50.0], [0.0], [50.0]], w_x=[[[0.0], [0.0], [1.0], [0.0]]])
    xs = jnp.array([[0.5], [-0.25], [1.0]])
    last_state, _ = jb.unroll(cell, params, xs)
    np.testing.assert_allclose(last_state.c, jnp.tanh(xs).sum(0), rtol=1e-14)


@pytest.mark.parametrize("constructor", CONSTRUCTORS)
def test_initialisation(constructor):
    gates = CONSTRUCTORS[constructor]
    cell = constructor(input_size=I, hidden_size=H, output_size=O)
    params = cell.init(jax.random.key(0))
    assert params.w_x.shape == (I, gates, H) and params.w_y.shape == (H, O)
    assert params.b.shape == (gates, H)
    for g in range(gates):
        w = params.w_s[:, g]
        np.testing.assert_allclose(w.T @ w, np.eye(H), atol=1e-14)
        assert np.abs(params.w_x[:, g]).max() <= math.sqrt(6 / (I + H))
    assert np.abs(params.w_y).max() <= math.sqrt(6 / (H + O))
    assert len({float(w.ravel()[0]) for w in (params.w_x[:, g] for g in range(gates))}) == gates
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.float64)}


@pytest.mark.parametrize("constructor", CONSTRUCTORS)
def test_a_key_gives_the_same_parameters_again(constructor):
    cell = constructor(input_size=I, hidden_size=H)
    one, again, other = (cell.init(jax.random.key(k)) for k in (0, 0, 1))
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), one, again))
    assert not (one.w_s == other.w_s).any()


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.float64])
def test_dtype(dtype):
    cell = jb.embedding(jb.gru(input_size=I, hidden_size=H, dtype=dtype), vocabulary_size=4)
    params = cell.init(jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(dtype)}


@pytest.mark.parametrize("forget_bias", [0.0, 1.0, -2.5])
def test_forget_bias_is_in_the_parameters_alone(forget_bias):
    cell = jb.lstm(input_size=I, hidden_size=H, forget_bias=forget_bias)
    params = cell.init(jax.random.key(0))
    want = np.zeros((4, H))
    want[1] = forget_bias
    np.testing.assert_array_equal(params.b, want)
    plain = jb.lstm(input_size=I, hidden_size=H)
    xs = np.ones((3, I))
    ours, theirs = (jb.unroll(c, params, xs)[1] for c in (cell, plain))
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.slow
def test_embedding_is_the_inner_cell_on_rows_of_the_table():
    inner = jb.lstm(input_size=I, hidden_size=H)
    cell = jb.embedding(inner, vocabulary_size=4)
    params = cell.init(jax.random.key(0))
    tokens = np.array([[0, 3], [2, 2], [1, 0]])
    ours = jb.unroll(cell, params, tokens)[1]
    rows = jb.unroll(inner, params.cell, params.embedding[tokens])[1]
    np.testing.assert_array_equal(ours, rows)
    unused = np.array([[0, 3], [2, 2]])
    grad = jax.grad(lambda p: jb.unroll(cell, p, unused)[1].sum())(params)
    assert np.flatnonzero(np.abs(grad.embedding).sum(-1)).tolist() == [0, 2, 3]


@pytest.mark.parametrize("constructor", CONSTRUCTORS)
def test_without_a_readout_the_output_is_the_hidden_state(constructor):
    cell = constructor(input_size=I, hidden_size=H)
    last_state, ys = jb.unroll(cell, cell.init(jax.random.key(0)), np.ones((4, 2, I)))
    hidden = getattr(last_state, "h", last_state)
    np.testing.assert_array_equal(ys[-1], hidden)


def _buffers(tree):
    return [jnp.asarray(leaf).unsafe_buffer_pointer() for leaf in jax.tree.leaves(tree)]


@each_cell_in_time
def test_every_fresh_array_has_a_buffer_of_its_own(name):
    """So that parameters and state can be donated, in one call."""
    cell = CELLS[name].cell
    params = cell.init(jax.random.key(0))
    fresh = params, cell.initial_state(params, (2,))
    assert len(set(_buffers(fresh))) == len(_buffers(fresh))


def test_a_learned_start_is_copied_without_a_batch():
    cell = jb.learned_state(jb.lstm(input_size=I, hidden_size=H))
    params = cell.init(jax.random.key(0))
    assert not set(_buffers(params)) & set(_buffers(cell.initial_state(params, ())))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.float64])
@pytest.mark.parametrize("wrap", [lambda cell: cell, jb.orthogonal, jb.learned_state])
def test_a_state_is_in_at_least_single_precision(wrap, dtype):
    cell = wrap(jb.elman(input_size=I, hidden_size=H, dtype=dtype))
    state = cell.initial_state(cell.init(jax.random.key(0)), (2,))
    wide = jnp.float64 if dtype == jnp.float64 else jnp.float32
    assert state.shape == (2, H) and state.dtype == wide
