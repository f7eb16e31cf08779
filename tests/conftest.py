"""Every test below this folder runs in JAX's strictest mode, on two host devices."""

import atexit
import gc
import os
import shutil
import tempfile
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import hypothesis
import jax
import pytest

from jax_bptt.kernels.gpu import mosaic

# Nearly all of the time is XLA compiling programs that then run for a millisecond, and what they
# compute does not depend on how well they are compiled. tests/core/test_as_it_comes.py runs some
# with XLA as its users have it, and tests/core/test_budgets.py reads such programs.
_PLAIN = [
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_parallel_codegen_split_count=1",
]
if jax.__version_info__ < (0, 11):
    _PLAIN.append("--xla_cpu_use_fusion_emitters=false")  # later an unknown flag, which is fatal
os.environ.setdefault("XLA_FLAGS", " ".join(_PLAIN))  # XLA reads it when it is first used

# A program is compiled once in a process, whichever function it comes from: operations run one by
# one, scans traced anew at every call, algorithms that fall back on one another. A folder for each
# process, since of two that met in an entry one might read what is half written.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _cache = tempfile.mkdtemp(prefix="jax_bptt-tests-")
    atexit.register(shutil.rmtree, _cache, ignore_errors=True)
    jax.config.update("jax_compilation_cache_dir", _cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

# JAX's interpreter of GPU kernels has a thread of XLA's pool wait where a warpgroup waits. The pool
# has as many threads as the machine has cores, or this: with fewer than warpgroups it stands still.
# Where there is no such interpreter, XLA keeps the threads that its users have.
if mosaic.available() is None:
    os.environ.setdefault("NPROC", "16")
jax.config.update("jax_num_cpu_devices", 2)

# A fixed seed: a failure on one machine is a failure on every other.
hypothesis.settings.register_profile(
    "jax_bptt", deadline=None, max_examples=20, derandomize=True, database=None
)
hypothesis.settings.load_profile("jax_bptt")

HERE = Path(__file__).parent

# Traced programs are millions of objects that stay: the collector would go through them all again
# and again.
gc.set_threshold(50_000, 20, 50)

MAPS = 40_000
"""Pieces of mapped memory from which on a process drops what it has compiled: Linux gives it
65,530, compiled code takes up to a hundred a test, and a worker of the slow tests died of it."""


def _mapped() -> int:
    maps = Path("/proc/self/maps")
    return maps.read_bytes().count(b"\n") if maps.exists() else 0


def pytest_collection_finish():
    """Let the collector leave alone what importing and collecting has made."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """Wrap set-up, test and tear-down, so that fixtures of every scope are strict too.

    The doctests of the package are left in JAX's default mode, which is the reader's.
    """
    if _mapped() > MAPS:
        jax.clear_caches()
    if not item.path.is_relative_to(HERE):
        return (yield)
    with (
        jax.enable_x64(True),
        jax.numpy_dtype_promotion("strict"),
        jax.numpy_rank_promotion("raise"),
    ):
        return (yield)
