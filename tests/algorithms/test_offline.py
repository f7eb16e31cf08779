"""Properties that one algorithm has and the others have not."""

import functools

import jax
import numpy as np
import pytest

import jax_bptt as jb
from jax_bptt.algorithms.bptt import automatic_block_length
from tests.registry import CELLS, assert_close, compiled, each_kind_in_time, problem, run


@each_kind_in_time
def test_autodiff_has_forward_mode(name):
    """The directional derivative, forwards, is the gradient's inner product with the direction."""
    p = problem(name, (2,), 3)

    def loss(scale):
        def moved(tree):
            return jax.tree.map(lambda a: a * scale.astype(a.dtype), tree)

        last_state, ys = run(name, jb.autodiff(), moved(p.params), p.xs, p.state)
        leaves = jax.tree.leaves((last_state, ys))
        return sum((abs(y) ** 2).sum() for y in leaves if np.issubdtype(y.dtype, np.inexact))

    one = np.ones(())
    forward = jax.jit(lambda s: jax.jvp(loss, (s,), (one,))[1])(one)
    assert_close(forward, jax.jit(jax.grad(loss))(one), 1e-12)


@pytest.mark.parametrize("steps", [0, 1, 7, 100, 511, 512, 513, 1000, 1021, 100_000])
@pytest.mark.parametrize("batch", [0, 1, 32, 10_000])
@pytest.mark.parametrize("row_bytes", [0, 1024, 2**23])
def test_automatic_block_length(steps, batch, row_bytes):
    length = automatic_block_length(steps, batch, batch * row_bytes)
    assert 1 <= length <= max(steps, 1)


def test_automatic_block_length_leaves_no_remainder_where_a_near_one_divides():
    assert 1000 % automatic_block_length(1000, 2, 2048) == 0
    assert 100_000 % automatic_block_length(100_000, 32, 32 * 2048) == 0


@pytest.mark.parametrize("hidden_size, rows", [(32, 2048), (64, 1024), (128, 512), (1024, 512)])
def test_automatic_block_length_follows_the_size_of_the_drive(hidden_size, rows):
    """A block of an LSTM in single precision, of 32 rows a step."""
    size = 32 * 4 * hidden_size * 4
    assert automatic_block_length(2**20, 32, size) * 32 == rows


@pytest.mark.parametrize("algorithm", ["bptt", "autodiff"])
def test_no_examples(algorithm):
    """A batch of none has outputs of none and gradients of zero."""
    p = problem("lstm_readout", (0,), 3)
    (_, ys), (d_params, d_xs, _) = compiled("lstm_readout", algorithm)(p)
    assert ys.shape == (3, 0, 2) and d_xs.shape == (3, 0, 2)
    assert_close(d_params, jax.tree.map(np.zeros_like, p.params), 0)


def test_a_cell_runs_by_hand():
    """The five functions of a cell are all that an algorithm has."""
    name = "lstm_readout"
    cell, p = CELLS[name].cell, problem(name)
    weights, state, ys = cell.prepare(p.params), p.state, []
    for x in p.xs:
        state = cell.step(weights, state, cell.project(weights, x))
        ys.append(cell.readout(weights, state))
    last_state, got = jax.jit(functools.partial(jb.unroll, cell))(p.params, p.xs, p.state)
    assert_close((last_state, got), (state, np.stack(ys)), 1e-14)
