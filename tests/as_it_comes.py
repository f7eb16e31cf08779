"""Default gradients on one device, with XLA as its users have it: a program of its own.

The other tests run on two devices with most of XLA's optimisations off, and of a size at which
`bptt` keeps nothing and has one block. `python -m tests.as_it_comes NAME...` compares values
and gradients of large cells, of those named or of all, with the naive loops, prints a line for each
and fails with the first that is off.
"""

import functools
import sys
from typing import Any

import jax
import numpy as np

import jax_bptt as jb
from jax_bptt.algorithms.bptt import KEEP, automatic_block_length
from tests import reference, reference_variants
from tests.reference import Reference
from tests.registry import assert_close

STEPS, BATCH, INPUTS, OUTPUTS = 16, 64, 3, 2
EXACT = 1e-11

SMALL: Any = dict(input_size=INPUTS, hidden_size=24)
LARGE: Any = dict(input_size=INPUTS, hidden_size=KEEP)


def _tanh(xp, a):
    return xp.tanh(a)


def _h(xp, p, s):
    return s.h


CASES: dict[str, tuple[jb.Cell, Reference, jb.Algorithm | None]] = {
    "elman": (jb.elman(**LARGE), Reference(reference.elman(_tanh)), None),
    "gru": (jb.gru(**LARGE), Reference(reference.gru), None),
    "lstm": (jb.lstm(**LARGE), Reference(reference.lstm, _h), None),
    "gru_reset_before": (
        jb.gru_reset_before(**SMALL, output_size=OUTPUTS),
        Reference(reference.gru_reset_before, reference.linear_readout),
        jb.bptt(block_length=5),
    ),
    "lru": (
        jb.lru(**SMALL, output_size=OUTPUTS),
        Reference(reference_variants.lru, reference_variants.lru_readout),
        None,
    ),
}


def check(cell: jb.Cell, naive: Reference, algorithm: jb.Algorithm | None) -> None:
    """Compare the jitted outputs and gradients in params, xs and state with the naive loop's."""
    rng = np.random.default_rng(0)

    def noise(leaf):
        if np.issubdtype(leaf.dtype, np.complexfloating):
            return rng.normal(size=leaf.shape) + 1j * rng.normal(size=leaf.shape)
        return rng.normal(size=leaf.shape)

    params = jax.tree.map(np.asarray, cell.init(jax.random.key(0)))
    state = jax.tree.map(noise, cell.initial_state(params, (BATCH,)))
    xs = rng.normal(size=(STEPS, BATCH, INPUTS))
    outputs = reference.unroll(np, naive, params, state, xs, (BATCH,))
    cotangents = jax.tree.map(noise, outputs)

    @jax.jit
    def gradient(params, xs, state):
        def loss(params, xs, state):
            outputs = jb.unroll(cell, params, xs, state, algorithm=algorithm)
            return reference.pair(jax.numpy, cotangents, outputs), outputs

        gradients, outputs = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(params, xs, state)
        return outputs, gradients

    want = reference.gradients(naive, params, state, xs, (BATCH,), cotangents)
    assert_close(gradient(params, xs, state), (outputs, want), EXACT)


def main() -> None:
    jax.config.update("jax_enable_x64", True)
    assert len(jax.devices()) == 1
    # What the sizes are there for: the large cells run in several blocks and keep their Jacobians.
    length = functools.partial(automatic_block_length, STEPS, BATCH)
    assert all(1 < STEPS // length(BATCH * gates * KEEP * 8) for gates in (1, 3, 4))
    for name in sys.argv[1:] or CASES:
        check(*CASES[name])
        print(f"{name}: ok", flush=True)


if __name__ == "__main__":
    main()
