"""Properties of both kernels of a linear recurrence, against a loop in double precision."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

TOLERANCE = 2e-6


class Case(NamedTuple):
    first: Any
    factors: Any
    offsets: Any
    reverse: bool


def make_case(steps, shape, dtype, *, constant=False, offset=True, reverse=False):
    rng = np.random.default_rng(0)

    def draw(*shape):
        x = rng.normal(size=shape)
        if jnp.issubdtype(dtype, jnp.complexfloating):
            x = x + 1j * rng.normal(size=shape)
        return jnp.asarray(x, dtype)

    factors = draw(1 if constant else steps, *shape)
    return Case(draw(*shape), factors * 0.7, draw(steps, *shape) if offset else None, reverse)


def looped(case):
    wide = np.complex128 if np.iscomplexobj(case.first) else np.float64
    steps = len(case.factors if case.offsets is None else case.offsets)
    first, a = np.asarray(case.first, wide), np.asarray(case.factors, wide)
    a = np.broadcast_to(a, (steps, *first.shape))
    b = np.zeros_like(a) if case.offsets is None else np.asarray(case.offsets, wide)
    values, carried = np.empty_like(a), first
    for t in reversed(range(steps)) if case.reverse else range(steps):
        values[t] = carried + b[t] if case.reverse else a[t] * carried + b[t]
        carried = a[t] * values[t] if case.reverse else values[t]
    return values, carried


def check(scan, case):
    run = jax.jit(functools.partial(scan, reverse=case.reverse))
    got, want = run(*case[:3]), looped(case)
    for a, b in zip(got, want, strict=True):
        a = np.asarray(a)
        assert a.shape == b.shape and a.dtype == case.first.dtype
        assert np.linalg.norm(a - b) <= TOLERANCE * np.linalg.norm(b)


def check_forgets(scan):
    """A factor of zero lets nothing through, not even what is no number."""
    first = jnp.asarray([jnp.inf, jnp.nan, 1.0], jnp.float32)
    factors = jnp.asarray([[0, 0, 0], [1, 1, 2]], jnp.float32)
    offsets = jnp.asarray([[1, 2, 3], [4, 5, 6]], jnp.float32)
    values, last = scan(first, factors, offsets)
    np.testing.assert_array_equal(values, [[1, 2, 3], [5, 7, 12]])
    np.testing.assert_array_equal(last, [5, 7, 12])
    ahead = jnp.asarray([[1, 1, 1], [jnp.inf, jnp.nan, 1]], jnp.float32)
    values, last = scan(jnp.zeros_like(first), factors[::-1], ahead, reverse=True)
    np.testing.assert_array_equal(values[0], [1, 1, 1])
    np.testing.assert_array_equal(last, [1, 1, 2])
    whole = jax.lax.complex(first, first)
    zero = jnp.zeros((1, 3), jnp.complex64)
    values, _ = scan(whole, zero, jax.lax.complex(offsets, offsets)[:1])
    np.testing.assert_array_equal(values, [[1 + 1j, 2 + 2j, 3 + 3j]])


def check_vmap(scan):
    """An argument that is not mapped is shared."""
    case = make_case(3, (2, 3), jnp.float32, constant=True)
    assert case.offsets is not None
    several = jnp.stack([case.offsets, -case.offsets])
    got = jax.jit(jax.vmap(scan, (None, None, 0)))(case.first, case.factors, several)
    for k, offsets in enumerate(several):
        check(lambda *_, reverse, k=k: [a[k] for a in got], case._replace(offsets=offsets))
