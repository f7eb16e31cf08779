"""`state_gradients` against a loop that adds a perturbation to every state."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_bptt as jb
from tests import reference, registry
from tests.core.messages import check

TOLERANCE = 1e-12  # relative, float64
QUICK = ("counted",)
each_cell = pytest.mark.parametrize(
    "name", [registry.slow_unless(name in QUICK, name) for name in registry.CELLS]
)


def by_perturbation(name, params, xs, state, cotangents):
    """dL/de_t at e = 0, where e_t is added to s_t: written with Python's loop, per leaf."""
    cell, naive = registry.CELLS[name]
    steps = jax.tree.leaves(xs)[0].shape[0]
    leaves, structure = jax.tree.flatten(state)
    inexact = [k for k, leaf in enumerate(leaves) if reference.is_inexact(leaf)]

    def loss(perturbations):
        s, ys = state, []
        for t in range(steps):
            x = jax.tree.map(lambda a, t=t: a[t : t + 1], xs)
            s, y = reference.unroll(jnp, naive, params, s, x, registry.BATCH)
            parts = jax.tree.leaves(s)
            for k, e in zip(inexact, perturbations, strict=True):
                parts[k] = parts[k] + e[t]
            s = jax.tree.unflatten(structure, parts)
            ys.append(naive.readout(jnp, naive.prepare(jnp, params), s))
        outputs = s, jax.tree.map(lambda *y: jnp.stack(y), *ys)
        return reference.pair(jnp, cotangents, outputs)

    zeros = [jnp.zeros((steps, *leaves[k].shape), leaves[k].dtype) for k in inexact]
    found = iter(jax.grad(loss)(zeros))
    each = [next(found) if k in inexact else None for k in range(len(leaves))]
    return jax.tree.unflatten(structure, each)


@each_cell
def test_against_perturbed_states(name):
    p = registry.problem(name)
    d_last_state, d_ys = p.cotangents
    run = functools.partial(jb.state_gradients, registry.CELLS[name].cell)
    got = jax.jit(run)(p.params, p.xs, p.state, d_ys, d_last_state)
    with jax.numpy_dtype_promotion("standard"):
        params, xs, state = map(_arrays, p[:3])
        want = by_perturbation(name, params, xs, state, p.cotangents)
    registry.assert_close(got, want, TOLERANCE)


def _arrays(tree):
    return jax.tree.map(jnp.asarray, tree)


@pytest.mark.slow
def test_options():
    """Beyond the length zero, where held what passes by, and nothing across a reset."""
    cell = jb.elman(2, 3)
    params, xs = cell.init(jax.random.key(0)), jnp.ones((5, 2, 2))
    d_last_state = jnp.ones((2, 3))
    run = functools.partial(jb.state_gradients, cell, params, xs, d_last_state=d_last_state)
    padded = run(lengths=jnp.array([5, 3]))
    assert (padded[3:, 1] == 0).all() and (padded[2, 1] == 1).all()
    held = run(mask=jnp.array([[True, True]] * 4 + [[False, True]]))
    assert (held[3, 0] == 1).all() and not (held[3, 1] == 1).all()
    cut = run(resets=jnp.array([[False, False]] * 3 + [[True, True]] + [[False, False]]))
    assert (cut[:3] == 0).all() and (cut[3] != 0).all()
    turned = run(reverse=True)
    np.testing.assert_allclose(turned, run()[::-1])


def test_the_first_one_is_what_bptt_gradients_pulls_back():
    cell = jb.gru(2, 3)
    params, xs = cell.init(jax.random.key(0)), jnp.ones((4, 2))
    d_ys = jnp.ones((4, 3))
    lambdas = jb.state_gradients(cell, params, xs, d_ys=d_ys)
    states = jb.unroll(cell, params, xs)[1]
    _, _, want = jb.bptt_gradients(cell, params, xs[1:], states[0], d_ys[1:])
    np.testing.assert_allclose(lambdas[0], want + d_ys[0], rtol=1e-12)


def test_refusals():
    cell = jb.gru(2, 3)
    params = cell.init(jax.random.key(0))
    check(
        lambda: jb.state_gradients(cell, params, jnp.ones((4, 5))),
        ValueError,
        "state_gradients: xs",
    )
    check(
        lambda: jb.state_gradients(cell, params, jnp.ones((4, 2)), d_ys=jnp.ones((4, 2))),
        ValueError,
        "state_gradients: d_ys",
    )
