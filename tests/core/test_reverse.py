"""The reverse scan, the linearised step, the factor on what crosses a step, blocks of time."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_bptt.core import blocks, trees
from jax_bptt.core.derivative import differentiable
from jax_bptt.core.forward import Stretch, entering, forward_scan, over_time
from jax_bptt.core.linearize import linearize
from jax_bptt.core.reverse import reverse_scan
from jax_bptt.core.sequence import Controls
from jax_bptt.core.types import Inputs
from tests import reference
from tests.registry import (
    ALGORITHMS,
    BATCH,
    CELLS,
    KINDS,
    STEPS,
    assert_close,
    problem,
    slow_unless,
)

each = pytest.mark.parametrize("name", [slow_unless(name in KINDS, name) for name in CELLS])
EXACT = 1e-12


def _inputs(name, controls=None, start=None):
    p = problem(name)
    params, xs, state = jax.tree.map(jnp.asarray, (p.params, p.xs, p.state))
    weights = CELLS[name].cell.prepare(params)
    return Inputs(weights, state, xs, start, controls or Controls())


def _linearized(name):
    cell, inputs = CELLS[name].cell, _inputs(name)
    _, states, _ = forward_scan(cell, inputs)
    prevs = entering(None, inputs.state, states, Controls())
    drives = over_time(cell, cell.project)(inputs.weights, inputs.xs)
    return cell, inputs, Stretch(prevs, drives, states)


def _noise(tree, seed):
    rng = np.random.default_rng(seed)

    def draw(a):
        if not reference.is_inexact(a):
            return None
        b = rng.normal(size=a.shape)
        if np.issubdtype(a.dtype, np.complexfloating):
            b = b + 1j * rng.normal(size=a.shape)
        return jnp.asarray(b, a.dtype)

    return jax.tree.map(draw, tree)


@each
def test_push_is_the_jacobian_of_a_step(name):
    cell, inputs, stretch = _linearized(name)
    linear = linearize(cell, inputs.weights, stretch)
    vs = _noise(stretch.prevs, 0)

    def step(prev, drive, v):
        inexact, rest = trees.partition(prev)
        run = lambda s: trees.partition(  # noqa: E731
            cell.step(inputs.weights, trees.combine(s, rest), drive)
        )[0]
        return jax.jvp(run, (inexact,), (v,))[1]

    want = jax.jit(jax.vmap(step))(stretch.prevs, stretch.drives, vs)
    assert_close(jax.jit(jax.vmap(linear.push))(linear.residuals, vs), want, EXACT)


@each
def test_the_reverse_scan_is_the_recursion(name):
    """Against the recursion written out with J_t^T of `jax.vjp` of the step."""
    cell, inputs, stretch = _linearized(name)
    linear = linearize(cell, inputs.weights, stretch)
    g, lam = _noise(stretch.states, 1), _noise(inputs.state, 2)
    (d_state, d_start), lambdas, _ = jax.jit(
        lambda lam, g: reverse_scan(linear, lam, g, Controls())
    )(lam, g)
    assert d_start is None

    @jax.jit
    def pull(prev, drive, lam):
        return trees.inexact_vjp(lambda s: cell.step(inputs.weights, s, drive), prev)[1](lam)[0]

    def at(tree, t):
        return jax.tree.map(lambda a: a[t], tree)

    for t in reversed(range(STEPS)):
        lam = trees.add(lam, at(g, t))
        assert_close(at(lambdas, t), lam, EXACT)
        lam = pull(at(stretch.prevs, t), at(stretch.drives, t), lam)
    assert_close(d_state, lam, EXACT)


QUICK = ("lstm_readout", "bptt_3"), ("counted", "autodiff")


def _detaching(name, gammas):
    """Return the loss by a loop that scales what crosses each step by itself."""
    cell, p = CELLS[name].cell, problem(name)

    def crossing(state, gamma):
        def leaf(s):
            if not reference.is_inexact(s):
                return s
            fixed = jax.lax.stop_gradient(s)
            return fixed + gamma.astype(s.dtype).reshape(gamma.shape + (1,) * (s.ndim - 1)) * (
                s - fixed
            )

        return jax.tree.map(leaf, state)

    def outputs(params, xs, state):
        weights, ys = cell.prepare(params), []
        for t in range(STEPS):
            x = jax.tree.map(lambda a, t=t: a[t], xs)
            state = cell.step(weights, crossing(state, gammas[t]), cell.project(weights, x))
            ys.append(cell.readout(weights, state))
        return state, jax.tree.map(lambda *ys: jnp.stack(ys), *ys)

    return lambda *args: reference.pair(jnp, p.cotangents, outputs(*args))


@pytest.mark.parametrize(
    "name, algorithm",
    [
        slow_unless((name, algorithm) in QUICK, name, algorithm)
        for name in CELLS
        for algorithm in ("bptt_3", "autodiff")
    ],
)
def test_gamma_scales_what_crosses_a_step(name, algorithm):
    cell, p, algorithm = CELLS[name].cell, problem(name), ALGORITHMS[algorithm]
    gammas = jnp.asarray(np.random.default_rng(0).choice([0.0, 1.0, 1.7], (STEPS, *BATCH)))

    def loss(params, xs, state):
        inputs = Inputs(cell.prepare(params), state, xs, None, Controls(gamma=gammas))
        return reference.pair(jnp, p.cotangents, differentiable(cell, algorithm, inputs))

    def gradient(loss):
        args = jax.tree.map(jnp.asarray, (p.params, p.xs, p.state))
        inexact, rest = trees.partition(args)

        def pushed(v):
            run = lambda a: loss(*trees.combine(a, rest))  # noqa: E731
            return jax.grad(run)(inexact), jax.jvp(run, (inexact,), (v,))[1]

        return jax.jit(pushed)(_noise(args, 3))

    got, want = gradient(loss), gradient(_detaching(name, gammas))
    assert_close(got, want, EXACT)


def test_a_cut_is_exact_even_of_what_is_infinite():
    state = jnp.array([1.0, 2.0])
    cut = Controls(gamma=jnp.zeros(()))
    _, pull = jax.vjp(lambda s: cut.enter(None, s), state)
    assert pull(jnp.array([jnp.inf, jnp.nan]))[0].tolist() == [0.0, 0.0]
    assert cut.leave(jnp.array([jnp.inf, jnp.nan]))[0].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("steps", [0, 1, 3, 4, 6, 7])
def test_blocks_do_what_one_scan_does(steps, reverse):
    values = jnp.arange(1.0, steps + 1)
    before = blocks.firsts(jnp.zeros(()), values, 3)

    def step(carry, x):
        return carry * 0.5 + x, carry

    def block(carry, inputs):
        first, xs = inputs
        carry, outputs = jax.lax.scan(step, carry, xs, reverse=reverse)
        return carry, (outputs, jnp.broadcast_to(first, xs.shape))

    run = functools.partial(blocks.scan_blocks, block, length=3, reverse=reverse)
    carry, (outputs, firsts) = run(jnp.ones(()), (before, values))
    want = jax.lax.scan(step, jnp.ones(()), values, reverse=reverse)
    assert_close((carry, outputs), want, 0)
    assert firsts.tolist() == [t // 3 * 3 for t in range(steps)]
