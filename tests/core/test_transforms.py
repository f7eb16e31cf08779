"""`unroll` under JAX's transformations: each equals the same thing done by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

import jax_bptt as jb
from tests import reference
from tests.registry import (
    ALGORITHMS,
    CELLS,
    assert_close,
    compiled,
    each_cell_in_less_time,
    each_cell_in_time,
    each_kind_in_time,
    gradient,
    problem,
    run,
    slow_unless,
    without_int,
)

EXACT = 1e-12


def _variants(name):
    """Return two problems that differ in every number."""
    p = problem(name)
    shift = functools.partial(
        jax.tree.map, lambda a: a * 1.1 if reference.is_inexact(a) else np.asarray(a)
    )
    return p, p._replace(params=shift(p.params), xs=shift(p.xs), state=shift(p.state))


def _check_vmap(name, mapped):
    """Compare vmap over the named fields with the stack of the two results."""
    a, b = _variants(name)
    examples = a, a._replace(**{field: getattr(b, field) for field in mapped})
    stacked = a._replace(
        **{
            field: jax.tree.map(lambda u, v: np.stack([u, v]), getattr(a, field), getattr(b, field))
            for field in mapped
        }
    )
    axes = type(a)(*(0 if field in mapped else None for field in a._fields))
    run_both = jax.jit(jax.vmap(functools.partial(gradient, name, None), in_axes=(axes,)))
    one_by_one = [compiled(name, "bptt")(example) for example in examples]
    want = jax.tree.map(lambda u, v: np.stack([u, v]), *one_by_one)
    assert_close(run_both(stacked), want, EXACT)


@each_cell_in_less_time
def test_vmap_over_params_and_inputs(name):
    _check_vmap(name, ("params", "xs", "state"))


@each_kind_in_time
@pytest.mark.parametrize("mapped", ["params", "xs"])
def test_vmap_over_one(name, mapped):
    _check_vmap(name, (mapped,))


def _slope(name, algorithm, p, direction):
    """Return the directional derivative of the loss as a function of the parameters."""

    def slope(params):
        gradients = gradient(name, algorithm, p._replace(params=params))[1]
        return reference.pair(jnp, direction, gradients[0])

    return slope


def _direction(p):
    rng = np.random.default_rng(2)
    return jax.tree.map(lambda a: rng.normal(size=a.shape).astype(a.dtype), p.params)


@each_cell_in_less_time
def test_grad_of_grad(name):
    """The Hessian times a vector is the change of the gradient along it."""
    p = problem(name)
    direction = _direction(p)
    got = jax.jit(jax.grad(_slope(name, None, p, direction)))(p.params)

    def flat(tree):
        return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])

    def gradients(params):
        return flat(compiled(name, "bptt")(p._replace(params=params))[1][0])

    change = reference.directional_derivative(gradients, p.params, direction)
    assert_close(flat(got), change, 1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lstm_readout", "gru_reset_before"])
def test_second_derivatives_against_autodiff(name):
    """Reverse over reverse, in blocks too, and forward over reverse."""
    p = problem(name)
    direction = _direction(p)

    def reverse(algorithm):
        return jax.jit(jax.grad(_slope(name, algorithm, p, direction)))(p.params)

    @jax.jit
    def forward(params):
        def gradients(params):
            return gradient(name, None, p._replace(params=params))[1][0]

        return jax.jvp(gradients, (params,), (direction,))[1]

    want = reverse(jb.autodiff())
    assert_close(reverse(jb.bptt(block_length=3)), want, EXACT)
    assert_close(forward(p.params), want, EXACT)


@each_kind_in_time
def test_checkpoint_around(name):
    p = problem(name)

    @jax.checkpoint
    def remade(arguments):
        return run(name, None, *arguments)

    @jax.jit
    def grad(p):
        def loss(arguments):
            return reference.pair(jnp, p.cotangents, remade(arguments))

        arguments = p.params, p.xs, p.state
        return without_int(jax.grad(loss, allow_int=True)(arguments))

    assert_close(grad(p), compiled(name, "bptt")(p)[1], EXACT)


@each_kind_in_time
def test_inside_another_scan(name):
    """Two windows of an outer scan, the state carried across, are one sequence of both."""
    p = problem(name)
    doubled = jax.tree.map(lambda x: np.concatenate([x, x[::-1]]), p.xs)
    windows = jax.tree.map(lambda x: np.stack([x, x[::-1]]), p.xs)

    def nested(params, state):
        last_state, ys = lax.scan(
            lambda state, xs: run(name, None, params, xs, state), state, windows
        )
        last = jax.tree.map(lambda y: y[1], ys)
        return reference.pair(jnp, p.cotangents, (last_state, last))

    def whole(params, state):
        last_state, ys = run(name, None, params, doubled, state)
        last = jax.tree.map(lambda y: y[len(y) // 2 :], ys)
        return reference.pair(jnp, p.cotangents, (last_state, last))

    got, want = (
        without_int(jax.jit(jax.grad(f, argnums=(0, 1), allow_int=True))(p.params, p.state))
        for f in (nested, whole)
    )
    assert_close(got, want, EXACT)


@each_kind_in_time
def test_donated_arguments(name):
    """XLA may reuse the buffers of params and state; the result stays the same."""
    p = problem(name)
    d_last_state, d_ys = p.cotangents

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def update(params, state, xs):
        cell = CELLS[name].cell
        d_params, _, _ = jb.bptt_gradients(cell, params, xs, state, d_ys, d_last_state)
        last_state, _ = run(name, None, params, xs, state)
        return jax.tree.map(lambda w, d: w - 0.1 * d, params, d_params), last_state

    params, state = jax.tree.map(jnp.array, (p.params, p.state))
    new_params, last_state = update(params, state, p.xs)
    outputs, (d_params, _, _) = compiled(name, "bptt")(p)
    assert_close(last_state, outputs[0], EXACT)
    assert_close(new_params, jax.tree.map(lambda w, d: w - 0.1 * d, p.params, d_params), EXACT)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))


@each_kind_in_time
@pytest.mark.parametrize("inside", [True, False], ids=["grad_inside", "grad_outside"])
def test_shard_map_over_the_batch(name, inside):
    p = problem(name)
    mesh = jax.make_mesh((2,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = p._replace(
        params=P(), xs=P(None, "batch"), state=P("batch"), cotangents=(P("batch"), P(None, "batch"))
    )

    def pair(p, *arguments):
        return reference.pair(jnp, p.cotangents, run(name, None, *arguments))

    def grad_inside(p):
        return jax.grad(functools.partial(pair, p), argnums=(0,))(p.params, p.xs, p.state)[0]

    def grad_outside(p):
        def total(params):
            sharded = jax.shard_map(
                lambda p: lax.psum(pair(p, p.params, p.xs, p.state), "batch"),
                mesh=mesh,
                in_specs=(spec,),
                out_specs=P(),
            )
            return sharded(p._replace(params=params))

        return jax.grad(total)(p.params)

    if inside:
        grad = jax.shard_map(grad_inside, mesh=mesh, in_specs=(spec,), out_specs=P())
    else:
        grad = grad_outside
    assert_close(jax.jit(grad)(p), compiled(name, "bptt")(p)[1][0], EXACT)


@pytest.mark.parametrize("algorithm", ["bptt", "bptt_3"])
def test_repeated_runs_agree_bit_by_bit(algorithm):
    p = problem("lstm_readout")
    first = compiled("lstm_readout", algorithm)(p)
    for _ in range(3):
        assert_close(compiled("lstm_readout", algorithm)(p), first, 0)


@each_cell_in_time
def test_permuting_the_batch_permutes_the_results(name):
    p = problem(name)
    order = np.array([3, 0, 5, 1, 4, 2])

    def permute(tree, axis):
        return jax.tree.map(lambda a: np.take(np.asarray(a), order, axis), tree)

    d_last_state, d_ys = p.cotangents
    permuted = p._replace(
        xs=permute(p.xs, 1),
        state=permute(p.state, 0),
        cotangents=(permute(d_last_state, 0), permute(d_ys, 1)),
    )
    (last_state, ys), (d_params, d_xs, d_state) = compiled(name, "bptt")(permuted)
    want_outputs, (want_params, want_xs, want_state) = compiled(name, "bptt")(p)
    assert_close(
        (last_state, ys), (permute(want_outputs[0], 0), permute(want_outputs[1], 1)), EXACT
    )
    assert_close(d_params, want_params, EXACT)
    assert_close((d_xs, d_state), (permute(want_xs, 1), permute(want_state, 0)), EXACT)


def test_no_example_sees_another():
    """A cotangent on one example alone reaches the inputs of no other."""
    name = "lstm_readout"
    p = problem(name)
    alone = jax.tree.map(np.zeros_like, p.cotangents)
    alone[1][:, 2] = p.cotangents[1][:, 2]
    _, (_, d_xs, d_state) = compiled(name, "bptt")(p._replace(cotangents=alone))
    others = [0, 1, 3, 4, 5]
    assert np.any(d_xs[:, 2]) and np.any(d_state.c[2])
    assert not np.any(d_xs[:, others]) and not np.any(d_state.c[others, :])


@pytest.mark.parametrize("algorithm", [slow_unless(a == "bptt", a) for a in ALGORITHMS])
def test_no_output_before_an_input_depends_on_it(algorithm):
    name = "lstm_readout"
    p = problem(name)
    early = jax.tree.map(np.zeros_like, p.cotangents)
    early[1][3] = p.cotangents[1][3]
    _, (_, d_xs, _) = compiled(name, algorithm)(p._replace(cotangents=early))
    assert np.all(np.any(d_xs[:4], axis=(1, 2))) and not np.any(d_xs[4:])
