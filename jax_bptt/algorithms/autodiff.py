"""The plain scan, differentiated by JAX: the reference, and the way to forward mode."""

from jax import lax

from jax_bptt.core.types import Algorithm


def autodiff() -> Algorithm:
    """Return the plain scan that JAX differentiates itself.

        s_t = step(s_{t-1}, project(x_t))        y_t = readout(s_t)        t = 1..T

    No custom rule is registered, so that forward mode (`jax.jvp`, `jax.linearize`, `jax.jacfwd`)
    works as well as reverse mode. Exact. Memory is what JAX saves of every step, 13 arrays of
    [T, B, H] for an LSTM; prefer `bptt()` for gradients.

    Returns:
      An `Algorithm` for `unroll`.

    Example:
      >>> import jax, jax.numpy as jnp, jax_bptt as jb
      >>> cell = jb.elman(input_size=3, hidden_size=4)
      >>> params, xs = cell.init(jax.random.key(0)), jnp.ones((10, 3))
      >>> run = lambda xs: jb.unroll(cell, params, xs, algorithm=jb.autodiff())[1]
      >>> jax.jvp(run, (xs,), (xs,))[1].shape
      (10, 4)
    """

    def forward(cell, weights, state, xs):
        def advance(state, x):
            state = cell.step(weights, state, cell.project(weights, x))
            return state, cell.readout(weights, state)

        return lax.scan(advance, state, xs), ()

    return Algorithm(forward, None)
