"""`contributions`: term i is the path through s_i alone, and the terms sum to the gradient."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_bptt as jb
from tests import reference, registry

TOLERANCE = 1e-12  # relative, float64
T = 4


class Case(NamedTuple):
    """A problem besides its cell: how N lies in 1..T, the batch, and whose s_0 it is."""

    step: int
    batch_shape: tuple[int, ...] = (2,)
    own_start: bool = True


GENERAL = Case(step=3)
SPECIAL = [
    Case(step=1),
    Case(step=T, own_start=False),
    Case(step=2, batch_shape=()),
]
KEPT = ["weight_norm", "counted"]
QUICK = ["weight_norm"]
each_problem = pytest.mark.parametrize(
    "name, case",
    [registry.slow_unless(name in KEPT, name, GENERAL) for name in registry.CELLS]
    + [
        registry.slow_unless(name in QUICK, name, case)
        for name in [*registry.KINDS, "weight_norm"]
        for case in SPECIAL
    ],
    ids=str,
)


class Results(NamedTuple):
    terms: Any
    by_copies: Any
    gradient: Any


def terms_by_copies(name, params, xs, state, d_y, case):
    """Give each step its own copy W_t of the parameters: dE_N/dW_t is term t."""
    cell, naive = registry.CELLS[name]

    def error(copies):
        s = cell.initial_state(copies[0], case.batch_shape) if state is None else state
        y = None
        for t, copy in enumerate(copies):
            x = jax.tree.map(lambda a, t=t: a[t : t + 1], xs)
            s, y = reference.unroll(jnp, naive, copy, s, x, case.batch_shape)
        return reference.pair(jnp, d_y, jax.tree.map(lambda a: a[0], y))

    with jax.numpy_dtype_promotion("standard"):
        terms = jax.grad(error)([params] * case.step)
    return jax.tree.map(lambda *ws: jnp.stack(ws), *terms)


@functools.cache
def results(name, case):
    """Compile and run everything that the properties below compare, once."""
    cell, step = registry.CELLS[name].cell, case.step
    params, xs, state, (_, d_ys) = registry.problem(name, case.batch_shape, T)
    state = None if case.own_start else state

    @jax.jit
    def compute(params, xs, state, d_y):
        def run(params):
            _, ys = jb.unroll(cell, params, xs, state, algorithm=jb.autodiff())
            return jax.tree.map(lambda y: y[step - 1], ys)

        return Results(
            jb.contributions(cell, params, xs, state, d_y, step=step),
            terms_by_copies(name, params, xs, state, d_y, case),
            jax.vjp(run, params)[1](d_y)[0],
        )

    return compute(params, xs, state, jax.tree.map(lambda d: d[step - 1], d_ys))


@each_problem
def test_the_terms_sum_to_the_gradient(name, case):
    terms, _, gradient = results(name, case)
    total = jax.tree.map(lambda term: np.asarray(term).sum(axis=0), terms)
    registry.assert_close(total, gradient, TOLERANCE)


@each_problem
def test_term_i_is_the_path_through_state_i_alone(name, case):
    terms, by_copies, _ = results(name, case)
    for i in range(case.step):
        got, want = (jax.tree.map(lambda t, i=i: t[i], tree) for tree in (terms, by_copies))
        registry.assert_close(got, want, TOLERANCE)
    assert all(len(term) == case.step for term in jax.tree.leaves(terms))


def test_what_does_not_flow_through_a_step_stands_at_the_ends():
    w_y = np.asarray(results("lstm_readout", GENERAL).terms.w_y)
    assert np.all(w_y[:-1] == 0) and np.all(w_y[-1] != 0)
    _, _, start, _ = map(np.asarray, results("weight_norm", GENERAL).terms)
    assert np.all(start[0] != 0) and np.all(start[1:] == 0)
    _, _, start, _ = map(np.asarray, results("weight_norm", Case(T, own_start=False)).terms)
    assert np.all(start == 0)


CELL = registry.CELLS["elman_readout"].cell


def example(batch_shape=()):
    params, xs, state, (_, d_ys) = registry.problem("elman_readout", batch_shape, T)
    return params, jnp.asarray(xs), jnp.asarray(state), jnp.asarray(d_ys[0])


def test_later_inputs_play_no_part():
    params, xs, state, d_y = example()
    terms = jax.jit(functools.partial(jb.contributions, CELL, step=2))
    whole = terms(params, xs, state, d_y)
    registry.assert_close(terms(params, xs[:2], state, d_y), whole, TOLERANCE)
    registry.assert_close(terms(params, xs.at[2:].add(1.0), state, d_y), whole, TOLERANCE)


def test_vmap_over_sequences():
    params, xs, _, d_y = example((2,))

    @jax.jit
    def one(xs, d_y):
        return jb.contributions(CELL, params, xs, None, d_y, step=3)

    alone = [one(xs[:, k], d_y[k]) for k in range(2)]
    want = jax.tree.map(lambda *terms: jnp.stack(terms), *alone)
    registry.assert_close(jax.vmap(one, in_axes=(1, 0))(xs, d_y), want, TOLERANCE)


@pytest.mark.parametrize("step", [0, -1, T + 1, 2.0, True, None], ids=str)
def test_a_step_out_of_range(step):
    params, xs, state, d_y = example()
    message = rf"^contributions: step must be an integer from 1 to T={T}, .*got {step!r}$"
    with pytest.raises(ValueError, match=message):
        jb.contributions(CELL, params, xs, state, d_y, step=step)


def test_no_steps_at_all():
    params, xs, state, d_y = example()
    with pytest.raises(ValueError, match="^contributions: step must be .* 1 to T=0, .* of xs"):
        jb.contributions(CELL, params, xs[:0], state, d_y, step=1)


def test_a_cotangent_of_the_wrong_shape_dtype_or_structure():
    params, xs, state, d_y = example((3,))

    def raises(d_y, message, error: type[Exception] = ValueError):
        with pytest.raises(error, match="^contributions: d_y " + message):
            jb.contributions(CELL, params, xs, state, d_y, step=2)

    raises(d_y[0], r"is float64\[2\], .* float64\[3, 2\]")
    raises(jnp.stack([d_y] * T), r"is float64\[4, 3, 2\], .* float64\[3, 2\]")
    raises(d_y.T, r"is float64\[2, 3\], .* float64\[3, 2\]")
    raises(d_y.astype(jnp.float32), r"is float32\[3, 2\], .* float64\[3, 2\]")
    raises((d_y, d_y), "is a tuple of 2, .* the output it belongs to has an array", TypeError)


def test_inputs_are_checked_under_its_own_name():
    params, xs, state, d_y = example((3,))

    def raises(params, xs, state, message, error: type[Exception] = ValueError):
        with pytest.raises(error, match="^contributions: " + message):
            jb.contributions(CELL, params, xs, state, d_y, step=2)

    raises(params, xs[..., :1], state, r"xs.shape=\(4, 3, 1\) .* \(2,\)")
    raises(params, xs, state[:2], r"xs and state disagree .*\(4, 3, 2\) .*\(2, 3\)")
    raises(jax.random.key(0), xs, state, "params is a PRNG key", TypeError)
