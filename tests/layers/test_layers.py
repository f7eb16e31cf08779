"""Layers without chance, values and gradients against naive loops, with every sequence option."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_bptt
from tests.layers.common import (
    ELMAN,
    GRU,
    LSTM,
    NAIVE,
    SIZES,
    B,
    H,
    I,
    T,
    check,
    each_direction,
    keywords,
    poisoned,
    problem,
    read,
    rows,
)
from tests.registry import assert_close, slow_unless

jb: Any = jax_bptt  # some calls are wrong on purpose


def naive_layer(cell, reverse=False):
    def run(params, xs, state, option):
        return rows(NAIVE[cell], params, xs, state, option, reverse)

    return run


def naive_bidirectional(forward_cell, backward_cell):
    def run(params, xs, state, option):
        run_forward, run_backward = naive_layer(forward_cell), naive_layer(backward_cell, True)
        last_forward, ys = run_forward(params.forward, xs, state.forward, option)
        last_backward, zs = run_backward(params.backward, xs, state.backward, option)
        return jb.Directions(last_forward, last_backward), jnp.concatenate([ys, zs], -1)

    return run


@each_direction(("lstm", "gru"), ("lstm", True))
def test_layer(name, reverse):
    cell = {"lstm": LSTM, "gru": GRU}[name]
    check(jb.layer(cell, reverse=reverse), naive_layer(cell, reverse))


@pytest.mark.slow
def test_bidirectional():
    check(jb.bidirectional(LSTM, GRU), naive_bidirectional(LSTM, GRU))


def test_stack():
    wide = jb.gru(input_size=2 * H, hidden_size=H)
    deep = jb.stack(jb.bidirectional(GRU, ELMAN), jb.layer(wide), jb.layer(LSTM, reverse=True))

    def naive(params, xs, state, option):
        first, xs = naive_bidirectional(GRU, ELMAN)(params[0], xs, state[0], option)
        second, xs = rows(NAIVE[GRU], params[1], xs, state[1], option)
        third, xs = naive_layer(LSTM, True)(params[2], xs, state[2], option)
        return (first, second, third), xs

    check(deep, naive, tolerance=1e-11)


def test_residual():
    deep = jb.stack(jb.residual(jb.layer(LSTM)), jb.residual(jb.layer(GRU, reverse=True)))

    def naive(params, xs, state, option):
        added = read(option)[..., None]
        first, ys = naive_layer(LSTM)(params[0], xs, state[0], option)
        xs = ys + jnp.where(added, xs, 0.0)
        second, ys = naive_layer(GRU, True)(params[1], xs, state[1], option)
        return (first, second), ys + jnp.where(added, xs, 0.0)

    check(deep, naive, tolerance=1e-11)


@pytest.mark.parametrize("algorithm", [slow_unless(False, jb.autodiff()), jb.bptt(block_length=2)])
def test_the_algorithm_reaches_every_layer(algorithm):
    deep = jb.stack(jb.bidirectional(ELMAN, ELMAN), jb.dropout(rate=0.5))
    params, xs, _ = problem(deep)
    run = functools.partial(deep.apply, xs=xs, key=None)
    results = [
        jax.jit(jax.grad(lambda p, a=a: jnp.sum(run(p, algorithm=a)[1] ** 2)))(params)
        for a in (None, algorithm)
    ]
    assert_close(results[0], results[1], 1e-12)
    seen = []

    def spy(cell, *args):
        seen.append(cell)
        return jb.autodiff().run(cell, *args)

    run(params, algorithm=jb.Algorithm(spy))
    assert seen == [ELMAN, ELMAN]


def test_a_start_may_be_given_or_left_out():
    deep = jb.stack(jb.layer(LSTM), jb.bidirectional(GRU, ELMAN))
    params, xs, _ = problem(deep)
    start = deep.initial_state(params, (B,))
    assert_close(deep.apply(params, xs), deep.apply(params, xs, start), 0)
    half = (None, jb.Directions(None, start[1].backward))
    assert_close(deep.apply(params, xs), deep.apply(params, xs, half), 0)


def test_windows_continue_where_the_last_ended():
    deep = jb.stack(jb.layer(LSTM), jb.layer(GRU))
    params, xs, state = problem(deep)
    last_state, ys = deep.apply(params, xs, state)
    middle, early = deep.apply(params, xs[:2], state)
    end, late = deep.apply(params, xs[2:], middle)
    assert_close((end, jnp.concatenate([early, late])), (last_state, ys), 1e-14)


@pytest.mark.slow
def test_vmap_over_params_and_keys():
    deep = jb.stack(jb.recurrent_dropout(ELMAN, rate=0.3), jb.zoneout(ELMAN, rate=0.3))
    several = jax.vmap(deep.init)(jax.random.split(jax.random.key(0), 2))
    keys = jax.random.split(jax.random.key(1), 2)
    xs = problem(deep)[1]

    def gradient(params, key):
        return jax.grad(lambda p: jnp.sum(deep.apply(p, xs, key=key)[1] ** 2))(params)

    got = jax.jit(jax.vmap(gradient))(several, keys)
    for k in range(2):
        one, of_got = (jax.tree.map(lambda a, k=k: a[k], tree) for tree in (several, got))
        assert_close(of_got, jax.jit(gradient)(one, keys[k]), 1e-12)


@pytest.mark.parametrize("option", ["none", "all"])
def test_batch_major(option):
    deep = jb.stack(jb.layer(LSTM), jb.bidirectional(GRU, GRU))
    params, xs, state = problem(deep)
    xs = poisoned(xs, option)
    swapped = jb.batch_major(deep)
    options = keywords(option)
    turned = options | {name: options[name].swapaxes(0, 1) for name in ("resets", "mask")}
    last_state, ys = swapped.apply(params, xs.swapaxes(0, 1), state, **turned)
    assert ys.shape == (B, T, 2 * H)
    assert_close((last_state, jnp.swapaxes(ys, 0, 1)), deep.apply(params, xs, state, **options), 0)
    assert_close(swapped.init(jax.random.key(2)), deep.init(jax.random.key(2)), 0)


def test_batch_major_of_a_function():
    params, xs, state = problem(jb.layer(LSTM))
    run = jb.batch_major(functools.partial(jb.unroll, LSTM))
    want = jb.unroll(LSTM, params, xs, state, reverse=True)
    last_state, ys = run(params, xs.swapaxes(0, 1), state, reverse=True, resets=None)
    assert_close((last_state, jnp.swapaxes(ys, 0, 1)), want, 0)


def test_each_layer_draws_its_own_parameters():
    params = jb.stack(jb.bidirectional(GRU, GRU), jb.layer(GRU)).init(jax.random.key(0))
    matrices = [params[0].forward.w_s, params[0].backward.w_s, params[1].w_s]
    assert len({float(w[0, 0, 0]) for w in matrices}) == 3


def refused(function, error, *pieces):
    with pytest.raises(error) as raised:
        function()
    message = str(raised.value)
    assert all(piece in message for piece in pieces), message
    assert "\n" not in message


def test_wrong_arguments_are_named():
    layer = jb.layer(LSTM)
    deep = jb.stack(layer, layer)
    params, xs, _ = problem(deep)
    refused(lambda: jb.layer(jb.lstm), TypeError, "layer: cell must be a Cell", "function lstm")
    refused(lambda: jb.layer(LSTM, reverse=1), TypeError, "layer: reverse must be True or False")
    refused(lambda: jb.bidirectional(LSTM, 3), TypeError, "backward must be a Cell or a Layer")
    refused(lambda: jb.stack(), ValueError, "stack: give one layer or more")
    refused(lambda: jb.stack(layer, LSTM), TypeError, "layers[1] must be a Layer", "jb.layer(cell)")
    refused(lambda: jb.residual(LSTM), TypeError, "residual: layer must be a Layer")
    refused(lambda: jb.batch_major(3), TypeError, "batch_major: give a Layer or a function")
    refused(lambda: deep.apply(params[0], xs), TypeError, "stack: params must be a tuple", "got 4")
    refused(lambda: deep.apply(params, xs, params[0]), TypeError, "stack: state must be a tuple")
    refused(lambda: deep.initial_state((), ()), TypeError, "stack: params must", "got 0 entries")
    both = jb.bidirectional(LSTM, LSTM)
    refused(lambda: both.apply(params, xs), TypeError, "bidirectional: params must be jb.Direct")
    own = both.init(jax.random.key(0))
    refused(lambda: both.apply(own, xs, (1, 2)), TypeError, "bidirectional: state must be")
    refused(lambda: jb.batch_major(layer).apply(params[0], xs[:, 0, 0]), ValueError, "[B, T, ...]")
    refused(lambda: layer.apply(params[0], xs, reverse=True), TypeError, "reverse")


def test_a_residual_of_another_size_is_refused():
    layer = jb.residual(jb.layer(jb.gru(input_size=I, hidden_size=H + 1)))
    params = layer.init(jax.random.key(0))
    refused(
        lambda: layer.apply(params, np.ones((T, B, I))),
        ValueError,
        f"residual: the layer's outputs, float64[{T}, {B}, {H + 1}]",
        f"its inputs, float64[{T}, {B}, {I}]",
    )
    tokens = jb.residual(jb.layer(jb.embedding(jb.gru(**SIZES), vocabulary_size=5)))
    params = tokens.init(jax.random.key(0))
    refused(lambda: tokens.apply(params, np.ones((T, B), int)), ValueError, f"int64[{T}, {B}]")
