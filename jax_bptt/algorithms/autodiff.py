"""The plain scan, differentiated by JAX: the reference for every other algorithm."""

from jax import lax

from jax_bptt.core.types import Algorithm, Cell, Inputs, PyTree
from jax_bptt.core.values import as_value


@as_value
def autodiff() -> Algorithm:
    """Return the plain scan that JAX differentiates itself.

        s_t = step(s_{t-1}, project(x_t))        y_t = readout(s_t)        t = 1..T

    No rule is registered. Exact. Memory is what JAX saves of every step, 13 arrays of [T, B, H] for
    an LSTM; prefer `bptt()`.

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

    def explain(cell, inputs):
        return "autodiff() is the plain scan, differentiated by JAX, and is exact"

    return Algorithm(_run, explain=explain)


def _run(cell: Cell, inputs: Inputs) -> tuple[PyTree, PyTree]:
    weights, state, xs, start, controls = inputs

    def step(state, inputs):
        x, control = inputs
        prev = control.enter(start, state)
        new = cell.step(weights, prev, cell.project(weights, x))
        state = control.hold(new, prev)
        return state, cell.readout(weights, state)

    return lax.scan(step, state, (xs, controls))
