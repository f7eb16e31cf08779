"""Layers with chance: against naive loops in which every step has its own explicit mask."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_bptt
from jax_bptt.layers.masks import draw
from tests import reference
from tests.layers.common import (
    ELMAN,
    GRU,
    LSTM,
    NAIVE,
    OPTIONS,
    RATE,
    SIZES,
    B,
    H,
    I,
    T,
    check,
    each_direction,
    key,
    keywords,
    poisoned,
    problem,
    rows,
)
from tests.layers.test_layers import naive_layer, refused
from tests.reference import Reference
from tests.registry import slow_unless

jb: Any = jax_bptt  # some calls are wrong on purpose
KEEP = 1 - RATE
SHAPE = jax.ShapeDtypeStruct((B, H), jnp.float64)


def gru_step(xp, p, s, mixed, x):
    """A GRU whose product reads `mixed` in place of the state."""
    r = reference.sigmoid(xp, reference.gate(p, 0, x, mixed))
    z = reference.sigmoid(xp, reference.gate(p, 1, x, mixed))
    n = xp.tanh(x @ p.w_x[:, 2] + p.b[None, 2] + r * (mixed @ p.w_s[:, 2] + p.b_n[None]))
    return (1 - z) * n + z * s


def gru_dropped(xp, p, s, inputs):
    x, m = inputs
    return gru_step(xp, p, s, s * m / KEEP, x)


def lstm_dropped(xp, p, s, inputs):
    x, m = inputs
    return reference.lstm(xp, p, s._replace(h=s.h * m / KEEP), x)


def elman_dropped(xp, p, s, inputs):
    x, m = inputs
    return NAIVE[ELMAN].step(xp, p, s * m / KEEP, x)


DROPPED = {"elman": (ELMAN, elman_dropped), "lstm": (LSTM, lstm_dropped), "gru": (GRU, gru_dropped)}


def naive_dropped(name, masks, reverse=False):
    """`masks` [T, B, H] or, for all steps, [B, H]."""
    cell, step = DROPPED[name]
    naive = Reference(step, NAIVE[cell].readout)
    masks = np.broadcast_to(masks, (T, B, H)).astype(float)
    return lambda params, xs, state, option: rows(
        naive, params, (xs, masks), state, option, reverse
    )


def recurrent_mask(leading=(), used=None):
    """The one leaf that a product reads gets the first key of the split."""
    return np.asarray(draw(key() if used is None else used, KEEP, SHAPE, leading), float)


@each_direction(DROPPED, ("gru", True))
def test_recurrent_dropout(name, reverse):
    layer = jb.recurrent_dropout(DROPPED[name][0], rate=RATE, reverse=reverse)
    check(layer, naive_dropped(name, recurrent_mask(), reverse), key=key())


@each_direction(DROPPED)
def test_recurrent_dropout_per_step(name, reverse):
    layer = jb.recurrent_dropout_per_step(DROPPED[name][0], rate=RATE, reverse=reverse)
    check(layer, naive_dropped(name, recurrent_mask((T,)), reverse), key=key())


def test_a_naive_loop_with_the_mask_of_the_first_step_is_told_from_the_right_one():
    layer = jb.recurrent_dropout_per_step(GRU, rate=RATE)
    masks = recurrent_mask((T,))
    with pytest.raises(AssertionError, match="relative"):
        check(layer, naive_dropped("gru", masks[0]), key=key(), options=["none"])


class Counted(NamedTuple):
    s: Any
    steps: Any


def _counted():
    """An integer in the state, a gated step without a pair."""

    def pointwise(w, state, drive, feedback):
        return Counted(jnp.tanh(drive + feedback), state.steps + 1)

    return jb.from_step(
        jb.GatedStep(lambda w, state: state.s @ w, pointwise),
        init=lambda k: jax.random.normal(k, (H, H)),
        initial_state=lambda w, b: Counted(jnp.zeros((*b, H)), jnp.zeros(b, jnp.int32)),
        input_shape=(I,),
        readout=lambda w, state: state.s,
        any_batch=True,
    )


def _counted_reference(xp, w, state, x):
    return Counted(xp.tanh(x + state.s @ w), state.steps + 1)


def _diagonal():
    """A step that is linear in the state."""
    return jb.from_step(
        jb.DiagonalStep(lambda w, drive: (jax.nn.sigmoid(drive[0]), drive[1])),
        init=lambda k: jax.random.normal(k, (2, I, H)),
        initial_state=lambda w, b: jnp.zeros((*b, H)),
        input_shape=(I,),
        project=lambda w, x: (x @ w[0], x @ w[1]),
        any_batch=True,
    )


def _diagonal_reference(xp, w, s, x):
    return reference.sigmoid(xp, x @ w[0]) * s + x @ w[1]


ZONED = {
    "lstm": (LSTM, NAIVE[LSTM]),
    "gru": (GRU, NAIVE[GRU]),
    "elman": (ELMAN, NAIVE[ELMAN]),
    "plain": (jb.gru_reset_before(**SIZES), Reference(reference.gru_reset_before)),
    "counted": (_counted(), Reference(_counted_reference, lambda xp, p, s: s.s)),
    "diagonal": (_diagonal(), Reference(_diagonal_reference)),
}


def naive_zoned(name, masks, reverse=False):
    """`masks` is a tree like the floating leaves of the state, [T, B, H] each."""
    _, naive = ZONED[name]

    def step(xp, p, state, inputs):
        x, m = inputs

        def blend(m, held, moved):
            return moved if m is None else m * held + (1 - m) * moved

        return jax.tree.map(
            blend, m, state, naive.step(xp, p, state, x), is_leaf=lambda m: m is None
        )

    masks = jax.tree.map(lambda m: np.asarray(m, float), masks)
    zoned = Reference(step, naive.readout)
    return lambda params, xs, state, option: rows(
        zoned, params, (xs, masks), state, option, reverse
    )


def zoneout_masks(name, make):
    state = jax.eval_shape(lambda: ZONED[name][0].initial_state(ZONED[name][0].init(key()), (B,)))
    return make(jax.tree.map(lambda a: a if reference.is_inexact(a) else None, state))


@each_direction(ZONED, ("diagonal", False))
def test_zoneout(name, reverse):
    layer = jb.zoneout(ZONED[name][0], rate=RATE, reverse=reverse)
    masks = zoneout_masks(name, lambda like: draw(key(), RATE, like, (T,)))
    check(layer, naive_zoned(name, masks, reverse), key=key())


@pytest.mark.parametrize("name", [slow_unless(n == "diagonal", n) for n in ZONED])
def test_zoneout_in_evaluation_is_the_expectation(name):
    masks = zoneout_masks(
        name, lambda like: jax.tree.map(lambda a: np.full((T, *a.shape), RATE), like)
    )
    check(jb.zoneout(ZONED[name][0], rate=RATE), naive_zoned(name, masks))


def test_the_kind_of_the_step_is_kept():
    """Blending and masking act within units: the faster reverse pass stays available."""
    kinds = []

    def spy(cell, *args):
        kinds.append(type(cell.step))
        return jb.autodiff().run(cell, *args)

    for layer in (
        jb.zoneout(ZONED["lstm"][0], rate=RATE),
        jb.recurrent_dropout(LSTM, rate=RATE),
        jb.zoneout(ZONED["diagonal"][0], rate=RATE),
    ):
        params, xs, state = problem(layer)
        layer.apply(params, xs, state, key=key(), algorithm=jb.Algorithm(spy))
    assert kinds == [jb.GatedStep, jb.GatedStep, jb.DiagonalStep]


BETWEEN = {"dropout": (jb.dropout, (T,)), "variational_dropout": (jb.variational_dropout, ())}


@pytest.mark.slow
@pytest.mark.parametrize("name", BETWEEN)
def test_dropout_between_layers(name):  # which puts out zero where the mask is False
    make, leading = BETWEEN[name]
    deep = jb.stack(make(rate=RATE), jb.layer(GRU), make(rate=RATE), jb.layer(LSTM), make(rate=0.0))
    keys = jax.random.split(key(), 5)
    first, second = (np.broadcast_to(recurrent_mask(leading, keys[k]), (T, B, H)) for k in (0, 2))

    def naive(params, xs, state, option):
        one, xs = naive_layer(GRU)(params[1], xs * first / KEEP, state[1], option)
        two, xs = naive_layer(LSTM)(params[3], xs * second / KEEP, state[3], option)
        return ((), one, (), two, ()), jnp.where(OPTIONS[option][2][..., None], xs, 0.0)

    check(deep, naive, key=key(), tolerance=1e-11)


@pytest.mark.slow
def test_a_dropped_residual_stack():
    """Every kind of layer in one another, as in a language model, and a key for each."""
    block = jb.stack(jb.recurrent_dropout(GRU, rate=RATE), jb.variational_dropout(rate=RATE))
    deep = jb.stack(jb.residual(block), jb.zoneout(LSTM, rate=RATE))
    inner = jax.random.split((outer := jax.random.split(key()))[0])
    dropped = naive_dropped("gru", recurrent_mask((), inner[0]))
    between = recurrent_mask((), inner[1])
    like = LSTM.initial_state(LSTM.init(key()), (B,))
    zoned = naive_zoned("lstm", draw(outer[1], RATE, like, (T,)))

    def naive(params, xs, state, option):
        one, ys = dropped(params[0][0], xs, state[0][0], option)
        two, ys = zoned(params[1], xs + ys * between[None] / KEEP, state[1], option)
        return ((one, ()), two), ys

    check(deep, naive, key=key(), options=["none", "resets"], tolerance=1e-11)


RANDOM = {
    "dropout": jb.stack(jb.layer(GRU), jb.dropout(rate=RATE)),
    "variational_dropout": jb.stack(jb.layer(GRU), jb.variational_dropout(rate=RATE)),
    "recurrent_dropout": jb.recurrent_dropout(GRU, rate=RATE),
    "recurrent_dropout_per_step": jb.recurrent_dropout_per_step(GRU, rate=RATE),
    "zoneout": jb.zoneout(GRU, rate=RATE),
}


@pytest.mark.parametrize("name", RANDOM)
def test_the_key_decides(name):
    layer = RANDOM[name]
    params, xs, state = problem(layer)

    run = jax.jit(lambda key: layer.apply(params, xs, state, key=key)[1])

    def outputs(seed):
        return np.asarray(run(None if seed is None else jax.random.key(seed)))

    np.testing.assert_array_equal(outputs(0), outputs(0))
    assert np.any(outputs(0) != outputs(1)) and np.any(outputs(0) != outputs(None))


@pytest.mark.parametrize("name", ["dropout", "variational_dropout", "recurrent_dropout"])
def test_with_no_key_dropout_is_the_identity(name):
    layer = RANDOM[name]
    params, xs, state = problem(layer)
    inner = (params, state) if name == "recurrent_dropout" else (params[0], state[0])
    want = jb.layer(GRU).apply(inner[0], xs, inner[1])[1]
    np.testing.assert_array_equal(layer.apply(params, xs, state, key=None)[1], want)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["recurrent_dropout", "recurrent_dropout_per_step", "zoneout"])
def test_forward_mode_agrees_with_reverse_mode(name):
    layer = RANDOM[name]
    params, xs, state = problem(layer)
    direction = jax.tree.map(np.cos, params)

    def loss(params):
        last_state, ys = layer.apply(params, xs, state, key=key(), **keywords("all"))
        return jnp.sum(ys**2) + jnp.sum(last_state)

    slope = jax.jit(lambda p: jax.jvp(loss, (p,), (direction,))[1])(params)
    gradient = jax.jit(jax.grad(loss))(params)
    along = [
        np.sum(g * d) for g, d in zip(*map(jax.tree.leaves, (gradient, direction)), strict=True)
    ]
    assert abs(slope - sum(along)) <= 1e-13 * np.abs(along).sum()


@pytest.mark.parametrize(
    "name", [slow_unless(n in ("variational_dropout", "zoneout"), n) for n in RANDOM]
)
def test_padding_and_masked_inputs_change_no_bit(name):
    layer = RANDOM[name]
    params, xs, state = problem(layer)

    @jax.jit
    def gradient(xs):
        def loss(params, xs, state):
            last_state, ys = layer.apply(params, xs, state, key=key(), **keywords("all"))
            return jnp.sum(ys**3) + sum(jnp.sum(s) for s in jax.tree.leaves(last_state)), ys

        return jax.grad(loss, (0, 1, 2), has_aux=True)(params, xs, state)

    spoiled = poisoned(xs, "all")
    results = [gradient(np.where(np.isnan(spoiled), v, xs)) for v in (0.0, np.nan, np.inf)]
    for result in results[1:]:
        jax.tree.map(np.testing.assert_array_equal, result, results[0])


@pytest.mark.parametrize("make", [jb.dropout, jb.variational_dropout])
def test_dropout_writes_zeros_beyond_the_end(make):
    lengths = np.array([3, 1])
    xs = np.where((np.arange(4)[:, None] < lengths)[..., None], np.ones((4, 2, 5)), np.nan)
    for k in (None, key()):
        ys = make(rate=RATE).apply((), xs, lengths=lengths, key=k)[1]
        assert not np.any(ys[3]) and not np.any(ys[1:, 1]) and np.all(np.isfinite(ys))


def test_the_masks_have_the_rate_and_the_scale():
    xs, n = np.ones((40, 10, 100)), 40_000
    ys = np.asarray(jb.dropout(rate=RATE).apply((), xs, key=key())[1])
    assert set(np.unique(ys)) == {0.0, 1 / KEEP}
    assert abs((ys == 0).mean() - RATE) < 4 * np.sqrt(RATE * KEEP / n)
    assert np.all(ys.any(axis=(1, 2))) and len({y.tobytes() for y in ys}) == 40, "one mask a step"
    zs = np.asarray(jb.variational_dropout(rate=RATE).apply((), xs, key=key())[1])
    assert np.all(zs == zs[0]) and len({z.tobytes() for z in zs[0]}) == 10, "one mask a sequence"
    assert abs((zs[0] == 0).mean() - RATE) < 4 * np.sqrt(RATE * KEEP / 1000)


def test_integers_pass_through_dropout():
    xs = {"tokens": np.arange(6).reshape(3, 2), "v": np.ones((3, 2, 4))}
    for make in (jb.dropout, jb.variational_dropout):
        ys = make(rate=0.9).apply((), xs, key=key())[1]
        np.testing.assert_array_equal(ys["tokens"], xs["tokens"])
        assert np.any(ys["v"] == 0)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_dtype_is_kept(dtype):
    xs = np.ones((T, B, I), dtype)
    cell = jb.lstm(**SIZES, dtype=dtype)
    rate = np.float64(0.5)
    for layer in (
        jb.stack(jb.dropout(rate=rate), jb.variational_dropout(rate=rate)),
        jb.zoneout(cell, rate=rate),
        jb.recurrent_dropout(cell, rate=rate),
        jb.recurrent_dropout_per_step(cell, rate=rate),
    ):
        for k in (None, key()):
            assert layer.apply(layer.init(key()), xs, key=k)[1].dtype == dtype


def test_wrong_arguments_are_named():
    for rate in (1, 1.0, -0.1, "0.5", None, True, float("nan")):
        for make in (
            jb.dropout,
            jb.variational_dropout,
            lambda rate: jb.recurrent_dropout(LSTM, rate=rate),
            lambda rate: jb.recurrent_dropout_per_step(LSTM, rate=rate),
            lambda rate: jb.zoneout(LSTM, rate=rate),
        ):
            refused(lambda m=make, r=rate: m(rate=r), ValueError, "rate must be a number in [0, 1)")
    plain = jb.gru_reset_before(**SIZES)
    for make in (jb.recurrent_dropout, jb.recurrent_dropout_per_step, jb.zoneout):
        name = f"{make.__name__}: "
        refused(lambda m=make: m(jb.lstm, rate=0.5), TypeError, name, "cell must be a Cell")
        refused(lambda m=make: m(LSTM, rate=0.5, reverse=1), TypeError, name, "reverse must be")
        params, xs, _ = problem(make(LSTM, rate=0.5))
        layer = make(LSTM, rate=0.5)
        refused(
            lambda a=layer.apply, p=params, x=xs: a(p, x, np.ones(3), key=key()), TypeError, "state"
        )
        if make is not jb.zoneout:
            refused(lambda m=make: m(plain, rate=0.5), TypeError, name, "must be a GatedStep")
            unmixed = jb.from_step(
                jb.GatedStep(lambda w, s: (), lambda w, s, drive, _: 0.5 * s + drive),
                init=lambda k: jnp.ones(3),
                initial_state=lambda w, b: jnp.zeros((*b, 3)),
                input_shape=(3,),
            )
            layer = make(unmixed, rate=0.5)
            refused(
                lambda a=layer.apply: a(jnp.ones(3), np.ones((4, 3)), key=key()),
                ValueError,
                name,
                "has no recurrent product",
            )
