"""`fused`: the gradient of the scan, by kernels in the interpreter where JAX has what they need."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import jax_bptt as jb
from jax_bptt.kernels.gpu import mosaic
from jax_bptt.kernels.tpu import resident_parts
from tests.kernels.lowering import lowered
from tests.registry import slow_unless

LACKS = {"gpu": mosaic.available(), "tpu": resident_parts.available()}
NAMES = {"gpu": "gpu_heads", "tpu": "tpu_resident"}
T, BATCH = 3, (2, 1)


def on(device, *values, slow=False):
    reason = LACKS[device]
    skip = pytest.mark.skipif(reason is not None, reason=f"no kernels: {reason}")
    return pytest.param(device, *values, marks=[skip, pytest.mark.slow] if slow else skip)


# The interpreters take long: the cell with which the quick run goes through each, with all options.
IN_TIME = {"gpu": "lstm", "tpu": "lstm_peephole"}
each_device = pytest.mark.parametrize("device", [on(name) for name in LACKS])


def kernel(device):
    return jb.fused(interpret=True, device=device)


CELLS = {
    "lstm": lambda dtype: jb.multi_head(
        jb.lstm(input_size=2, hidden_size=64, output_size=2, dtype=dtype), heads=2
    ),
    "gru": lambda dtype: jb.gru(input_size=2, hidden_size=32, dtype=dtype),
    "lstm_peephole": lambda dtype: jb.lstm_peephole(input_size=2, hidden_size=32, dtype=dtype),
}
OPTIONS = dict(
    lengths=np.array([[T], [2]], np.int32),
    resets=np.array([[False, False], [True, False], [False, True]])[:, :, None],
    mask=np.array([[True, True], [True, False], [False, True]])[:, :, None],
)


def problem(name, dtype):
    cell = CELLS[name](dtype)
    params = cell.init(jax.random.key(0))
    keys = jax.random.split(jax.random.key(1), 3)
    state = jax.tree.map(
        lambda s: 0.3 * jax.random.normal(keys[0], s.shape, jnp.float32),
        cell.initial_state(params, BATCH),
    )
    return cell, params, jax.random.normal(keys[1], (T, *BATCH, 2), jnp.float32), state


def loss(cell, algorithm, options, arguments):
    last_state, ys = jb.unroll(cell, *arguments, algorithm=algorithm, **options)
    weights = jnp.cos(jnp.arange(ys.size, dtype=jnp.float32)).reshape(ys.shape)
    squares = sum(jnp.sum(s * s) for s in jax.tree.leaves(last_state))
    return jnp.sum(weights * ys.astype(jnp.float32)) + squares, (last_state, ys)


def gradient(cell, algorithm, options, *arguments):
    function = functools.partial(loss, cell, algorithm, options)
    return jax.jit(jax.grad(function, has_aux=True))(arguments)


def assert_near(got, want, tolerance):
    def compare(a, b):
        a, b = (np.asarray(x, np.float64) for x in (a, b))
        assert np.linalg.norm(a - b) <= tolerance * np.linalg.norm(b)

    jax.tree.map(compare, got, want)


@pytest.mark.parametrize(
    "device, name, options",
    [
        on(device, name, options, slow=options == {} or name != IN_TIME[device])
        for device in LACKS
        for name in CELLS
        for options in ({}, OPTIONS)
    ],
)
def test_values_and_gradients_in_single_precision(device, name, options):
    cell, *arguments = problem(name, jnp.float32)
    found = jb.explain(cell, *arguments[:2], device=device)
    assert f"the kernel {NAMES[device]}" in found
    got = gradient(cell, kernel(device), options, *arguments)
    assert_near(got, gradient(cell, jb.bptt(), options, *arguments), 2e-6)


@pytest.mark.slow
@each_device
def test_values_without_a_gradient(device):
    cell, *arguments = problem("lstm", jnp.float32)
    got, want = (
        jax.jit(functools.partial(jb.unroll, cell, algorithm=algorithm, **OPTIONS))(*arguments)
        for algorithm in (kernel(device), jb.bptt())
    )
    assert_near(got, want, 2e-6)


@pytest.mark.slow
@each_device
def test_values_and_gradients_in_half_precision(device):
    cell, *arguments = problem("lstm", jnp.bfloat16)
    got = gradient(cell, kernel(device), OPTIONS, *arguments)
    assert_near(got, gradient(cell, jb.bptt(), OPTIONS, *arguments), 5e-3)


@pytest.mark.slow
@each_device
def test_vmap_over_inputs_and_over_parameters(device):
    cell, params, xs, state = problem("gru", jnp.bfloat16)
    several = jax.vmap(cell.init)(jax.random.split(jax.random.key(2), 2))
    inputs = jnp.stack([xs, 2 * xs])
    for given, axes in (
        ((params, inputs, state), (None, 0, None)),
        ((several, xs, state), (0, None, None)),
    ):
        got, want = (
            jax.vmap(functools.partial(gradient, cell, kind, {}), in_axes=axes)(*given)
            for kind in (kernel(device), jb.bptt())
        )
        assert_near(got, want, 5e-3)


@pytest.mark.slow
@each_device
def test_forward_mode_is_that_of_the_scan(device):
    cell, *arguments = problem("gru", jnp.float32)

    def outputs(params, algorithm):
        return jb.unroll(cell, params, *arguments[1:], algorithm=algorithm)

    got, want = (
        jax.jvp(functools.partial(outputs, algorithm=a), (arguments[0],), (arguments[0],))[1]
        for a in (kernel(device), jb.bptt())
    )
    assert_near(got, want, 2e-6)


@pytest.mark.slow
@each_device
def test_second_derivatives_run_the_scan(device):
    cell, params, *rest = problem("gru", jnp.float32)
    direction = jax.tree.map(jnp.cos, params)

    def slope(algorithm, params):
        wanted = jax.grad(lambda p: loss(cell, algorithm, OPTIONS, (p, *rest))[0])(params)
        return sum(jax.tree.leaves(jax.tree.map(lambda g, d: jnp.vdot(g, d), wanted, direction)))

    def products(algorithm):
        """Of the Hessian with `direction`, reverse over reverse and forward over reverse."""
        function = functools.partial(slope, algorithm)
        first = jax.grad(lambda p: loss(cell, algorithm, OPTIONS, (p, *rest))[0])
        return jax.grad(function)(params), jax.jvp(first, (params,), (direction,))[1]

    assert_near(jax.jit(lambda: products(kernel(device)))(), products(jb.bptt()), 2e-6)
    found = jb.explain(cell, params, rest[0], device=device)
    assert "derivatives in forward mode and of second or higher order run the scan" in found


@pytest.mark.parametrize("name", [slow_unless(name == "gru", name) for name in CELLS])
def test_without_a_gpu_the_scan_runs(name):
    cell, *arguments = problem(name, jnp.float32)
    got = gradient(cell, jb.fused(), OPTIONS, *arguments)
    want = gradient(cell, jb.bptt(), OPTIONS, *arguments)
    jax.tree.map(np.testing.assert_array_equal, got, want)


@pytest.mark.slow
@pytest.mark.parametrize("device", [on("gpu")])
def test_shard_map_without_types_of_mesh_axes(device):
    cell, *arguments = problem("gru", jnp.float32)
    mesh = jax.make_mesh((1,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    specs = P(), P(None, "batch"), P("batch")

    def local(*arguments):
        return gradient(cell, kernel(device), {}, *arguments)[0][0]

    sharded = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=P(), check_vma=False)
    want = gradient(cell, jb.bptt(), {}, *arguments)[0][0]
    assert_near(jax.jit(sharded)(*arguments), want, 2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("inside", [True, False], ids=["grad_inside", "grad_outside"])
@each_device
def test_shard_map_over_the_batch(inside, device):
    cell, params, xs, state = problem("lstm_peephole", jnp.float32)
    # The interpreter of GPU kernels cannot run two devices at a time.
    devices = jax.devices()[: 1 if device == "gpu" else 2]
    kinds = (jax.sharding.AxisType.Auto,)
    mesh = jax.make_mesh((len(devices),), ("batch",), axis_types=kinds, devices=devices)
    specs = P(), P(None, "batch"), P("batch")

    def local(params, xs, state):
        assert f"the kernel {NAMES[device]}" in jb.explain(cell, params, xs, device=device)
        return loss(cell, kernel(device), {}, (params, xs, state))[0]

    # What weighs the outputs in `loss` counts from zero on every device; so it does here.
    def separate(params):
        def own(array, axis, k):
            return jnp.split(array, len(devices), axis)[k]

        parts = [
            (own(xs, 1, k), jax.tree.map(functools.partial(own, axis=0, k=k), state))
            for k in range(len(devices))
        ]
        return sum(loss(cell, jb.bptt(), {}, (params, *part))[0] for part in parts)

    def total(params):
        def summed(*arguments):
            return jax.lax.psum(local(*arguments), "batch")

        sharded = jax.shard_map(summed, mesh=mesh, in_specs=specs, out_specs=P())
        return sharded(params, xs, state)

    if inside:
        sharded = jax.shard_map(jax.grad(local), mesh=mesh, in_specs=specs, out_specs=P())
        got = jax.jit(sharded)(params, xs, state)
    else:
        got = jax.jit(jax.grad(total))(params)
    assert_near(got, jax.jit(jax.grad(separate))(params), 2e-6)


@pytest.mark.skipif(LACKS["gpu"] is not None, reason=str(LACKS["gpu"]))
@pytest.mark.parametrize("name, units", [("gpu_heads", 32), ("gpu_cluster", 160)])
def test_shard_map_lowers_for_two_gpus(name, units):
    cell = jb.gru(input_size=2, hidden_size=units, dtype=jnp.float32)

    def local(params, xs):
        assert f"the kernel {name}" in jb.explain(cell, params, xs, device="gpu")
        _, ys = jb.unroll(cell, params, xs, algorithm=jb.fused(device="gpu"))
        return jax.lax.psum(jnp.sum(ys), "d")

    sharded = jax.shard_map(local, in_specs=(P(), P(None, "d")), out_specs=P(), axis_names={"d"})
    params, xs = cell.init(jax.random.key(0)), jnp.ones((T, 4, 2), jnp.float32)
    program = lowered(jax.grad(sharded, (0, 1)), params, xs, devices=2)
    assert program.count("custom_call @mosaic_gpu") == 2


@pytest.mark.parametrize(
    "device, make, reason",
    [
        on("gpu", lambda: jb.gru_reset_before(input_size=2, hidden_size=32), "no jb.GatedStep"),
        on(
            "gpu",
            lambda: jb.elman(input_size=2, hidden_size=33),
            "gpu_heads: the GPU kernel takes heads of 32, 64, 96 or 128 units, not 33",
        ),
        on("gpu", lambda: jb.lstm(input_size=2, hidden_size=512), "gpu_heads: the GPU"),
        on("gpu", lambda: jb.lstm(input_size=2, hidden_size=512), "gpu_cluster: "),
        on(
            "gpu",
            lambda: jb.elman(input_size=2, hidden_size=32, activation=lambda a: (1 + a * a) ** a),
            "gpu_heads: Pallas has no pow on a GPU",
        ),
        on("tpu", lambda: jb.lstm(input_size=2, hidden_size=4096), "MiB of VMEM"),
    ],
)
def test_what_stands_in_the_way_is_named(device, make, reason):
    cell = make()
    params = jax.eval_shape(cell.init, jax.random.key(0))
    params = jax.tree.map(
        lambda p: p if jnp.iscomplexobj(p) else jax.ShapeDtypeStruct(p.shape, jnp.float32), params
    )
    xs = jnp.ones((4, 2, 2), jnp.float32)
    assert reason in jb.explain(cell, params, xs, device=device)
    assert "the device is a cpu" in jb.explain(cell, params, xs)


def test_wrong_arguments_are_named():
    with pytest.raises(TypeError, match="^fused: interpret must be True or False, got 1"):
        jb.fused(interpret=1)  # pyright: ignore
    with pytest.raises(ValueError, match="^fused: device must be 'gpu', .* got 'cuda'"):
        jb.fused(device="cuda")
    with pytest.raises(ValueError, match="^fused: interpret=True needs .* device='gpu'"):
        jb.fused(interpret=True)
    cell, params, xs, _ = problem("gru", jnp.float32)
    with pytest.raises(ValueError, match="^explain: device must be 'gpu', .* got 'cuda'"):
        jb.explain(cell, params, xs, device="cuda")
