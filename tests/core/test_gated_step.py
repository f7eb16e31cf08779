"""The public helper that checks a `GatedStep`: it passes what is right and names what is not."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_bptt as jb
from jax_bptt.testing import check_gated_step
from tests.registry import CELLS, assert_close, problem, slow_unless

GATED = [name for name, row in CELLS.items() if isinstance(row.cell.step, jb.GatedStep)]


@pytest.mark.parametrize(
    "name", [slow_unless(name in ("lstm", "gru", "peephole", "clockwork"), name) for name in GATED]
)
def test_every_gated_cell_keeps_its_promises(name):
    p = problem(name)
    check_gated_step(CELLS[name].cell, p.params, jax.tree.map(lambda x: x[0], p.xs), p.state)


@pytest.mark.parametrize(
    "constructor, dtype",
    [
        slow_unless((constructor, dtype) == (jb.gru, jnp.bfloat16), constructor, dtype)
        for constructor in (jb.lstm, jb.gru)
        for dtype in (jnp.float32, jnp.bfloat16)
    ],
)
def test_in_narrow_types(constructor, dtype):
    cell = constructor(input_size=2, hidden_size=3, dtype=dtype)
    check_gated_step(cell, cell.init(jax.random.key(0)), np.ones(2, np.float32))


def _cell(**changed):
    step = jb.lstm(input_size=2, hidden_size=3).step
    assert isinstance(step, jb.GatedStep)
    return jb.lstm(input_size=2, hidden_size=3)._replace(step=step._replace(**changed))


def _check(cell):
    check_gated_step(cell, cell.init(jax.random.key(0)), np.ones((4, 2)))


STEP: Any = _cell().step


def test_catches_a_pointwise_that_mixes_units():
    def pointwise(w, state, drive, feedback):
        new = STEP.pointwise(w, state, drive, feedback)
        return new._replace(h=new.h - new.h.mean(-1, keepdims=True))

    with pytest.raises(AssertionError, match=r"not unit by unit .* other units of state\.h by"):
        _check(_cell(pointwise=pointwise, pointwise_fwd=None, pointwise_bwd=None))


def test_catches_a_pointwise_that_rolls_units():
    def pointwise(w, state, drive, feedback):
        return STEP.pointwise(w, state, jnp.roll(drive, 1, -1), feedback)

    with pytest.raises(AssertionError, match="not unit by unit"):
        _check(_cell(pointwise=pointwise, pointwise_fwd=None, pointwise_bwd=None))


@pytest.mark.slow
def test_a_mix_need_not_be_affine():
    """relu(s) W_s, the product of a firing-rate network: right, and refused by kernels alone."""

    def mix(w, state):
        return STEP.mix(w, state._replace(h=jax.nn.relu(state.h)))

    cell = _cell(mix=mix)
    _check(cell)
    params, xs = cell.init(jax.random.key(0)), jnp.linspace(-1.0, 1.0, 40).reshape(5, 4, 2)

    def loss(params, algorithm):
        return jnp.sum(jb.unroll(cell, params, xs, algorithm=algorithm)[1] ** 2)

    got, want = (jax.grad(loss)(params, a) for a in (jb.bptt(block_length=2), jb.autodiff()))
    assert_close(got, want, 1e-12)
    narrow = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), (params, xs))
    assert "its mix is not affine" in jb.explain(cell, *narrow, device="gpu")


def test_catches_a_wrong_derivative():
    def pointwise_bwd(residuals, d_state):
        d_prev, d_drive, d_feedback = STEP.pointwise_bwd(residuals, d_state)
        return d_prev, d_drive, d_feedback.at[..., 2, :].multiply(1.001)

    with pytest.raises(AssertionError, match="pointwise_bwd disagrees .* on d_feedback, by"):
        _check(_cell(pointwise_bwd=pointwise_bwd))


def test_catches_a_derivative_that_includes_the_path_through_mix():
    def pointwise_bwd(residuals, d_state):
        d_prev, d_drive, d_feedback = STEP.pointwise_bwd(residuals, d_state)
        return d_prev._replace(h=d_feedback.sum(-2)), d_drive, d_feedback

    with pytest.raises(AssertionError, match=r"disagrees .* on d_state_prev\.h"):
        _check(_cell(pointwise_bwd=pointwise_bwd))


def test_catches_wrong_residuals():
    def pointwise_fwd(*args):
        to_gates, f, to_c = STEP.pointwise_fwd(*args)
        return to_gates, f, 2 * to_c

    with pytest.raises(AssertionError, match=r"pointwise_bwd disagrees .* on d_"):
        _check(_cell(pointwise_fwd=pointwise_fwd))


def test_catches_half_a_pair():
    with pytest.raises(AssertionError, match="give both or neither"):
        _check(_cell(pointwise_bwd=None))


def test_catches_a_derivative_of_another_structure():
    def pointwise_bwd(residuals, d_state):
        d_prev, d_drive, d_feedback = STEP.pointwise_bwd(residuals, d_state)
        return tuple(d_prev), d_drive, d_feedback

    with pytest.raises(AssertionError, match="returns d_state_prev of the structure"):
        _check(_cell(pointwise_bwd=pointwise_bwd))


def test_catches_a_state_without_a_unit_axis():
    cell = jb.from_step(
        jb.GatedStep(lambda w, s: (), lambda w, s, drive, feedback: (s[0] * drive, s[1])),
        init=lambda key: (),
        initial_state=lambda p, b: (jnp.ones((*b, 3)), jnp.ones((*b, 1))),
        input_shape=(3,),
    )
    with pytest.raises(AssertionError, match=r"state\[1\] has a last axis of \(1,\)"):
        check_gated_step(cell, (), np.ones((4, 3)))


def test_a_plain_step_is_no_gated_step():
    cell = jb.gru_reset_before(input_size=2, hidden_size=3)
    with pytest.raises(TypeError, match=r"check_gated_step: cell\.step must be a jb\.GatedStep"):
        _check(cell)
