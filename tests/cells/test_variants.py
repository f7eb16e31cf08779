"""Layer-normalised, projected and convolutional cells: special cases, other libraries, starts."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_bptt as jb
from tests import reference_variants
from tests.core.messages import check
from tests.registry import assert_close

T, B, I, H, P, O = 5, 2, 3, 4, 2, 2  # noqa: E741 - the axis letters of the package
SIZES: Any = dict(input_size=I, hidden_size=H)
RNG = np.random.default_rng(0)
EPS = float(jnp.finfo(jnp.bfloat16).eps)


def _perturbed(cell):
    return jax.tree.map(
        lambda p: np.asarray(p) + 0.3 * RNG.normal(size=p.shape), cell.init(jax.random.key(0))
    )


@pytest.mark.parametrize("constructor", [jb.layer_norm_lstm, jb.layer_norm_gru])
def test_a_norm_hides_the_scale_of_the_weights(constructor):
    """Large weights, so that the 1e-5 in the norm is nothing; a norm of x W_x, one of s W_s."""
    cell = constructor(**SIZES)
    params, xs = _perturbed(cell), RNG.normal(size=(T, B, I))
    start = jax.tree.map(lambda s: s + 1.0, cell.initial_state(params, (B,)))
    params = params._replace(w_x=1e6 * params.w_x, w_s=1e6 * params.w_s)
    once = jb.unroll(cell, params, xs, start)
    for scaled in (params._replace(w_x=7 * params.w_x), params._replace(w_s=7 * params.w_s)):
        assert_close(jb.unroll(cell, scaled, xs, start), once, 1e-12)
    other = jb.unroll(cell, params._replace(gain_x=7 * params.gain_x), xs, start)[1]
    assert np.abs(other - once[1]).max() > 0.01


def test_the_two_layer_norm_cells_start():
    lstm, gru = (
        c(**SIZES).init(jax.random.key(0)) for c in (jb.layer_norm_lstm, jb.layer_norm_gru)
    )
    for params, gates in ((lstm, 4), (gru, 3)):
        assert params.gain_x.shape == params.gain_s.shape == params.b.shape == (gates, H)
        assert (params.gain_x == 1).all() and (params.gain_s == 1).all()
    assert (lstm.gain_c == 1).all() and not lstm.b_c.any() and not gru.b.any()
    assert (lstm.b == np.array([[0.0], [1.0], [0.0], [0.0]])).all()


@pytest.mark.slow
def test_from_a_state_of_zero_the_gradient_is_finite():
    for constructor in (jb.layer_norm_lstm, jb.layer_norm_gru):
        cell = constructor(**SIZES)
        params, xs = _perturbed(cell), np.zeros((T, I))
        gradient = jax.jit(jax.grad(lambda p, c=cell, x=xs: jb.unroll(c, p, x)[1].sum()))(params)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_a_projection_by_the_identity_is_an_lstm():
    cell, plain = jb.lstm_projected(**SIZES, projection_size=H), jb.lstm(**SIZES)
    params, xs = _perturbed(cell), RNG.normal(size=(T, B, I))
    params = params._replace(w_p=np.eye(H))
    lstm_params = jb.Params(params.w_x, params.w_s, params.b)
    assert_close(jb.unroll(cell, params, xs), jb.unroll(plain, lstm_params, xs), 1e-14)


def test_a_projected_lstm_starts():
    params = jb.lstm_projected(**SIZES, projection_size=P, output_size=O).init(jax.random.key(0))
    shapes = jax.tree.map(jnp.shape, params)
    assert shapes == ((I, 4, H), (P, 4, H), (4, H), (H, P), (P, O))
    for k in range(4):
        np.testing.assert_allclose(params.w_s[:, k] @ params.w_s[:, k].T, np.eye(P), atol=1e-14)
    assert (params.b == np.array([[0.0], [1.0], [0.0], [0.0]])).all()


def test_a_projected_lstm_against_torch():
    torch = pytest.importorskip("torch")
    cell = jb.lstm_projected(**SIZES, projection_size=P)
    params, xs = _perturbed(cell), RNG.normal(size=(T, B, I))
    start = jax.tree.map(lambda s: RNG.normal(size=s.shape), cell.initial_state(params, (B,)))
    d_ys = RNG.normal(size=(T, B, P))

    def loss(params, xs, start):
        last_state, ys = jb.unroll(cell, params, xs, start)
        return jnp.sum(ys * d_ys) + jnp.sum(last_state.h**2) + jnp.sum(last_state.c**2), ys

    (d_params, d_xs, d_start), ys = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(
        params, xs, start
    )

    their = torch.nn.LSTM(I, H, proj_size=P).double()

    def rows(w):
        return np.transpose(w, (1, 2, 0)).reshape(4 * H, -1)

    values = rows(params.w_x), rows(params.w_s), np.ravel(params.b), np.zeros(4 * H), params.w_p.T
    weights = list(their.parameters())
    for weight, value in zip(weights, values, strict=True):
        weight.data = torch.tensor(value)
    their_xs = torch.tensor(xs, requires_grad=True)
    their_start = [torch.tensor(s[None], requires_grad=True) for s in start]
    their_ys, their_last = their(their_xs, tuple(their_start))
    total = (their_ys * torch.tensor(d_ys)).sum() + sum((s**2).sum() for s in their_last)
    total.backward()

    def gradient(tensor):
        return np.asarray(tensor.grad)

    assert_close(ys, their_ys.detach().numpy(), 1e-12)
    d_w_x, d_w_s, d_b, _, d_w_p = map(gradient, weights)
    ours = rows(d_params.w_x), rows(d_params.w_s), np.ravel(d_params.b), d_params.w_p.T
    assert_close(ours, (d_w_x, d_w_s, d_b, d_w_p), 1e-12)
    assert_close(d_xs, gradient(their_xs), 1e-12)
    assert_close(tuple(d_start), tuple(gradient(s)[0] for s in their_start), 1e-12)


def test_a_kernel_of_one_pixel_is_an_lstm_in_every_pixel():
    cell = jb.conv_lstm(**SIZES, image_shape=(2, 3), kernel_shape=(1, 1), output_size=O)
    params, xs = _perturbed(cell), RNG.normal(size=(T, B, 2, 3, I))
    plain = jb.lstm(**SIZES, output_size=O)
    by_pixel = params._replace(w_x=params.w_x[0, 0], w_s=params.w_s[0, 0])
    assert_close(jb.unroll(cell, params, xs), jb.unroll(plain, by_pixel, xs), 1e-13)


@pytest.mark.slow
@pytest.mark.parametrize("kernel_shape", [(3, 3), (2, 4), (1, 5)])
def test_convolutions_of_odd_and_even_kernels(kernel_shape):
    cell = jb.conv_lstm(**SIZES, image_shape=(4, 3), kernel_shape=kernel_shape)
    params, x = _perturbed(cell), RNG.normal(size=(B, 4, 3, I))
    kernel = params.w_x.reshape(*kernel_shape, I, 4 * H)
    want = reference_variants.convolve(np, x, kernel).reshape(B, 4, 3, 4, H) + params.b
    assert_close(cell.project(params, x), want, 1e-13)


def test_a_conv_lstm_starts():
    cell = jb.conv_lstm(**SIZES, image_shape=(4, 3), kernel_shape=(3, 2), output_size=O)
    params = cell.init(jax.random.key(0))
    assert jax.tree.map(jnp.shape, params) == ((3, 2, I, 4, H), (3, 2, H, 4, H), (4, H), (H, O))
    for k in range(4):
        w = params.w_s[..., k, :].reshape(-1, H)
        np.testing.assert_allclose(w.T @ w, np.eye(H), atol=1e-14)
    assert np.abs(params.w_x).max() <= (6 / (3 * 2 * (I + H))) ** 0.5
    assert (params.b == np.array([[0.0], [1.0], [0.0], [0.0]])).all()


@pytest.mark.parametrize("name", ["image_shape", "kernel_shape"])
@pytest.mark.parametrize("shape", [3, (3,), (3, 0), (3, 2.0), (3, True), "33"])
def test_conv_lstm_shapes(name, shape):
    make: Any = dict(SIZES, image_shape=(4, 4)) | {name: shape}
    pieces = f"conv_lstm: {name} must be a pair of positive integers such as (3, 3)", repr(shape)
    check(lambda: jb.conv_lstm(**make), TypeError, *pieces)


NARROW = {
    "lru": jb.lru,
    "min_gru": jb.min_gru,
    "min_lstm": jb.min_lstm,
    "layer_norm_lstm": jb.layer_norm_lstm,
    "layer_norm_gru": jb.layer_norm_gru,
    "lstm_projected": functools.partial(jb.lstm_projected, projection_size=P),
    "conv_lstm": functools.partial(jb.conv_lstm, image_shape=(2, 2)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NARROW)
def test_half_precision_weights_are_carried_in_single(name):
    cell = NARROW[name](**SIZES, output_size=O, dtype=jnp.bfloat16)
    params = cell.init(jax.random.key(0))
    xs = RNG.normal(size=(T, B, *cell.input_spec.shape)).astype(np.float32)
    start = jax.tree.map(
        lambda s: RNG.normal(size=s.shape).astype(s.dtype), cell.initial_state(params, (B,))
    )

    @jax.jit
    def run(params, xs, start):
        def loss(params, start):
            ys = jb.unroll(cell, params, xs, start)[1]
            return jnp.sum(ys * ys), ys

        return jax.grad(loss, argnums=(0, 1), has_aux=True)(params, start)

    def wide(tree):
        return jax.tree.map(lambda a: a.astype(np.promote_types(a.dtype, np.float64)), tree)

    (d_params, d_start), ys = run(params, xs, start)
    assert ys.dtype == jnp.float32
    assert {d.dtype for d in jax.tree.leaves(d_params)} == {jnp.dtype(jnp.bfloat16)}
    assert [d.dtype for d in jax.tree.leaves(d_start)] == [s.dtype for s in jax.tree.leaves(start)]
    rounded = jax.tree.map(lambda p: p.astype(jnp.float64), params)
    assert_close(((d_params, d_start), ys), run(rounded, xs.astype(float), wide(start)), 16 * EPS)
