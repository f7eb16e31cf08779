"""The gated cells by hand: numbers on paper, reductions to other cells, extreme inputs."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_bptt as jb
from tests import reference
from tests.core.messages import check
from tests.registry import CELLS, assert_close, problem

I, H = 3, 5  # noqa: E741 - the axis letters of the package
SIZES: Any = dict(input_size=I, hidden_size=H)
TEXT: Any = "exp"  # where a function belongs


def sigmoid(a):
    return 1 / (1 + math.exp(-a))


def _zeros(cell):
    return jax.tree.map(jnp.zeros_like, cell.init(jax.random.key(0)))


def _filled(cell, **values):
    """Return parameters of zeros, but for the given ones."""
    return _zeros(cell)._replace(**{k: jnp.asarray(v, jnp.float64) for k, v in values.items()})


def _noisy(cell, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda p: rng.normal(size=p.shape), cell.init(jax.random.key(0)))


def _xs(steps=6, batch=2):
    return np.random.default_rng(1).normal(size=(steps, batch, I))


@functools.partial(jax.jit, static_argnums=0)
def _ys(cell, params, xs, state=None):
    return jb.unroll(cell, params, xs, state)[1]


@functools.partial(jax.jit, static_argnums=0)
def _gradients(cell, params, xs):
    """Return the gradients of sum(ys^2) in the parameters and the inputs."""
    return jax.grad(lambda p, x: jnp.sum(_ys(cell, p, x) ** 2), argnums=(0, 1))(params, xs)


def test_lstm_peephole_by_hand():
    cell = jb.lstm_peephole(input_size=1, hidden_size=1)
    params = _filled(cell, b=[[0.1], [0.2], [0.3], [0.4]], w_c=[[0.5], [0.6], [0.7]])
    start = jb.LSTMState(jnp.array([0.9]), jnp.array([0.8]))
    last_state, _ = jb.unroll(cell, params, jnp.zeros((1, 1)), start)
    i, f = sigmoid(0.1 + 0.5 * 0.8), sigmoid(0.2 + 0.6 * 0.8)
    c = f * 0.8 + i * math.tanh(0.3)
    np.testing.assert_allclose(last_state.c, [c], rtol=1e-15)
    np.testing.assert_allclose(last_state.h, [sigmoid(0.4 + 0.7 * c) * math.tanh(c)], rtol=1e-15)


def test_an_lstm_with_closed_peepholes_is_an_lstm():
    seeing, blind = jb.lstm_peephole(**SIZES), jb.lstm(**SIZES)
    params = _noisy(blind)
    more = jb.LSTMPeepholeParams(params.w_x, params.w_s, jnp.zeros((3, H)), params.b)
    np.testing.assert_allclose(_ys(seeing, more, _xs()), _ys(blind, params, _xs()), rtol=1e-13)
    (got, got_xs), (want, want_xs) = (
        _gradients(*pair, _xs()) for pair in ((seeing, more), (blind, params))
    )
    assert_close((got.w_x, got.w_s, got.b, got_xs), (want.w_x, want.w_s, want.b, want_xs), 1e-12)


def test_mgu_by_hand():
    cell = jb.mgu(input_size=1, hidden_size=1)
    params = _filled(cell, b=[[0.1], [0.2]], w_s=[[[0.3], [0.4]]])
    state, _ = jb.unroll(cell, params, jnp.zeros((1, 1)), jnp.array([0.7]))
    f = sigmoid(0.1 + 0.3 * 0.7)
    n = math.tanh(0.2 + f * 0.4 * 0.7)
    np.testing.assert_allclose(state, [(1 - f) * 0.7 + f * n], rtol=1e-15)


def test_an_mgu_is_a_gru_whose_two_gates_are_one():
    """In `gru`'s letters r = f and z = 1 - f: the update gate with every sign turned round."""
    minimal, full = jb.mgu(**SIZES), jb.gru(**SIZES)
    params = _noisy(minimal)
    f, n = (jax.tree.map(lambda w, k=k: w[..., k, :], params[:3]) for k in (0, 1))
    w_x, w_s, b = (jnp.stack([a, -a, c], axis=-2) for a, c in zip(f, n, strict=True))
    gru_params = jb.GRUParams(w_x, w_s, b, jnp.zeros(H))
    np.testing.assert_allclose(
        _ys(minimal, params, _xs()), _ys(full, gru_params, _xs()), rtol=1e-12, atol=1e-14
    )


