"""The same network in Haiku."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_bptt as jb
from jax_bptt import interop
from tests.interop.shared import CELLS, B, H, I, assert_same_network, loop, maps, random_params

hk = pytest.importorskip("haiku")


@pytest.mark.parametrize(
    "cell, name", [("relu", "VanillaRNN"), ("gru_reset_before", "GRU"), ("lstm", "LSTM")]
)
def test_same_network(cell, name):
    core = hk.without_apply_rng(hk.transform(lambda x, state: getattr(hk, name)(H)(x, state)))
    zeros = np.zeros((B, H))
    start = hk.LSTMState(zeros, zeros) if name == "LSTM" else zeros
    params = random_params(CELLS[cell])

    def step(tree, state, x):
        y, state = core.apply(tree, x, state)
        return state, y

    want = core.init(jax.random.key(0), jnp.zeros((B, I)), start)
    assert jax.tree.map(np.shape, interop.haiku.from_params(params)) == jax.tree.map(
        np.shape, dict(want)
    )
    layer = jb.layer(CELLS[cell])
    assert_same_network(maps(interop.haiku), layer, params, loop(step, start))
