"""`interop.equinox.Recurrent` against `unroll`, and against a scan of Equinox's own cells."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jax_bptt as jb
from jax_bptt import interop
from tests.interop.shared import CELLS, B, H, I, random_like, random_params
from tests.registry import assert_close, slow_unless

eqx = pytest.importorskip("equinox")

T, CLOSE = 5, 1e-10
XS = random_like(np.empty((B, T, I)), seed=1)
DEEP = jb.stack(jb.zoneout(CELLS["gru"], rate=0.5), jb.dropout(rate=0.5))


def recurrent(layer, seed=0, **settings):
    return interop.equinox.Recurrent(layer, key=jax.random.key(seed), **settings)


def squared(module, xs):
    return jnp.sum(jax.vmap(module)(xs)[1] ** 2)


@pytest.mark.parametrize("cell, name", [slow_unless(False, "gru", "GRUCell"), ("lstm", "LSTMCell")])
def test_is_a_scan_of_their_cell(cell, name):
    params = random_params(CELLS[cell])
    module = eqx.tree_at(lambda m: m.params, recurrent(CELLS[cell]), params)
    arrays = interop.equinox.from_params(params)
    theirs = getattr(eqx.nn, name)(I, H, dtype=jnp.float64, key=jax.random.key(0))
    theirs = eqx.tree_at(lambda c: [getattr(c, k) for k in arrays], theirs, list(arrays.values()))
    start = random_like(module.initial_state(), seed=2)

    def own(module, xs, start):
        last, ys = module(xs, start)
        return jnp.sum(ys**2) + sum(jnp.sum(a**3) for a in jax.tree.leaves(last)), (last, ys)

    def plain(cell, xs, start):
        def step(state, x):
            state = cell(x, state)
            return state, state[0] if isinstance(state, tuple) else state

        state = tuple(start) if isinstance(start, tuple) else start
        last, ys = jax.lax.scan(step, state, xs)
        return jnp.sum(ys**2) + sum(jnp.sum(a**3) for a in jax.tree.leaves(last)), (last, ys)

    def gradients(loss, module):
        def both(arguments):
            return loss(*arguments)

        return eqx.filter_jit(eqx.filter_grad(both, has_aux=True))((module, XS[0], start))

    (d_own, *d_inputs), outputs = gradients(own, module)
    (d_theirs, *their_d_inputs), their_outputs = gradients(plain, theirs)
    assert_close(jax.tree.leaves(outputs), jax.tree.leaves(their_outputs), CLOSE)
    assert_close(jax.tree.leaves(d_inputs), jax.tree.leaves(their_d_inputs), CLOSE)
    d_arrays = interop.equinox.from_gradients(d_own.params)
    assert_close(d_arrays, {k: getattr(d_theirs, k) for k in d_arrays}, CLOSE)


def test_one_sequence_or_a_batch():
    module = recurrent(CELLS["lstm"])
    last, ys = jax.vmap(module)(XS)
    both = module(jnp.swapaxes(XS, 0, 1))
    assert_close((last, jnp.swapaxes(ys, 0, 1)), both, CLOSE)
    want = jb.unroll(CELLS["lstm"], module.params, jnp.swapaxes(XS, 0, 1))
    assert_close(both, want, CLOSE)
    assert_close(module(XS[0])[1], ys[0], CLOSE)
    lengths, resets = np.array([2, T]), np.arange(T)[:, None] == np.array([[0, 3]])
    options = {"lengths": lengths, "resets": resets, "mask": ~resets}
    got = module(jnp.swapaxes(XS, 0, 1), both[0], **options)
    want = jb.unroll(CELLS["lstm"], module.params, jnp.swapaxes(XS, 0, 1), both[0], **options)
    assert_close(got, want, CLOSE)


@pytest.mark.slow
def test_leaves_are_the_parameters_alone():
    module = recurrent(CELLS["gru"])
    assert_close(jax.tree.leaves(module), jax.tree.leaves(module.params), 0)
    by_jax = jax.jit(jax.grad(squared))(module, XS)
    by_equinox = eqx.filter_jit(eqx.filter_grad(squared))(module, XS)
    assert_close(by_jax, by_equinox, CLOSE)
    assert jax.tree.structure(module) == jax.tree.structure(recurrent(jb.gru(I, H), seed=1))


def test_two_updates_are_those_of_the_parameters_alone():
    cell, tx = CELLS["lstm"], optax.adam(1e-2)
    module = recurrent(cell)
    params = module.params
    state = tx.init(eqx.filter(module, eqx.is_inexact_array))
    own_state = tx.init(params)

    @eqx.filter_jit
    def train(module, state, xs):
        loss, grads = eqx.filter_value_and_grad(squared)(module, xs)
        updates, state = tx.update(grads, state, module)
        return eqx.apply_updates(module, updates), state, loss

    @jax.jit
    def plain(params, state, xs):
        def loss(params):
            return jnp.sum(jb.unroll(cell, params, jnp.swapaxes(xs, 0, 1))[1] ** 2)

        value, grads = jax.value_and_grad(loss)(params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    with jax.numpy_dtype_promotion("standard"):
        for _ in range(2):
            module, state, loss = train(module, state, XS)
            params, own_state, want = plain(params, own_state, XS)
            assert_close(loss, want, CLOSE)
            assert_close(module.params, params, CLOSE)


@pytest.mark.parametrize("layer", [CELLS["lstm"], slow_unless(False, DEEP)])
def test_leaves_are_saved_and_read_back(layer):
    file = io.BytesIO()
    module = recurrent(layer, inference=True)
    eqx.tree_serialise_leaves(file, module)
    file.seek(0)
    again = eqx.tree_deserialise_leaves(file, recurrent(layer, seed=1, inference=False))
    assert_close(again(XS[0]), module(XS[0]), 0)


def test_masks_are_drawn_in_training():
    module = recurrent(DEEP)
    without = DEEP.apply(module.params, XS[0], key=None)
    drawn = DEEP.apply(module.params, XS[0], key=jax.random.key(1))
    assert_close(module(XS[0], key=jax.random.key(1)), drawn, CLOSE)
    assert_close(module(XS[0], key=jax.random.PRNGKey(1)), drawn, CLOSE)
    assert_close(module(XS[0], inference=True), without, CLOSE)
    still = eqx.nn.inference_mode(module)
    assert_close(still(XS[0]), without, CLOSE)
    assert_close(still(XS[0], key=jax.random.key(1), inference=False), drawn, CLOSE)
    again = eqx.nn.inference_mode(still, value=False)
    assert_close(again(XS[0], key=jax.random.key(1)), drawn, CLOSE)
    keys = jax.random.split(jax.random.key(2), B)
    _, ys = jax.vmap(lambda xs, key: module(xs, key=key))(XS, keys)
    assert_close(ys[1], module(XS[1], key=keys[1])[1], CLOSE)
    # A key is let be where nothing is random, as in all of Equinox.
    assert_close(recurrent(CELLS["gru"])(XS[0], key=keys[0]), recurrent(CELLS["gru"])(XS[0]), 0)


@pytest.mark.parametrize(
    "error, match, call",
    [
        (RuntimeError, "needs a key.*inference_mode", lambda: recurrent(DEEP)(XS[0])),
        (TypeError, "jb.Cell or a jb.Layer", lambda: recurrent(jb.gru)),
        (ValueError, "layer inside", lambda: recurrent(jb.batch_major(jb.layer(CELLS["gru"])))),
    ],
)
def test_what_cannot_be_had_is_refused(error, match, call):
    with pytest.raises(error, match=match):
        call()


@pytest.mark.slow
def test_an_ensemble():
    keys = jax.random.split(jax.random.key(0), 3)
    many = eqx.filter_vmap(lambda key: interop.equinox.Recurrent(DEEP, key=key))(keys)

    def run(module, xs):
        return module(xs, inference=True)[1]

    ys = eqx.filter_vmap(run, in_axes=(eqx.if_array(0), None))(many, XS[0])
    second = interop.equinox.Recurrent(DEEP, key=keys[1])
    assert_close(ys[1], run(second, XS[0]), CLOSE)
