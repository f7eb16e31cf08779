"""Recurrent layers of other JAX libraries, each used the way its documentation shows.

Each library is imported when its models are asked for, so that the benchmark runs without it. A
function takes the row and returns its `Model`, or None where the library has no such cell.
"""

# The rivals are an optional extra, so that they may be absent where types are checked.
# pyright: reportMissingImports=false

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.data import GATES, Row
from benchmarks.models import Model, flat, gated

GATE_NAMES = {"gru": "rzn", "lstm": "ifgo"}


def flax_linen(row: Row) -> Model | None:
    """Return flax.linen's layer: `nn.RNN` over a cell, with one kernel per gate and operand."""
    import flax.linen as nn

    cells = {"elman": nn.SimpleCell, "gru": nn.GRUCell, "lstm": nn.OptimizedLSTMCell}
    if row.cell not in cells:
        return None
    cell = cells[row.cell](row.H, param_dtype=jnp.dtype(row.dtype))
    layer = nn.RNN(cell, time_major=True)

    def pack(w):
        if row.cell == "elman":
            own = {"i": {"kernel": flat(w["w_x"]), "bias": w["b"][0]}}
            return {"params": {"cell": {**own, "h": {"kernel": flat(w["w_s"])}}}}
        own = {}
        for k, gate in enumerate(GATE_NAMES[row.cell]):
            own["i" + gate] = {"kernel": w["w_x"][:, k]}
            own["h" + gate] = {"kernel": w["w_s"][:, k]}
            own[("h" if row.cell == "lstm" else "i") + gate]["bias"] = w["b"][k]
        if row.cell == "gru":
            own["hn"]["bias"] = w["b_n"]
        return {"params": {"cell": own}}

    def unpack(d_params):
        own = d_params["params"]["cell"]
        gates = GATE_NAMES.get(row.cell, " ")
        inputs, states = (
            [own["i" + g.strip()] for g in gates],
            [own["h" + g.strip()] for g in gates],
        )
        biased = states if row.cell == "lstm" else inputs
        grads = {
            "w_x": jnp.stack([d["kernel"] for d in inputs], axis=1),
            "w_s": jnp.stack([d["kernel"] for d in states], axis=1),
            "b": jnp.stack([d["bias"] for d in biased]),
        }
        return grads | ({"b_n": own["hn"]["bias"]} if row.cell == "gru" else {})

    def start(params, batch):
        return cell.initialize_carry(jax.random.key(0), (batch, row.I))

    def step(params, state, x):
        return cell.apply({"params": params["params"]["cell"]}, state, x)

    return Model(pack, unpack, layer.apply, start, step)


def flax_nnx(row: Row) -> Model | None:
    """Return flax.nnx's layer: `nnx.RNN` over a cell, with the gates side by side."""
    from flax import nnx

    cells = {"elman": nnx.SimpleCell, "gru": nnx.GRUCell, "lstm": nnx.OptimizedLSTMCell}
    if row.cell not in cells:
        return None
    dtype = jnp.dtype(row.dtype)
    # Its weights are replaced; the default initialiser knows no bfloat16.
    settings = {"param_dtype": dtype, "recurrent_kernel_init": nnx.initializers.zeros_init()}
    cell = cells[row.cell](row.I, row.H, dtype=dtype, rngs=nnx.Rngs(0), **settings)
    graph, state, rest = nnx.split(nnx.RNN(cell, time_major=True), nnx.Param, ...)
    layout = jax.tree.structure(state)
    biased = "dense_h" if row.cell == "lstm" else "dense_i"

    def pack(w):
        own = {"dense_i": {"kernel": flat(w["w_x"])}, "dense_h": {"kernel": flat(w["w_s"])}}
        own[biased]["bias"] = flat(w["b"])
        return own

    def unpack(d_params):
        return {
            "w_x": gated(d_params["dense_i"]["kernel"], GATES[row.cell]),
            "w_s": gated(d_params["dense_h"]["kernel"], GATES[row.cell]),
            "b": gated(d_params[biased]["bias"], GATES[row.cell]),
        }

    def layer(params):
        return nnx.merge(graph, jax.tree.unflatten(layout, jax.tree.leaves(params)), rest)

    def start(params, batch):
        zeros = jnp.zeros((batch, row.H), dtype)
        return (zeros, zeros) if row.cell == "lstm" else zeros

    def run(params, xs):
        return layer(params)(xs, initial_carry=start(params, xs.shape[1]))

    def step(params, state, x):
        return layer(params).cell(state, x)

    return Model(pack, unpack, run, start, step)


