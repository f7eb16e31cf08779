"""Saturated gates, against the equations of the cells."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_bptt as jb
from tests.core.messages import check
from tests.registry import CELLS, problem, slow_unless

saturation = jb.diagnostics.saturation

LSTM, GRU = ["i", "f", "g", "o"], ["r", "z", "n"]
GATES = {
    "elman": ["a"],
    "lstm": LSTM,
    "lstm_readout": LSTM,
    "gru": GRU,
    "gru_readout": GRU,
    "gru_reset_before": GRU,
    "lstm_peephole": LSTM,
    "mgu": ["f", "n"],
    "ugrnn": ["g", "n"],
    "indrnn": ["a"],
    "slstm": ["z", "o"],
    "ctrnn": ["a"],
    "min_gru": ["z"],
    "layer_norm_lstm": LSTM,
    "layer_norm_gru": GRU,
    "lstm_projected": LSTM,
    "conv_lstm": LSTM,
    "embedding": LSTM,
    "low_rank": LSTM,
    "orthogonal": ["a"],
    "normalised": GRU,
    "spectral_norm": GRU,
    "multi_head": GRU,
    "learned_state": LSTM,
    "switched": ["tanh"],
}
NONE = ["elman_readout", "indrnn_linear", "lru", "min_lstm"]


def run_of(name):
    p = problem(name)
    return jb.diagnostics.trajectory(CELLS[name].cell, p.params, p.xs, p.state)


@pytest.mark.parametrize("name", [slow_unless(n == "switched", n) for n in GATES])
def test_gates_are_found_by_name(name):
    found = saturation(run_of(name))
    assert list(found.low) == list(found.high) == GATES[name]
    shares = np.stack([np.asarray(s).ravel() for s in jax.tree.leaves(found)])
    assert (shares >= 0).all() and (shares <= 1).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", NONE)
def test_cells_without_ends(name):
    check(lambda: saturation(run_of(name)), ValueError, "saturation: the step of this cell has no")


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def shares(values, low, taken):
    """Return the shares below and above a tenth of the range from `low` to 1."""
    values = ((values - low) / (1 - low))[taken]
    return (values < 0.1).mean(0), (values > 0.9).mean(0)


@pytest.mark.parametrize("name", ["gru", slow_unless(False, "lstm")])
def test_against_the_equations(name):
    """With steps left out and a sequence that begins again."""
    cell = getattr(jb, name)(2, 3, dtype=jnp.float64)
    params = jax.tree.map(lambda w: 3 * w, cell.init(jax.random.key(0)))
    params = params._replace(b=params.b + 0.5)
    rng = np.random.default_rng(0)
    xs, taken = 3 * rng.normal(size=(60, 2, 2)), rng.uniform(size=(60, 2)) < 0.8
    resets = np.zeros((60, 2), bool)
    resets[20, 1] = True
    run = jb.diagnostics.trajectory(cell, params, xs, mask=taken, resets=resets)
    found = jax.jit(saturation)(run)
    hidden = np.asarray(run.states if name == "gru" else run.states.h)
    before = np.concatenate([np.zeros((1, 2, 3)), hidden[:-1]])
    before[20, 1] = 0
    drive = np.einsum("tbi,igh->tbgh", xs, params.w_x) + np.asarray(params.b)
    feedback = np.einsum("tbj,jgh->tbgh", before, params.w_s)
    gates = sigmoid(drive + feedback)
    values = {gate: (gates[..., k, :], 0) for k, gate in enumerate(cell.gates)}
    if name == "lstm":
        values["g"] = np.tanh((drive + feedback)[..., 2, :]), -1
    else:
        candidate = feedback[..., 2, :] + np.asarray(params.b_n)
        values["n"] = np.tanh(drive[..., 2, :] + gates[..., 0, :] * candidate), -1
    assert set(found.low) == set(values)
    for gate, (value, low) in values.items():
        want = shares(value, low, taken)
        assert sum(w.sum() for w in want) > 0
        np.testing.assert_allclose(found.low[gate], want[0], rtol=1e-12)
        np.testing.assert_allclose(found.high[gate], want[1], rtol=1e-12)


def test_functions_without_names_are_counted():
    cell = jb.from_step(
        lambda w, s, x: jnp.tanh(s + x) * jnp.tanh(w) + jax.nn.sigmoid(x) + jnp.tanh(3 * x),
        init=lambda key: jnp.ones(3),
        initial_state=lambda w, batch: jnp.zeros((*batch, 3)),
        input_shape=(3,),
    )
    run = jb.diagnostics.trajectory(cell, jnp.ones(3), jnp.ones((4, 3)))
    found = saturation(run, margin=0.2)
    # Of the weight alone nothing saturates in time.
    assert set(found.high) == {"tanh", "logistic", "tanh 2"}
    assert (found.high["tanh 2"] == 1).all() and (found.high["logistic"] == 0).all()


def test_the_margin_is_checked():
    run = run_of("elman")
    check(lambda: saturation(run, margin=0.5), ValueError, "saturation: margin", "0.5")
