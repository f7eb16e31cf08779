"""A function as it is lowered for a GPU that is not there."""

import jax
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, use_abstract_mesh


def lowered(run, *args, devices=1):
    """Return what `run` is for H200s, the axis "d" of a mesh, which need not be there."""
    device = AbstractDevice(device_kind="NVIDIA H200", num_cores=132, platform="gpu")
    mesh = AbstractMesh((devices,), ("d",), axis_types=(AxisType.Auto,), abstract_device=device)
    with use_abstract_mesh(mesh):
        return jax.jit(run).trace(*args).lower(lowering_platforms=("cuda",)).as_text()
