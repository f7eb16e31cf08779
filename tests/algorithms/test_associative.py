"""The associative scan: exact for every diagonal linear cell, refused for any other, no loop."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

import jax_bptt as jb
from tests import reference
from tests.core.jaxprs import equations
from tests.registry import (
    BATCH,
    CELLS,
    STEPS,
    assert_close,
    compiled,
    expected,
    gradient,
    problem,
    slow_unless,
    without_int,
)

EXACT = 1e-12
DIAGONAL = [name for name, row in CELLS.items() if isinstance(row.cell.step, jb.DiagonalStep)]
QUICK = "lru_readout", "min_lstm", "min_gru"
each_diagonal = pytest.mark.parametrize("name", DIAGONAL)
each_diagonal_in_time = pytest.mark.parametrize(
    "name", [slow_unless(name == "lru_readout", name) for name in DIAGONAL]
)

RNG = np.random.default_rng(3)
FULL = np.full(BATCH, STEPS)
NEVER = np.zeros((STEPS, *BATCH), bool)
LENGTHS = np.array([STEPS, 3, 0, 1, STEPS - 1, 5])
RESETS = RNG.random((STEPS, *BATCH)) < 0.3
MASK = RNG.random((STEPS, *BATCH)) < 0.6
OPTIONS = {
    "lengths": reference.Options(LENGTHS, NEVER, ~NEVER),
    "resets": reference.Options(FULL, RESETS, ~NEVER),
    "mask": reference.Options(FULL, NEVER, MASK),
    "all": reference.Options(LENGTHS, RESETS, MASK),
}


@functools.cache
def parallel(name):
    return jax.jit(functools.partial(gradient, name, jb.associative()))


def test_the_linear_cells_are_among_them():
    assert {"lru", "min_gru", "min_lstm"} <= set(DIAGONAL)


@pytest.mark.parametrize(
    "name, batch_shape, steps",
    [
        slow_unless(shape == BATCH and name in QUICK, name, shape, steps)
        for name in DIAGONAL
        for shape, steps in ((BATCH, STEPS), ((), 3), ((2, 3), 1))
    ],
)
def test_values_and_gradients(name, batch_shape, steps):
    p = problem(name, batch_shape, steps)
    assert_close(parallel(name)(p), expected(name, batch_shape, steps), EXACT)


@each_diagonal_in_time
def test_no_steps(name):
    p = problem(name, BATCH, 0)
    assert_close(parallel(name)(p), compiled(name, "bptt")(p), 0)


@pytest.mark.slow
@each_diagonal
@pytest.mark.parametrize("kept", [{0}, {1}])
def test_a_loss_on_the_last_state_or_on_the_outputs_alone(name, kept):
    p = problem(name)
    cotangents = tuple(
        c if k in kept else jax.tree.map(lambda _: None, c) for k, c in enumerate(p.cotangents)
    )
    alone = p._replace(cotangents=cotangents)
    want = reference.gradients(CELLS[name].reference, p.params, p.state, p.xs, BATCH, cotangents)
    assert_close(gradient(name, jb.associative(), alone)[1], without_int(want), EXACT)


@each_diagonal_in_time
def test_by_hand(name):
    p = problem(name)
    d_last_state, d_ys = p.cotangents
    by_hand = functools.partial(jb.bptt_gradients, CELLS[name].cell, algorithm=jb.associative())
    got = jax.jit(by_hand)(p.params, p.xs, p.state, d_ys, d_last_state)
    assert_close(got, expected(name)[1], EXACT)


def with_options(name, reverse, arguments, cotangents, options):
    def loss(arguments):
        params, xs, state = arguments
        given: Any = dict(options, algorithm=jb.associative(), reverse=reverse)
        outputs = jb.unroll(CELLS[name].cell, params, xs, state, reset_state=state, **given)
        return reference.pair(jnp, cotangents, outputs), outputs

    gradients, outputs = jax.grad(loss, has_aux=True, allow_int=True)(arguments)
    return outputs, without_int(gradients)


@functools.cache
def optional(name, reverse):
    return jax.jit(functools.partial(with_options, name, reverse))


@pytest.mark.parametrize(
    "name, option, reverse",
    [
        *(
            slow_unless((name, reverse) == ("lru_readout", True), name, "all", reverse)
            for name in DIAGONAL
            for reverse in (False, True)
        ),
        *(
            pytest.param("lru_readout", option, False, marks=pytest.mark.slow)
            for option in ("lengths", "resets", "mask")
        ),
    ],
)
def test_sequence_options(name, option, reverse):
    p, options = problem(name), OPTIONS[option]._replace(reverse=reverse)
    read = options.mask & (np.arange(STEPS)[:, None] < options.lengths)
    xs = np.where(read[..., None], p.xs, np.nan)
    outputs, gradients = reference.row_gradients(
        CELLS[name].reference, p.params, p.state, p.xs, options, p.cotangents
    )
    given = dict(lengths=options.lengths, resets=options.resets, mask=options.mask)
    got = optional(name, reverse)((p.params, xs, p.state), p.cotangents, given)
    assert_close(got, (outputs, without_int(gradients)), EXACT)


def dict_state():
    """A user's diagonal step: two leaves, one unread by the output, functions of no batch."""

    def coefficients(w, x):
        return {"fast": w[0], "slow": w[1]}, {"fast": x, "slow": x * x}

    return jb.from_step(
        jb.DiagonalStep(coefficients),
        init=lambda key: (jnp.full(2, 0.5), jnp.full(2, 0.9)),
        initial_state=lambda p, b: {"fast": jnp.ones((*b, 2)), "slow": jnp.ones((*b, 2))},
        input_shape=(2,),
        readout=lambda w, s: s["fast"] ** 2,
    )