def haiku(row: Row) -> Model | None:
    """Return Haiku's layer: `hk.dynamic_unroll` of a core.

    Its cells differ from the others': `VanillaRNN` has a relu and a second bias, `GRU` puts the
    reset before the product and exchanges the roles of z and 1 - z, `LSTM` orders its gates
    i, g, f, o and adds one to the forget gate.
    """
    import haiku as hk

    cores = {"elman": hk.VanillaRNN, "gru": hk.GRU, "gru_reset_before": hk.GRU, "lstm": hk.LSTM}

    def core():
        return cores[row.cell](row.H)

    def start(params, batch):
        def zeros():
            return core().initial_state(batch)

        state = hk.without_apply_rng(hk.transform(zeros)).apply(params)
        return jax.tree.map(lambda s: s.astype(row.dtype), state)

    def unrolled(xs, state):
        return hk.dynamic_unroll(core(), xs, state)[0]

    def one(x, state):
        y, state = core()(x, state)
        return state, y

    layer = hk.without_apply_rng(hk.transform(unrolled))
    stepper = hk.without_apply_rng(hk.transform(one))

    def run(params, xs):
        return layer.apply(params, xs, start(params, xs.shape[1]))

    def step(params, state, x):
        return stepper.apply(params, x, state)

    packs = {"elman": _haiku_elman, "lstm": _haiku_lstm}
    pack, unpack = packs.get(row.cell, _haiku_gru)(row)
    model = Model(pack, unpack, run, start, step)
    if row.cell == "elman":
        return model._replace(equations="elman_relu", note="relu, not tanh; error by mean square")
    if row.cell == "gru":
        return model._replace(equations="gru_reset_before", note="resets before the product")
    return model


def _haiku_elman(row):
    def pack(w):
        b = w["b"][0]
        inputs = {"w": flat(w["w_x"]), "b": b}
        return {
            "vanilla_rnn/linear": inputs,
            "vanilla_rnn/linear_1": {"w": flat(w["w_s"]), "b": jnp.zeros_like(b)},
        }

    def unpack(d_params):
        inputs, states = d_params["vanilla_rnn/linear"], d_params["vanilla_rnn/linear_1"]
        return {"w_x": gated(inputs["w"], 1), "w_s": gated(states["w"], 1), "b": inputs["b"][None]}

    return pack, unpack


def _haiku_gru(row):
    def exchanged(w):
        """Go from gates r, z, n to Haiku's -z, r, n or back: sigmoid(-a) = 1 - sigmoid(a)."""
        r, z, n = w[..., 0, :], w[..., 1, :], w[..., 2, :]
        return jnp.concatenate([-z, r, n], axis=-1)

    def restored(w):
        z, r, n = jnp.split(w, 3, axis=-1)
        return jnp.stack([r, -z, n], axis=-2)

    def pack(w):
        return {
            "gru": {"w_i": exchanged(w["w_x"]), "w_h": exchanged(w["w_s"]), "b": exchanged(w["b"])}
        }

    def unpack(d_params):
        d = d_params["gru"]
        return {"w_x": restored(d["w_i"]), "w_s": restored(d["w_h"]), "b": restored(d["b"])}

    return pack, unpack


def _haiku_lstm(row):
    order = np.array([0, 2, 1, 3])  # i, f, g, o <-> i, g, f, o

    def pack(w):
        b = w["b"].at[1].add(-1)
        joint = jnp.concatenate([w["w_x"], w["w_s"]])
        return {"lstm/linear": {"w": flat(joint[:, order]), "b": flat(b[order])}}

    def unpack(d_params):
        d = d_params["lstm/linear"]
        joint = gated(d["w"], 4)[:, order]
        return {"w_x": joint[: row.I], "w_s": joint[row.I :], "b": gated(d["b"], 4)[order]}

    return pack, unpack


def equinox(row: Row) -> Model | None:
    """Return Equinox's layer: a scan over a cell for one sequence, under `vmap` over the batch."""
    import equinox as eqx

    cells = {"gru": eqx.nn.GRUCell, "lstm": eqx.nn.LSTMCell}
    if row.cell not in cells:
        return None
    cell = cells[row.cell](row.I, row.H, dtype=jnp.dtype(row.dtype), key=jax.random.key(0))
    gates = GATES[row.cell]

    def pack(w):
        own = {
            "weight_ih": flat(w["w_x"]).T,
            "weight_hh": flat(w["w_s"]).T,
            "bias": flat(w["b"]),
        }
        return own | ({"bias_n": w["b_n"]} if row.cell == "gru" else {})

    def unpack(d_params):
        grads = {
            "w_x": gated(d_params["weight_ih"].T, gates),
            "w_s": gated(d_params["weight_hh"].T, gates),
            "b": gated(d_params["bias"], gates),
        }
        return grads | ({"b_n": d_params["bias_n"]} if row.cell == "gru" else {})

    def filled(params):
        return eqx.tree_at(lambda c: [getattr(c, k) for k in params], cell, list(params.values()))

    def advance(cell, state, x):
        state = cell(x, state)
        return state, state[0] if row.cell == "lstm" else state

    def zeros(*shape):
        h = jnp.zeros((*shape, row.H), row.dtype)
        return (h, h) if row.cell == "lstm" else h

    def run(params, xs):
        own = filled(params)

        def sequence(xs):
            return jax.lax.scan(lambda state, x: advance(own, state, x), zeros(), xs)[1]

        return jax.vmap(sequence, in_axes=1, out_axes=1)(xs)

    def step(params, state, x):
        own = filled(params)
        return jax.vmap(lambda state, x: advance(own, state, x))(state, x)

    return Model(pack, unpack, run, lambda params, batch: zeros(batch), step)


MODELS: dict[str, Callable[[Row], Model | None]] = {
    "flax": flax_linen,
    "nnx": flax_nnx,
    "haiku": haiku,
    "equinox": equinox,
}
"""The JAX libraries by name."""

PACKAGES = {
    "flax": "flax",
    "nnx": "flax",
    "haiku": "dm-haiku",
    "equinox": "equinox",
    "torch": "torch",
}
"""All peers, and the distribution each is installed from."""
