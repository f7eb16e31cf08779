"""`interop.nnx.Recurrent` against `unroll`, and against `nnx.RNN` with the same weights."""

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
    QUICK_NNX,
    T,
    assert_same_layer,
    drawn,
    standard,
)
from tests.interop.shared import CELLS, B, H, I, maps, random_like, random_params
from tests.registry import assert_close, slow_unless

nnx = pytest.importorskip("flax.nnx")

XS = random_like(np.empty((B, T, I)), seed=1)
DEEP = jb.stack(
    jb.bidirectional(CELLS["gru"], CELLS["gru"]),
    jb.variational_dropout(rate=0.5),
    jb.layer(jb.lstm(2 * H, H)),
)


def module(layer, **settings):
    return interop.nnx.Recurrent(layer, rngs=nnx.Rngs(0), **settings)


def their_rnn(cell):
    names = {"elman": "SimpleCell", "gru": "GRUCell", "lstm": "LSTMCell"}
    dtypes = {"dtype": jnp.float64, "param_dtype": jnp.float64}
    return nnx.RNN(getattr(nnx, names[cell])(I, H, **dtypes, rngs=nnx.Rngs(0)))


def squared(module, xs):
    return jnp.sum(module(xs) ** 2)


@pytest.mark.parametrize("case", [slow_unless(case in QUICK_NNX, case) for case in CASES], ids=str)
def test_is_nnx_rnn(case):
    ours, theirs = nnx.split(module(CELLS[case.cell])), nnx.split(their_rnn(case.cell))

    def run_ours(params, xs, **call):
        layer = nnx.merge(*ours, copy=True)
        layer.set_params(params)
        return layer(xs, return_carry=True, **call)

    def run_theirs(tree, xs, **call):
        layer = nnx.merge(*theirs, copy=True)
        nnx.update(layer.cell, tree)
        return layer(xs, return_carry=True, **call)

    assert_same_layer(case, maps(interop.nnx), run_ours, run_theirs)


@pytest.mark.slow
def test_settings_of_the_constructor_are_defaults_of_the_call():
    params = drawn("gru")
    xs = jnp.swapaxes(XS, 0, 1)
    layer = module(CELLS["gru"], time_major=True, return_carry=True, reverse=True, keep_order=True)
    layer.set_params(params)
    carry, ys = layer(xs)
    want = jb.unroll(CELLS["gru"], params, xs, reverse=True)
    assert_close((carry, ys), want, CLOSE)
    forwards = jb.unroll(CELLS["gru"], params, xs)[1]
    got = layer(XS, time_major=False, return_carry=False, reverse=False)
    assert_close(got, jnp.swapaxes(forwards, 0, 1), CLOSE)


def test_one_param_an_array():
    params = nnx.state(module(DEEP), nnx.Param)
    drawn = jax.eval_shape(DEEP.init, jax.random.key(0))
    assert len(nnx.to_flat_state(params)) == len(jax.tree.leaves(drawn))
    assert ("params", 2, "w_x") in dict(nnx.to_flat_state(params))
    plain = nnx.state(module(CELLS["lstm"]))
    assert {path[1] for path, _ in nnx.to_flat_state(plain)} == {"w_x", "w_s", "b"}


