"""Parameters by name: initialisers gate by gate, and which leaves are biases."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.nn import initializers

import jax_bptt
from tests.core.messages import check
from tests.registry import CELLS

jb: Any = jax_bptt  # some calls are wrong on purpose
KEY = jax.random.key(0)


def test_every_gate_is_orthogonal():
    cell = jb.initialized(jb.lstm(3, 16), w_s=initializers.orthogonal())
    w_s = cell.init(KEY).w_s
    singular = [np.linalg.svd(w_s[:, gate], compute_uv=False) for gate in range(4)]
    np.testing.assert_allclose(singular, 1, rtol=1e-6)
    assert not np.allclose(w_s[:, 0], w_s[:, 1])


@pytest.mark.slow
def test_the_spread_is_that_of_one_gate():
    """`glorot_uniform` on the whole array takes the gates for a receptive field."""
    cell = jb.initialized(jb.lstm(200, 100), w_x=initializers.glorot_uniform())
    bound = (6 / 300) ** 0.5
    assert 0.99 * bound < np.abs(cell.init(KEY).w_x).max() <= bound


def test_one_gate_by_name():
    cell, own = jb.lstm(3, 4), jb.initialized(jb.lstm(3, 4), b={"f": initializers.constant(3.0)})
    np.testing.assert_array_equal(own.init(KEY).b[1], 3)
    for got, want in zip(own.init(KEY)[:2], cell.init(KEY)[:2], strict=True):
        np.testing.assert_array_equal(got, want)


def test_what_has_no_gates_is_drawn_as_one():
    """A readout of as many hidden units as there are gates has no gate axis for all that."""
    seen = []

    def draw(key, shape, dtype):
        seen.append(shape)
        return jnp.zeros(shape, dtype)

    jb.initialized(jb.lstm(3, 4, output_size=2), w_y=draw, w_s=draw).init(KEY)
    assert sorted(set(seen)) == [(4, 2), (4, 4)]


def test_inside_wrappers_and_stacks():
    cell = jb.embedding(jb.initialized(jb.gru(3, 4), b_n=initializers.ones), vocabulary_size=5)
    assert (cell.init(KEY).cell.b_n == 1).all()
    around = jb.initialized(jb.embedding(jb.gru(3, 4), vocabulary_size=5), b=initializers.ones)
    assert (around.init(KEY).cell.b == 1).all()


@pytest.mark.parametrize("name", CELLS)
def test_gates_are_named_as_the_axis_is_long(name):
    cell = CELLS[name].cell
    params = jax.eval_shape(cell.init, KEY)
    leaves = jax.tree_util.tree_leaves_with_path(params)
    gated = [leaf for path, leaf in leaves if jax.tree_util.keystr(path).endswith(".b")]
    for leaf in gated if cell.gates else []:
        assert leaf.shape[-2] == len(cell.gates)
    assert cell.gates == tuple(dict.fromkeys(cell.gates))


@pytest.mark.slow
def test_decay_of_all_but_biases():
    params = jb.stack(jb.layer(jb.lstm(3, 4)), jb.layer(jb.gru(4, 4))).init(KEY)
    biases = jb.is_bias(params)
    assert biases[0].b is True and biases[1].b_n is True and biases[0].w_s is False
    optimiser = optax.adamw(0.1, weight_decay=0.5, mask=jax.tree.map(lambda b: not b, biases))
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates: Any
    with jax.numpy_dtype_promotion("standard"):
        updates, _ = optimiser.update(zeros, optimiser.init(params), params)
    assert (updates[0].b == 0).all() and (updates[0].w_s != 0).all()


def test_refusals():
    lstm = jb.lstm(3, 4)
    rows = [
        (lambda: jb.initialized(jb.layer(lstm)), TypeError, "initialized: cell must be a Cell"),
        (lambda: jb.initialized(lstm, w_s=1.0), TypeError, "initialized: w_s must be a function"),
        (
            lambda: jb.initialized(lstm, w_h=initializers.ones).init(KEY),
            ValueError,
            "no parameter 'w_h'; the cell has b, w_s, w_x",
        ),
        (
            lambda: jb.initialized(lstm, b={"z": initializers.ones}).init(KEY),
            ValueError,
            "b has no gate 'z'; its gates are i, f, g, o",
        ),
        (
            lambda: jb.initialized(lstm, w_s=lambda *_: jnp.ones(3)).init(KEY),
            TypeError,
            "returned the shape (3,) where (4, 4) was asked for",
        ),
    ]
    for call, error, message in rows:
        check(call, error, message)