def test_a_cell_of_ones_own():
    cell, xs = dict_state(), RNG.normal(size=(5, 2))

    def run(algorithm):
        def loss(params, xs):
            last_state, ys = jb.unroll(cell, params, xs, algorithm=algorithm)
            return jnp.sum(ys) + jnp.sum(last_state["slow"])

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(cell.init(None), xs)

    assert_close(run(jb.associative()), run(jb.autodiff()), EXACT)


@each_diagonal
def test_nothing_waits_for_the_step_before(name):
    """No loop in the forward or the reverse pass."""
    p = problem(name, (), 64)

    def loops(algorithm):
        by_hand = functools.partial(jb.bptt_gradients, CELLS[name].cell, algorithm=algorithm)
        d_last_state, d_ys = p.cotangents
        jaxpr = jax.make_jaxpr(by_hand)(p.params, p.xs, p.state, d_ys, d_last_state)
        return {"scan", "while"} & {eqn.primitive.name for eqn in equations(jaxpr.jaxpr)}

    assert loops(jb.bptt()) == {"scan"}
    assert loops(jb.associative()) == set()


@pytest.mark.parametrize("name", ["lru_readout", slow_unless(False, "min_lstm")])
def test_vmap_over_params(name):
    p = problem(name)
    other = jax.tree.map(lambda a: 1.1 * a, p.params)
    both = jax.tree.map(lambda a, b: np.stack([a, b]), p.params, other)
    axes = type(p)(0, None, None, None)
    got = jax.jit(jax.vmap(functools.partial(gradient, name, jb.associative()), (axes,)))(
        p._replace(params=both)
    )
    each = [parallel(name)(p._replace(params=params)) for params in (p.params, other)]
    assert_close(got, jax.tree.map(lambda a, b: np.stack([a, b]), *each), EXACT)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lru_readout", "min_lstm"])
def test_second_derivatives_and_forward_mode(name):
    p = problem(name)
    direction = jax.tree.map(lambda a: RNG.normal(size=a.shape), p.params)

    def slope(algorithm):
        def along(params):
            gradients = gradient(name, algorithm, p._replace(params=params))[1]
            return reference.pair(jnp, direction, gradients[0])

        return along

    def second(algorithm):
        reverse = jax.grad(slope(algorithm))(p.params)
        return reverse, jax.jvp(slope(algorithm), (p.params,), (direction,))[1]

    got, want = (jax.jit(lambda a=a: second(a))() for a in (jb.associative(), jb.autodiff()))
    assert_close(got, want, EXACT)


def test_shard_map_over_the_batch():
    name = "lru_readout"
    p = problem(name)
    mesh = jax.make_mesh((2,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = p._replace(
        params=P(), xs=P(None, "batch"), state=P("batch"), cotangents=(P("batch"), P(None, "batch"))
    )

    def total(params):
        def local(p):
            outputs = jb.unroll(
                CELLS[name].cell, p.params, p.xs, p.state, algorithm=jb.associative()
            )
            return lax.psum(reference.pair(jnp, p.cotangents, outputs), "batch")

        sharded = jax.shard_map(local, mesh=mesh, in_specs=(spec,), out_specs=P())
        return sharded(p._replace(params=params))

    assert_close(jax.jit(jax.grad(total))(p.params), parallel(name)(p)[1][0], EXACT)


@pytest.mark.parametrize("name, kind", [("lstm", "GatedStep"), ("switched", "plain function")])
def test_any_other_cell_is_refused(name, kind):
    p = problem(name)
    with pytest.raises(
        TypeError, match=rf"associative: cell\.step must be a jb\.Diag.* is a {kind}"
    ):
        jb.unroll(CELLS[name].cell, p.params, p.xs, p.state, algorithm=jb.associative())


def test_integers_in_the_state_are_refused():
    ones = {k: jnp.ones(2, jnp.int32) for k in ("fast", "slow")}
    cell = dict_state()._replace(
        initial_state=lambda p, b: ones, step=jb.DiagonalStep(lambda w, x: (ones, ones))
    )
    with pytest.raises(TypeError, match=r"must be floating-point or complex; .* take jb\.bptt\(\)"):
        jb.unroll(cell, cell.init(None), np.ones((3, 2)), algorithm=jb.associative())


@pytest.mark.slow
def test_an_embedding_keeps_a_diagonal_step():
    cell = jb.embedding(jb.min_gru(input_size=2, hidden_size=3), vocabulary_size=5)
    params, tokens = cell.init(jax.random.key(0)), np.array([[0, 1], [4, 2], [1, 1]])

    def run(algorithm):
        def loss(params):
            return jnp.sum(jb.unroll(cell, params, tokens, algorithm=algorithm)[1] ** 2)

        return jax.jit(jax.value_and_grad(loss))(params)

    assert_close(run(jb.associative()), run(jb.autodiff()), EXACT)
