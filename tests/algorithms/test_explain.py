"""What every algorithm says of a run."""

import jax
import jax.numpy as jnp
import pytest

import jax_bptt as jb
from tests.registry import CELLS, problem

SAYS = {
    jb.bptt(): [
        "T = 7 in blocks of 7 steps, and is exact",
        "makes what their Jacobians need again",
    ],
    jb.bptt(recompute=False, block_length=3): ["blocks of 3 steps", "keeps what their Jacobians"],
    jb.autodiff(): ["the plain scan, differentiated by JAX, and is exact"],
    jb.fused(): ["fused() runs bptt(), a scan over time", "the device is a cpu"],
    jb.checkpointed(count=1, block_length=2): ["T = 7 in 3 blocks of 2 steps", "again"],
    jb.parallel_adjoint(): ["is exact", "1 blocks of 6 x 6 for each of 6 sequences, 7 steps"],
    jb.newton(): [
        "solves for the states",
        "is exact",
        "the largest Lyapunov exponent",
        "bptt() is",
    ],
    jb.truncated(4): ["reach back 1 to 4 steps", "biased", "adaptive_truncation bounds it"],
    jb.truncated(4, sliding=True): ["reach back exactly 4 steps"],
}


@pytest.mark.parametrize("algorithm", SAYS, ids=map(repr, SAYS))
def test_what_an_algorithm_says(algorithm):
    cell, p = CELLS["lstm"].cell, problem("lstm")
    found = jb.explain(cell, p.params, p.xs, algorithm=algorithm)
    for part in SAYS[algorithm]:
        assert part in found.replace("\n", " "), found
    assert "bytes from the forward pass" in found
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), (p.params, p.xs))
    told = jb.explain(cell, *shapes, algorithm=algorithm)
    # Of shapes alone all is known but the exponent.
    assert told.splitlines()[0] == found.splitlines()[0]
    assert told.splitlines()[-1] == found.splitlines()[-1]


def test_it_speaks_while_a_program_is_traced():
    cell, p = CELLS["lstm"].cell, problem("lstm")
    told = []

    @jax.jit
    def program(params):
        told.append(jb.explain(cell, params, p.xs, algorithm=jb.newton()))

    program(p.params)
    assert "largest_exponent, which needs arrays" in told[0]


def test_the_exponent_is_that_of_the_data():
    cell, p = CELLS["gru"].cell, problem("gru")
    value = float(jnp.mean(jb.largest_exponent(cell, p.params, p.xs)))
    assert f"is {value:.3f} a step" in jb.explain(cell, p.params, p.xs, algorithm=jb.newton())
    drawn = jb.artbp(0.1, jax.random.key(0))
    assert "exact in the mean" in jb.explain(cell, p.params, p.xs, algorithm=drawn)


def test_bytes_that_are_kept():
    """The states of an LSTM are two arrays [T, B, H]; recompute=False keeps six more."""
    cell, p = CELLS["lstm"].cell, problem("lstm")
    array = 7 * 6 * 3 * 8

    def kept(algorithm):
        last = jb.explain(cell, p.params, p.xs, algorithm=algorithm).splitlines()[-1]
        return int(last.split()[2])

    assert kept(jb.bptt()) == 2 * array and kept(jb.bptt(recompute=False)) == 8 * array
    assert kept(jb.autodiff()) > 8 * array


def test_one_put_together_by_hand_says_nothing():
    p = problem("elman")
    by_hand = jb.Algorithm(*jb.bptt()[:3])
    with pytest.raises(ValueError, match="says nothing of itself; leave algorithm out"):
        jb.explain(CELLS["elman"].cell, p.params, p.xs, algorithm=by_hand)
    p = problem("counted")
    with pytest.raises(TypeError, match="newton: every leaf of the state"):
        jb.explain(CELLS["counted"].cell, p.params, p.xs, algorithm=jb.newton())
