"""What compiling for a device finds, and an H200 described to the compiler in place of one."""

import importlib.util
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import jax
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jax_bptt.testing.tables import Table

INSTALL = "pip install 'jax_bptt[cuda-compile]'"
NEEDED = {
    "jax_cuda13_plugin": "the CUDA plugin of JAX",
    "nvidia.cu13.bin.ptxas": "NVIDIA's assembler",
    "nvidia.cu13.bin.nvdisasm": "NVIDIA's disassembler",
}

# The versions have to be there: without them XLA takes the driver for an old one, and leaves loops
# out of CUDA graphs. Sizes are those of the architecture, the rates those of the data sheet.
H200 = """
gpu_device_info {
  name: "NVIDIA H200" device_vendor: "NVIDIA Corporation"
  platform_version: "Compute Capability 9.0a"
  cuda_compute_capability { major: 9 feature_extension: ACCELERATED_FEATURES }
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
  threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  shared_memory_per_core: 233472 shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  device_memory_size: 151397597184 memory_bandwidth: 4800000000000 l2_cache_size: 52428800
  driver_version: "13.0.0" runtime_version: "13.0.0"
  compile_time_toolkit_version: "13.0.0" dnn_version: "9.12.0"
}
platform_name: "CUDA"
device_description_str: "NVIDIA H200"
runtime_version { major: 13 minor: 0 patch: 0 }
dnn_version_info { major: 9 minor: 12 }
"""


class Found(NamedTuple):
    """The result of compiling for a device."""

    document: dict[str, Any]  # all of it, for JSON
    tables: list[Table]  # for a terminal
    page: list[Table]  # for a page
    by: str  # what compiled it and for what, in a line
    broken: list[str]  # the promises that are not kept, a line each


class Target(NamedTuple):
    """A device that is not there."""

    mesh: Mesh  # of that one device

    def shapes(self, tree: Any) -> Any:
        """Return the shapes of a tree of arrays, placed on the device."""
        sharding = NamedSharding(self.mesh, P())
        return jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), tree
        )

    def compile(self, fun: Callable, *args: Any, options: dict[str, Any] | None = None) -> Any:
        """Compile a function for shapes of arguments."""
        with jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh):
            return jax.jit(fun).lower(*self.shapes(args)).compile(compiler_options=options)


def missing() -> list[str]:
    """Return what is not installed of what compiling takes."""
    return [what for name, what in NEEDED.items() if not _installed(name)]


def _installed(name: str) -> bool:
    package, _, program = name.rpartition(".bin.")
    if not package:
        return importlib.util.find_spec(name) is not None
    try:
        found = importlib.util.find_spec(package)
    except ModuleNotFoundError:
        return False
    folders = (found.submodule_search_locations or []) if found else []
    return any((Path(folder) / "bin" / program).exists() for folder in folders)


def topology(devices: int) -> Any:
    """Return a machine with so many H200."""
    return topologies.get_topology_desc(
        platform="cuda", topology_name="", topology=f"1x1x{devices}", target_config=H200
    )


def h200() -> Target:
    """Return an H200."""
    return Target(topologies.make_mesh(topology(devices=1), (1,), ("device",)))


@contextmanager
def dumps() -> Iterator[Path]:
    """Yield a folder in which the compiler of Mosaic kernels leaves what it has made."""
    with tempfile.TemporaryDirectory() as folder:
        kinds = ("PTXAS", "SASS", "RESOURCES")
        settings = {"MOSAIC_GPU_DUMP_TO": folder} | {f"MOSAIC_GPU_DUMP_{k}": "1" for k in kinds}
        with mock.patch.dict(os.environ, settings):
            yield Path(folder)
