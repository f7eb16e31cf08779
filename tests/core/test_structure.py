"""What `jax.grad` of `unroll` is made of: a reverse scan without the weights' products."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_bptt as jb
from tests.core.jaxprs import equations, live, scans, subjaxprs
from tests.registry import slow_unless

# Sizes of which no two products agree, so that a shape tells what an array is.
I, H, B, T = 2, 7, 5, 10  # noqa: E741 - the axis letters of the package

GATED = [jb.elman, jb.lstm, jb.gru, jb.lstm_peephole, jb.mgu, jb.ugrnn, jb.slstm, jb.ctrnn]
CONSTRUCTORS = [*GATED, jb.gru_reset_before]
each_constructor = pytest.mark.parametrize("constructor", CONSTRUCTORS)


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


@each_constructor
@pytest.mark.parametrize("block_length", [None, 1, 4])
def test_the_reverse_scan_holds_no_weight_gradient(constructor, block_length):
    jaxpr, params = _traced(constructor, jb.bptt(block_length=block_length))
    assert _innermost_reverse(jaxpr.jaxpr), "there is an explicit reverse scan"
    assert _breaches(jaxpr.jaxpr, params) == []


@each_constructor
def test_the_check_finds_them_in_the_plain_scan(constructor):
    jaxpr, params = _traced(constructor, jb.autodiff())
    assert _breaches(jaxpr.jaxpr, params) != []


@pytest.mark.parametrize("constructor", GATED)
def test_a_gated_cell_has_one_product_per_reverse_step(constructor):
    jaxpr, _ = _traced(constructor, jb.bptt())
    (scan,) = _innermost_reverse(jaxpr.jaxpr)
    kept = live(scan.params["jaxpr"].jaxpr)
    kept += [e for eqn in kept for inner in subjaxprs(eqn) for e in equations(inner)]
    names = [eqn.primitive.name for eqn in kept]
    assert names.count("dot_general") == 1
    assert not {"tanh", "logistic", "exp"} & set(names), "the Jacobians are made ahead of the scan"


@each_constructor
def test_the_program_does_not_grow_with_the_sequence(constructor):
    lengths = [
        sum(1 for _ in equations(_traced(constructor, jb.bptt(block_length=5), steps)[0].jaxpr))
        for steps in (10, 1000)
    ]
    assert lengths[0] == lengths[1]


@pytest.mark.parametrize("constructor", [jb.lstm, jb.gru])
@pytest.mark.parametrize(
    "devices, constant, units, keeps",
    [
        (1, "KEEP", H, True),
        (1, "KEEP", H + 1, False),
        (2, "KEEP_ON_DEVICES", H, True),
        (2, "KEEP_ON_DEVICES", H + 1, False),
    ],
)
def test_what_large_products_made_is_kept_by_default(
    constructor, devices, constant, units, keeps, monkeypatch
):
    monkeypatch.setattr("jax.local_device_count", lambda: devices)
    monkeypatch.setattr(f"jax_bptt.core.bptt.{constant}", units)
    cell = constructor(input_size=I, hidden_size=H)
    params = jax.eval_shape(cell.init, jax.random.key(0))

    def multiplications(**given):
        def loss(params, xs):
            return jnp.sum(jb.unroll(cell, params, xs, algorithm=jb.bptt(**given))[1] ** 2)

        compiled = jax.jit(jax.grad(loss)).lower(params, np.ones((T, B, I))).compile()
        costs = compiled.cost_analysis()
        assert costs is not None
        return costs["flops"]

    kept, recomputed = (multiplications(recompute=given) for given in (False, True))
    assert multiplications() == (kept if keeps else recomputed)
    assert kept < recomputed


@pytest.mark.parametrize("split_batch", [False, True])
def test_nothing_is_kept_where_nothing_is_differentiated(split_batch):
    cell = jb.lstm(input_size=I, hidden_size=H)
    params = jax.eval_shape(cell.init, jax.random.key(0))

    def program(recompute):
        algorithm = jb.bptt(block_length=T // 2, recompute=recompute, split_batch=split_batch)
        run = jax.jit(lambda params, xs: jb.unroll(cell, params, xs, algorithm=algorithm))
        return run.lower(params, np.ones((T, B, I))).as_text()

    assert program(False) == program(True)


@pytest.mark.parametrize("constructor", [jb.elman, jb.gru, jb.lstm])
@pytest.mark.parametrize("devices, least, left", [(1, H, True), (1, H + 1, False), (2, H, False)])
def test_large_weights_are_on_the_left_in_the_reverse_loop(
    constructor, devices, least, left, monkeypatch
):
    monkeypatch.setattr("jax.local_device_count", lambda: devices)
    monkeypatch.setattr("jax_bptt.core.bptt.LEFT", least)
    jaxpr, params = _traced(constructor, jb.bptt(block_length=4))
    # The scan over all of T is what forward mode would differentiate.
    loops = [eqn.params for eqn in scans(jaxpr.jaxpr) if eqn.params["length"] < T]
    seen = set()
    for loop in loops:
        body = loop["jaxpr"].jaxpr
        for eqn in equations(body) if not scans(body) else ():
            if eqn.primitive.name == "dot_general":
                on_the_left = math.prod(eqn.invars[0].aval.shape) == params.w_s.size
                assert on_the_left == (left and loop["reverse"])
                seen.add(loop["reverse"])
    assert seen == {False, True}


@pytest.mark.parametrize(
    "constructor, split_batch",
    [
        slow_unless(constructor == jb.elman or not split_batch, constructor, split_batch)
        for constructor in (jb.elman, jb.gru, jb.lstm_peephole)
        for split_batch in (False, True)
    ],
)
def test_no_gradient_of_the_inputs_is_made_unless_it_is_wanted(constructor, split_batch):
    cell = constructor(input_size=I, hidden_size=H)
    params, xs = cell.init(jax.random.key(0)), np.ones((T, B - 1, I))
    algorithm = jb.bptt(block_length=T // 2, split_batch=split_batch)

    def loss(params, xs):
        return jnp.sum(jb.unroll(cell, params, xs, algorithm=algorithm)[1] ** 2)

    def products(wanted):
        jaxpr = jax.make_jaxpr(jax.grad(loss, wanted))(params, xs).jaxpr
        rows = T // 2 * (B - 1) // (2 if split_batch else 1)
        made = [e.outvars for e in equations(jaxpr) if e.primitive.name == "dot_general"]
        return sum(math.prod(v.aval.shape) == rows * I for (v,) in made)

    assert products((0, 1)) == (2 if split_batch else 1)
    assert products(0) == 0
    both, alone = (jax.jit(jax.grad(loss, wanted))(params, xs) for wanted in ((0, 1), 0))
    for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(both[0]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-13, atol=1e-15)
