"""Peak resident memory of one competitor, in a process of its own."""

import multiprocessing
import sys
from pathlib import Path
from typing import Any

from benchmarks.data import Row, draw


def peak(row: Row, name: str, devices: int, is_gradient: bool, settings: Any) -> int:
    """Return by how many bytes the peak of a fresh process grows once its imports are done.

    Weights, inputs, compilation and two runs are in it, the imports of the libraries are not.

    Args:
      row: the cell and its sizes.
      name: of the competitor.
      devices: over how many the batch is split.
      is_gradient: whether the gradient is run, or the outputs alone.
      settings: `race.Settings`.
    """
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_grow, (row, name, devices, is_gradient, settings))


def _grow(row, name, devices, is_gradient, settings):
    import jax

    from benchmarks import measure, roster

    if devices > 1:
        jax.config.update("jax_num_cpu_devices", devices)
    mesh = measure.mesh_of(devices)
    peers = [peer for peer in settings.peers if peer == name]
    roster.absent(peers)
    before = _peak_bytes()
    with jax.enable_x64(row.dtype == "float64"):
        found = roster.competitors(row, settings.algorithms, peers)
        competitor = next(c for c in found if c.name == name)
        task = measure.GRADIENT if is_gradient else measure.FORWARD
        prepared = competitor.prepare(draw(row), task, mesh)
        prepared.call()
        prepared.call()
    return _peak_bytes() - before


def _peak_bytes():
    status = Path("/proc/self/status")
    if status.exists():
        # Linux hands the peak that getrusage knows of down to a child, even one that runs another
        # program; this one is the process's own.
        (line,) = [s for s in status.read_text().splitlines() if s.startswith("VmHWM:")]
        return 1024 * int(line.split()[1])
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, others kibibytes
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
