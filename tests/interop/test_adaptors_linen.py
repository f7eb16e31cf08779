"""`interop.linen.Recurrent` against `unroll` and `nn.RNN`; `ScannedRNN` against a written loop."""

import io
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jax_bptt as jb
from jax_bptt import interop
from tests.interop.adaptors import (
    CASES,
    CLOSE,
    LENGTHS,
    QUICK_LINEN,
    T,
    assert_same_layer,
    drawn,
    standard,
)
from tests.interop.shared import CELLS, B, H, I, maps, random_like, random_params
from tests.registry import assert_close, slow_unless

nn = pytest.importorskip("flax.linen")
serialization = pytest.importorskip("flax.serialization")

XS = random_like(np.empty((B, T, I)), seed=1)
DROPPED = jb.stack(jb.layer(CELLS["gru"]), jb.dropout(rate=0.5))


def recurrent(cell, **settings):
    return interop.linen.Recurrent(CELLS[cell], **settings)


def their_cell(cell):
    names = {"elman": "SimpleCell", "gru": "GRUCell", "lstm": "LSTMCell"}
    return getattr(nn, names[cell])(H, param_dtype=jnp.float64)


@pytest.mark.parametrize(
    "case", [slow_unless(case in QUICK_LINEN, case) for case in CASES], ids=str
)
def test_is_nn_rnn(case):
    layer, rnn = recurrent(case.cell), nn.RNN(their_cell(case.cell))

    def ours(params, xs, **call):
        return layer.apply(layer.from_params(params), xs, return_carry=True, **call)

    def theirs(tree, xs, **call):
        return rnn.apply({"params": {"cell": tree}}, xs, return_carry=True, **call)

    assert_same_layer(case, maps(interop.flax), ours, theirs)


def test_settings_of_the_constructor_are_defaults_of_the_call():
    flags: Any = {"time_major": True, "return_carry": True, "reverse": True, "keep_order": True}
    layer, xs = recurrent("gru", **flags), jnp.swapaxes(XS, 0, 1)
    variables = layer.from_params(drawn("gru"))
    want = jb.unroll(CELLS["gru"], drawn("gru"), xs, reverse=True)
    assert_close(layer.apply(variables, xs), want, CLOSE)
    back: Any = dict.fromkeys(flags, False)
    forwards = jb.unroll(CELLS["gru"], drawn("gru"), xs)[1]
    assert_close(layer.apply(variables, XS, **back), jnp.swapaxes(forwards, 0, 1), CLOSE)


def test_variables_are_arrays_by_name():
    layer = interop.linen.Recurrent(
        jb.stack(jb.bidirectional(CELLS["gru"], CELLS["elman"]), jb.dropout(rate=0.1)),
        deterministic=True,
    )
    variables = layer.init(jax.random.key(0), XS)
    names = {jax.tree_util.keystr(p) for p, _ in jax.tree.leaves_with_path(variables)}
    assert "['params']['layer']['0']['backward']['w_s']" in names and len(names) == 7
    params = layer.to_params(variables)
    assert isinstance(params[0], jb.Directions) and params[1] == ()
    assert_close(layer.from_params(params), variables, 0)
    # Two modules of equal settings are one static argument of `nn.jit`.
    assert recurrent("gru") == recurrent("gru") and hash(recurrent("gru")) == hash(recurrent("gru"))
    assert recurrent("gru") != recurrent("lstm")


class Model(nn.Module):
    """Two layers under names of the model's choice."""

    @nn.compact
    def __call__(self, xs):
        xs = interop.linen.Recurrent(CELLS["lstm"], name="lower")(xs)
        return interop.linen.Recurrent(jb.lstm(H, H))(xs)


def test_two_updates_and_bytes():
    model, tx = Model(), optax.adam(1e-2)
    net = jb.stack(jb.layer(CELLS["lstm"]), jb.layer(jb.lstm(H, H)))
    variables = model.init(jax.random.key(0), XS)
    assert set(variables["params"]) == {"lower", "Recurrent_0"}
    own = tuple(
        recurrent("lstm").to_params({"params": variables["params"][name]})
        for name in ("lower", "Recurrent_0")
    )

    def update(loss):
        def step(params, state):
            value, grads = jax.value_and_grad(loss)(params)
            updates, state = tx.update(grads, state, params)
            return optax.apply_updates(params, updates), state, value

        return jax.jit(step)

    step = update(lambda variables: jnp.sum(model.apply(variables, XS) ** 2))
    plain = update(lambda own: jnp.sum(net.apply(own, jnp.swapaxes(XS, 0, 1))[1] ** 2))
    with standard():
        state, own_state = tx.init(variables), tx.init(own)
        for _ in range(2):
            variables, state, loss = step(variables, state)
            own, own_state, want = plain(own, own_state)
            assert_close(loss, want, CLOSE)
    lower = recurrent("lstm").to_params({"params": variables["params"]["lower"]})
    assert_close(lower, own[0], CLOSE)

    stream = io.BytesIO(serialization.to_bytes(variables))
    blank = jax.tree.map(np.zeros_like, variables)
    assert_close(serialization.from_bytes(blank, stream.getvalue()), variables, 0)


