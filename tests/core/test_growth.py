"""Buffers: each is its own, and eager calls leave none behind; nor do they compile twice."""

import contextlib
import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_bptt as jb
from tests.registry import CELLS, assert_close, problem, run, slow_unless

T, B, H = 4, 2, 3
SIZES: Any = dict(input_size=H, hidden_size=H)
GRU, LSTM = jb.gru(**SIZES), jb.lstm(**SIZES)
XS = np.random.default_rng(0).normal(size=(T, B, H))
SMAPS = Path("/proc/self/smaps_rollup")


# tests/cells/test_cells.py looks at the buffers of all of them.
DONATED = {"lstm_readout", "learned_state", "multi_head"}


def fresh(name):
    params = CELLS[name].cell.init(jax.random.key(0))
    return params, CELLS[name].cell.initial_state(params, (B,))


@pytest.mark.parametrize("name", [slow_unless(name in DONATED, name) for name in CELLS])
def test_params_and_state_are_donated_in_one_call(name):
    """Which JAX refuses where two leaves share a buffer."""
    given = fresh(name)
    double = jax.jit(lambda tree: jax.tree.map(lambda a: a + a, tree), donate_argnums=0)
    want = jax.tree.map(lambda a: np.asarray(a) + np.asarray(a), given)
    assert_close(double(given), want, 0)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(given))


@pytest.mark.parametrize("name", [slow_unless(name == "learned_state", name) for name in CELLS])
def test_a_run_may_have_the_buffers_of_params_and_state(name):
    xs = jax.tree.map(lambda a: a[:T, :B], problem(name).xs)

    def window(params, state):
        state, ys = run(name, None, params, xs, state)
        return jax.tree.map(lambda a: a * 2, params), state, ys

    want = jax.jit(window)(*fresh(name))
    params, state = fresh(name)
    got = jax.jit(window, donate_argnums=(0, 1))(params, state)
    assert_close(got, want, 0)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((params, state)))


def applied(layer: jb.Layer, keyed: bool = False) -> Callable[[], Any]:
    """Return a call of the layer, from the params on, with a key that is made anew."""

    def call():
        params = layer.init(jax.random.key(0))
        key = jax.random.key(1) if keyed else None
        return layer.apply(params, XS, key=key, lengths=np.array([T, 2]))

    return call


def step():
    state, _ = jb.step(LSTM, PARAMS["lstm"], None, XS[0])
    return jb.step(LSTM, PARAMS["lstm"], state, XS[1])


def made_anew():
    """As in a loop that makes its cells, layers and algorithms where it needs them."""
    layer = jb.residual(jb.zoneout(jb.gru(**SIZES), rate=0.2))
    algorithm = jb.bptt(block_length=2)
    return layer.apply(PARAMS["gru"], XS, key=jax.random.key(0), algorithm=algorithm)


def of_layer(layer: jb.Layer, params: Any) -> Callable[[], Any]:
    def loss(params):
        return jnp.sum(layer.apply(params, XS, key=jax.random.key(1))[1] ** 2)

    return lambda: jax.grad(loss)(params)


PARAMS: dict[str, Any] = {}


@pytest.fixture(autouse=True)
def params():
    """Draw params in the dtype of the tests, which is not that of their collection."""
    PARAMS.update(gru=GRU.init(jax.random.key(0)), lstm=LSTM.init(jax.random.key(0)))


def unroll():
    return jb.unroll(LSTM, PARAMS["lstm"], XS, algorithm=jb.bptt(block_length=2))


def gradient():
    return jax.grad(lambda p: jnp.sum(jb.unroll(LSTM, p, XS)[1] ** 2))(PARAMS["lstm"])


def gradient_by_hand():
    options: Any = dict(resets=np.zeros((T, B), bool), mask=np.ones((T, B), bool))
    return jb.bptt_gradients(LSTM, PARAMS["lstm"], XS, d_ys=np.ones((T, B, H)), **options)


