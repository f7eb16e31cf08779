"""Parts that the tests of several libraries share: random parameters, one network run twice."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jax_bptt as jb
from jax_bptt import interop
from tests.registry import assert_close

T, B, I, H, P = 3, 2, 3, 4, 2  # noqa: E741 - the axis letters of the package
CLOSE = 1e-12
SIZES: Any = dict(input_size=I, hidden_size=H)

CELLS = {
    "elman": jb.elman(**SIZES),
    "relu": jb.elman(**SIZES, activation=jax.nn.relu),
    "lstm": jb.lstm(**SIZES),
    "lstm_peephole": jb.lstm_peephole(**SIZES),
    "lstm_projected": jb.lstm_projected(**SIZES, projection_size=P),
    "gru": jb.gru(**SIZES),
    "gru_reset_before": jb.gru_reset_before(**SIZES),
}


class Maps(NamedTuple):
    """The four functions of a module of `jax_bptt.interop`."""

    to_params: Callable[..., Any]
    from_params: Callable[..., Any]
    to_gradients: Callable[..., Any]
    from_gradients: Callable[..., Any]


def maps(module, **options) -> Maps:
    """Return the functions of a module, `options` given to those that read a tree of theirs."""
    return Maps(
        functools.partial(module.to_params, **options),
        module.from_params,
        functools.partial(module.to_gradients, **options),
        module.from_gradients,
    )


OPTIMIZED = Maps(
    interop.nnx.to_params,
    lambda params: interop.nnx.to_optimized_lstm(interop.nnx.from_params(params)),
    interop.nnx.to_gradients,
    lambda d_params: interop.nnx.to_optimized_lstm(interop.nnx.from_gradients(d_params)),
)


def random_like(tree, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda a: rng.normal(size=a.shape), tree)


def random_params(source, seed=0):
    """Draw the parameters of a cell or a layer at random, no bias at zero."""
    return random_like(jax.eval_shape(source.init, jax.random.key(0)), seed)


def assert_same(got, want):
    """Compare trees of arrays number by number."""
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert type(a) is np.ndarray and a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def loop(step, start, reverse=False):
    """Return `(tree, xs) -> (last_state, ys)` for a step `(tree, state, x) -> (state, y)`."""

    def run(tree, xs):
        return jax.lax.scan(functools.partial(step, tree), start, xs, reverse=reverse)

    return run


def assert_same_network(maps: Maps, layer, params, theirs):
    """Compare outputs and all gradients of one network, run by this library and by another.

    Args:
      maps: between the two.
      layer: a `jb.Layer`.
      params: ours, for the layer.
      theirs: `(tree, xs) -> (last_state, ys)`, the leaves of the state in our order.
    """
    xs = random_like(np.empty((T, B, I)), seed=1)
    d_outputs = random_like(_leaves(jax.eval_shape(layer.apply, params, xs)), seed=2)

    def gradients(run, weights):
        def loss(weights, xs):
            outputs = _leaves(run(weights, xs))
            return sum(jnp.sum(a * d) for a, d in zip(outputs, d_outputs, strict=True)), outputs

        return jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(weights, xs)

    tree = jax.tree.map(jnp.asarray, maps.from_params(params))
    (d_params, d_xs), outputs = gradients(layer.apply, params)
    (d_tree, their_d_xs), their_outputs = gradients(theirs, tree)
    assert_close(outputs, their_outputs, CLOSE)
    assert_close(d_xs, their_d_xs, CLOSE)
    assert_close(maps.from_gradients(d_params), d_tree, CLOSE)
    assert_close(maps.to_gradients(d_tree), d_params, CLOSE)


def _leaves(outputs):
    return jax.tree.leaves(outputs)
