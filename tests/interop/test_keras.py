"""The same network by the equations of Keras, written down here."""

import jax.numpy as jnp
import numpy as np
import pytest

import jax_bptt as jb
from jax_bptt import interop
from tests.interop.shared import CELLS, B, H, I, assert_same_network, loop, maps, random_params
from tests.registry import slow_unless


def _sigmoid(a):
    return 1 / (1 + jnp.exp(-a))


def _biased(product, bias):
    return product + jnp.broadcast_to(bias, product.shape)


def _simple(weights, state, x):
    kernel, recurrent, bias = weights
    return (jnp.tanh(_biased(x @ kernel + state[0] @ recurrent, bias)),)


def _lstm(weights, state, x):
    kernel, recurrent, bias = weights
    h, c = state
    i, f, g, o = jnp.split(_biased(x @ kernel + h @ recurrent, bias), 4, axis=-1)
    c = _sigmoid(f) * c + _sigmoid(i) * jnp.tanh(g)
    return _sigmoid(o) * jnp.tanh(c), c


def _gru_reset_after(weights, state, x):
    kernel, recurrent, bias = weights
    (h,) = state
    x_z, x_r, x_h = jnp.split(_biased(x @ kernel, bias[0]), 3, axis=-1)
    h_z, h_r, h_h = jnp.split(_biased(h @ recurrent, bias[1]), 3, axis=-1)
    z, r = _sigmoid(x_z + h_z), _sigmoid(x_r + h_r)
    return (z * h + (1 - z) * jnp.tanh(x_h + r * h_h),)


def _gru_reset_before(weights, state, x):
    kernel, recurrent, bias = weights
    (h,) = state
    x_z, x_r, x_h = jnp.split(_biased(x @ kernel, bias), 3, axis=-1)
    z = _sigmoid(x_z + h @ recurrent[:, :H])
    r = _sigmoid(x_r + h @ recurrent[:, H : 2 * H])
    return (z * h + (1 - z) * jnp.tanh(x_h + (r * h) @ recurrent[:, 2 * H :]),)


LAYERS = {
    "elman": (_simple, 1, (H,)),
    "lstm": (_lstm, 2, (4 * H,)),
    "gru": (_gru_reset_after, 1, (2, 3 * H)),
    "gru_reset_before": (_gru_reset_before, 1, (3 * H,)),
}


def _network(step, states, directions):
    def one(weights, state, x):
        state = step(weights, state, x)
        return state, state[0]

    def run(weights, xs):
        last, outputs = [], []
        for direction in range(directions):
            own = weights[3 * direction : 3 * direction + 3]
            start = (jnp.zeros((B, H)),) * states
            state, ys = loop(one, start, reverse=direction == 1)(own, xs)
            last += state
            outputs.append(ys)
        return last, jnp.concatenate(outputs, axis=-1)

    return run


ROWS = [*(slow_unless(cell == "lstm", cell, 1) for cell in LAYERS), slow_unless(False, "gru", 2)]


@pytest.mark.parametrize("cell, directions", ROWS)
def test_same_network(cell, directions):
    step, states, bias = LAYERS[cell]
    own = CELLS[cell]
    layer = jb.layer(own) if directions == 1 else jb.bidirectional(own, own)
    params = random_params(layer)
    shapes = [np.shape(weight) for weight in interop.keras.from_params(params)]
    gates = 1 if cell == "elman" else 4 if cell == "lstm" else 3
    assert shapes == [(I, gates * H), (H, gates * H), bias] * directions
    assert_same_network(maps(interop.keras), layer, params, _network(step, states, directions))
