"""Transcendental functions of a GPU kernel, to single precision in few instructions.

A step of an LSTM takes five for every unit, which were more than half of its instructions if they
were those of NVIDIA's library. Here tanh and the logistic function are made of 2^x and 1 / sqrt(x),
which the hardware has to single precision: 2^-22.5 and 2^-22.9 relative (CUDA C++ Programming Guide
and PTX ISA, `ex2.approx` and `rsqrt.approx`), where its own tanh has 2^-11.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from jax_bptt.kernels.operations import COSTLY
from jax_bptt.kernels.tiles import TiledStep

LOG2_E = 1 / math.log(2)

SMALL = 0.6
"""Below it tanh is a polynomial, whose coefficients are of the least maximal relative error there,
8e-8; above it what the formula subtracts from one is less than half."""

COEFFICIENTS = -0.33332598, 0.13313113, -0.052211657, 0.015612415

PRECISE = {"exp2", "rsqrt", "sqrt"}
"""Operations that the hardware has to single precision."""


def _logistic(x: Any) -> Any:
    # Nothing is subtracted, so that a gate that is almost closed keeps its digits.
    root = lax.rsqrt(1.0 + jnp.exp2(-LOG2_E * x))
    return root * root


def _tanh(x: Any) -> Any:
    size = jnp.abs(x)
    root = lax.rsqrt(1.0 + jnp.exp2(2 * LOG2_E * size))
    large = lax.bitcast_convert_type(1.0 - 2.0 * (root * root), jnp.int32)
    sign = lax.bitcast_convert_type(x, jnp.int32) & np.int32(-(2**31))
    square = x * x
    series = COEFFICIENTS[-1]
    for coefficient in COEFFICIENTS[-2::-1]:
        series = series * square + coefficient
    small = x + x * (square * series)
    return jnp.where(size < SMALL, small, lax.bitcast_convert_type(large | sign, jnp.float32))


def functions(approximate: bool) -> Mapping[str, Callable[..., Any]]:
    """Return what a kernel computes in place of `operations.COSTLY`."""
    return {} if approximate else {"logistic": _logistic, "tanh": _tanh}


def by_hardware(step: TiledStep, approximate: bool) -> bool:
    """Return whether functions are the hardware's own: as asked for, or precise enough all of them.

    A kernel has either those or the library's.
    """
    costly = step.operations & COSTLY.keys()
    return approximate or costly <= PRECISE | functions(approximate).keys()
