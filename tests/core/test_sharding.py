"""The gradient on two devices is that on one, however the batch came to be split."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jax_bptt as jb
from tests.covering import covering
from tests.registry import assert_close, slow_unless

T, B, I, H = 8, 4, 3, 2  # noqa: E741 - the axis letters of the package
EXACT = 1e-12


def _bidirectional(inputs):
    cell = jb.lstm(input_size=inputs, hidden_size=H)
    return jb.bidirectional(cell, cell)


NETWORKS = {
    name: jb.layer(getattr(jb, name)(input_size=I, hidden_size=H))
    for name in ("elman", "gru", "lstm", "lru")
} | {"stack": jb.stack(_bidirectional(I), _bidirectional(2 * H))}

ALGORITHMS = {
    "blocks": jb.bptt(block_length=4),
    "remainder": jb.bptt(block_length=3),
    "kept": jb.bptt(block_length=4, recompute=False),
    "checkpointed": jb.checkpointed(count=1, block_length=1),
    "autodiff": jb.autodiff(),
    "associative": jb.associative(),
    "parallel_adjoint": jb.parallel_adjoint(block_length=3),
    "newton": jb.newton(),
}

RNG = np.random.default_rng(0)
OPTIONS = {
    "none": {},
    "all": dict(
        lengths=np.array([T, 0, 3, 5]),
        resets=RNG.random((T, B)) < 0.2,
        mask=RNG.random((T, B)) < 0.7,
    ),
}
SPLIT = dict(lengths=P("d"), resets=P(None, "d"), mask=P(None, "d"))


def gradient(network, algorithm, params, xs, options):
    def loss(params, xs):
        outputs = NETWORKS[network].apply(params, xs, algorithm=algorithm, **options)
        return sum(jnp.sum(jnp.abs(a) ** 2) for a in jax.tree.leaves(outputs))

    return jax.grad(loss, argnums=(0, 1))(params, xs)


@functools.cache
def arguments(network):
    params = NETWORKS[network].init(jax.random.key(0))
    return params, np.random.default_rng(1).normal(size=(T, B, I))


@functools.cache
def expected(network, option):
    """On one device, by JAX's own derivative of the scan."""
    run = jax.jit(functools.partial(gradient, network, jb.autodiff()))
    return jax.tree.map(np.asarray, run(*arguments(network), OPTIONS[option]))


def _placed(mesh, network, option):
    """Return (params, xs, options), the batch split over the mesh and all else on each device."""
    params, xs = arguments(network)
    specs = P(), P(None, "d"), {name: SPLIT[name] for name in OPTIONS[option]}
    return tuple(
        jax.device_put(tree, jax.tree.map(functools.partial(NamedSharding, mesh), spec))
        for tree, spec in zip((params, xs, OPTIONS[option]), specs, strict=True)
    )


def _mesh(kind):
    return jax.make_mesh((2,), ("d",), axis_types=(kind,))


def by_named_sharding(run, network, option):
    return jax.jit(run)(*_placed(_mesh(AxisType.Auto), network, option))


def inside_set_mesh(run, network, option):
    mesh = _mesh(AxisType.Explicit)
    with jax.set_mesh(mesh):
        return jax.jit(run)(*_placed(mesh, network, option))


def outside_set_mesh(run, network, option):
    return jax.jit(run)(*_placed(_mesh(AxisType.Explicit), network, option))


def by_shard_map(run, network, option):
    specs = P(), P(None, "d"), {name: SPLIT[name] for name in OPTIONS[option]}
    mapped = jax.shard_map(
        run, mesh=_mesh(AxisType.Auto), in_specs=specs, out_specs=(P(), P(None, "d"))
    )
    return jax.jit(mapped)(*arguments(network), OPTIONS[option])


WAYS = {
    way.__name__: way
    for way in (by_named_sharding, inside_set_mesh, outside_set_mesh, by_shard_map)
}
ROWS = [
    row
    for row in itertools.product(NETWORKS, ALGORITHMS, OPTIONS, WAYS)
    # Only linear recurrences are associative. JAX itself cannot transpose a product of arrays on an
    # explicit mesh that it has not been told of, so that autodiff needs `jax.set_mesh`.
    if (row[1] != "associative" or row[0] == "lru")
    and (row[1], row[3]) != ("autodiff", "outside_set_mesh")
]
# A stack takes as long to compile as all the others.
LATER = "stack", "parallel_adjoint", "newton"
QUICK = covering((row for row in ROWS if not {*LATER}.intersection(row)), width=1)


@pytest.mark.parametrize(
    "network, algorithm, option, way", [slow_unless(row in QUICK, *row) for row in ROWS]
)
def test_two_devices_have_the_gradient_of_one(network, algorithm, option, way):
    run = functools.partial(gradient, network, ALGORITHMS[algorithm])
    got = WAYS[way](run, network, option)
    assert {len(leaf.sharding.device_set) for leaf in jax.tree.leaves(got)} == {2}
    assert_close(jax.tree.map(np.asarray, got), expected(network, option), EXACT)
