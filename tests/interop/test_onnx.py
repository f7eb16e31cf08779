"""The same network by the equations that ONNX prints for its operators, written down here."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_bptt as jb
from jax_bptt import interop
from tests.interop.shared import CELLS, B, H, assert_same_network, loop, maps, random_params
from tests.registry import slow_unless


def _pieces(tree, direction, gates):
    """Cut W[D, G H, I] and so on of one direction into the gates, named as ONNX names them."""
    cut = {}
    for name, rows in (("W", tree["W"]), ("R", tree["R"])):
        for k, gate in enumerate(gates):
            cut[name + gate] = rows[direction][k * H : (k + 1) * H]
    bias = tree["B"][direction]
    for k, name in enumerate([*(f"Wb{g}" for g in gates), *(f"Rb{g}" for g in gates)]):
        cut[name] = bias[k * H : (k + 1) * H]
    for k, gate in enumerate("iof" if "P" in tree else ""):
        cut["P" + gate] = tree["P"][direction][k * H : (k + 1) * H]
    return cut


def _sigmoid(a):
    return 1 / (1 + jnp.exp(-a))


def _linear(cut, gate, x, h):
    bias = cut[f"Wb{gate}"] + cut[f"Rb{gate}"]
    return x @ cut[f"W{gate}"].T + h @ cut[f"R{gate}"].T + jnp.broadcast_to(bias, h.shape)


def _rnn(cut, state, x):
    (h,) = state
    return (jnp.tanh(_linear(cut, "i", x, h)),)


def _lstm(cut, state, x):
    h, c = state

    def peephole(gate, c):
        return jnp.broadcast_to(cut.get(f"P{gate}", jnp.zeros(H)), c.shape) * c

    i = _sigmoid(_linear(cut, "i", x, h) + peephole("i", c))
    f = _sigmoid(_linear(cut, "f", x, h) + peephole("f", c))
    c = f * c + i * jnp.tanh(_linear(cut, "c", x, h))
    o = _sigmoid(_linear(cut, "o", x, h) + peephole("o", c))
    return o * jnp.tanh(c), c


def _gru(linear_before_reset):
    def step(cut, state, x):
        (h,) = state
        z, r = _sigmoid(_linear(cut, "z", x, h)), _sigmoid(_linear(cut, "r", x, h))
        w_b, r_b = (jnp.broadcast_to(cut[name], h.shape) for name in ("Wbh", "Rbh"))
        from_x = x @ cut["Wh"].T
        if linear_before_reset:
            n = jnp.tanh(from_x + r * (h @ cut["Rh"].T + r_b) + w_b)
        else:
            n = jnp.tanh(from_x + (r * h) @ cut["Rh"].T + r_b + w_b)
        return ((1 - z) * n + z * h,)

    return step


def _network(step, gates, states, directions):
    """Return `(tree, xs) -> (last states of each direction in turn, ys)`, directions side by side.

    Y of ONNX has an axis of directions; here they meet on the last axis, as ours do.
    """

    def one(cut, state, x):
        state = step(cut, state, x)
        return state, state[0]

    def run(tree, xs):
        last, outputs = [], []
        for direction in range(directions):
            cut = _pieces(tree, direction, gates)
            start = (jnp.zeros((B, H)),) * states
            state, ys = loop(one, start, reverse=direction == 1)(cut, xs)
            last += state
            outputs.append(ys)
        return last, jnp.concatenate(outputs, axis=-1)

    return run


OPERATORS = {
    "elman": (_rnn, "i", 1, {}),
    "lstm": (_lstm, "iofc", 2, {}),
    "lstm_peephole": (_lstm, "iofc", 2, {}),
    "gru": (_gru(1), "zrh", 1, {"linear_before_reset": 1}),
    "gru_reset_before": (_gru(0), "zrh", 1, {"linear_before_reset": 0}),
}


@pytest.mark.parametrize(
    "cell, directions",
    [
        *(slow_unless(cell == "elman", cell, 1) for cell in OPERATORS),
        slow_unless(False, "lstm_peephole", 2),
        slow_unless(False, "gru", 2),
    ],
)
def test_same_network(cell, directions):
    step, gates, states, options = OPERATORS[cell]
    own = CELLS[cell]
    layer = jb.layer(own) if directions == 1 else jb.bidirectional(own, own)
    functions = maps(interop.onnx, **options)
    theirs = _network(step, gates, states, directions)
    params = random_params(layer)
    shapes = jax.tree.map(np.shape, functions.from_params(params))
    assert shapes["W"][0] == directions and shapes["B"] == (directions, 2 * H * len(gates))
    assert_same_network(functions, layer, params, theirs)
