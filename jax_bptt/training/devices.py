"""The batch of a run split over the devices of this machine, as JAX's sharding says it.

Parameters are replicated and the batch is split. Nothing else is done: XLA's partitioner sees the
arrays where they are, and the gradient is summed over the devices once a step.
"""

import os
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jax_bptt.core.checks import require
from jax_bptt.core.types import PyTree

AXIS = "batch"


def mesh(batch: int, devices: int | None = None) -> Mesh:
    """Return the devices over which to split a batch.

    A CPU is one device to JAX unless it is asked for more, which it can be until it has looked for
    devices: the first operation on an array is too late. This asks for one device a core.

    Args:
      batch: B.
      devices: how many; None for as many of this process's devices as divide the batch, on a CPU
        at most one a core.

    Raises:
      ValueError: the number does not divide the batch, or there are not so many devices.
    """
    if devices is not None:
        require(
            batch % devices == 0,
            f"{devices} devices do not divide a batch of {batch}: take as many as do, or None",
        )
    wanted = devices or _most(batch, cores())
    try:
        if wanted > 1:
            jax.config.update("jax_num_cpu_devices", wanted)
    except RuntimeError:
        pass  # JAX has looked already: the devices are those it found
    there = jax.local_devices()
    if devices is None:
        limit = min(len(there), cores()) if there[0].platform == "cpu" else len(there)
        wanted = _most(batch, limit)
    require(
        wanted <= len(there),
        f"there are {len(there)} devices for JAX, not {wanted}: take fewer, or None",
    )
    return Mesh(np.array(there[:wanted]), (AXIS,))


def cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _most(batch: int, limit: int) -> int:
    """Return the largest number up to `limit` that divides the batch."""
    return max(n for n in range(1, limit + 1) if batch % n == 0)


def replicate(tree: PyTree, mesh: Mesh) -> PyTree:
    """Put a copy of every array on each device."""
    return jax.device_put(tree, NamedSharding(mesh, P()))


def split_state(state: PyTree, mesh: Mesh) -> PyTree:
    """Split arrays [B, ...] over the devices."""
    return jax.device_put(state, NamedSharding(mesh, P(AXIS)))


def split_batch(batch: Any, mesh: Mesh) -> Any:
    """Split a batch over the devices.

    Arrays are [T, B, ...], or [B] where there is no time axis; a key is copied.
    """
    specs = P(), P(AXIS)

    def leaf(a):
        spec = specs[a.ndim] if a.ndim < 2 else P(None, AXIS)
        return jax.device_put(a, NamedSharding(mesh, spec))

    return jax.tree.map(leaf, batch)
