"""The mode `accuracy`: the explicit gradient against an independent naive loop in float64."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jax_bptt as jb
from benchmarks import library, measure, plain
from benchmarks.data import Data, Row, draw
from benchmarks.models import Model, cast, host
from benchmarks.race import Settings

SHAPES = ((1000, 4, 16, 32),)
LIMITS = {"float64": 1e-12, "float32": 1e-5}
"""Largest relative error of any leaf that the library allows itself."""


def run_row(row: Row, settings: Settings, tick: Callable[[], Any]) -> list[dict[str, Any]]:
    """Compare the gradients of a row in float64 and float32."""
    results = []
    for dtype, limit in LIMITS.items():
        data = draw(row._replace(dtype=dtype), recurrent_bias=True)
        want = _naive(data)
        for text in settings.algorithms:
            errors = measure.errors(_explicit(data, text), want)
            error = max(errors.values())
            found = {"algorithm": text, "errors": errors, "error": error}
            results.append({**data.row._asdict(), **found, "limit": limit, "met": error <= limit})
            tick()
    return results


def _start(data: Data) -> np.ndarray:
    """Draw an initial state other than zero, [B, H] or [2, B, H], exact in float32."""
    shape = (2, data.row.B, data.row.H) if data.row.cell == "lstm" else (data.row.B, data.row.H)
    return np.random.default_rng(1).uniform(-0.5, 0.5, shape).astype(np.float32).astype(np.float64)


def _naive(data: Data) -> dict[str, np.ndarray]:
    """Return the gradient by jax.grad of the plain loop, in float64."""
    with jax.enable_x64(True):
        model = plain.plain(data.row.cell)

        def run(params, xs, state):
            state = tuple(state) if data.row.cell == "lstm" else state
            return plain.scan_from(plain.STEPS[data.row.cell], params, state, xs)

        return _gradient(run, model, data, "float64")


def _explicit(data: Data, algorithm: str) -> dict[str, np.ndarray]:
    """Return the same gradient by the library, in the dtype of the row."""
    row = data.row
    with jax.enable_x64(row.dtype == "float64"):
        cell = library.cell_of(row)
        chosen = library.algorithm(algorithm)

        def run(params, xs, state):
            state = jb.LSTMState(*state) if row.cell == "lstm" else state
            return jb.unroll(cell, params, xs, state, algorithm=chosen)

        return _gradient(run, library.model(row, chosen), data, row.dtype)


def _gradient(run: Callable[..., Any], model: Model, data: Data, dtype: str) -> dict[str, Any]:
    """Return the gradient of sum(ys^2) + sum(s_T^2), for `run(params, xs, s_0) -> (s_T, ys)`."""

    def loss(params, xs, state):
        state, ys = run(params, xs, state)
        return jnp.sum(ys**2) + sum(jnp.sum(s**2) for s in jax.tree.leaves(state))

    params = model.pack(cast(data.weights, dtype))
    xs, start = (jnp.asarray(a, dtype) for a in (data.xs, _start(data)))
    grads = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(params, xs, start)
    return host({**model.unpack(grads[0]), "xs": grads[1], "state": grads[2]})