def test_two_updates_are_those_of_the_parameters_alone():
    cell, tx = CELLS["lstm"], optax.adam(1e-2)
    layer = module(cell)
    params = layer.get_params()
    optimizer = nnx.Optimizer(layer, tx, wrt=nnx.Param)

    @nnx.jit
    def train(layer, optimizer, xs):
        loss, grads = nnx.value_and_grad(squared)(layer, xs)
        optimizer.update(layer, grads)
        return loss

    @jax.jit
    def plain(params, state, xs):
        def loss(params):
            return jnp.sum(jb.unroll(cell, params, jnp.swapaxes(xs, 0, 1))[1] ** 2)

        value, grads = jax.value_and_grad(loss)(params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    state = tx.init(params)
    with standard():
        for _ in range(2):
            loss = train(layer, optimizer, XS)
            params, state, want = plain(params, state, XS)
            assert_close(loss, want, CLOSE)
            assert_close(layer.get_params(), params, CLOSE)


def test_split_and_merge_and_a_state_of_numbers_alone():
    layer = module(CELLS["gru"])
    graph, state = nnx.split(layer)
    again = nnx.merge(graph, jax.tree.map(lambda a: a + 0, state))
    assert_close(again(XS), layer(XS), 0)
    assert again.layer == jb.layer(CELLS["gru"])
    assert nnx.split(module(CELLS["gru"]))[0] == graph

    pure = nnx.to_pure_dict(state)
    abstract = nnx.eval_shape(lambda: module(CELLS["gru"]))
    graph, empty = nnx.split(abstract)
    nnx.replace_by_pure_dict(empty, jax.tree.map(np.asarray, pure))
    assert_close(nnx.merge(graph, empty)(XS), layer(XS), 0)


@pytest.mark.parametrize("lengths", [slow_unless(False, None), LENGTHS])
def test_within_bidirectional(lengths):
    params = [random_params(CELLS["lstm"], seed) for seed in (0, 1)]
    own = [module(CELLS["lstm"]) for _ in params]
    theirs = [their_rnn("lstm") for _ in params]
    for each, layer, other in zip(params, own, theirs, strict=True):
        layer.set_params(each)
        nnx.update(other.cell, jax.tree.map(jnp.asarray, interop.nnx.from_params(each)))
    call = {"seq_lengths": None if lengths is None else jnp.asarray(lengths)}
    with standard():
        want = nnx.Bidirectional(*theirs)(jnp.asarray(XS), **call)
        (ahead, back), got = nnx.Bidirectional(*own, return_carry=True)(jnp.asarray(XS), **call)
    if lengths is not None:
        want = jnp.where(np.arange(T)[None, :, None] < lengths[:, None, None], want, 0.0)
    assert_close(got, want, CLOSE)
    both = jb.bidirectional(CELLS["lstm"], CELLS["lstm"])
    last, ys = both.apply(jb.Directions(*params), jnp.swapaxes(XS, 0, 1), lengths=lengths)
    assert_close(jb.Directions(ahead, back), last, CLOSE)
    assert_close(got, jnp.swapaxes(ys, 0, 1), CLOSE)


def test_masks_are_drawn_in_training():
    layer = module(DEEP)
    params, xs = layer.get_params(), jnp.swapaxes(XS, 0, 1)
    without = jnp.swapaxes(DEEP.apply(params, xs, key=None)[1], 0, 1)
    first, second = layer(XS), layer(XS)
    assert np.any(first != second) and np.any(first != without)
    with_key = jnp.swapaxes(DEEP.apply(params, xs, key=jax.random.key(7))[1], 0, 1)
    assert_close(layer(XS, rngs=jax.random.key(7)), with_key, CLOSE)
    by_name = layer(XS, rngs=nnx.Rngs(dropout=7))
    assert_close(layer(XS, rngs=nnx.Rngs(dropout=7).dropout), by_name, 0)
    assert np.any(layer(XS, rngs=nnx.Rngs(8)) != by_name)

    assert_close(layer(XS, deterministic=True), without, CLOSE)
    assert_close(nnx.view(layer, deterministic=True)(XS), without, CLOSE)
    layer.eval()
    assert_close(layer(XS), without, CLOSE)
    layer.train()
    assert np.any(layer(XS) != without)


def test_the_stream_of_carries_is_left_alone():
    """`nnx.Bidirectional` passes one, by default of the same seed in every model."""
    layer = module(jb.zoneout(CELLS["gru"], rate=0.5))
    other = nnx.clone(layer)
    streams = [nnx.RngStream(0, tag="carry"), nnx.RngStream(1, tag="carry")]
    assert_close(layer(XS, rngs=streams[0]), other(XS, rngs=streams[1]), 0)
    assert int(streams[0].count[...]) == 0


def test_padding_may_hold_nan_and_a_sequence_may_be_empty():
    layer = module(CELLS["lstm"], return_carry=True)
    lengths = np.array([2, 0])
    xs = np.where(np.arange(T)[None, :, None] < lengths[:, None, None], XS, np.nan)
    start = random_like(layer.initialize_carry((B, I)))
    for reverse in (False, True):
        carry, ys = layer(xs, initial_carry=start, seq_lengths=lengths, reverse=reverse)
        assert np.all(np.isfinite(ys)) and np.all(ys[0, 2:] == 0) and np.all(ys[1] == 0)
        assert_close(carry.h[1], start.h[1], 0)


def test_resets_begin_a_sequence():
    layer = module(CELLS["gru"])
    resets = np.arange(T) == np.array([[0], [2]])
    ys = layer(XS, resets=resets)
    assert_close(ys[1, 2:], layer(XS[1:, 2:])[0], CLOSE)
    backwards = layer(XS, resets=resets, reverse=True, keep_order=True)
    assert_close(backwards[1, :2], layer(XS[1:, :2], reverse=True, keep_order=True)[0], CLOSE)


def test_inputs_with_any_axes_of_features():
    tokens = module(jb.embedding(jb.gru(I, H), vocabulary_size=7))
    assert tokens(np.ones((B, T), np.int32)).shape == (B, T, H)
    assert tokens.initialize_carry((B,)).shape == (B, H)
    images = module(jb.conv_lstm(1, 2, image_shape=(3, 3), kernel_shape=(3, 3)))
    run = jax.eval_shape(images, np.ones((B, T, 3, 3, 1)))
    assert run.shape == (B, T, 3, 3, 2)
    assert jax.eval_shape(module(CELLS["gru"]), np.ones((T, I))).shape == (T, H)


@pytest.mark.slow
def test_state_can_be_carried_on():
    layer = module(CELLS["lstm"], return_carry=True)
    carry, first = layer(XS[:, :2], initial_carry=layer.initialize_carry((B, I)))
    _, second = layer(XS[:, 2:], initial_carry=carry)
    assert_close(jnp.concatenate([first, second], axis=1), layer(XS)[1], CLOSE)


@pytest.mark.parametrize(
    "error, match, call",
    [
        (ValueError, r"unroll=2.*algorithm=jb.bptt", lambda: module(CELLS["gru"], unroll=2)),
        (ValueError, "state_axes", lambda: module(CELLS["gru"], state_axes={})),
        (ValueError, "variational", lambda: module(CELLS["gru"], broadcast_rngs="dropout")),
        (
            ValueError,
            "draws masks.*dropout=1",
            lambda: interop.nnx.Recurrent(DEEP, rngs=nnx.Rngs(params=0)),
        ),
        (TypeError, r"nnx.Rngs\(0\)", lambda: interop.nnx.Recurrent(CELLS["gru"], rngs=0)),
        (TypeError, "jb.Cell or a jb.Layer", lambda: module(their_rnn("gru"))),
        (ValueError, "layer inside", lambda: module(jb.batch_major(jb.layer(CELLS["gru"])))),
        (
            TypeError,
            r"initial_carry.*jb.LSTMState\(h=h, c=c\)",
            lambda: module(CELLS["lstm"])(XS, initial_carry=(np.zeros((B, H)),) * 2),
        ),
        (ValueError, "seq_lengths", lambda: module(CELLS["gru"])(XS, seq_lengths=np.ones(3, int))),
        (ValueError, r"\[\*batch, T, ...\]", lambda: module(CELLS["gru"])(np.ones(I))),
        (TypeError, "params", lambda: module(CELLS["gru"]).set_params(drawn("lstm"))),
        (
            ValueError,
            "shape",
            lambda: module(CELLS["gru"]).set_params(jb.gru(I, 9).init(jax.random.key(0))),
        ),
    ],
)
def test_what_cannot_be_had_is_refused(error, match, call):
    with pytest.raises(error, match=match):
        call()


@pytest.mark.slow
def test_transformations_of_nnx():
    many = nnx.vmap(lambda rngs: interop.nnx.Recurrent(CELLS["gru"], rngs=rngs))(
        nnx.Rngs(0).split(3)
    )
    ys = nnx.vmap(lambda layer, xs: layer(xs), in_axes=(0, None))(many, XS)
    second = module(CELLS["gru"])
    second.set_params(jax.tree.map(lambda a: a[1], many.get_params()))
    assert_close(ys[1], second(XS), CLOSE)
    assert_close(nnx.remat(lambda layer, xs: layer(xs))(second, XS), second(XS), CLOSE)

    trained = nnx.All(nnx.Param, nnx.Not(nnx.PathContains("w_x")))
    before = second.get_params()
    optimizer = nnx.Optimizer(second, optax.sgd(0.1), wrt=trained)
    with standard():
        grads = nnx.grad(squared, argnums=nnx.DiffState(0, trained))(second, XS)
        optimizer.update(second, grads)
    after = second.get_params()
    assert np.all(after.w_x == before.w_x) and np.all(after.w_s != before.w_s)
