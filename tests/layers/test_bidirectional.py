"""Both directions of any layer: one that is turned round against the same in reverse."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_bptt
from tests.core.messages import check
from tests.layers.common import GRU, LSTM, OPTIONS, RATE, B, H, T, key, keywords, poisoned, problem
from tests.registry import assert_close, slow_unless

jb: Any = jax_bptt  # some calls are wrong on purpose

PAIRS = {
    "layer": (jb.layer(LSTM), jb.layer(LSTM, reverse=True), {}),
    "zoneout": (
        jb.zoneout(LSTM, rate=RATE),
        jb.zoneout(LSTM, rate=RATE, reverse=True),
        {"key": None},
    ),
    "stack": (
        jb.stack(jb.layer(LSTM), jb.residual(jb.layer(GRU))),
        jb.stack(jb.layer(LSTM, reverse=True), jb.residual(jb.layer(GRU, reverse=True))),
        {},
    ),
    "recurrent_dropout": (
        jb.recurrent_dropout(GRU, rate=RATE),
        jb.recurrent_dropout(GRU, rate=RATE, reverse=True),
        {"key": key()},
    ),
}


@pytest.mark.parametrize(
    "name, option",
    [slow_unless(row == ("layer", "all"), *row) for row in itertools.product(PAIRS, OPTIONS)],
)
def test_the_second_is_turned_round(name, option):
    layer, turned, given = PAIRS[name]
    both = jb.bidirectional(layer, layer)
    params, xs, state = problem(both)
    xs, given = poisoned(xs, option), {**given, **keywords(option)}
    own = given
    if given.get("key") is not None:
        keys = jax.random.split(given["key"])
        given, own = ({**given, "key": k} for k in keys)

    def loss(run):
        def of(params):
            last_state, ys = run(params)
            leaves = jax.tree.leaves((last_state, ys))
            return sum(jnp.sum(jnp.sin(leaf)) for leaf in leaves), (last_state, ys)

        return jax.jit(jax.grad(of, has_aux=True))(params)

    def got(params):
        whole = {**given, "key": PAIRS[name][2]["key"]} if "key" in given else given
        last, ys = both.apply(params, xs, state, **whole)
        return last.backward, ys[..., H:]

    def want(params):
        return turned.apply(params.backward, xs, state.backward, **own)

    (gradient, outputs), (wanted, right) = loss(got), loss(want)
    assert_close(outputs, right, 1e-12)
    assert_close(gradient.backward, wanted.backward, 1e-12)


def test_cells_and_layers_alike():
    params, xs, state = problem(jb.bidirectional(LSTM, GRU))
    lengths = jnp.array([T, 2, 0])
    got = jb.bidirectional(jb.layer(LSTM), jb.layer(GRU)).apply(params, xs, state, lengths=lengths)
    want = jb.bidirectional(LSTM, GRU).apply(params, xs, state, lengths=lengths)
    assert_close(got, want, 1e-12)


@pytest.mark.parametrize(
    "layer",
    [
        jb.layer(GRU, reverse=True),
        slow_unless(False, jb.bidirectional(jb.layer(GRU), jb.layer(GRU))),
    ],
)
def test_a_reset_in_the_padding_begins_nothing(layer):
    params, xs, state = problem(layer)
    lengths, resets = jnp.full(B, 2), jnp.zeros((T, B), bool)
    want = layer.apply(params, xs, state, lengths=lengths)
    for t in range(2, T):
        got = layer.apply(params, xs, state, lengths=lengths, resets=resets.at[t].set(True))
        assert_close(got, want, 1e-12)


def test_the_two_draw_masks_of_their_own():
    both = jb.bidirectional(*[jb.variational_dropout(rate=0.5)] * 2)
    params = both.init(key())
    ys = both.apply(params, np.ones((T, B, 64)), key=key())[1]
    assert (np.asarray(ys[..., :64]) != np.asarray(ys[..., 64:])).any()


def test_refusals():
    turned = jb.zoneout(LSTM, rate=RATE, reverse=True)
    check(lambda: jb.bidirectional(LSTM, turned), ValueError, "bidirectional: backward is zoneout(")
    check(lambda: jb.bidirectional(3, LSTM), TypeError, "forward must be a Cell or a Layer, got")
