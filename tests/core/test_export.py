"""Runs and gradients of every cell by `jax.export`, for any T and B, by way of a file."""

import functools
import importlib
import importlib.util
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_bptt as jb
from jax_bptt.core.values import Value
from tests.registry import (
    BATCH,
    CELLS,
    STEPS,
    Problem,
    assert_close,
    compiled,
    gradient,
    problem,
    slow_unless,
)

SIZES = [(BATCH, STEPS), ((2,), 3)]
EXACT = 1e-12

# Of each kind one, and others of the library that differ in the classes of params and state.
QUICK = {"counted"}


def classes(tree: Any) -> set[type]:
    """Return the classes of the NamedTuples in a tree."""
    found = set()

    def see(node):
        if hasattr(node, "_fields"):
            found.add(type(node))
        return False

    jax.tree.leaves(tree, is_leaf=see)
    return found


@functools.cache
def registered(kind: type) -> None:
    """Register a class of a user's own cell, as users do."""
    name = f"{kind.__module__}.{kind.__qualname__}"
    jax.export.register_namedtuple_serialization(kind, serialized_name=name)


needs_flatbuffers = pytest.mark.skipif(
    importlib.util.find_spec("flatbuffers") is None, reason="jax.export writes files with it"
)


def symbolic(p: Problem) -> list[Any]:
    """Describe the arguments of a run for any number of steps and sequences."""
    steps, batch = jax.export.symbolic_shape("t, b")

    def leading(*sizes):
        return lambda a: jax.ShapeDtypeStruct((*sizes, *np.shape(a)[len(sizes) :]), a.dtype)

    d_last_state, d_ys = p.cotangents
    return [
        jax.tree.map(leading(), p.params),
        jax.tree.map(leading(steps, batch), p.xs),
        jax.tree.map(leading(batch), p.state),
        (jax.tree.map(leading(batch), d_last_state), jax.tree.map(leading(steps, batch), d_ys)),
    ]


@needs_flatbuffers
@pytest.mark.parametrize("name", [slow_unless(name in QUICK, name) for name in CELLS])
def test_any_size_from_a_file(name):
    """Values, gradients and the state to begin with, at two sizes."""
    cell = CELLS[name].cell
    for kind in classes(tuple(problem(name))):
        if kind.__module__.startswith("tests."):
            registered(kind)

    def function(params, xs, state, cotangents):
        batch = jax.tree.leaves(xs)[0].shape[1:2]
        run = gradient(name, None, Problem(params, xs, state, cotangents))
        return run, cell.initial_state(params, batch)

    exported = jax.export.export(jax.jit(function))(*symbolic(problem(name)))
    read = jax.export.deserialize(exported.serialize())
    assert exported.in_tree == read.in_tree and exported.out_tree == read.out_tree
    for size in SIZES:
        p = problem(name, *size)
        run, state = read.call(*jax.tree.map(jnp.asarray, tuple(p)))
        assert_close(run, compiled(name, "bptt")(p), EXACT)
        assert_close(state, cell.initial_state(p.params, size[0]), 0)


@pytest.mark.parametrize("name", CELLS)
def test_what_a_cell_of_the_library_takes_and_returns_can_be_written(name):
    cell = CELLS[name].cell
    params = jax.eval_shape(cell.init, jax.random.key(0))
    trees = params, jax.eval_shape(lambda p: cell.initial_state(p, (2,)), params)
    for kind in classes(trees):
        if kind.__module__.startswith("jax_bptt."):
            assert getattr(jb, kind.__name__) is kind, "and so is registered"


NAMEDTUPLES = [
    name
    for name in jb.__all__
    if isinstance(value := getattr(jb, name), type)
    and hasattr(value, "_fields")
    and not issubclass(value, Value | jb.GatedStep | jb.DiagonalStep)
]


@pytest.mark.parametrize("name", NAMEDTUPLES)
def test_every_public_namedtuple_is_registered(name):
    register = jax.export.register_namedtuple_serialization
    with pytest.raises(ValueError, match=f"(?i)duplicate .*jax_bptt.{name}`"):
        register(getattr(jb, name), serialized_name=f"tests.{name}")


@needs_flatbuffers
@pytest.mark.parametrize("name", NAMEDTUPLES)
def test_every_public_namedtuple_is_written_by_its_name(name):
    kind = getattr(jb, name)
    given = kind(*(np.float32(k) for k, _ in enumerate(kind._fields)))
    exported = jax.export.export(jax.jit(lambda tree: tree))(given)
    written = exported.serialize()
    assert f"jax_bptt.{name}".encode() in written
    assert jax.export.deserialize(written).call(given) == given


@needs_flatbuffers
def test_the_two_directions_of_a_layer():
    cell = jb.lstm(2, 3)
    layer = jb.bidirectional(cell, cell)
    params = layer.init(jax.random.key(0))
    steps, batch = jax.export.symbolic_shape("t, b")
    xs = jax.ShapeDtypeStruct((steps, batch, 2), jnp.float64)
    specs = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), params)
    exported = jax.export.export(jax.jit(layer.apply))(specs, xs)
    given = np.random.default_rng(0).normal(size=(5, 2, 2))
    got = jax.export.deserialize(exported.serialize()).call(params, given)
    assert_close(got, layer.apply(params, given), EXACT)


def test_importing_again_registers_nothing_twice():
    assert importlib.reload(jb) is jb
