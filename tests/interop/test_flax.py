"""The same network in Flax, linen and nnx."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_bptt as jb
from jax_bptt import interop
from tests.interop.shared import (
    CELLS,
    OPTIMIZED,
    B,
    H,
    I,
    assert_same_network,
    loop,
    maps,
    random_params,
)

linen = pytest.importorskip("flax.linen")
nnx = pytest.importorskip("flax.nnx")

ZEROS = np.zeros((B, H))


def _carry(cell):
    """Return a zero state and, of theirs, its leaves in our order: they put c first."""
    return (ZEROS, ZEROS) if cell == "lstm" else ZEROS


def _own_order(run):
    def reordered(tree, xs):
        last, ys = run(tree, xs)
        return jax.tree.leaves(last)[::-1], ys

    return reordered


def _without_b_n(layer):
    """Return a layer of GRUs whose b_n is held at zero, which is what nnx has."""

    def apply(params, xs):
        return layer.apply(params._replace(b_n=jnp.zeros(H)), xs)

    return layer._replace(apply=apply)


@pytest.mark.parametrize(
    "cell, name",
    [
        ("elman", "SimpleCell"),
        ("gru", "GRUCell"),
        ("lstm", "LSTMCell"),
        ("lstm", "OptimizedLSTMCell"),
    ],
)
def test_linen(cell, name):
    their_cell = getattr(linen, name)(H, param_dtype=jnp.float64)
    params = random_params(CELLS[cell])

    def step(tree, state, x):
        return their_cell.apply({"params": tree}, state, x)

    want = their_cell.init(jax.random.key(0), _carry(cell), np.zeros((B, I)))["params"]
    tree = interop.flax.from_params(params)
    assert jax.tree.map(np.shape, tree) == jax.tree.map(np.shape, want)
    theirs = _own_order(loop(step, _carry(cell)))
    assert_same_network(maps(interop.flax), jb.layer(CELLS[cell]), params, theirs)


def test_linen_gru_has_b_n():
    cell = linen.GRUCell(H)
    tree = cell.init(jax.random.key(0), np.zeros((B, H), np.float32), np.zeros((B, I), np.float32))
    assert set(tree["params"]["hn"]) == {"kernel", "bias"}


@pytest.mark.parametrize(
    "cell, name",
    [
        ("elman", "SimpleCell"),
        ("gru", "GRUCell"),
        ("lstm", "LSTMCell"),
        ("lstm", "OptimizedLSTMCell"),
    ],
)
def test_nnx(cell, name):
    dtypes = {"dtype": jnp.float64, "param_dtype": jnp.float64}
    their_cell = getattr(nnx, name)(I, H, **dtypes, rngs=nnx.Rngs(0))
    params = random_params(CELLS[cell])
    functions = OPTIMIZED if name == "OptimizedLSTMCell" else maps(interop.nnx)
    layer = jb.layer(CELLS[cell])
    if cell == "gru":
        params = params._replace(b_n=np.zeros(H))
        layer = _without_b_n(layer)
    definition, state = nnx.split(their_cell)

    def step(tree, carry, x):
        own = jax.tree.map(lambda leaf: leaf, state)
        nnx.replace_by_pure_dict(own, tree)
        return nnx.merge(definition, own)(carry, x)

    tree = functions.from_params(params)
    want = nnx.to_pure_dict(nnx.state(their_cell, nnx.Param))
    assert jax.tree.map(np.shape, tree) == jax.tree.map(np.shape, want)
    theirs = _own_order(loop(step, _carry(cell)))
    assert_same_network(functions, layer, params, theirs)
