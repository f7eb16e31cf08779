"""One step of a linear recurrence, unit by unit, for a kernel to run in its loop.

    forward     v_t = a_t c + b_t,    c <- v_t           t = 1..T,    c = v_0 at first
    reverse     v_t = c + b_t,        c <- a_t v_t       t = T..1

The second is the transpose of the first, with b_t what reaches s_t directly: v_t is dL/ds_t, and
what c has become at last is what reaches s_0. Complex numbers are two planes, real and imaginary
part; as everywhere in JAX, a transpose takes no conjugate.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import Array, lax

Planes = tuple[Any, ...]
"""A real array alone, or the real and the imaginary part of a complex one."""


def planes(x: Array) -> Planes:
    """Return the planes of `x`."""
    return (x.real, x.imag) if jnp.iscomplexobj(x) else (x,)


def join(parts: Sequence[Array]) -> Array:
    """Undo `planes`."""
    return lax.complex(*parts) if len(parts) == 2 else parts[0]


def advance(
    factor: Planes, carried: Planes, offset: Planes | None, reverse: bool
) -> tuple[Planes, Planes]:
    """Take one step; return v_t and what is carried on. An offset of None is zero."""
    value = carried if reverse else _times(factor, carried)
    if offset is not None:
        value = tuple(v + b for v, b in zip(value, offset, strict=True))
    return value, _times(factor, value) if reverse else value


def _times(a: Planes, v: Planes) -> Planes:
    """Return a v, zero where a is, whatever v may be.

    A factor of zero stands for a reset, at which a state that is infinite or NaN is forgotten.
    """
    zero = functools.reduce(jnp.logical_and, [part == 0 for part in a])
    v = tuple(jnp.where(zero, 0.0, part) for part in v)
    if len(a) == 1:
        return (a[0] * v[0],)
    (a_re, a_im), (v_re, v_im) = a, v
    return a_re * v_re - a_im * v_im, a_re * v_im + a_im * v_re


def length(factors: Array, offsets: Array | None) -> tuple[int, bool]:
    """Return T, and whether the factors are the same at all steps: [1, ...] beside offsets."""
    if offsets is None:
        return factors.shape[0], False
    return offsets.shape[0], factors.shape[0] == 1