@pytest.mark.slow
def test_within_bidirectional():
    params = [random_params(CELLS["lstm"], seed) for seed in (0, 1)]
    both = nn.Bidirectional(recurrent("lstm"), recurrent("lstm"))
    theirs = nn.Bidirectional(nn.RNN(their_cell("lstm")), nn.RNN(their_cell("lstm")))
    names = "forward_rnn", "backward_rnn"
    ours = {
        n: recurrent("lstm").from_params(p)["params"] for n, p in zip(names, params, strict=True)
    }
    maps_of = {n: {"cell": interop.flax.from_params(p)} for n, p in zip(names, params, strict=True)}
    want_names = jax.tree.structure(both.init(jax.random.key(0), XS)["params"])
    assert jax.tree.structure(ours) == want_names
    lengths = jnp.asarray(LENGTHS)
    got = both.apply({"params": ours}, XS, seq_lengths=lengths)
    with standard():
        want = theirs.apply({"params": maps_of}, XS, seq_lengths=lengths)
    assert_close(
        got, jnp.where(np.arange(T)[None, :, None] < LENGTHS[:, None, None], want, 0.0), CLOSE
    )


def test_masks_follow_deterministic():
    layer = interop.linen.Recurrent(DROPPED)
    variables = layer.init(jax.random.key(0), XS, deterministic=True)
    params, xs = layer.to_params(variables), jnp.swapaxes(XS, 0, 1)
    without = jnp.swapaxes(DROPPED.apply(params, xs, key=None)[1], 0, 1)
    assert_close(layer.apply(variables, XS, deterministic=True), without, CLOSE)
    runs = [
        layer.apply(variables, XS, deterministic=False, rngs={"dropout": key})
        for key in (jax.random.key(1), jax.random.key(1), jax.random.PRNGKey(2))
    ]
    assert_close(runs[0], runs[1], 0)
    assert np.any(runs[0] != runs[2]) and np.any(runs[0] != without)
    with pytest.raises(ValueError, match="deterministic"):
        layer.apply(variables, XS)


def test_keys_of_the_older_kind():
    old = recurrent("gru").init(jax.random.PRNGKey(0), XS)
    assert_close(old, recurrent("gru").init(jax.random.key(0), XS), 0)


@pytest.mark.parametrize(
    "error, match, call",
    [
        (ValueError, r"unroll=4.*block_length", lambda: recurrent("gru", unroll=4)),
        (ValueError, "variable_axes", lambda: recurrent("gru", variable_axes={"params": 0})),
        (ValueError, "variable_broadcast", lambda: recurrent("gru", variable_broadcast=False)),
        (ValueError, "variable_carry", lambda: recurrent("gru", variable_carry="stats")),
        (ValueError, "split_rngs", lambda: recurrent("gru", split_rngs={"params": True})),
        (TypeError, "jb.Cell or a jb.Layer", lambda: interop.linen.Recurrent(nn.GRUCell(H))),
        (ValueError, "no w_x", lambda: recurrent("gru").to_params({"params": {"layer": {}}})),
        (
            TypeError,
            "jb.LSTMState",
            lambda: recurrent("lstm").init(KEY, XS, initial_carry=(XS, XS)),
        ),
        (TypeError, "such as jb.gru", lambda: scanned().initialize_carry(B, H, not_a_cell)),
        (
            ValueError,
            "learns its initial state",
            lambda: scanned().initialize_carry(B, H, jb.learned_state(CELLS["gru"])),
        ),
        (
            TypeError,
            r"initialize_carry\(B, H, cell\)",
            lambda: scanned(cell=jb.lstm).init(KEY, np.zeros((B, H)), (INS, RESETS)),
        ),
        (ValueError, "initialize_carry", lambda: scanned().init(KEY, (), (INS, RESETS))),
    ],
)
def test_what_cannot_be_had_is_refused(error, match, call):
    with pytest.raises(error, match=match):
        call()


KEY = jax.random.PRNGKey(0)
not_a_cell: Any = 3
INS = random_like(np.empty((T, B, I)), seed=5)
RESETS = np.arange(T)[:, None] == np.array([[0, 2]])


def scanned(**settings):
    return interop.linen.ScannedRNN(**settings)


