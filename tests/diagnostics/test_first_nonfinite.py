"""`first_nonfinite`: numbers that are planted, and overflows that one can compute by hand."""

import functools

import jax
import jax.numpy as jnp
import pytest

import jax_bptt as jb
from jax_bptt.diagnostics import first_nonfinite, trajectory
from tests.core.messages import check
from tests.registry import CELLS, is_inexact, problem, slow_unless

T, B = 6, 3
EACH = [slow_unless(name in ("lstm_readout", "counted"), name) for name in CELLS]


def made(cell=None):
    cell = jb.lstm(2, 4, output_size=2) if cell is None else cell
    params = cell.init(jax.random.key(0))
    return cell, params, jax.random.normal(jax.random.key(1), (T, B, 2))


def look(cell, params, xs, state=None, d_ys=None, d_last_state=None, **options):
    run = trajectory(cell, params, xs, state, **options)
    return first_nonfinite(run, d_ys, d_last_state)


def test_all_is_finite():
    cell, params, xs = made()
    run = trajectory(cell, params, xs)
    for found in (first_nonfinite(run), first_nonfinite(run, jnp.ones_like(run.ys))):
        assert found.finite and found.step is None and found.d_params == ()
        assert found.in_words() == "All is finite over 6 steps."


def test_an_input():
    cell, params, xs = made()
    found = look(cell, params, xs.at[3, 1, 1].set(jnp.nan).at[4, 0, 0].set(jnp.inf))
    assert found[:6] == ("forward", "xs", 4, "", (1,), (1,)) and found.value != found.value
    assert "The first nan enters forward at step 4 of 6: the input x_t, seq" in found.in_words()


def test_padding_is_not_reported():
    cell, params, xs = made()
    xs = xs.at[4:, 1].set(jnp.nan)
    lengths = jnp.array([6, 4, 5])
    run = trajectory(cell, params, xs, lengths=lengths)
    d_ys = jnp.ones_like(run.ys).at[4:, 1].set(jnp.nan)
    assert first_nonfinite(run, d_ys).finite
    late = look(cell, params, xs, lengths=jnp.array([6, 5, 5]))
    assert late[1:3] == ("xs", 5)
    masked = jnp.ones((T, B), bool).at[4:, 1].set(False)
    assert look(cell, params, xs, mask=masked).finite


def test_the_bias_of_a_gate():
    cell, params, xs = made()
    found = look(cell, params._replace(b=params.b.at[1, 3].set(jnp.nan)), xs)
    assert found[:7] == ("forward", "params", 0, ".b", None, (1, 3), "f")
    assert found.in_words().endswith("the parameters, leaf .b, gate f, index [1, 3].")
    w_y = jnp.full_like(params.w_y, jnp.inf)  # [4, 2], as many rows as there are gates
    assert look(cell, params._replace(w_y=w_y), xs).gate == ""


def test_weights_that_are_made_of_the_parameters():
    cell, params, xs = made(jb.elman(2, 3))
    rooted = cell._replace(prepare=lambda p: p._replace(b=jnp.sqrt(p.b - 1)))
    found = look(rooted, params, xs)
    assert found[1:4] == ("weights", 0, ".b")


def test_states_that_a_run_begins_from():
    cell, params, xs = made()
    state = cell.initial_state(params, (B,))
    bad = state._replace(c=state.c.at[2, 0].set(-jnp.inf))
    found = look(cell, params, xs, bad)
    assert found[:6] == ("forward", "state", 0, ".c", (2,), (0,)) and found.value == -jnp.inf
    again = look(cell, params, xs, resets=jnp.zeros((T, B), bool), reset_state=bad)
    assert again.what == "reset_state"


def linear(gain):
    """One unit, s_t = x_t + gain s_{t-1}."""
    cell = jb.elman(1, 1, activation=lambda a: a)
    params = cell.init(jax.random.key(0))
    ones = jnp.ones((1, 1, 1))
    return cell, params._replace(w_x=ones, w_s=gain * ones)


def test_a_state_that_overflows():
    """The state is 1e60^(t - 1): 1e300 at step 6, and the feedback of step 7 is too large."""
    found = look(*linear(1e60), jnp.zeros((9, 2, 1)).at[0, 1].set(1.0))
    assert found[:6] == ("forward", "feedback", 7, "", (1,), (0, 0)) and found.value == jnp.inf
    without = jb.from_step(
        lambda w, s, x: w * s + x,
        init=lambda key: jnp.asarray(1e60),
        initial_state=lambda w, batch_shape: jnp.zeros((*batch_shape, 1)),
        input_shape=(1,),
    )
    plain = look(without, jnp.asarray(1e60), jnp.zeros((9, 2, 1)).at[0, 1].set(1.0))
    assert plain[1:3] == ("states", 7)


def test_a_gradient_that_overflows_where_the_states_are_fine():
    """lambda is 1 at step 9 and 1e300 at step 4; all states are zero."""
    found = look(*linear(1e60), jnp.zeros((9, 2, 1)), d_last_state=jnp.array([[0.0], [-1.0]]))
    assert found[:6] == ("backward", "lambda", 3, "", (1,), (0,)) and found.value == -jnp.inf
    assert ".b" in found.d_params
    assert "backward at step 3 of 9: the adjoint lambda_t" in found.in_words()
    assert "From step 4 on it is finite. Gradients that are not finite: " in found.in_words()


def test_a_sum_that_overflows():
    cell, params = linear(0.0)
    params = params._replace(w_x=params.w_x * 1e-200)
    last = jnp.full((1, 1), 1e200)
    found = look(cell, params, jnp.full((2, 1, 1), 1e200), d_last_state=last)
    assert found[:4] == ("backward", "d_params", 0, ".w_x") and found.d_params == (".w_x",)


def test_gradients_as_given():
    cell, params, xs = made()
    run = trajectory(cell, params, xs)
    d_ys = jnp.ones_like(run.ys).at[2, 1, 0].set(jnp.nan)
    found = first_nonfinite(run, d_ys)
    assert found[:6] == ("backward", "d_ys", 3, "", (1,), (0,)) and len(found.d_params) == 4
    last = jax.tree.map(lambda s: s[-1] / 0, run.states)
    assert first_nonfinite(run, d_ys, last)[1:4] == ("d_last_state", 0, ".h")


@pytest.mark.parametrize("name", EACH)
def test_any_cell(name):
    p, cell = problem(name), CELLS[name].cell
    run = jax.jit(functools.partial(trajectory, cell))(p.params, p.xs, p.state)
    d_last_state, d_ys = p.cotangents
    assert first_nonfinite(run, d_ys, d_last_state).finite
    bad = jax.tree.map(lambda d: d.copy(), d_ys)
    leaf = next(a for a in jax.tree.leaves(bad) if is_inexact(a))
    leaf[(2,) + (0,) * (leaf.ndim - 1)] = float("nan")
    found = first_nonfinite(run, bad, d_last_state)
    assert found[:3] == ("backward", "d_ys", 3) and found.d_params


def test_refusals():
    cell, params, xs = made()
    run = trajectory(cell, params, xs)
    check(lambda: first_nonfinite(run, run.ys[0]), ValueError, "first_nonfinite: d_ys")
    check(lambda: jax.jit(lambda run: first_nonfinite(run).step)(run), TypeError, "outside jax.jit")
