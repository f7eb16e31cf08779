"""Equinox: its cells under `jax.lax.scan` and `jax.vmap`, as its documentation has it."""

# The rivals are an optional extra, so that they may be absent where types are checked.
# pyright: reportMissingImports=false

import jax

from jax_bptt import interop
from jax_bptt.testing.libraries.layers import Layer, arrays, jax_adapter, zeros


def layer(name: str, inputs: int, units: int) -> Layer | None:
    """Return a scan over a cell for one sequence, under `vmap` over the batch."""
    import equinox as eqx

    cells = {"lstm": eqx.nn.LSTMCell, "gru": eqx.nn.GRUCell}
    if name not in cells:
        return None
    cell = cells[name](inputs, units, key=jax.random.key(0))

    def filled(params):
        return eqx.tree_at(lambda c: [getattr(c, k) for k in params], cell, list(params.values()))

    def advance(cell, state, x):
        state = cell(x, state)
        return state, state[0] if name == "lstm" else state

    def run(params, xs, state):
        own = filled(params)

        def sequence(xs, state):
            return jax.lax.scan(lambda s, x: advance(own, s, x), state, xs)

        return jax.vmap(sequence, in_axes=(1, 0), out_axes=(0, 1))(xs, state)

    def step(params, state, x):
        own = filled(params)
        return jax.vmap(lambda s, x: advance(own, s, x))(state, x)

    def from_params(params):
        return arrays(interop.equinox.from_params(params))

    to_gradients = interop.equinox.to_gradients
    return Layer(from_params, to_gradients, zeros(name, units), run, step, name)


ADAPTER = jax_adapter("equinox", "equinox", ("lstm", "gru"), layer)
