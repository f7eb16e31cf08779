"""A cell's functions on a batch that is split over two devices, as the types of arrays say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from tests.reference import is_inexact
from tests.registry import CELLS, assert_close, problem, slow_unless

SPLIT = (
    "lstm_peephole",
    "layer_norm_gru",
    "lru_readout",
    "conv_lstm",
    "embedding",
    "ctrnn",
    "gru",
    "indrnn",
    "indrnn_linear",
    "lstm_projected",
    "min_lstm",
    "multi_head",
)


@pytest.mark.parametrize(
    "name, axis_type",
    [
        slow_unless((name, axis_type) == ("lstm_peephole", AxisType.Explicit), name, axis_type)
        for name in SPLIT
        for axis_type in (AxisType.Explicit, AxisType.Auto)
    ],
    ids=str,
)
def test_a_split_batch_stays_split(name, axis_type):
    """The gradient is that of one device, and of what leads with a batch nothing is gathered."""
    cell, p = CELLS[name].cell, problem(name)

    def loss(params, state, xs):
        weights = cell.prepare(params)
        drives = cell.project(weights, xs)
        states = jax.tree.map(lambda s: jnp.stack(len(jax.tree.leaves(xs)[0]) * [s]), state)
        results = cell.step(weights, states, drives), cell.readout(weights, states)
        return sum(jnp.sum(jnp.abs(a) ** 2) for a in jax.tree.leaves(results))

    gradient = jax.grad(loss, argnums=(0, 1))
    arguments = jax.tree.map(jnp.asarray, (p.params, p.state, p.xs))
    assert all(is_inexact(a) for a in jax.tree.leaves(arguments[:2]))
    mesh = jax.make_mesh((2,), ("batch",), axis_types=(axis_type,))
    specs = P(), P("batch"), P(None, "batch")
    with jax.set_mesh(mesh):
        placed = tuple(
            jax.device_put(a, NamedSharding(mesh, spec))
            for a, spec in zip(arguments, specs, strict=True)
        )
        compiled = jax.jit(gradient).lower(*placed).compile()
        got = jax.tree.map(np.asarray, compiled(*placed))
    assert_close(got, jax.jit(gradient)(*arguments), 1e-12)
    text = compiled.as_text()
    assert text is not None
    assert "all-gather" not in text and "all-to-all" not in text