def test_ugrnn_by_hand():
    cell = jb.ugrnn(input_size=1, hidden_size=1)
    params = _filled(cell, b=[[0.1], [0.2]], w_s=[[[0.3], [0.4]]])
    state, _ = jb.unroll(cell, params, jnp.zeros((1, 1)), jnp.array([0.7]))
    g, n = sigmoid(0.1 + 0.3 * 0.7), math.tanh(0.2 + 0.4 * 0.7)
    np.testing.assert_allclose(state, [g * 0.7 + (1 - g) * n], rtol=1e-15)


def test_a_ugrnn_with_its_gate_shut_is_a_simple_network():
    gated, simple = jb.ugrnn(**SIZES), jb.elman(**SIZES)
    params = _noisy(gated)
    params = params._replace(b=np.stack([np.full(H, -1e3), params.b[1]]))
    one = jb.Params(params.w_x[:, 1:], params.w_s[:, 1:], params.b[1:])
    np.testing.assert_allclose(_ys(gated, params, _xs()), _ys(simple, one, _xs()), rtol=1e-13)


@pytest.mark.parametrize("constructor", [jb.lstm_peephole, jb.ugrnn, jb.slstm])
def test_forget_bias(constructor):
    params = constructor(**SIZES, forget_bias=-2.5).init(jax.random.key(0))
    gate = 0 if constructor is jb.ugrnn else 1
    want = np.zeros(params.b.shape)
    want[gate] = -2.5
    np.testing.assert_array_equal(params.b, want)
    for bias in (None, "1", True, 1j):
        pieces = f"{constructor.__name__}: forget_bias must be a real number", repr(bias)
        check(lambda b=bias: constructor(**SIZES, forget_bias=b), TypeError, *pieces)