def test_scanned_rnn_resets_before_the_step():
    """The loop that the module's namesakes run, with Flax's own cell."""
    params, carry = random_params(CELLS["gru"]), random_like(np.empty((B, H)), seed=6)
    tree, cell = jax.tree.map(jnp.asarray, interop.flax.from_params(params)), their_cell("gru")
    rnn = scanned()
    variables = recurrent("gru").from_params(params)
    assert jax.tree.structure(variables) == jax.tree.structure(rnn.init(KEY, carry, (INS, RESETS)))

    def theirs(tree, carry, ins):
        ys = []
        for x, reset in zip(ins, RESETS, strict=True):
            carry = jnp.where(reset[:, None], jnp.zeros_like(carry), carry)
            carry, y = cell.apply({"params": tree}, carry, x)
            ys.append(y)
        return carry, jnp.stack(ys)

    def gradients(run, weights):
        def loss(weights, carry, ins):
            last, ys = run(weights, carry, ins)
            return jnp.sum(ys**2) + jnp.sum(last**3), (last, ys)

        return jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(weights, carry, INS)

    def ours(variables, carry, ins):
        return rnn.apply(variables, carry, (ins, RESETS))

    (d_ours, *d_inputs), outputs = gradients(ours, variables)
    with standard():
        (d_tree, *their_d_inputs), their_outputs = gradients(theirs, tree)
    assert_close(outputs, their_outputs, CLOSE)
    assert_close(d_inputs, their_d_inputs, CLOSE)
    d_params = recurrent("gru").to_params(d_ours)
    assert_close(interop.flax.from_gradients(d_params), d_tree, CLOSE)


@pytest.mark.parametrize(
    "cell", [slow_unless(False, jb.lstm), CELLS["lstm"], slow_unless(False, jb.min_gru)]
)
def test_scanned_rnn_of_any_cell(cell):
    rnn = scanned(cell=cell, algorithm=jb.autodiff())
    carry = rnn.initialize_carry(B, H, cell)
    variables = rnn.init(KEY, carry, (INS, RESETS))
    run: Any = rnn.apply
    last, ys = run(variables, carry, (INS, RESETS))
    # Acting is one step at a time, with `done` as numbers as environments have it.
    for t in range(T):
        carry, y = run(variables, carry, (INS[t : t + 1], RESETS[t : t + 1].astype(float)))
        assert_close(y[0], ys[t], CLOSE)
    assert_close(carry, last, CLOSE)


class Actor(nn.Module):
    """A network as users of `ScannedRNN` have it."""

    @nn.compact
    def __call__(self, carry, x):
        ins, resets = x
        carry, ys = interop.linen.ScannedRNN()(carry, (nn.Dense(H)(ins), resets))
        return carry, nn.Dense(2)(ys)


@pytest.mark.slow
def test_transformations_of_linen_and_of_jax():
    with standard():
        actor = Actor()
        carry = interop.linen.ScannedRNN.initialize_carry(B, H)
        keys = jax.random.split(jax.random.PRNGKey(0), 3)
        seeds = jax.vmap(lambda key: actor.init(key, carry, (INS, RESETS)))(keys)
        run = jax.jit(jax.vmap(lambda v: actor.apply(v, carry, (INS, RESETS))[1]))
        one = jax.tree.map(lambda a: a[1], seeds)
        assert_close(run(seeds)[1], actor.apply(one, carry, (INS, RESETS))[1], CLOSE)

    layer = recurrent("gru")
    every = nn.vmap(
        interop.linen.Recurrent,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=None,
        axis_size=3,
    )(CELLS["gru"])
    variables = every.init(KEY, XS)
    second = jax.tree.map(lambda a: a[1], variables)
    assert_close(every.apply(variables, XS)[1], layer.apply(second, XS), CLOSE)
    again = nn.remat(interop.linen.Recurrent)(CELLS["gru"])

    def gradient(module):
        return jax.grad(lambda v: jnp.sum(module.apply(v, XS) ** 2))(second)

    assert_close(gradient(again), gradient(layer), CLOSE)
    assert layer.clone(reverse=True).layer == layer.layer
    assert "gru(input_size=3, hidden_size=4)" in repr(layer)


class Block(nn.Module):
    """A layer with dropout, as a parent that is scanned over layers has it."""

    @nn.compact
    def __call__(self, xs, _):
        layer = jb.stack(jb.layer(jb.gru(I, I)), jb.dropout(rate=0.5))
        return interop.linen.Recurrent(layer, deterministic=False)(xs), None


@pytest.mark.slow
def test_within_a_parent_that_is_scanned_over_layers_or_rematerialised():
    def scanned(block):
        settings: Any = {"params": True, "dropout": True}
        return nn.scan(block, variable_axes={"params": 0}, split_rngs=settings, length=3)()

    streams = {"params": KEY, "dropout": jax.random.key(1)}
    with standard():
        variables = scanned(Block).init(streams, XS, None)
        shapes = {a.shape[0] for a in jax.tree.leaves(variables)}
        assert shapes == {3}

        def gradient(module):
            def loss(variables):
                ys, _ = module.apply(variables, XS, None, rngs={"dropout": jax.random.key(2)})
                return jnp.sum(ys**2), ys

            return jax.jit(jax.grad(loss, has_aux=True))(variables)

        d_plain, ys = gradient(scanned(Block))
        assert np.any(ys != 0)
        assert_close(gradient(scanned(nn.remat(Block))), (d_plain, ys), CLOSE)
