"""Programs that users write around the library: each ran wrong, or not at all, at some time."""

import gc
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify

import jax_bptt as jb
from tests.core.messages import check
from tests.registry import assert_close, slow_unless

T, B, H = 6, 2, 3
XS = np.random.default_rng(0).normal(size=(T, B, H))
W = np.full(H, 0.5)


@pytest.fixture(autouse=True)
def lenient():
    """Users write `w * s` with JAX as it comes; the library's own code is strict elsewhere."""
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


def cell_of(step, **options):
    return jb.from_step(
        step,
        init=lambda key: jnp.asarray(W),
        initial_state=lambda w, batch: jnp.zeros((*batch, H)),
        input_shape=(H,),
        **options,
    )


def of_a(a, kind):
    """Return a cell whose functions close over `a`."""
    if kind == "plain":
        return cell_of(lambda w, s, x: jnp.tanh(w * s + a * x))
    if kind == "gated":
        step = jb.GatedStep(lambda w, s: a * w * s, lambda w, s, d, f: jnp.tanh(a * d + f))
        return cell_of(step, any_batch=True)
    step = jb.DiagonalStep(lambda w, d: (a * jnp.broadcast_to(w, d.shape), d))
    return cell_of(step, readout=lambda w, s: a * s)


def loss(kind, algorithm=None):
    def of(w, a):
        return jnp.sum(jb.unroll(of_a(a, kind), w, XS, algorithm=algorithm)[1] ** 2)

    return of


each_closure = pytest.mark.parametrize("kind", ["plain", "gated", "diagonal"])


@each_closure
def test_what_a_step_closes_over_is_differentiated(kind):
    a = jnp.asarray(0.3)
    want = jax.jit(jax.grad(loss(kind, jb.autodiff()), (0, 1)))(W, a)
    assert_close(jax.jit(jax.grad(loss(kind), (0, 1)))(W, a), want, 1e-12)
    assert_close(jax.grad(jax.jit(loss(kind)), (0, 1))(W, a), want, 1e-12)


