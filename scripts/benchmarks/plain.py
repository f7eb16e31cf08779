"""Recurrent layers as a JAX user writes them: the baselines, and the float64 reference.

Nothing here comes from the library under test. Each cell is `advance(weights, state, drive)`, with
drive = x W_x + b and matrices of all gates side by side, and y the first leaf of the state.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from benchmarks.data import Data, Weights
from benchmarks.models import Model, cast, flat, gated, host


def _elman(weights, state, drive):
    return jnp.tanh(drive + state @ weights["w_s"])


def _elman_relu(weights, state, drive):
    return jax.nn.relu(drive + state @ weights["w_s"])


def _gru(weights, state, drive):
    x_r, x_z, x_n = jnp.split(drive, 3, axis=-1)
    h_r, h_z, h_n = jnp.split(state @ weights["w_s"], 3, axis=-1)
    r = jax.nn.sigmoid(x_r + h_r)
    z = jax.nn.sigmoid(x_z + h_z)
    n = jnp.tanh(x_n + r * (h_n + weights["b_n"]))
    return (1 - z) * n + z * state


def _gru_reset_before(weights, state, drive):
    units = state.shape[-1]
    w_gates, w_candidate = weights["w_s"][:, : 2 * units], weights["w_s"][:, 2 * units :]
    gates = jax.nn.sigmoid(drive[..., : 2 * units] + state @ w_gates)
    r, z = jnp.split(gates, 2, axis=-1)
    n = jnp.tanh(drive[..., 2 * units :] + (r * state) @ w_candidate)
    return (1 - z) * n + z * state


def _lstm(weights, state, drive):
    h, c = state
    i, f, g, o = jnp.split(drive + h @ weights["w_s"], 4, axis=-1)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jax.nn.sigmoid(o) * jnp.tanh(c), c


STEPS: dict[str, Callable] = {
    "elman": _elman,
    "elman_relu": _elman_relu,
    "gru": _gru,
    "gru_reset_before": _gru_reset_before,
    "lstm": _lstm,
}
"""Equations by name: the cells of the benchmark, and variants that some rival computes instead."""

KINKED = ("elman_relu",)
"""Equations whose derivative jumps, so that rounding alone can change an element of a gradient."""


def start(weights: Weights, batch: int) -> Any:
    """Return a state of zeros: [B, H], and two of them for an LSTM."""
    w_s = weights["w_s"]
    zeros = jnp.zeros((batch, w_s.shape[0]), w_s.dtype)
    return (zeros, zeros) if w_s.shape[1] == 4 * w_s.shape[0] else zeros


def _output(state):
    return state[0] if isinstance(state, tuple) else state


def _step(advance, weights, state, x):
    state = advance(weights, state, x @ weights["w_x"] + weights["b"])
    return state, _output(state)


def _pack(weights):
    return {k: w if k == "b_n" else flat(w) for k, w in weights.items()}


def _model(cell, run):
    def unpack(d_params):
        gates = d_params["w_s"].shape[1] // d_params["w_s"].shape[0]
        return {k: d if k == "b_n" else gated(d, gates) for k, d in d_params.items()}

    def step(weights, state, x):
        return _step(STEPS[cell], weights, state, x)

    return Model(_pack, unpack, run, start, step)


def scan_from(advance: Callable, weights: Weights, state: Any, xs: Any) -> tuple[Any, Any]:
    """Run `lax.scan` of the whole step, the input's product inside the loop."""
    return lax.scan(lambda state, x: _step(advance, weights, state, x), state, xs)


def plain(cell: str) -> Model:
    """Return the plain scan of a cell, which JAX differentiates."""

    def run(weights, xs):
        return scan_from(STEPS[cell], weights, start(weights, xs.shape[1]), xs)[1]

    return _model(cell, run)


def hoisted(cell: str, unroll: int) -> Model:
    """Return the scan with the input's product taken out, over all of T, and the loop unrolled."""

    def run(weights, xs):
        def advance(state, drive):
            state = STEPS[cell](weights, state, drive)
            return state, _output(state)

        drives = xs @ weights["w_x"] + weights["b"]
        return lax.scan(advance, start(weights, xs.shape[1]), drives, unroll=unroll)[1]

    return _model(cell, run)._replace(note=f"unroll={unroll}")


def reference(data: Data, equations: str) -> dict[str, np.ndarray]:
    """Compute the outputs and the gradient of sum(ys^2) in float64, by the plain scan.

    Returns:
      A dict of `ys` [T, B, H] and the gradient with respect to each of the weights and `xs`.
    """
    with jax.enable_x64(True):
        model = plain(equations)

        def loss(params, xs):
            ys = model.run(params, xs)
            return jnp.sum(ys**2), ys

        params = model.pack(cast(data.weights, "float64"))
        gradient = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))
        (d_params, d_xs), ys = gradient(params, jnp.asarray(data.xs))
        return host({**model.unpack(d_params), "xs": d_xs, "ys": ys})
