"""Haiku: `hk.dynamic_unroll` of a core.

`VanillaRNN` has a relu, whose kink no difference likes, and is not examined. `GRU` resets before
the product.
"""

# The rivals are an optional extra, so that they may be absent where types are checked.
# pyright: reportMissingImports=false

from jax_bptt import interop
from jax_bptt.testing.libraries.layers import Layer, arrays, jax_adapter, without_b_n, zeros

OTHERS = {
    "elman": ("elman_relu", "relu, not tanh; error by mean square"),
    "gru": ("gru_reset_before", "resets before the product"),
}
"""Cores that differ from the cell they are named after: what they compute, and a note."""


def layer(name: str, inputs: int, units: int) -> Layer:
    """Return a core under `hk.dynamic_unroll`."""
    import haiku as hk

    kinds = {"lstm": hk.LSTM, "gru": hk.GRU, "gru_reset_before": hk.GRU, "elman": hk.VanillaRNN}

    def unrolled(xs, state):
        return hk.dynamic_unroll(kinds[name](units), xs, state)

    def one(x, state):
        return kinds[name](units)(x, state)

    whole = hk.without_apply_rng(hk.transform(unrolled))
    single = hk.without_apply_rng(hk.transform(one))

    def run(params, xs, state):
        ys, last_state = whole.apply(params, xs, state)
        return last_state, ys

    def step(params, state, x):
        y, state = single.apply(params, x, state)
        return state, y

    def start(params, batch):
        state = zeros(name, units)(params, batch)
        return hk.LSTMState(*state) if name == "lstm" else state

    def from_params(params):
        return arrays(interop.haiku.from_params(without_b_n(params)))

    equations, note = OTHERS.get(name, (name, ""))
    return Layer(from_params, interop.haiku.to_gradients, start, run, step, equations, note)


ADAPTER = jax_adapter(
    "dm-haiku",
    "haiku",
    ("lstm", "gru"),
    layer,
    disclaims={"resets": "hk.ResetCore starts again from zeros, not from the state given"},
)
