"""Both modes of differentiation, in every combination, to the third order."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_bptt as jb
from tests import reference
from tests.registry import (
    ALGORITHMS,
    FEW,
    KINDS,
    assert_close,
    compiled,
    each_cell_in_time,
    each_kind_in_time,
    problem,
    run,
    slow_unless,
    without_int,
)

EXACT = 1e-11


def _tangents(name):
    """Return a direction at (params, xs, state), float0 at what has no derivative."""
    p = problem(name)
    rng = np.random.default_rng(3)

    def draw(leaf):
        if not reference.is_inexact(leaf):
            return np.zeros(leaf.shape, jax.dtypes.float0)
        return jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype)

    return jax.tree.map(draw, (p.params, p.xs, p.state))


def _arguments(name):
    p = problem(name)
    return jax.tree.map(jnp.asarray, (p.params, p.xs, p.state))


def _outputs(name, algorithm, *arguments):
    """Return the differentiable leaves of (last_state, ys)."""
    outputs = run(name, ALGORITHMS[algorithm], *arguments)
    return [leaf for leaf in jax.tree.leaves(outputs) if reference.is_inexact(leaf)]


@functools.cache
def _jvp(name, algorithm):
    outputs = functools.partial(_outputs, name, algorithm)
    return jax.jit(lambda: jax.jvp(outputs, _arguments(name), _tangents(name))[1])


@each_cell_in_time
def test_forward_and_reverse_are_each_others_transpose(name):
    """<c, J u> = <J^T c, u>, the reverse mode being checked against the naive loop elsewhere."""
    p, tangents = problem(name), _tangents(name)
    cotangents = [c for c in jax.tree.leaves(p.cotangents)]
    pushed = sum(
        np.vdot(np.conj(c), d) for c, d in zip(cotangents, _jvp(name, "bptt_3")(), strict=True)
    )
    gradients = compiled(name, "bptt_3")(p)[1]
    terms = [
        np.vdot(np.conj(g), t).real
        for g, t in zip(
            jax.tree.leaves(gradients),
            jax.tree.leaves(without_int(tangents)),
            strict=True,
        )
    ]
    assert abs(pushed.real - sum(terms)) <= EXACT * np.abs(terms).sum()


@each_kind_in_time
def test_forward_mode_is_that_of_the_plain_scan(name):
    assert_close(_jvp(name, "bptt")(), _jvp(name, "autodiff")(), EXACT)


@each_kind_in_time
def test_linearize(name):
    arguments, tangents = _arguments(name), _tangents(name)

    @jax.jit
    def pushed(arguments):
        outputs = functools.partial(_outputs, name, "bptt_3")
        return jax.linearize(outputs, *arguments)[1](*tangents)

    assert_close(pushed(arguments), _jvp(name, "autodiff")(), EXACT)


@each_kind_in_time
def test_jacobians(name):
    """Columns by forward mode, rows by reverse mode, with respect to the last bias."""
    params, xs, state = _arguments(name)
    leaves, structure = jax.tree.flatten(params)
    smallest = min(range(len(leaves)), key=lambda k: leaves[k].size)

    def last(algorithm, leaf):
        changed = [leaf if k == smallest else other for k, other in enumerate(leaves)]
        outputs = _outputs(name, algorithm, jax.tree.unflatten(structure, changed), xs, state)
        return outputs[-1][-1]

    jacobians = [
        jax.jit(mode(functools.partial(last, algorithm)))(leaves[smallest])
        for mode, algorithm in (
            (jax.jacfwd, "bptt"),
            (jax.jacrev, "bptt"),
            (jax.jacrev, "autodiff"),
        )
    ]
    assert_close(jacobians[0], jacobians[2], EXACT)
    assert_close(jacobians[1], jacobians[2], EXACT)


@each_kind_in_time
def test_gauss_newton_vector_product(name):
    """J^T J u, with J by forward mode and its transpose by the explicit reverse pass."""

    params, xs, state = _arguments(name)

    def product(algorithm):
        def outputs(params):
            return _outputs(name, algorithm, params, xs, state)

        _, pushed = jax.jvp(outputs, (params,), (_tangents(name)[0],))
        return jax.vjp(outputs, params)[1](pushed)[0]

    got, want = (jax.jit(functools.partial(product, a))() for a in ("bptt_3", "autodiff"))
    assert_close(got, want, EXACT)


def _along(name, algorithm):
    """Return the loss on a line through the parameters, a function of one number."""
    p, (direction, *_) = problem(name), _tangents(name)
    _, xs, state = _arguments(name)

    def loss(at):
        params = jax.tree.map(lambda w, d: w + at.astype(w.dtype) * d, p.params, direction)
        outputs = run(name, ALGORITHMS[algorithm], params, xs, state)
        return reference.pair(jnp, p.cotangents, outputs)

    return loss


def _forward(function):
    return lambda at: jax.jvp(function, (at,), (jnp.ones_like(at),))[1]


@functools.cache
def _third(name, algorithm, modes):
    function = _along(name, algorithm)
    for mode in modes:
        function = {"forward": _forward, "reverse": jax.grad}[mode](function)
    return jax.jit(function)(jnp.zeros(()))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lstm_readout", "peephole", "gru_reset_before"])
@pytest.mark.parametrize(
    "modes",
    [
        ("forward",) * 3,
        ("reverse",) * 3,
        ("forward", "reverse", "forward"),
        ("reverse", "forward", "reverse"),
    ],
    ids="-".join,
)
def test_third_derivative(name, modes):
    want = _third(name, "autodiff", ("forward",) * 3)
    assert_close(_third(name, "bptt_3", modes), want, EXACT)


@pytest.mark.parametrize(
    "name, modes",
    [
        # One kind in one order, another in the other.
        slow_unless(name in FEW and (k + len(KINDS) * turned) % 2 == 0, name, modes)
        for turned, modes in enumerate([("reverse", "forward"), ("forward", "reverse")])
        for k, name in enumerate(KINDS)
    ],
)
def test_second_derivative(name, modes):
    want = _third(name, "autodiff", ("forward", "forward"))
    assert_close(_third(name, "bptt", modes), want, EXACT)


def test_per_example_gradients_sum_to_the_gradient():
    name = "lstm_readout"
    p = problem(name)

    def gradient(xs, state, cotangents):
        def loss(params):
            return reference.pair(jnp, cotangents, run(name, None, params, xs, state))

        return jax.grad(loss)(p.params)

    each = jax.jit(jax.vmap(gradient, in_axes=(1, 0, (0, 1))))
    got = jax.tree.map(lambda g: g.sum(0), each(p.xs, p.state, p.cotangents))
    assert_close(got, compiled(name, "bptt")(p)[1][0], EXACT)


def test_checkpoint_and_forward_mode_with_sequence_options():
    name = "lstm_readout"
    _, xs, _ = _arguments(name)
    options = dict(lengths=jnp.array([7, 3, 0, 1, 6, 5]), reverse=True)

    def outputs(algorithm, *arguments):
        cell = jb.lstm(input_size=2, hidden_size=3, output_size=2)
        return jb.unroll(cell, *arguments, algorithm=ALGORITHMS[algorithm], **options)

    got, want = (
        jax.jit(jax.checkpoint(functools.partial(outputs, a))) for a in ("bptt_3", "autodiff")
    )
    assert_close(
        jax.jvp(got, _arguments(name), _tangents(name)),
        jax.jvp(want, _arguments(name), _tangents(name)),
        EXACT,
    )
