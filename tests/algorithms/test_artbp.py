"""Random cuts: the mean over all of them is the exact gradient."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_bptt as jb
from jax_bptt.algorithms.artbp import reweighted
from jax_bptt.algorithms.truncated import detached
from tests import reference
from tests.registry import CELLS, FEW, KINDS, assert_close, problem, slow_unless, without_int

T, B = 6, 2
RATES = {
    "fixed": lambda age: jnp.full_like(age, 0.3),
    "power_law": jb.PowerLaw(4.0, 5.0),
}


def gradient(name, algorithm, **options):
    p = problem(name, (B,), T)

    def loss(params, xs, state):
        outputs = jb.unroll(CELLS[name].cell, params, xs, state, algorithm=algorithm, **options)
        return reference.pair(jnp, p.cotangents, outputs)

    return without_int(jax.grad(loss, (0, 1, 2), allow_int=True)(p.params, p.xs, p.state))


def probability_of(cuts, rate, taken):
    """Return the probability of a pattern of cuts, one for each step but the first."""
    probability, age = 1.0, 0
    for t, cut in enumerate([False, *cuts]):
        if not taken[t]:
            continue
        if age > 0:
            c = float(rate(jnp.asarray(float(age))))
            probability *= c if cut else 1 - c
        age = 1 if cut else age + 1
    return probability


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("masked", [slow_unless(False, False), True])
@pytest.mark.parametrize("name", [slow_unless(name == FEW[0], name) for name in KINDS])
def test_the_mean_over_all_cuts_is_the_gradient(name, masked, rate):
    taken = np.array([True, True, False, True, True, True]) if masked else np.ones(T, bool)
    options = dict(mask=jnp.asarray(np.repeat(taken[:, None], B, 1))) if masked else {}
    patterns = np.array(list(itertools.product([False, True], repeat=T - 1)))
    chances = [probability_of(cuts, RATES[rate], taken) for cuts in patterns]
    # A pattern at a step that is not taken has no meaning: it is there twice.
    assert sum(chances) == pytest.approx(2 if masked else 1, abs=1e-12)

    @jax.jit
    @jax.vmap
    def one(cuts):
        uniform = jnp.where(jnp.concatenate([jnp.zeros(1, bool), cuts]), 0.0, 1 - 1e-9)
        uniform = jnp.broadcast_to(uniform[:, None], (T, B))

        def factors(cell, inputs):
            return reweighted(RATES[rate], uniform, inputs.controls.advance)

        return gradient(name, detached(factors), **options)

    each = one(patterns)
    mean = jax.tree.map(lambda g: np.tensordot(np.array(chances) / sum(chances), g, 1), each)
    assert_close(mean, jax.jit(lambda: gradient(name, jb.bptt(), **options))(), 1e-12)


def test_cuts_are_drawn_at_the_rate_and_for_each_sequence():
    draws = jax.random.uniform(jax.random.key(3), (200, 500))
    gamma = np.asarray(reweighted(lambda age: jnp.full_like(age, 0.2), draws, None))
    assert (gamma[0] == 1).all()
    cut = gamma[1:] == 0
    np.testing.assert_allclose(gamma[1:][~cut], 1.25, rtol=1e-12)
    assert cut.mean() == pytest.approx(0.2, abs=0.005)
    assert not (cut[:, :1] == cut).all()


def test_a_power_law_has_stretches_of_its_length():
    draws = jax.random.uniform(jax.random.key(3), (20_000, 20))
    gamma = np.asarray(reweighted(jb.PowerLaw(50.0), draws, None))
    # The mean of a hazard that is held over a step differs from that of the continuous one.
    assert 1 / (gamma[1:] == 0).mean() == pytest.approx(50, rel=0.05)


def test_the_key_decides_and_may_be_traced():
    name = FEW[0]

    @jax.jit
    def at(key):
        return gradient(name, jb.artbp(0.5, key))[0]

    one, same, other = at(jax.random.key(1)), at(jax.random.key(1)), at(jax.random.key(2))
    assert_close(one, same, 0)
    differ = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), one, other)
    assert any(jax.tree.leaves(differ))
    every = jax.jit(jax.vmap(at))(jax.random.split(jax.random.key(0), 3))
    alone = at(jax.random.split(jax.random.key(0), 3)[1])
    assert_close(jax.tree.map(lambda a: a[1], every), alone, 1e-12)


@pytest.mark.slow
def test_forward_mode_sees_the_same_cuts():
    name = FEW[0]
    p = problem(name, (B,), T)
    direction = jax.tree.map(lambda a: np.cos(np.arange(a.size) + 1.0).reshape(a.shape), p.params)

    def loss(params):
        algorithm = jb.artbp(0.5, jax.random.key(4))
        outputs = jb.unroll(CELLS[name].cell, params, p.xs, p.state, algorithm=algorithm)
        return reference.pair(jnp, p.cotangents, outputs)

    params = jax.tree.map(jnp.asarray, p.params)
    pushed = jax.jit(lambda v: jax.jvp(loss, (params,), (v,))[1])(direction)
    pulled = jax.jit(jax.grad(loss))(params)
    dot = sum(jax.tree.leaves(jax.tree.map(lambda g, v: (g * v).sum(), pulled, direction)))
    np.testing.assert_allclose(pushed, dot, rtol=1e-11)


def test_it_is_in_no_cache():
    """Each key would be an entry that stays."""
    algorithm = jb.artbp(0.5, jax.random.key(1))
    with pytest.raises(TypeError, match="unhashable"):
        hash(algorithm)
    p = problem(FEW[0], (B,), T)
    jb.unroll(CELLS[FEW[0]].cell, p.params, p.xs, p.state, algorithm=algorithm)


@pytest.mark.parametrize("law", [jb.PowerLaw(0.5), jb.PowerLaw(20, 2), jb.PowerLaw(20, 1.5)])
def test_a_power_law_is_a_probability(law):
    with pytest.raises(ValueError, match="artbp: a PowerLaw must have a length of at least 1 step"):
        jb.artbp(law, jax.random.key(0))


def test_equal_cuts_are_equal_algorithms():
    key = jax.random.key(0)
    assert jb.artbp(0.1, key) == jb.artbp(0.1, key) != jb.artbp(0.2, key)
    assert jb.PowerLaw(5) == jb.PowerLaw(5) != jb.PowerLaw(6)


@pytest.mark.parametrize(
    "rate, error, message",
    [
        (1.0, ValueError, "at least 0 and below 1, got 1.0"),
        (-0.1, ValueError, "at least 0 and below 1"),
        ("often", TypeError, "a probability or a function of steps, got 'often'"),
        (None, TypeError, "a probability or a function"),
        (True, TypeError, "a probability or a function"),
    ],
)
def test_a_rate_is_a_probability(rate, error, message):
    with pytest.raises(error, match=f"artbp: rate must be {message}"):
        jb.artbp(rate, jax.random.key(0))


def test_a_key_is_one_of_jax():
    with pytest.raises(TypeError, match="artbp: key must be a PRNG key of jax.random.key"):
        jb.artbp(0.1, 3)  # pyright: ignore[reportArgumentType]
