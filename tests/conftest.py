"""Every test below this folder runs in JAX's strictest mode, on two host devices."""

import itertools
import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import hypothesis
import jax
import pytest

from jax_bptt.kernels import mosaic

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


TESTS = 200
"""After so many tests a process drops what it has compiled. Compiled code stays mapped, up to a
hundred pieces of it a test, and Linux gives a process 65,530: a worker of the slow tests died."""

_number = itertools.count(1)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """Wrap set-up, test and tear-down, so that fixtures of every scope are strict too.

    The doctests of the package are left in JAX's default mode, which is the reader's.
    """
    if next(_number) % TESTS == 0:
        jax.clear_caches()
    if not item.path.is_relative_to(HERE):
        return (yield)
    with (
        jax.enable_x64(True),
        jax.numpy_dtype_promotion("strict"),
        jax.numpy_rank_promotion("raise"),
    ):
        return (yield)
