"""Who draws masks says so: the key is given, as a key or as None, and so is every other option."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_bptt
from tests.layers.common import ELMAN, GRU, LSTM, RATE, B, H, I, T
from tests.layers.test_layers import refused

jb: Any = jax_bptt  # some calls are wrong on purpose
XS = np.ones((T, B, I))

DRAWING = {
    "dropout": jb.dropout(rate=RATE),
    "dropout of nothing": jb.dropout(rate=0.0),
    "variational_dropout": jb.variational_dropout(rate=RATE),
    "recurrent_dropout": jb.recurrent_dropout(GRU, rate=RATE),
    "recurrent_dropout_per_step": jb.recurrent_dropout_per_step(GRU, rate=RATE),
    "zoneout": jb.zoneout(LSTM, rate=RATE),
    "zoneout of nothing": jb.zoneout(LSTM, rate=0.0),
}
AROUND = {
    "stack": jb.stack(jb.layer(GRU), jb.dropout(rate=RATE)),
    "stack of a stack": jb.stack(jb.stack(jb.zoneout(GRU, rate=RATE)), jb.layer(GRU)),
    "residual": jb.residual(jb.variational_dropout(rate=RATE)),
    "batch_major": jb.batch_major(jb.recurrent_dropout(GRU, rate=RATE)),
}
PLAIN = {
    "layer": jb.layer(GRU),
    "stack": jb.stack(jb.layer(GRU), jb.layer(GRU)),
    "residual": jb.residual(jb.layer(GRU)),
    "bidirectional": jb.bidirectional(GRU, GRU),
    "batch_major": jb.batch_major(jb.layer(GRU)),
}


def applied(layer, xs: Any = XS, **options):
    """Trace a layer, which is when errors come."""
    params = jax.eval_shape(layer.init, jax.random.key(0))
    return jax.eval_shape(lambda p: layer.apply(p, xs, **options), params)


@pytest.mark.parametrize("name", DRAWING | AROUND)
def test_a_key_that_is_left_out_is_missed(name):
    layer = (DRAWING | AROUND)[name]
    way_out = "key=jax.random.key(...) to train", "key=None to evaluate"
    refused(lambda: applied(layer), TypeError, "apply needs a key", *way_out)
    for key in (None, jax.random.key(0)):
        applied(layer, key=key)


def test_the_layer_that_misses_it_is_named():
    pieces = "stack: layers[1]: dropout: apply needs a key"
    refused(lambda: applied(AROUND["stack"]), TypeError, pieces)
    pieces = "stack: layers[0]: stack: layers[0]: zoneout: apply needs a key"
    refused(lambda: applied(AROUND["stack of a stack"]), TypeError, pieces)


@pytest.mark.parametrize("name", PLAIN)
def test_who_draws_nothing_needs_no_key(name):
    applied(PLAIN[name])


@pytest.mark.parametrize("name", [*DRAWING, "stack", "residual", "batch_major"])
@pytest.mark.parametrize(
    "key, error",
    [(0, TypeError), (jax.random.PRNGKey(0), TypeError), (True, TypeError), (XS, TypeError)]
    + [(jax.random.split(jax.random.key(0), 3), ValueError)],
    ids=["an integer", "an old key", "a flag", "numbers", "several"],
)
def test_what_is_no_key(name, key, error):
    layer = (DRAWING | AROUND)[name]
    refused(lambda: applied(layer, key=key), error, ": key must be a ")


@pytest.mark.parametrize("name", DRAWING | AROUND)
@pytest.mark.parametrize("option", ["train", "training", "deterministic", "rngs"])
def test_another_switch_than_the_key(name, option):
    pieces = f"apply takes no {option}, only lengths", "key=jax.random.key(...)", "key=None"
    layer = (DRAWING | AROUND)[name]
    if name == "stack":  # whose first layer is a plain one
        layer = jb.stack(jb.dropout(rate=RATE))
    refused(lambda: applied(layer, key=None, **{option: True}), TypeError, *pieces)


@pytest.mark.parametrize("name", DRAWING)
def test_a_direction_is_set_where_a_layer_is_made(name):
    call = functools.partial(applied, DRAWING[name], key=None, reverse=True)
    refused(call, TypeError, "apply takes no reverse", "jb.layer(cell, reverse=True)")


def test_layers_of_ones_own_are_given_what_there_is():
    """No key where none was given, None where that was, one of the split where a key was."""
    seen = []

    def apply(params, xs, state=None, **options):
        seen.append({name: options[name] for name in options if name != "reset_state"})
        return (), xs

    own = jb.Layer(lambda key: (), lambda params, batch: (), apply)
    deep = jb.stack(own, own)
    deep.apply(((), ()), XS)
    deep.apply(((), ()), XS, key=None)
    deep.apply(((), ()), XS, key=jax.random.key(0), temperature=2)
    assert seen[:4] == [{}, {}, {"key": None}, {"key": None}]
    assert seen[4]["key"] != seen[5]["key"] and seen[5]["temperature"] == 2


def test_a_stack_names_the_layer_that_does_not_fit():
    wide = jb.layer(jb.gru(input_size=H + 2, hidden_size=H))
    deep = jb.stack(jb.layer(GRU), wide)
    pieces = "stack: layers[1]: unroll: xs.shape=(4, 3, 3)", "(5,)"
    refused(lambda: applied(deep), ValueError, *pieces)
    params = deep.init(jax.random.key(0))
    pieces = "stack: layers[0]: unroll: params.w_x has shape (5, 3, 3)", "(3, 3, 3)"
    refused(lambda: deep.apply(params[::-1], XS), ValueError, *pieces)
    state = (params[0], None)
    pieces = "stack: layers[0]: unroll: state is a GRUParams"
    refused(lambda: deep.apply(params, XS, state), TypeError, pieces)
    inner = jb.stack(jb.stack(jb.layer(GRU)))
    pieces = "stack: layers[0]: stack: params must be a tuple"
    refused(lambda: inner.initial_state((3,), ()), TypeError, pieces)


def test_a_stack_leaves_other_errors_alone():
    class Own(ValueError):
        pass

    def apply(params, xs, state=None, **options):
        raise Own("mine")

    deep = jb.stack(jb.Layer(lambda key: (), lambda params, batch: (), apply))
    with pytest.raises(Own, match="^mine$"):
        deep.apply(((),), XS)


def test_a_stack_of_parameters_out_of_a_checkpoint():
    deep = jb.stack(jb.layer(GRU), jb.layer(ELMAN))
    params = deep.init(jax.random.key(0))
    pieces = "stack: params must be a tuple", "got a dict", "jax.eval_shape(layer.init, "
    refused(lambda: deep.apply(dict(enumerate(params)), XS), TypeError, *pieces)
    pieces = "stack: layers[1]: unroll: params is a dict of w_x", "jax.eval_shape(cell.init, "
    refused(lambda: deep.apply([params[0], params[1]._asdict()], XS), TypeError, *pieces)


# What dropout is given: (keywords, error, pieces)
GIVEN = {
    "lengths beyond the end": (
        *(dict(lengths=np.array([1, 2, T + 1])), ValueError, "lengths go from 1 to 5"),
        f"T={T}",
    ),
    "negative lengths": (dict(lengths=np.array([1, 2, -1])), ValueError, "lengths go from -1"),
    "a list of lengths": (dict(lengths=[1, 2, 3]), TypeError, "jnp.asarray(lengths)"),
    "float resets": (dict(resets=np.zeros((T, B))), TypeError, "resets.astype(bool)"),
    "an integer mask": (dict(mask=np.ones((T, B), int)), TypeError, "mask.astype(bool)"),
    "a mask without time": (dict(mask=np.ones((), bool)), ValueError, "mask.shape=()"),
    "a state": (dict(state=XS), TypeError, "state must be ()"),
    "a state to reset to": (
        *(dict(reset_state=XS, resets=np.zeros((T, B), bool)), TypeError),
        "reset_state must be ()",
    ),
    "no algorithm": (dict(algorithm=jb.bptt), TypeError, "algorithm must be an Algorithm"),
    "a string": (dict(xs="xs"), TypeError, "xs must be an array of numbers"),
    "nothing": (dict(xs=()), ValueError, "xs has no arrays"),
    "a number": (dict(xs=1.0), ValueError, "xs.shape=()", "xs[None]"),
    "leaves of other lengths": (
        *(dict(xs={"a": XS, "b": XS[1:]}), ValueError, "disagree on T: xs['a']"),
        "xs['b'].shape=(3, 3, 3)",
    ),
    "a leaf that the mask does not fit": (
        *(dict(xs={"a": XS, "b": XS[:, 0]}, mask=np.ones((T, B, I), bool)), ValueError),
        "mask.shape=(4, 3, 3)",
    ),
}


@pytest.mark.parametrize("case", GIVEN)
@pytest.mark.parametrize("make", [jb.dropout, jb.variational_dropout])
def test_dropout_checks_all_that_it_is_given(make, case):
    given, error, *pieces = GIVEN[case]
    call = functools.partial(applied, make(rate=RATE), key=None, **given)
    refused(call, error, f"{make.__name__}: ", *pieces)


def test_a_reset_state_is_checked_under_the_name_of_the_layer():
    given = dict(resets=np.zeros((T, B), bool), reset_state=jnp.zeros((B, H + 1)))
    for make in (jb.recurrent_dropout, jb.zoneout):
        layer = make(GRU, rate=RATE)
        refused(lambda a=layer: applied(a, key=jax.random.key(0), **given), ValueError, "(3, 4)")
