"""The same objective as others would write it: plain JAX with `jax.grad`, and PyTorch.

Two forms in JAX. `steps` is one scan over time that goes through all layers in a step, as the
equations are written. `layers` is one scan a layer, whose forget and output gates, which read the
layer below alone, are computed ahead of it for all steps. PyTorch has the second form, the one with
fewer operations. All layouts were chosen for speed, and no equation is changed.
"""

# PyTorch is an optional extra, so that it may be absent where types are checked.
# pyright: reportMissingImports=false

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array


def steps(unroll: int) -> Callable[..., Array]:
    """Return the loss by one scan over time; `unroll` is `lax.scan`'s."""

    def objective(main: Array, extra: Array, state: Array, sequence: Array) -> Array:
        w, b = _split(main)

        def step(carry, x):
            new = []
            for j, (h, c) in enumerate(carry):
                a = jnp.stack([x, h, x, h]) * w[j] + b[j]
                f, i, o = jax.nn.sigmoid(a[:3])
                c = c * f + i * jnp.tanh(a[3])
                x = o * jnp.tanh(c)
                new.append((x, c))
            return new, x

        start = list(zip(state[0::2], state[1::2], strict=True))
        _, xs = jax.lax.scan(step, start, sequence[:-1] * extra[0], unroll=unroll)
        return _loss(xs, extra, sequence)

    return objective


def layers(unroll: int) -> Callable[..., Array]:
    """Return the loss by one scan over time for each layer; `unroll` is `lax.scan`'s."""

    def objective(main: Array, extra: Array, state: Array, sequence: Array) -> Array:
        xs = sequence[:-1] * extra[0]
        for h, c, w, b in zip(state[0::2], state[1::2], *_split(main), strict=True):
            gates = jax.nn.sigmoid(xs * w[0] + b[0]), jax.nn.sigmoid(xs * w[2] + b[2])
            inner = w[1], b[1], w[3], b[3]

            def step(carry, gates, inner=inner):
                (h, c), (f, o), (w_i, b_i, w_g, b_g) = carry, gates, inner
                c = c * f + jax.nn.sigmoid(h * w_i + b_i) * jnp.tanh(h * w_g + b_g)
                h = o * jnp.tanh(c)
                return (h, c), h

            _, xs = jax.lax.scan(step, (h, c), gates, unroll=unroll)
        return _loss(xs, extra, sequence)

    return objective


def _split(main: Array) -> tuple[Array, Array]:
    """Return factors and biases, [l, 4, b] each."""
    w, b = main.reshape(main.shape[0] // 2, 2, 4, -1).swapaxes(0, 1)
    return w, b


def _loss(xs: Array, extra: Array, sequence: Array) -> Array:
    ys = xs * extra[1] + extra[2]
    normalised = ys - jnp.log(2 + jnp.exp(ys).sum(-1, keepdims=True))
    return -(sequence[1:] * normalised).mean()


def jax_functions(objective: Callable[..., Array]) -> dict[str, Callable[..., Array]]:
    """Return the compiled objective and its gradient by `jax.grad`, in one row."""

    def jacobian(*args):
        return jnp.concatenate([d.ravel() for d in jax.grad(objective, argnums=(0, 1))(*args)])

    return {"objective": jax.jit(objective), "jacobian": jax.jit(jacobian)}


def torch_functions() -> dict[str, Callable[..., Any]]:
    """Return the objective and its gradient in PyTorch, eager, of float64 NumPy arrays."""
    import torch

    def loss(main: Any, extra: Any, state: Any, sequence: Any) -> Any:
        w, b = main.reshape(len(main) // 2, 2, 4, -1).unbind(1)
        xs = sequence[:-1] * extra[0]
        for j in range(len(w)):
            h, c = state[2 * j], state[2 * j + 1]
            f = torch.sigmoid(xs * w[j, 0] + b[j, 0]).unbind()
            o = torch.sigmoid(xs * w[j, 2] + b[j, 2]).unbind()
            (w_i, w_g), (b_i, b_g) = w[j, 1::2].unbind(), b[j, 1::2].unbind()
            hs = []
            for f_t, o_t in zip(f, o, strict=True):
                i, g = torch.sigmoid(h * w_i + b_i), torch.tanh(h * w_g + b_g)
                c = c * f_t + i * g
                h = o_t * torch.tanh(c)
                hs.append(h)
            xs = torch.stack(hs)
        ys = xs * extra[1] + extra[2]
        normalised = ys - torch.log(2 + torch.exp(ys).sum(-1, keepdim=True))
        return -(sequence[1:] * normalised).mean()

    def objective(*args: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return loss(*map(torch.from_numpy, args)).numpy()

    def jacobian(*args: np.ndarray) -> np.ndarray:
        main, extra, state, sequence = map(torch.from_numpy, args)
        inputs = main.requires_grad_(), extra.requires_grad_()
        found = torch.autograd.grad(loss(*inputs, state, sequence), inputs)
        return torch.cat([d.ravel() for d in found]).numpy()

    return {"objective": objective, "jacobian": jacobian}
