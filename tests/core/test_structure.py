"""The structure of `jax.grad` of `unroll`: a reverse scan without the weights' products."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_bptt as jb
from jax_bptt.algorithms import bptt
from tests.core.jaxprs import equations, live, scans, subjaxprs
from tests.registry import slow_unless

# Sizes of which no two products agree, so that a shape tells what an array is.
I, H, B, T = 2, 7, 5, 10  # noqa: E741 - the axis letters of the package

GATED = [jb.elman, jb.lstm, jb.gru, jb.lstm_peephole, jb.mgu, jb.ugrnn, jb.slstm, jb.ctrnn]
CONSTRUCTORS = [*GATED, jb.gru_reset_before]
each_constructor_in_time = pytest.mark.parametrize(
    "constructor", [slow_unless(c in (jb.lstm, jb.gru_reset_before), c) for c in CONSTRUCTORS]
)


def _traced(constructor, algorithm, steps=T):
    cell = constructor(input_size=I, hidden_size=H)
    params = cell.init(jax.random.key(0))

    def loss(params, xs):
        return jnp.sum(jb.unroll(cell, params, xs, algorithm=algorithm)[1] ** 2)

    return jax.make_jaxpr(jax.grad(loss))(params, np.ones((steps, B, I))), params


def _innermost_reverse(jaxpr):
    reverse = [eqn for eqn in scans(jaxpr) if eqn.params["reverse"]]
    return [eqn for eqn in reverse if not scans(eqn.params["jaxpr"].jaxpr)]


def _sizes(variables):
    return {math.prod(v.aval.shape) for v in variables}


def _weight_sizes(params):
    """Sizes of w_x and w_s and of each gate's part of them."""
    gates = params.w_s.shape[1]
    return {rows * H * g for rows in (I, H) for g in range(1, gates + 1)}


def _breaches(jaxpr, params):
    """Return the weight-sized products and accumulators of the innermost reverse scans."""
    found = []
    for scan in _innermost_reverse(jaxpr):
        body = scan.params["jaxpr"].jaxpr
        # What is stacked over time has one axis more outside the body than in it.
        outputs = zip(body.outvars, scan.outvars, strict=True)
        carried = [v for v, out in outputs if v.aval.shape == out.aval.shape]
        products = [eqn for eqn in equations(body) if eqn.primitive.name == "dot_general"]
        produced = [v for eqn in products for v in eqn.outvars]
        found += _sizes([*carried, *produced]) & _weight_sizes(params)
    return found


@pytest.mark.parametrize(
    "constructor, block_length",
    [
        slow_unless(row[0] is jb.lstm or row == (jb.gru_reset_before, 4), *row)
        for row in itertools.product(CONSTRUCTORS, (None, 1, 4))
    ],
)
def test_the_reverse_scan_holds_no_weight_gradient(constructor, block_length):
    jaxpr, params = _traced(constructor, jb.bptt(block_length=block_length))
    assert _innermost_reverse(jaxpr.jaxpr), "there is an explicit reverse scan"
    assert _breaches(jaxpr.jaxpr, params) == []


@each_constructor_in_time
def test_the_check_finds_them_in_the_plain_scan(constructor):
    jaxpr, params = _traced(constructor, jb.autodiff())
    assert _breaches(jaxpr.jaxpr, params) != []


@pytest.mark.parametrize("constructor", [slow_unless(c is jb.lstm, c) for c in GATED])
def test_a_gated_cell_has_one_product_per_reverse_step(constructor):
    jaxpr, _ = _traced(constructor, jb.bptt())
    (scan,) = _innermost_reverse(jaxpr.jaxpr)
    kept = live(scan.params["jaxpr"].jaxpr)
    kept += [e for eqn in kept for inner in subjaxprs(eqn) for e in equations(inner)]
    names = [eqn.primitive.name for eqn in kept]
    assert names.count("dot_general") == 1
    assert not {"tanh", "logistic", "exp"} & set(names), "the Jacobians are made ahead of the scan"


@each_constructor_in_time
def test_the_program_does_not_grow_with_the_sequence(constructor):
    lengths = [
        sum(1 for _ in equations(_traced(constructor, jb.bptt(block_length=5), steps)[0].jaxpr))
        for steps in (10, 1000)
    ]
    assert lengths[0] == lengths[1]


@pytest.mark.parametrize(
    "constructor, keep, keeps",
    [
        slow_unless(False, jb.lstm, H, True),
        slow_unless(False, jb.lstm, H + 1, False),
        slow_unless(False, jb.gru, H, True),
        (jb.gru, H + 1, False),
    ],
)
def test_large_products_are_kept_by_default(constructor, keep, keeps, monkeypatch):
    monkeypatch.setattr(bptt, "KEEP", keep)
    made = constructor(input_size=I, hidden_size=H)
    # Equal to none, so that nothing comes from a run with another setting.
    cell = made._replace(readout=lambda weights, state: made.readout(weights, state))
    params = jax.eval_shape(cell.init, jax.random.key(0))

    def products(**given):
        def loss(params, xs):
            return jnp.sum(jb.unroll(cell, params, xs, algorithm=jb.bptt(**given))[1] ** 2)

        compiled = jax.jit(jax.grad(loss)).lower(params, np.ones((T, B, I))).compile()
        costs = compiled.cost_analysis()
        assert costs is not None
        return costs["flops"]

    kept, recomputed = (products(recompute=given) for given in (False, True))
    assert products() == (kept if keeps else recomputed)
    assert kept < recomputed


def test_nothing_is_kept_where_nothing_is_differentiated():
    cell = jb.lstm(input_size=I, hidden_size=H)
    params = jax.eval_shape(cell.init, jax.random.key(0))

    def program(recompute):
        algorithm = jb.bptt(block_length=T // 2, recompute=recompute)
        run = jax.jit(lambda params, xs: jb.unroll(cell, params, xs, algorithm=algorithm))
        return run.lower(params, np.ones((T, B, I))).as_text()

    assert program(False) == program(True)
