"""`fused`: the gradient of the scan, by kernels in the interpreter where JAX has what they need."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_bptt as jb
from jax_bptt.kernels import mosaic

needs_kernels = pytest.mark.skipif(
    mosaic.available() is not None, reason=f"no kernels: {mosaic.available()}"
)
T, BATCH = 3, (2, 1)
KERNEL = jb.fused(interpret=True, device="gpu")
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


@needs_kernels
@pytest.mark.parametrize("options", [{}, OPTIONS], ids=["plain", "options"])
@pytest.mark.parametrize("name", CELLS)
def test_values_and_gradients_in_single_precision(name, options):
    cell, *arguments = problem(name, jnp.float32)
    assert "the kernel gpu_heads" in jb.explain(cell, *arguments[:2], device="gpu")
    got = gradient(cell, KERNEL, options, *arguments)
    assert_near(got, gradient(cell, jb.bptt(), options, *arguments), 2e-6)


@needs_kernels
def test_values_and_gradients_in_half_precision():
    cell, *arguments = problem("lstm", jnp.bfloat16)
    got = gradient(cell, KERNEL, OPTIONS, *arguments)
    assert_near(got, gradient(cell, jb.bptt(), OPTIONS, *arguments), 5e-3)


@needs_kernels
def test_vmap_over_inputs_and_over_parameters():
    cell, params, xs, state = problem("gru", jnp.bfloat16)
    several = jax.vmap(cell.init)(jax.random.split(jax.random.key(2), 2))
    inputs = jnp.stack([xs, 2 * xs])
    for given, axes in (
        ((params, inputs, state), (None, 0, None)),
        ((several, xs, state), (0, None, None)),
    ):
        got, want = (
            jax.vmap(functools.partial(gradient, cell, kind, {}), in_axes=axes)(*given)
            for kind in (KERNEL, jb.bptt())
        )
        assert_near(got, want, 5e-3)


@needs_kernels
def test_forward_mode_is_that_of_the_scan():
    cell, *arguments = problem("gru", jnp.float32)

    def outputs(params, algorithm):
        return jb.unroll(cell, params, *arguments[1:], algorithm=algorithm)

    got, want = (
        jax.jvp(functools.partial(outputs, algorithm=a), (arguments[0],), (arguments[0],))[1]
        for a in (KERNEL, jb.bptt())
    )
    assert_near(got, want, 2e-6)


@pytest.mark.parametrize("name", CELLS)
def test_without_a_gpu_the_scan_runs(name):
    cell, *arguments = problem(name, jnp.float32)
    got = gradient(cell, jb.fused(), OPTIONS, *arguments)
    want = gradient(cell, jb.bptt(), OPTIONS, *arguments)
    jax.tree.map(np.testing.assert_array_equal, got, want)


@needs_kernels
@pytest.mark.parametrize(
    "make, reason",
    [
        (lambda: jb.gru_reset_before(input_size=2, hidden_size=32), "no jb.GatedStep"),
        (
            lambda: jb.elman(input_size=2, hidden_size=33),
            "heads of 32, 64, 96 or 128 units, not 33",
        ),
        (lambda: jb.lstm(input_size=2, hidden_size=128), "do not fit into the registers"),
    ],
)
def test_what_stands_in_the_way_is_named(make, reason):
    cell = make()
    params = jax.tree.map(lambda p: p.astype(jnp.float32), cell.init(jax.random.key(0)))
    xs = jnp.ones((4, 2, 2), jnp.float32)
    assert reason in jb.explain(cell, params, xs, device="gpu")
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
