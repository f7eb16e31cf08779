"""The same network in Equinox."""

import jax
import numpy as np
import pytest

import jax_bptt as jb
from jax_bptt import interop
from tests.interop.shared import CELLS, B, H, I, assert_same_network, loop, maps, random_params

eqx = pytest.importorskip("equinox")


def _loaded(cell, tree):
    return eqx.tree_at(lambda c: [getattr(c, k) for k in tree], cell, list(tree.values()))


@pytest.mark.parametrize("cell, name", [("gru", "GRUCell"), ("lstm", "LSTMCell")])
def test_same_network(cell, name):
    their_cell = getattr(eqx.nn, name)(I, H, key=jax.random.key(0))
    params = random_params(CELLS[cell])
    zeros = np.zeros((B, H))

    def step(tree, state, x):
        state = jax.vmap(_loaded(their_cell, tree))(x, state)
        return state, state if cell == "gru" else state[0]

    start = zeros if cell == "gru" else (zeros, zeros)
    layer = jb.layer(CELLS[cell])
    assert_same_network(maps(interop.equinox), layer, params, loop(step, start))


def test_reads_a_cell_and_its_gradient():
    cell = eqx.nn.GRUCell(I, H, key=jax.random.key(0))
    params = interop.equinox.to_params(vars(cell))
    again = _loaded(cell, interop.equinox.from_params(params))
    assert eqx.tree_equal(cell, jax.tree.map(jax.numpy.asarray, again))
    d_cell = eqx.filter_grad(lambda cell: cell(np.ones(I), np.ones(H)).sum())(cell)
    assert interop.equinox.to_gradients(vars(d_cell)).b_n.shape == (H,)
