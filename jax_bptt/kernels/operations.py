"""The elementwise operations that kernels know, as functions of tiles."""

import operator
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax


def _half_tanh(x: Any) -> Any:
    # One transcendental operation where 1 / (1 + exp(-x)) has two.
    return 0.5 * jnp.tanh(0.5 * x) + 0.5


def _expm1(x: Any) -> Any:
    # Pallas has no expm1, on GPU or TPU. This loses no digits near zero, where tanh loses none.
    return jnp.tanh(0.5 * x) * (jnp.exp(x) + 1.0)


def _log1p(x: Any) -> Any:
    # Pallas has no log1p on a GPU. What 1 + x rounds away, the quotient gives back (Goldberg 1991,
    # "What every computer scientist should know about floating-point arithmetic", theorem 4).
    u = 1.0 + x
    accurate = jnp.log(u) * (x / (u - 1.0))
    return jnp.where(u == 1.0, x, jnp.where(u == x, jnp.log(u), accurate))


def _chosen(where: Any, if_false: Any, if_true: Any) -> Any:
    if isinstance(if_false, float) and isinstance(if_true, float):
        if_false, if_true = np.float32(if_false), np.float32(if_true)
    return jnp.where(where, if_true, if_false)


CHEAP: dict[str, Callable[..., Any]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "max": jnp.maximum,
    "min": jnp.minimum,
    "abs": jnp.abs,
    "sign": jnp.sign,
    "gt": operator.gt,
    "ge": operator.ge,
    "lt": operator.lt,
    "le": operator.le,
    "eq": operator.eq,
    "ne": operator.ne,
    "and": operator.and_,
    "or": operator.or_,
    "not": operator.invert,
    "select_n": _chosen,
    "number": lambda x: x.astype(jnp.float32),
}
"""Operations that cost about what a multiplication does, on tiles."""

COSTLY: dict[str, Callable[..., Any]] = {
    "tanh": jnp.tanh,
    "logistic": _half_tanh,
    "exp": jnp.exp,
    "exp2": jnp.exp2,
    "expm1": _expm1,
    "log": jnp.log,
    "log1p": _log1p,
    "erf": lax.erf,
    "sqrt": jnp.sqrt,
    "rsqrt": lax.rsqrt,
    "sin": jnp.sin,
    "cos": jnp.cos,
    "pow": jnp.power,
    "reciprocal": lambda x: 1.0 / x,
}
"""Operations worth storing rather than doing again, on tiles."""

LOGICAL = {"gt", "ge", "lt", "le", "eq", "ne", "and", "or", "not"}
"""Operations whose results are True or False, which no kernel stores."""