ACTIVATIONS = {
    "relu": (jax.nn.relu, lambda xp, a: xp.maximum(a, 0)),
    "tanh": (jnp.tanh, lambda xp, a: xp.tanh(a)),
    "softplus": (jax.nn.softplus, lambda xp, a: xp.logaddexp(a, xp.zeros_like(a))),
    "none": (None, lambda xp, a: a),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_indrnn_is_a_simple_network_with_a_diagonal_matrix(name):
    activation, naive = ACTIVATIONS[name]
    ours = jb.indrnn(**SIZES, activation=activation)
    simple = jb.elman(**SIZES, activation=activation or (lambda a: a))
    params = _noisy(ours)
    full = jb.Params(params.w_x, jnp.diag(params.w_s)[:, None], params.b)
    np.testing.assert_allclose(
        _ys(ours, params, _xs()), _ys(simple, full, _xs()), rtol=1e-12, atol=1e-14
    )
    # The values agree with each other, the gradients with a loop that shares nothing with either.
    for cell, p, step in ((ours, params, reference.indrnn), (simple, full, reference.elman)):
        ys = _ys(cell, p, _xs())
        start = np.zeros((2, H))
        d_params, d_xs, _ = reference.gradients(
            reference.Reference(step(naive)), p, start, _xs(), (2,), (None, 2 * ys)
        )
        assert_close(_gradients(cell, p, _xs()), (d_params, d_xs), 1e-12)


def test_indrnn_by_default_is_a_relu_network():
    cell, relu = jb.indrnn(**SIZES), jb.indrnn(**SIZES, activation=jax.nn.relu)
    ys = _ys(cell, _noisy(cell), _xs())
    np.testing.assert_array_equal(ys, _ys(relu, _noisy(cell), _xs()))
    assert (ys == 0).any() and (ys > 0).any() and not (ys < 0).any()


def test_indrnn_initialisation_and_step():
    cell = jb.indrnn(input_size=I, hidden_size=100, output_size=2)
    params = cell.init(jax.random.key(0))
    assert params.w_s.shape == (100,) and params.b.shape == (1, 100)
    assert 0 <= params.w_s.min() < 0.1 and 0.9 < params.w_s.max() < 1
    assert np.abs(params.w_x).max() <= math.sqrt(6 / (I + 100)) and not params.b.any()
    assert params.w_y.shape == (100, 2)
    assert isinstance(jb.indrnn(**SIZES).step, jb.GatedStep)
    assert isinstance(jb.indrnn(**SIZES, activation=None).step, jb.DiagonalStep)
    check(lambda: jb.indrnn(**SIZES, activation=TEXT), TypeError, "indrnn: activation", "'exp'")


def _exponential(a):
    return a


LOG_FORGET_GATES = {
    "sigmoid": (jax.nn.log_sigmoid, lambda a: 1 / (1 + np.exp(-a))),
    "exponential": (_exponential, np.exp),
}


@pytest.mark.parametrize("name", LOG_FORGET_GATES)
def test_slstm_is_the_network_without_a_stabiliser(name):
    log_forget_gate, forget_gate = LOG_FORGET_GATES[name]
    cell = jb.slstm(**SIZES, log_forget_gate=log_forget_gate)
    params, xs = _noisy(cell), _xs()
    last_state, ys = jb.unroll(cell, params, xs)
    h, c, n = np.zeros((3, 2, H))
    for x, y in zip(xs, ys, strict=True):
        a = [x @ params.w_x[:, k] + h @ params.w_s[:, k] + params.b[k] for k in range(4)]
        i, f = np.exp(a[0]), forget_gate(a[1])
        c, n = f * c + i * np.tanh(a[2]), f * n + i
        h = c / n / (1 + np.exp(-a[3]))
        np.testing.assert_allclose(y, h, rtol=1e-12)
    assert (last_state.n >= 1).all()
    np.testing.assert_allclose(last_state.c * np.exp(last_state.m), c, rtol=1e-12)
    np.testing.assert_allclose(last_state.n * np.exp(last_state.m), n, rtol=1e-12)


@pytest.mark.slow
def test_slstm_with_exponential_gates_has_the_gradient_of_the_naive_loop():
    cell = jb.slstm(**SIZES, log_forget_gate=_exponential)
    params, xs = _noisy(cell), _xs()
    start = cell.initial_state(params, (2,))
    naive = reference.Reference(reference.slstm(lambda xp, a: a), lambda xp, p, s: s.h)
    last_state, ys = jb.unroll(cell, params, xs)
    d_last = jax.tree.map(np.cos, last_state)
    want = reference.gradients(naive, params, start, xs, (2,), (d_last, 2 * ys))
    got = jax.jit(functools.partial(jb.bptt_gradients, cell))(params, xs, start, 2 * ys, d_last)
    assert_close(got, want, 1e-12)


@pytest.mark.slow
def test_the_stabiliser_of_slstm_cancels():
    """The same c e^m and n e^m under another m: the same outputs, and no gradient but in c, n."""
    cell = jb.slstm(**SIZES)
    params, xs = _noisy(cell), _xs()
    start = jb.SLSTMState(*np.random.default_rng(2).uniform(1, 2, size=(4, 2, H)))
    shift = np.random.default_rng(3).normal(size=(2, H))
    shifted = start._replace(
        c=start.c * np.exp(-shift), n=start.n * np.exp(-shift), m=start.m + shift
    )
    ys, of_shifted = (_ys(cell, params, xs, s) for s in (start, shifted))
    np.testing.assert_allclose(of_shifted, ys, rtol=1e-12)
    _, _, d = jb.bptt_gradients(cell, params, xs, start, np.cos(ys))
    # d(ys)/dm along c e^m and n e^m held: dm - c dc - n dn = 0.
    np.testing.assert_allclose(d.m, start.c * d.c + start.n * d.n, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("name", LOG_FORGET_GATES)
def test_slstm_survives_gates_beyond_the_range_of_floats(name, sign):
    cell = jb.slstm(**SIZES, log_forget_gate=LOG_FORGET_GATES[name][0])
    params = cell.init(jax.random.key(0))
    for gate in range(4):
        extreme = params._replace(b=params.b.at[gate].set(sign * 1e4))
        ys = _ys(cell, extreme, _xs(20))
        assert (np.abs(ys) <= 1).all()
        assert jax.tree.all(
            jax.tree.map(lambda g: bool(np.isfinite(g).all()), _gradients(cell, extreme, _xs(20)))
        )


def test_slstm_log_forget_gate_is_a_function():
    pieces = "slstm: log_forget_gate must be a function such as jax.nn.log_sigmoid", "'exp'"
    check(lambda: jb.slstm(**SIZES, log_forget_gate=TEXT), TypeError, *pieces)


def test_ctrnn_solves_its_equation_exactly_under_a_constant_input():
    """Without feedback s(t) = phi(b) + (s(0) - phi(b)) exp(-t / tau), whatever the time step."""
    b, tau, start = [0.4, -0.7], np.array([0.5, 3.0]), np.array([0.2, 0.9])
    for steps in (1, 7):
        cell = jb.ctrnn(input_size=1, hidden_size=2, time_step=2.0 / steps, time_constant=tau)
        params = _filled(cell, b=[b], log_tau=np.log(tau))
        state, _ = jb.unroll(cell, params, jnp.zeros((steps, 1)), start)
        want = np.tanh(b) + (start - np.tanh(b)) * np.exp(-2.0 / tau)
        np.testing.assert_allclose(state, want, rtol=1e-14)


def test_both_leaks_tend_to_the_same_network():
    """To first order in dt: half the step, half the error."""

    def end(constructor, steps):
        cell = constructor(**SIZES, time_step=1 / steps, time_constant=0.7)
        params = _noisy(cell)
        xs = np.broadcast_to(_xs()[0], (steps, 2, I))
        return jb.unroll(cell, params, xs)[0]

    fine = end(jb.ctrnn, 4096)
    for constructor in (jb.ctrnn, jb.ctrnn_euler):
        coarse, half = (np.abs(end(constructor, n) - fine).max() for n in (64, 128))
        assert 1.8 < coarse / half < 2.2 and half < 0.02


def test_a_euler_step_of_one_time_constant_is_a_simple_network():
    continuous = jb.ctrnn_euler(**SIZES, time_step=0.3, time_constant=0.3)
    simple = jb.elman(**SIZES)
    params = _noisy(simple)
    log_tau = jnp.full(H, math.log(0.3))
    timed = jb.CTRNNParams(params.w_x, params.w_s, params.b, log_tau)
    np.testing.assert_allclose(
        _ys(continuous, timed, _xs()), _ys(simple, params, _xs()), rtol=1e-12, atol=1e-14
    )


def test_ctrnn_times():
    taus = [0.5, 1, 2.0, 4, 8]
    params = jb.ctrnn(**SIZES, time_constant=taus).init(jax.random.key(0))
    np.testing.assert_allclose(np.exp(params.log_tau), taus, rtol=1e-14)
    narrow = jb.ctrnn(**SIZES, time_constant=taus, dtype=jnp.bfloat16).init(jax.random.key(0))
    assert narrow.log_tau.dtype == jnp.bfloat16
    for constructor in (jb.ctrnn, jb.ctrnn_euler):
        name = constructor.__name__
        for step in (0, -1.0, "1", True, None):
            pieces = f"{name}: time_step must be a positive number", repr(step)
            check(lambda c=constructor, s=step: c(**SIZES, time_step=s), ValueError, *pieces)
        for tau in (0, -1.0, "1", True, None, [1, 2], [1, 2, 3, 4, 0]):
            pieces = f"{name}: time_constant must be a positive number", repr(tau)
            check(lambda c=constructor, t=tau: c(**SIZES, time_constant=t), ValueError, *pieces)
        check(lambda c=constructor: c(**SIZES, activation=1), TypeError, f"{name}: activation")


def test_clockwork_units_keep_their_value_between_ticks():
    p = problem("clockwork")
    ys = np.asarray(_ys(CELLS["clockwork"].cell, p.params, p.xs, p.state))
    values = np.concatenate([p.state.s[None], ys])
    moved = (values[1:] != values[:-1]).all(axis=1)
    want = np.arange(len(ys))[:, None] % np.array([1, 2, 4]) == 0
    np.testing.assert_array_equal(moved, want)
    assert not (values[1:] == values[:-1]).any(axis=1)[want].any()


@pytest.mark.slow
def test_clockwork_reads_no_faster_unit():
    p = problem("clockwork")
    cell = CELLS["clockwork"].cell
    d = jax.grad(lambda params: jnp.sum(_ys(cell, params, p.xs, p.state) ** 2))(p.params)
    faster_to_slower = np.tril(np.ones((3, 3)), -1).T == 1
    assert not d["w_s"][faster_to_slower].any() and d["w_s"][~faster_to_slower].all()
