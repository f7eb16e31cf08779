"""Diagonal cells by kernels in the interpreter: values and gradients of the scan."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import jax_bptt as jb
from jax_bptt.algorithms import fused, fused_diagonal
from jax_bptt.kernels import choice, linear
from jax_bptt.kernels.gpu import mosaic
from tests.kernels.test_tiles import in_single
from tests.registry import slow_unless

T, BATCH = 3, (3, 1)
SIZES: Any = dict(input_size=2, hidden_size=5)
CELLS = {
    "lru": jb.lru(**SIZES, output_size=2),
    "min_gru": jb.min_gru(**SIZES),
    "min_lstm": jb.min_lstm(**SIZES, output_size=2),
    "indrnn_linear": jb.indrnn(**SIZES, activation=None),
    "embedding": jb.embedding(jb.min_gru(**SIZES), vocabulary_size=3),
    "mixed_precision": jb.mixed_precision(jb.min_gru(**SIZES)),
}
ALL = dict(
    lengths=np.array([[T], [2], [0]], np.int32),
    resets=np.random.default_rng(0).random((T, *BATCH)) < 0.3,
    mask=np.random.default_rng(1).random((T, *BATCH)) < 0.7,
)
OPTIONS = {"none": {}, "all": ALL} | {name: {name: value} for name, value in ALL.items()}
DEVICES = ["gpu", "tpu"]


@functools.cache
def algorithm(device):
    missing = device == "gpu" and mosaic.available()
    if missing:
        pytest.skip(missing)
    return jb.fused(interpret=True, device=device)


def problem(name):
    cell, (key_x, key_s) = CELLS[name], jax.random.split(jax.random.key(1))
    params = in_single(cell.init(jax.random.key(0)))
    if name == "embedding":
        xs = jax.random.randint(key_x, (T, *BATCH), 0, 3)
    else:
        xs = jax.random.normal(key_x, (T, *BATCH, 2), jnp.float32)
    state = jax.tree.map(
        lambda s: jax.random.normal(key_s, s.shape, s.dtype),
        in_single(cell.initial_state(params, BATCH)),
    )
    return params, xs, state


def gradient(name, kind, options, arguments):
    def loss(arguments):
        last_state, ys = jb.unroll(CELLS[name], *arguments, algorithm=kind, **options)
        total = sum(jnp.sum(jnp.abs(s) ** 2) for s in jax.tree.leaves(last_state))
        weights = jnp.cos(jnp.arange(ys.size, dtype=jnp.float32)).reshape(ys.shape)
        return total + jnp.sum(weights * ys.astype(jnp.float32)), (last_state, ys)

    gradients, outputs = jax.grad(loss, has_aux=True, allow_int=True)(arguments)
    return [g for g in jax.tree.leaves((gradients, outputs)) if g.dtype != jax.dtypes.float0]


def assert_near(got, want, tolerance=2e-6):
    for a, b in zip(got, want, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        wide = np.complex128 if np.iscomplexobj(a) else np.float64
        a, b = np.asarray(a, wide), np.asarray(b, wide)
        assert np.linalg.norm(a - b) <= tolerance * np.linalg.norm(b)


@pytest.mark.parametrize(
    "name, option, device",
    [
        slow_unless(
            (name, option, device) == ("lru", "all", "gpu"),
            *(name, option, device),
        )
        for name in CELLS
        for option in (OPTIONS if name == "lru" else ("none", "all"))
        for device in DEVICES
    ],
)
def test_values_and_gradients(name, option, device):
    arguments = problem(name)
    run = functools.partial(gradient, name)
    got, want = (
        jax.jit(functools.partial(run, kind, OPTIONS[option]))(arguments)
        for kind in (algorithm(device), jb.bptt())
    )
    assert_near(got, want)


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
def test_a_gradient_of_the_last_state_alone(device):
    arguments = problem("min_lstm")
    d_last_state = jnp.ones((*BATCH, 5), jnp.float32)
    got, want = (
        jb.bptt_gradients(CELLS["min_lstm"], *arguments, d_last_state=d_last_state, algorithm=kind)
        for kind in (algorithm(device), jb.bptt())
    )
    assert_near(jax.tree.leaves(got), jax.tree.leaves(want))


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
def test_vmap_over_parameters(device):
    params, *rest = problem("min_gru")
    several = jax.tree.map(lambda p: jnp.stack([p, 1.1 * p]), params)
    got, want = (
        jax.jit(jax.vmap(lambda p, kind=kind: gradient("min_gru", kind, {}, (p, *rest))))(several)
        for kind in (algorithm(device), jb.bptt())
    )
    assert_near(got, want)


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
def test_forward_mode_is_that_of_the_scan(device):
    params, xs, state = problem("min_gru")

    def outputs(params, kind):
        return jb.unroll(CELLS["min_gru"], params, xs, state, algorithm=kind)

    got, want = (
        jax.tree.leaves(jax.jvp(functools.partial(outputs, kind=kind), (params,), (params,)))
        for kind in (algorithm(device), jb.bptt())
    )
    assert_near(got, want)


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
def test_second_derivatives_run_the_scan(device):
    params, xs, state = problem("min_gru")

    def slope(params, kind):
        def loss(params):
            last_state, ys = jb.unroll(CELLS["min_gru"], params, xs, state, algorithm=kind)
            return jnp.sum(jnp.sin(ys)) + jnp.sum(last_state**2)

        return sum(jnp.sum(jnp.cos(d)) for d in jax.tree.leaves(jax.grad(loss)(params)))

    got, want = (
        jax.tree.leaves(jax.jit(jax.grad(slope), static_argnums=1)(params, kind))
        for kind in (algorithm(device), jb.bptt())
    )
    assert_near(got, want)


class Recorder(NamedTuple):
    """A kernel that is a scan of JAX, and notes what it is given."""

    seen: list

    def scan(self, first, factors, offsets, *, reverse, interpret):
        self.seen.append((len(factors), offsets is not None))
        if offsets is None:
            offsets = jnp.zeros_like(factors)
        factors = jnp.broadcast_to(factors, offsets.shape)

        def step(carried, given):
            factor, offset = map(linear.planes, given)
            values, after = linear.advance(factor, linear.planes(carried), offset, reverse)
            return linear.join(after), linear.join(values)

        last, values = jax.lax.scan(step, first, (factors, offsets), reverse=reverse)
        return values, last


@pytest.mark.parametrize(
    "name, option, seen",
    [
        ("lru", {}, (1, True)),
        slow_unless(False, "indrnn_linear", {}, (1, True)),
        slow_unless(False, "min_gru", {}, (T, True)),
        slow_unless(False, "lru", {"resets": ALL["resets"]}, (T, True)),
    ],
)
def test_factors_that_stay_the_same_are_read_once(name, option, seen):
    recorder = Recorder([])
    arguments = problem(name)
    kind = fused.by_kernel(lambda *_: fused_diagonal.fused_diagonal(recorder.scan))
    got = jax.jit(functools.partial(gradient, name, kind, option))(arguments)
    assert set(recorder.seen) == {seen}
    want = jax.jit(functools.partial(gradient, name, jb.bptt(), option))(arguments)
    assert_near(got, want)


@pytest.mark.parametrize("name", ["lru", slow_unless(False, "min_gru")])
def test_outputs_without_a_gradient_are_not_read(name):
    recorder = Recorder([])
    params, xs, state = problem(name)
    got, want = (
        jb.bptt_gradients(CELLS[name], params, xs, state, d_last_state=state, algorithm=kind)
        for kind in (fused_diagonal.fused_diagonal(recorder.scan), jb.bptt())
    )
    assert recorder.seen[-1] == (T, False)
    assert_near(jax.tree.leaves(got), jax.tree.leaves(want))


@pytest.mark.slow
def test_leaves_of_the_state_are_run_one_by_one():
    def coefficients(w, x):
        return {"fast": jnp.broadcast_to(w, x.shape), "slow": 0.5 * x}, {"fast": x, "slow": x * x}

    cell = jb.from_step(
        jb.DiagonalStep(coefficients),
        init=lambda key: jnp.full(2, 0.9, jnp.float32),
        initial_state=lambda p, b: {k: jnp.ones((*b, 2), jnp.float32) for k in ("fast", "slow")},
        input_shape=(2,),
        readout=lambda w, s: s["fast"] ** 2,
    )
    params, xs = jnp.full(2, 0.9, jnp.float32), jnp.ones((T, *BATCH, 2), jnp.float32)
    recorder = Recorder([])

    def loss(arguments, kind):
        last_state, ys = jb.unroll(cell, *arguments, algorithm=kind)
        return jnp.sum(ys) + jnp.sum(last_state["slow"])

    kinds = fused_diagonal.fused_diagonal(recorder.scan), jb.bptt()
    got, want = (jax.tree.leaves(jax.grad(loss)((params, xs), kind)) for kind in kinds)
    assert_near(got, want)
    assert recorder.seen[-2:] == [(1, True), (T, False)]


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
def test_shard_map_over_the_batch(device):
    params, xs, _ = problem("lru")
    xs, state = xs[:, :2], jnp.zeros((2, 1, 5), jnp.complex64)
    # The interpreter of GPU kernels cannot run two devices at a time.
    devices = jax.devices()[: 1 if device == "gpu" else 2]
    kinds = (jax.sharding.AxisType.Auto,)
    mesh = jax.make_mesh((len(devices),), ("batch",), axis_types=kinds, devices=devices)
    specs = P(), P(None, "batch"), P("batch")

    def total(params, kind):
        def local(params, xs, state):
            last_state, ys = jb.unroll(CELLS["lru"], params, xs, state, algorithm=kind)
            return jax.lax.psum(jnp.sum(ys) + jnp.sum(last_state.imag), "batch")

        sharded = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=P())
        return sharded(params, xs, state)

    got, want = (
        jax.jit(jax.grad(functools.partial(total, kind=kind)))(params)
        for kind in (algorithm(device), jb.bptt())
    )
    assert_near(jax.tree.leaves(got), jax.tree.leaves(want))


def test_what_stands_in_the_way_is_named():
    cell, (params, xs, state) = CELLS["min_gru"], problem("min_gru")

    def reason(xs, state, device):
        return choice.choose(cell, params, state, xs, device)

    assert "a cpu" in reason(xs, state, "cpu")
    assert "no step" in reason(xs[:0], state, "tpu")
    assert "no step" in reason(xs, state[..., :0], "tpu")
    for device in DEVICES:
        found = reason(xs, state.astype(jnp.float64), device)
        assert "not float64" in found or "install" in found


@pytest.mark.parametrize("device", DEVICES)
def test_explain_names_the_kernel(device):
    cell, (params, xs, _) = CELLS["lru"], problem("lru")
    if device == "gpu" and mosaic.available():
        pytest.skip("no kernels")
    assert f"the kernel {device}_diagonal" in jb.explain(cell, params, xs, device=device)
