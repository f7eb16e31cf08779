"""Types of arrays on several devices. The user's sharding decides; what meets the inputs follows.

Under plain `jit` XLA places everything and nothing here does anything. Inside `jax.shard_map`, and
on meshes with explicit axis types, the placement of an array is part of its type, a scan wants a
carry's type to stay the same, and a constant such as a state of zeros has to be given the type of
the inputs that it will meet.
"""

import contextlib
from typing import Any

import jax
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jax_bptt.core.types import PyTree


def vary_alike(tree: PyTree, reference: PyTree) -> PyTree:
    """Give every leaf of `tree` all the mesh axes over which any leaf of `reference` varies.

    Inside `jax.shard_map` the type of an array says over which mesh axes it differs. Weights are
    the same on every device and zeros are constants; they meet data that is not. The transpose of
    the cast is the sum over devices, so the gradient of replicated weights comes out summed.
    """
    axes = frozenset().union(*map(varying, jax.tree.leaves(reference)))

    def cast(leaf):
        missing = tuple(sorted(axes - varying(leaf)))
        return lax.pcast(leaf, missing, to="varying") if missing else leaf

    return jax.tree.map(cast, tree)


def varying(leaf: Any) -> frozenset:
    """Return the mesh axes over which an array differs, inside `jax.shard_map`."""
    return jax.typeof(leaf).manual_axis_type.varying


def shard_alike(tree: PyTree, xs: PyTree, batch: int, time: int = 0) -> PyTree:
    """Split the batch of every leaf over a mesh of explicit axes as that of `xs` is split.

    Args:
      tree: leaves [*time, *batch, ...]; one whose batch axes are split already is left alone, and
        so is one without them.
      xs: [T, *batch, ...].
      batch: how many axes *batch has.
      time: how many axes come before it.
    """
    x = jax.tree.leaves(xs)[0]
    sharding, sizes = jax.typeof(x).sharding, x.shape[1 : 1 + batch]
    if AxisType.Explicit not in sharding.mesh.axis_types:
        return tree
    axes = sharding.spec[1 : 1 + batch]

    def place(leaf):
        own = jax.typeof(leaf).sharding.spec
        if leaf.shape[time : time + batch] != sizes or any(own[time : time + batch]):
            return leaf
        spec = PartitionSpec(*own[:time], *axes, *own[time + batch :])
        return jax.sharding.reshard(leaf, NamedSharding(sharding.mesh, spec))

    return jax.tree.map(place, tree) if any(axes) else tree


def mesh_of(tree: PyTree) -> contextlib.AbstractContextManager:
    """Return the context of the mesh with explicit axes on which the arrays lie, if there is one.

    Where the user has entered none, JAX does not know in which way to lay out what it makes.
    """
    for leaf in jax.tree.leaves(tree):
        mesh = jax.typeof(leaf).sharding.mesh
        if AxisType.Explicit in mesh.axis_types:
            return jax.sharding.use_abstract_mesh(mesh)
    return contextlib.nullcontext()