@pytest.mark.parametrize(
    "kind, around",
    [
        # Each kind once.
        slow_unless((kind == "gated") == (around is jax.checkpoint), kind, around)
        for kind in ("plain", "gated", "diagonal")
        for around in (jax.jit, jax.checkpoint)
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_closures_inside_transformations(kind, around):
    a = jnp.asarray(0.3)
    want = jax.grad(loss(kind, jb.autodiff()))(W, a)
    assert_close(jax.grad(around(loss(kind)))(W, a), want, 1e-12)


@pytest.mark.slow
def test_closures_inside_loops_and_of_second_order():
    a = jnp.array([0.3, 0.4])
    want = jnp.stack([jax.grad(loss("plain", jb.autodiff()))(W, x) for x in a])
    assert_close(jax.lax.map(lambda x: jax.grad(loss("plain"))(W, x), a), want, 1e-12)
    assert_close(jax.vmap(lambda x: jax.grad(loss("plain"))(W, x))(a), want, 1e-12)
    hessians = [jax.hessian(loss("plain", b), 1)(W, a[0]) for b in (None, jb.autodiff())]
    assert_close(hessians[0], hessians[1], 1e-12)


@jax.custom_vjp
def spike(x):
    return (x > 0).astype(x.dtype)


spike.defvjp(lambda x: (spike(x), x), lambda x, d: (d / (1 + jnp.abs(x)) ** 2,))
SPIKING = cell_of(lambda w, s, x: 0.9 * s + spike(w * s + x))


def spiking(w, xs, algorithm=None):
    return jnp.sum(jb.unroll(SPIKING, w, xs, algorithm=algorithm)[1] ** 2)


def test_a_step_without_forward_mode_has_all_else():
    want = jax.jit(jax.grad(lambda w: spiking(w, XS, jb.autodiff())))(W)
    assert_close(jax.jit(jax.grad(spiking))(W, XS), want, 1e-12)
    one_by_one = jax.jit(jax.vmap(jax.grad(spiking), (None, 1)))(W, jnp.asarray(XS)[:, :, None])
    assert_close(one_by_one.sum(0), want, 1e-12)

    @jax.jit
    def by_hand(w):
        return jb.bptt_gradients(SPIKING, w, XS, d_ys=2 * jb.unroll(SPIKING, w, XS)[1])

    assert_close(by_hand(W)[0], want, 1e-12)

    def squared(w, algorithm=None):
        return jnp.sum(jax.grad(lambda w: spiking(w, XS, algorithm))(w) ** 2)

    wanted = jax.jit(jax.grad(lambda w: squared(w, jb.autodiff())))(W)
    assert_close(jax.jit(jax.grad(squared))(W), wanted, 1e-12)
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(lambda w: spiking(w, XS), (W,), (W,))


@pytest.mark.parametrize("jit", [False, True])
def test_a_callback_in_a_step_runs_once_a_step(jit):
    seen = []

    def step(w, s, x):
        jax.debug.callback(lambda s: seen.append(s), s)
        return jnp.tanh(w * s + x)

    cell = cell_of(step)
    gradient = jax.grad(lambda w: jnp.sum(jb.unroll(cell, w, XS)[1] ** 2))
    jax.block_until_ready((jax.jit(gradient) if jit else gradient)(W))
    jax.effects_barrier()
    assert len(seen) == T


def tanh(w, s, x):
    return jnp.tanh(w * s + x)


def test_a_check_in_a_step_is_made_functional():
    def step(w, s, x):
        checkify.check(jnp.all(jnp.abs(s) < 0.5), "large")
        return tanh(w, s, x)

    cell = cell_of(step)
    run = lambda w: jnp.sum(jb.unroll(cell, w, XS)[1])  # noqa: E731
    assert "large" in (checkify.checkify(run)(W)[0].get() or "")
    # In a gradient JAX makes no checks of a scan's forward pass; it runs.
    want = jax.grad(lambda w: jnp.sum(jb.unroll(cell_of(tanh), w, XS)[1]))(W)
    assert_close(checkify.checkify(jax.grad(run))(W)[1], want, 1e-12)


class Module:
    """An object that holds an array and cannot be hashed, as a module of Equinox."""

    def __init__(self, w):
        self.w = w

    __hash__ = None  # pyright: ignore

    def init(self, key):
        return self.w

    def initial_state(self, w, batch):
        return jnp.zeros((*batch, H))

    def step(self, w, s, x):
        return jnp.tanh(w * s + self.w * x)


def test_methods_of_an_object_that_cannot_be_hashed():
    def run(w):
        m = Module(w)
        cell = jb.from_step(m.step, init=m.init, initial_state=m.initial_state, input_shape=(H,))
        return jnp.sum(jb.unroll(cell, w, XS)[1])

    step = cell_of(lambda w, s, x: jnp.tanh(w * s + w * x))
    assert_close(jax.grad(run)(W), jax.grad(lambda w: jnp.sum(jb.unroll(step, w, XS)[1]))(W), 1e-12)


LSTM = jb.lstm(input_size=H, hidden_size=4)


@pytest.mark.slow  # tests/core/test_growth.py counts compilations in the quick run
@pytest.mark.parametrize("what", ["unroll", "grad", "bptt_gradients"])
def test_equal_eager_calls_compile_once(what):
    params = LSTM.init(jax.random.key(0))
    d_ys = jnp.ones((T, B, 4))

    def call():
        if what == "unroll":
            return jb.unroll(LSTM, params, XS, algorithm=jb.bptt(block_length=2))
        if what == "grad":
            return jax.grad(lambda p: jnp.sum(jb.unroll(LSTM, p, XS)[1] ** 2))(params)
        return jb.bptt_gradients(LSTM, params, XS, d_ys=d_ys)

    compiled = []

    def listen(event, duration_secs, **_):
        if "backend_compile" in event:
            compiled.append(event)

    call()
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        for _ in range(3):
            jax.block_until_ready(call())
        gc.collect()
        arrays = len(jax.live_arrays())
        for _ in range(20):
            jax.block_until_ready(call())
        gc.collect()
        assert len(jax.live_arrays()) == arrays
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert not compiled


@pytest.mark.slow
def test_steps_are_an_unroll():
    params, state, ys = LSTM.init(jax.random.key(0)), None, []
    for x in XS:
        state, y = jb.step(LSTM, params, state, x)
        ys.append(y)
    assert_close((state, jnp.stack(ys)), jb.unroll(LSTM, params, XS), 1e-14)


@pytest.mark.parametrize("of_time", [slow_unless(False, False), True])
def test_sizes_that_are_not_known_export(of_time):
    steps, batch = jax.export.symbolic_shape("t, b")
    xs = jax.ShapeDtypeStruct((steps if of_time else T, batch, H), XS.dtype)
    params = LSTM.init(jax.random.key(0))
    leaves, structure = jax.tree.flatten(params)

    def loss(leaves, xs):
        return jnp.sum(jb.unroll(LSTM, jax.tree.unflatten(structure, leaves), xs)[1] ** 2)

    for function in (loss, jax.grad(loss)):
        exported = jax.export.export(jax.jit(function))(leaves, xs)
        assert_close(exported.call(leaves, XS), jax.jit(function)(leaves, XS), 1e-12)


def test_nan_padding_raises_no_alarm():
    xs = jnp.asarray(XS).at[4, 0].set(jnp.nan)
    params = LSTM.init(jax.random.key(0))
    lengths = jnp.array([3, T])
    with jax.debug_nans(True):
        d_xs = jax.grad(lambda xs: jnp.sum(jb.unroll(LSTM, params, xs, lengths=lengths)[1]))(xs)
    assert not jnp.isnan(d_xs).any()


@pytest.mark.parametrize(
    "shape", [slow_unless(shape == (0, 0), shape) for shape in ((0, B), (T, 0), (0, 0))]
)
def test_nothing_to_run_in_several_blocks(shape):
    params = LSTM.init(jax.random.key(0))
    options: Any = dict(resets=jnp.zeros(shape, bool), algorithm=jb.bptt(block_length=2))

    def loss(params, xs):
        return jnp.sum(jb.unroll(LSTM, params, xs, **options)[1])

    d_params, d_xs = jax.grad(loss, (0, 1))(params, jnp.zeros((*shape, H)))
    assert d_xs.shape == (*shape, H)
    assert not any(jnp.any(d) for d in jax.tree.leaves(d_params))


def test_a_leaf_without_the_batch_cannot_be_held_even_if_its_size_is_that_of_the_batch():
    cell = jb.from_step(
        lambda w, s, x: (jnp.tanh(w * s[0] + x), s[1]),
        init=lambda key: jnp.asarray(W),
        initial_state=lambda w, batch: (jnp.zeros((*batch, H)), jnp.zeros(B, jnp.uint32)),
        input_shape=(H,),
    )
    run = lambda: jb.unroll(cell, W, XS, lengths=jnp.array([T, 2]))  # noqa: E731
    check(run, ValueError, "unroll: state[1].shape=(2,)", "batch=(2,)")


def test_tokens_out_of_range():
    cell = jb.embedding(LSTM, vocabulary_size=5)
    params = cell.init(jax.random.key(0))
    run = lambda: jb.unroll(cell, params, np.array([[0, 1], [-1, 7]], np.int32))  # noqa: E731
    check(run, ValueError, "unroll: xs has tokens from -1 to 7", "0 to 4")

    def gradient(tokens):
        loss = lambda p: jnp.sum(jb.unroll(cell, p, tokens)[1] ** 2)  # noqa: E731
        return jax.jit(jax.grad(loss))(params)

    traced = jax.jit(gradient)
    clipped = traced(jnp.array([[0, 1], [0, 4]], jnp.int32))
    assert_close(traced(jnp.array([[0, 1], [-1, 7]], jnp.int32)), clipped, 0)


def test_a_table_of_tokens_is_real_whatever_the_cell_is():
    cell = jb.embedding(jb.learned_state(jb.lru(input_size=3, hidden_size=4)), vocabulary_size=5)
    assert cell.init(jax.random.key(0)).embedding.dtype == jnp.float64


def test_a_unit_that_is_off_passes_no_infinite_cotangent():
    cell = jb.elman(input_size=H, hidden_size=H, activation=jax.nn.relu)
    params = cell.init(jax.random.key(0))
    params = params._replace(w_x=-jnp.ones_like(params.w_x))
    d_xs = jax.grad(lambda xs: jnp.sum(jb.unroll(cell, params, xs)[1] * jnp.inf))(jnp.abs(XS))
    assert not jnp.isnan(d_xs).any()


@pytest.mark.parametrize("layer", [jb.dropout(rate=0.5), jb.variational_dropout(rate=0.5)])
def test_dropout_checks_what_it_is_given_and_reads_what_it_may(layer):
    xs = jnp.asarray(XS).at[1, 0].set(jnp.nan)
    mask = jnp.ones((T, B), bool).at[1, 0].set(False)
    for key in (None, jax.random.key(0)):
        assert not jnp.isnan(layer.apply((), xs, key=key, mask=mask)[1]).any()
    check(lambda: layer.apply((), xs, lengths=[1.5, 2.5]), TypeError, "dropout: lengths")
    check(lambda: layer.apply((), xs, mask="nonsense"), TypeError, "dropout: mask")
    check(lambda: layer.apply((), xs, resets=mask[1:]), ValueError, "dropout: resets.shape=(5, 2)")
    check(lambda: layer.apply({"w": xs}, xs), TypeError, "dropout: params must be ()")


def test_a_reset_state_without_resets_is_an_error():
    params = LSTM.init(jax.random.key(0))
    state = LSTM.initial_state(params, (B,))
    run = lambda: jb.unroll(LSTM, params, XS, reset_state=state)  # noqa: E731
    check(run, ValueError, "unroll: reset_state is what resets go back to, but there are none")
    run = lambda: jb.unroll(  # noqa: E731
        LSTM, params, XS, resets=jnp.zeros((T, B), bool), reset_state=state.h
    )
    check(run, TypeError, "unroll: reset_state is an array float64[2, 4]")


@pytest.mark.parametrize(
    "make, pieces",
    [
        (lambda: jb.lstm(input_size=2, hidden_size=3, forget_bias=np.nan), "lstm: forget_bias"),
        (lambda: cell_of(lambda w, s, x: s, any_batch="yes"), "from_step: any_batch"),
        (lambda: jb.weight_noise(jax.random.key(0), W, scale=-1.0), "weight_noise: scale"),
    ],
)
def test_settings_that_make_no_sense(make, pieces):
    check(make, (TypeError, ValueError), pieces)


def test_tokens_that_a_compiled_function_closes_over():
    """Their values are known and checked, though nothing of JAX may be computed of them there."""
    cell = jb.embedding(jb.lstm(3, 4), vocabulary_size=5)
    params, tokens = cell.init(jax.random.key(0)), jnp.full((6, 2), 4)
    got = jax.jit(lambda params: jb.unroll(cell, params, tokens))(params)
    assert_close(got, jb.unroll(cell, params, tokens), 1e-14)
    with pytest.raises(ValueError, match="tokens from 7 to 7"):
        wrong = jnp.full((6, 2), 7)
        jax.jit(lambda params: jb.unroll(cell, params, wrong))(params)
