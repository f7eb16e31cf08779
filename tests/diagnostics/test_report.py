"""The report against networks whose exponent, window, iterations and saturation are known."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_bptt as jb
from jax_bptt.diagnostics import Report, report, trajectory


def one_unit(factor, steps):
    """Return a run of s' = factor s + x that stays where it is, and the loss s_T."""
    cell = jb.indrnn(1, 1, activation=None, dtype=jnp.float64)
    params = cell.init(jax.random.key(0))._replace(w_s=jnp.array([factor], jnp.float64))
    still = jnp.full(1, 1 / (1 - factor))
    run = trajectory(cell, params, jnp.ones((steps, 1)), still)
    return run, jnp.zeros((steps, 1)).at[-1].set(1.0)


@pytest.mark.slow
def test_a_linear_unit_has_the_window_that_its_exponent_gives():
    """All terms of the sum are powers of 0.9, so that the bias of a window K is 0.9^K."""
    found = report(*one_unit(0.9, 200))
    assert found.exponent == pytest.approx(math.log(0.9), rel=1e-12)
    assert found.window == math.ceil(math.log(0.01) / math.log(0.9)) == 44
    assert found.half == math.ceil(math.log(0.5) / math.log(0.9)) == 7
    assert (found.iterations, found.converged) == (1, True)
    assert found.saturated is None
    # |lambda_T| is one, and that is the only step at which a loss enters.
    assert (found.adjoint, found.clip, found.beyond) == (1.0, 10.0, 0.0)
    assert found.in_words().splitlines() == [
        "Perturbations of the state die out: the largest Lyapunov exponent is -0.105 a step. At "
        "that rate 0.01 of one is left after 44 steps.",
        "Half of the gradient has crossed at most 6 steps; truncated(44, sliding=True) has a bias "
        "of at most 1 %, and so has every longer window.",
        "Newton's method, newton(), finds the 200 steps in 1 iteration.",
        "Where a loss enters, |lambda_t| has a median of 1; the largest of all is 1. "
        "clipped(norm=10), 10 medians, so that ordinary steps pass as they are, is exceeded at 0% "
        "of the steps.",
        "The cell has no tanh or logistic function that could saturate.",
    ]


@pytest.mark.slow
def test_another_bias_has_another_window():
    run, d_ys = one_unit(0.9, 200)
    assert report(run, d_ys, bias=0.1).window == math.ceil(math.log(0.1) / math.log(0.9))
    assert "No window shorter than all 20 steps" in report(*one_unit(0.99, 20)).in_words()


@pytest.mark.slow
def test_a_gradient_that_explodes_is_beyond_the_threshold():
    """Backwards |lambda_t| is 1.1^(T - t), above 10 from the 25th step on."""
    found = report(*one_unit(1.1, 100))
    assert found.exponent == pytest.approx(math.log(1.1))
    assert found.beyond == pytest.approx((100 - 25) / 100)
    assert "they double every 7.3 steps" in found.in_words()
    assert "is exceeded at 75% of the steps" in found.in_words()


def chaotic(steps):
    rng = np.random.default_rng(0)
    units = 32
    cell = jb.elman(1, units, dtype=jnp.float64)
    params = cell.init(jax.random.key(0))
    w_s = 2.5 * rng.normal(size=(units, 1, units)) / np.sqrt(units)
    params = params._replace(w_s=jnp.asarray(w_s), w_x=0.1 * params.w_x)
    run = trajectory(cell, params, jnp.asarray(rng.normal(size=(steps, 2, 1))))
    return run, jnp.ones_like(run.ys)


@pytest.mark.slow
def test_a_chaotic_network():
    run, d_ys = chaotic(300)
    found, words = report(run, d_ys), report(run, d_ys).in_words().splitlines()
    expected = jb.largest_exponent(run.cell, run.params, run.inputs.xs, run.inputs.state)
    assert found.exponent == pytest.approx(float(expected.mean()), rel=0.05) and found.exponent > 0
    assert words[0].startswith("Perturbations of the state grow") and "over 2 sequences" in words[0]
    assert found.half > 100 and "No window shorter than all 300 steps" in words[1]
    assert found.converged is False and words[2].endswith("in 64 iterations: keep the scan.")


@pytest.mark.slow
def test_an_lstm_with_open_forget_gates():
    cell = jb.lstm(3, 8, dtype=jnp.float64)
    params = jax.tree.map(lambda a: 0 * a, cell.init(jax.random.key(0)))
    params = params._replace(b=params.b.at[1].set(jnp.log(99.0)))
    run = trajectory(cell, params, jnp.ones((200, 2, 3)))
    found = report(run, jnp.ones_like(run.ys))
    assert found.exponent == pytest.approx(math.log(0.99))
    assert found.in_words().endswith(
        "Saturated 90% of the time or more, where gradients hardly pass: f at its upper end in all "
        "8 units."
    )


@pytest.mark.slow
def test_newton_is_not_counted_where_it_does_not_apply():
    cell = jb.gru(3, 4)
    params = cell.init(jax.random.key(0))
    run = trajectory(cell, params, jnp.ones((50, 2, 3)), lengths=jnp.array([50, 20]))
    found = report(run, jnp.ones_like(run.ys))
    assert found.iterations is None and found.converged is None
    rule = "Newton's iterations were not counted; below an exponent of zero they are of the order"
    assert rule in found.in_words() and "(log T)^2 at most, 15 here" in found.in_words()


def test_nothing_to_report():
    run, d_ys = one_unit(0.9, 200)
    found = report(run, 0 * d_ys)
    assert isinstance(found, Report) and "The gradient is zero." in found.in_words()
    assert "No gradient enters at any step" in found.in_words()
    with pytest.raises(ValueError, match=r"^report: bias must be a share .* got 1.0"):
        report(run, d_ys, bias=1.0)
