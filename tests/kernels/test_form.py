"""The normal form of a cell says what its step says, and a cell without one is told why."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_bptt as jb
from jax_bptt.core.types import GatedStep
from jax_bptt.kernels.form import Form, normal_form, split_gates, stack_gates
from tests.kernels.test_tiles import in_single
from tests.registry import CELLS, assert_close, slow_unless

BATCH, STEPS = 4, 2
WITHOUT = {
    "gru_reset_before": "no jb.GatedStep",
    "lru": "no jb.GatedStep",
    "clockwork": "int32",
    "counted_gated": "int32",
    "conv_lstm": "not [H] each",
    "minimal_gated": "2 leaves",
    "complex_diagonal": "complex",
}


def arguments(cell):
    rng = np.random.default_rng(0)

    def draw(leaf):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf
        return leaf + jnp.asarray(0.3 * rng.normal(size=leaf.shape), leaf.dtype)

    params = jax.tree.map(draw, in_single(cell.init(jax.random.key(0))))
    state = jax.tree.map(draw, in_single(cell.initial_state(params, (BATCH,))))

    def input_like(a):
        dtype = jnp.float32 if jnp.issubdtype(a.dtype, jnp.floating) else a.dtype
        return draw(jnp.zeros((STEPS, BATCH, *a.shape), dtype))

    return cell.prepare(params), state, jax.tree.map(input_like, cell.input_spec)


FORMED = [n for n, r in CELLS.items() if isinstance(r.cell.step, GatedStep) and n not in WITHOUT]


@pytest.mark.parametrize("name", [slow_unless(name == "lstm_peephole", name) for name in FORMED])
def test_one_step_of_the_form_is_one_of_the_cell(name):
    cell = CELLS[name].cell
    weights, state, xs = arguments(cell)
    form = normal_form(cell, weights, state, xs)
    assert isinstance(form, Form)
    x = jax.tree.map(lambda a: a[0], xs)
    drive = jax.vmap(cell.project, (None, 0))(weights, x)
    wanted = jax.vmap(cell.step, (None, 0, 0))(weights, state, drive)

    states = jax.tree.leaves(state)
    heads, units = form.matrix.shape[:2]
    hidden = states[form.recurrent].reshape(BATCH, heads, units)
    feedback = jnp.einsum("bni,nigj->bgnj", hidden, form.matrix).reshape(BATCH, -1, heads * units)
    feedback = feedback + form.bias[None]
    drives = stack_gates(drive, 1)
    spread = [jnp.broadcast_to(u, (BATCH, *u.shape)) for u in form.units]
    drive, gates = (tuple(a[:, k] for k in range(a.shape[1])) for a in (drives, feedback))
    news, _ = form.step.forward(states, drive, gates, spread)
    assert_close(news, tuple(jax.tree.leaves(wanted)), 2e-6)


@pytest.mark.parametrize("name", [slow_unless(n == "complex_diagonal", n) for n in WITHOUT])
def test_says_what_stands_in_the_way(name):
    reason = normal_form(CELLS[name].cell, *arguments(CELLS[name].cell))
    assert isinstance(reason, str) and WITHOUT[name] in reason


def test_the_matrix_is_the_weights_exactly():
    cell = jb.multi_head(jb.lstm(input_size=2, hidden_size=4), heads=2)
    weights, state, xs = arguments(cell)
    form = normal_form(cell, weights, state, xs)
    assert isinstance(form, Form)
    np.testing.assert_array_equal(form.matrix, weights.w_s)


def test_operands_are_those_of_the_product():
    cell = jb.mixed_precision(jb.gru(input_size=2, hidden_size=3))
    form = normal_form(cell, *arguments(cell))
    assert isinstance(form, Form)
    assert form.matrix.dtype == jnp.bfloat16 and form.bias.dtype == jnp.float32


def test_gates_split_as_they_were_stacked():
    rng = np.random.default_rng(0)
    tree = {"a": rng.normal(size=(2, 3)), "b": rng.normal(size=(2, 4, 3))}
    tree = jax.tree.map(jnp.asarray, tree)
    stacked = stack_gates(tree, 1)
    assert stacked.shape == (2, 5, 3)
    assert_close(split_gates(stacked, tree, 1), tree, 0.0)
