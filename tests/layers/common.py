"""Small sequences with every option, and naive layers out of naive cells."""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_bptt as jb
from tests import reference
from tests.reference import Options, Reference
from tests.registry import assert_close, slow_unless

T, B, I, H = 4, 3, 3, 3  # noqa: E741 - the axis letters of the package
RATE = 0.4
KEY = 7
SIZES: Any = dict(input_size=I, hidden_size=H)
LSTM, GRU, ELMAN = jb.lstm(**SIZES), jb.gru(**SIZES), jb.elman(**SIZES)

RNG = np.random.default_rng(3)
FULL, NEVER = np.full(B, T), np.zeros((T, B), bool)
LENGTHS = np.array([T, 3, 0])
RESETS = RNG.random((T, B)) < 0.4
MASK = RNG.random((T, B)) < 0.7
OPTIONS = {
    "none": (FULL, NEVER, ~NEVER),
    "lengths": (LENGTHS, NEVER, ~NEVER),
    "resets": (FULL, RESETS, ~NEVER),
    "mask": (FULL, NEVER, MASK),
    "all": (LENGTHS, RESETS, MASK),
}

NAIVE = {
    LSTM: Reference(reference.lstm, lambda xp, p, s: s.h),
    GRU: Reference(reference.gru),
    ELMAN: Reference(reference.elman(lambda xp, a: xp.tanh(a))),
}


def each_direction(names, *quick):
    """Run a test on every name forwards and in reverse, in the quick run on the given rows."""
    rows = itertools.product(names, (False, True))
    return pytest.mark.parametrize(
        "name, reverse", [slow_unless(row in quick, *row) for row in rows]
    )


def key() -> Any:
    return jax.random.key(KEY)


def keywords(option: str) -> dict:
    return dict(zip(("lengths", "resets", "mask"), OPTIONS[option], strict=True))


def rows(naive: Reference, params, xs, state, option: str, reverse: bool = False):
    """Run each row alone. A reset at t parts t - 1 from t, whatever the direction."""
    lengths, resets, mask = OPTIONS[option]
    if reverse:
        resets = np.concatenate([resets[1:], NEVER[:1]])
    options = Options(lengths, resets, mask, reverse)
    with jax.numpy_dtype_promotion("standard"):
        return reference.unroll_rows(naive, params, state, xs, options)


def read(option: str) -> np.ndarray:
    """Return which inputs are read, [T, B]."""
    lengths, _, mask = OPTIONS[option]
    return mask & (np.arange(T)[:, None] < lengths)


def poisoned(xs, option: str):
    """Return `xs` with NaN where it must not be read."""
    return np.where(read(option)[..., None], xs, np.nan)


def problem(layer: jb.Layer):
    """Draw (params, xs, state) at random, so that no bias and no start is zero."""
    rng = np.random.default_rng(0)
    params = layer.init(jax.random.key(0))
    state = layer.initial_state(params, (B,))

    def noisy(a):
        floating = reference.is_inexact(a)
        return np.asarray(a) + 0.4 * rng.normal(size=a.shape) if floating else np.asarray(a)

    return jax.tree.map(noisy, params), rng.normal(size=(T, B, I)), jax.tree.map(noisy, state)


def with_gradients(run, arguments, **options):
    """Return (outputs, gradients) of `run(*arguments, **options)` under a loss fixed by shapes."""

    def loss(arguments):
        outputs = run(*arguments, **options)
        rng = np.random.default_rng(1)
        d = jax.tree.map(
            lambda a: rng.normal(size=a.shape) if reference.is_inexact(a) else None, outputs
        )
        return reference.pair(jnp, d, outputs), outputs

    gradients, outputs = jax.grad(loss, has_aux=True, allow_int=True)(arguments)
    return outputs, jax.tree.map(lambda g: None if g.dtype == jax.dtypes.float0 else g, gradients)


def check(layer: jb.Layer, naive, *, key=None, options=tuple(OPTIONS), tolerance=1e-12):
    """Compare a layer, NaN where nothing is read, with `naive(params, xs, state, option)`.

    Resets go back to the state at the start of the run, which the naive loop has at hand.
    """
    params, xs, state = problem(layer)

    def apply(params, xs, state, **options):
        return layer.apply(params, xs, state, key=key, reset_state=state, **options)

    run = jax.jit(functools.partial(with_gradients, apply))
    for option in options:
        got = run((params, poisoned(xs, option), state), **keywords(option))
        want = with_gradients(functools.partial(naive, option=option), (params, xs, state))
        assert_close(got, want, tolerance)
