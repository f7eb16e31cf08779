"""What a function is for a GPU that is not there."""

import jax
from jax.sharding import AbstractDevice, AbstractMesh, use_abstract_mesh


def lowered(run, *args):
    """Return what `run` is for an H200, which need not be there."""
    device = AbstractDevice(device_kind="NVIDIA H200", num_cores=132, platform="gpu")
    with use_abstract_mesh(AbstractMesh((1,), ("d",), abstract_device=device)):
        return jax.jit(run).trace(*args).lower(lowering_platforms=("cuda",)).as_text()