CALLS: dict[str, Callable[[], Any]] = {
    "unroll": unroll,
    "grad": gradient,
    "bptt_gradients": gradient_by_hand,
    "step": step,
    "made_anew": made_anew,
    "layer": applied(jb.layer(GRU)),
    "reverse": applied(jb.layer(GRU, reverse=True)),
    "bidirectional": applied(jb.bidirectional(GRU, GRU)),
    "stack": applied(jb.stack(jb.layer(GRU), jb.dropout(rate=0.2), jb.layer(GRU)), keyed=True),
    "residual": applied(jb.residual(jb.layer(GRU))),
    "zoneout": applied(jb.zoneout(GRU, rate=0.2), keyed=True),
    "zoneout_expected": applied(jb.zoneout(GRU, rate=0.2)),
    "dropout": applied(jb.dropout(rate=0.2), keyed=True),
    "variational_dropout": applied(jb.variational_dropout(rate=0.2), keyed=True),
    "recurrent_dropout": applied(jb.recurrent_dropout(GRU, rate=0.2), keyed=True),
    "recurrent_dropout_per_step": applied(jb.recurrent_dropout_per_step(GRU, rate=0.2), keyed=True),
}


@contextlib.contextmanager
def compilations() -> Iterator[list[str]]:
    """Yield a list of all that JAX compiles or lowers from now on."""
    seen = []

    def listen(event, duration_secs, **_):
        if "backend_compile" in event or "to_mlir_module" in event:
            seen.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield seen
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


@pytest.fixture
def only_new_objects():
    """Leave to the collector what a test makes: all that is there takes seconds to go through."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def held() -> tuple[int, int]:
    """Return the number of arrays, and of all objects that the collector knows."""
    gc.collect()
    return len(jax.live_arrays()), len(gc.get_objects())


def private_memory() -> int:
    """Return the bytes of memory that this process has to itself."""
    lines = SMAPS.read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_"))


def repeat(call, times):
    for _ in range(times):
        jax.block_until_ready(call())


# Each function of the library, and what is made anew; -m slow takes every layer.
FEW = {"unroll", "grad", "bptt_gradients", "step", "made_anew"}


def test_second_calls_compile_nothing():
    """Without a look at all objects, which takes seconds where many tests have run."""
    for name in FEW:
        repeat(CALLS[name], 2)
    with compilations() as seen:
        before = len(jax.live_arrays())
        for name in FEW:
            repeat(CALLS[name], 3)
        after = len(jax.live_arrays())
    assert not seen and after <= before


@pytest.mark.slow
@pytest.mark.usefixtures("only_new_objects")
@pytest.mark.parametrize("name", CALLS)
def test_second_calls_leave_nothing(name):
    call = CALLS[name]
    repeat(call, 3)
    with compilations() as seen:
        before = held()
        repeat(call, 10)
        after = held()
    assert not seen
    assert after[0] == before[0]
    assert after[1] - before[1] < 10, "an object a call"


@pytest.mark.slow
@pytest.mark.usefixtures("only_new_objects")
def test_the_counts_can_grow():
    kept = []

    def keep():
        kept.append({"an array": jnp.zeros(7) + len(kept)})
        return jax.jit(lambda x: x + 1)(kept[-1]["an array"])

    keep()
    with compilations() as seen:
        before = held()
        repeat(keep, 10)
        after = held()
    assert len(seen) >= 10
    assert after[0] - before[0] >= 10 and after[1] - before[1] >= 10


@pytest.mark.slow
@pytest.mark.skipif(not SMAPS.exists(), reason="memory is read from Linux's /proc")
@pytest.mark.parametrize("name", CALLS)
def test_calls_without_end_take_no_memory(name):
    call = CALLS[name]
    repeat(call, 200)
    objects = held()
    grown: list[float] = []
    # The allocator takes some now and then, the more the longer a run; a leak is there each time.
    while len(grown) < 4 and (not grown or grown[-1] >= 100 * 512):
        grown.append(growth(call))
    after = held()
    assert after[0] == objects[0] and after[1] - objects[1] < 50
    assert min(grown) < 100 * 512, f"more than half a kibibyte a call: {grown}"


def growth(call):
    """Return the median growth of the process's memory over a hundred calls, in bytes."""
    memory = [private_memory()]
    for _ in range(5):
        repeat(call, 100)
        gc.collect()
        memory.append(private_memory())
    return np.median(np.diff(memory))
