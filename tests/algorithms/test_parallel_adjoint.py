"""The reverse recursion in parallel over time: what it is made of, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_bptt as jb
from jax_bptt.algorithms import jacobians
from jax_bptt.core import trees
from jax_bptt.core.types import Inputs
from tests.core.jaxprs import equations
from tests.registry import CELLS, assert_close, problem, slow_unless

EXACT = 1e-12


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("size", [slow_unless(False, 1), 3])
def test_a_recurrence_is_its_loop(size, reverse):
    rng = np.random.default_rng(0)
    a, b, first = (rng.normal(size=s) for s in ((6, 2, size, size), (6, 2, size), (2, size)))
    values = [first]
    for matrix, offset in zip(*((a[::-1], b[::-1]) if reverse else (a, b)), strict=True):
        values.append(np.einsum("nij,nj->ni", matrix, values[-1]) + offset)
    got = jacobians.recurrence(jnp.asarray(a), jnp.asarray(b), jnp.asarray(first), reverse)
    assert_close(got, np.stack(values[::-1] if reverse else values), EXACT)


@pytest.mark.parametrize(
    "name, groups, size",
    [
        ("gru", 1, 3),
        ("lstm", 1, 6),
        slow_unless(False, "multi_head", 2, 2),
        ("indrnn", 3, 1),
        ("counted", 1, 3),
    ],
)
def test_blocks_of_a_jacobian(name, groups, size):
    """N blocks of D x D, and the state comes back from its vectors."""
    cell, p = CELLS[name].cell, problem(name)
    inputs = Inputs(cell.prepare(p.params), p.state, p.xs, None, None)
    space = jacobians.vectors(cell, inputs)
    assert space.shape[-2:] == (groups, size) or not cell.any_batch
    inexact = trees.partition(p.state)[0]
    assert_close(space.tree(space.flat(inexact)), inexact, 0)


def test_no_scan_in_the_reverse_pass():
    """Of one block: what is sequential is the forward scan alone."""
    cell = jb.lstm(input_size=2, hidden_size=3)
    params, xs = cell.init(jax.random.key(0)), jnp.ones((9, 2, 2))

    def scans(algorithm):
        def gradient(params):
            return jb.bptt_gradients(
                cell, params, xs, d_ys=xs @ jnp.ones((2, 3)), algorithm=algorithm
            )

        found = equations(jax.make_jaxpr(gradient)(params))
        return sum(eqn.primitive.name in ("scan", "while") for eqn in found)

    assert (scans(jb.parallel_adjoint()), scans(jb.bptt())) == (1, 2)


def test_a_step_that_mixes_its_batch():
    """Sequences that depend on each other make one vector of the whole batch."""

    def step(w, s, x):
        return jnp.tanh(s @ w + x + 0.3 * jnp.mean(s, axis=0, keepdims=True))

    cell = jb.from_step(
        step,
        init=lambda key: jnp.zeros((3, 3)),
        initial_state=lambda params, batch: jnp.zeros((*batch, 3)),
        input_shape=(3,),
    )
    rng = np.random.default_rng(0)
    w, xs = jnp.asarray(rng.normal(size=(3, 3))), jnp.asarray(rng.normal(size=(5, 4, 3)))

    def gradient(algorithm):
        def loss(w, xs):
            return jnp.sum(jb.unroll(cell, w, xs, algorithm=algorithm)[1] ** 2)

        return jax.jit(jax.grad(loss, (0, 1)))(w, xs)

    assert_close(gradient(jb.parallel_adjoint()), gradient(jb.autodiff()), EXACT)


def test_messages():
    with pytest.raises(ValueError, match="parallel_adjoint: block_length must be a positive"):
        jb.parallel_adjoint(block_length=0)
