"""Where a benchmark ran: device, processor, versions."""

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

import jax_bptt as jb
from jax_bptt.training.devices import cores

PACKAGES = ("jax", "jaxlib", "numpy", "flax", "dm-haiku", "equinox", "torch")


def processor() -> str:
    """Return the processor's model name, as far as the system tells."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith(("model name", "Hardware", "Model")):
                return line.partition(":")[2].strip()
    if sys.platform == "darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()
    return platform.processor() or platform.machine()


def describe(devices: int) -> dict[str, Any]:
    """Return what a reader needs to place the figures."""
    versions: dict[str, str | None] = {
        "jax_bptt": jb.__version__,
        "python": platform.python_version(),
    }
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    device = jax.devices()[0]
    return {
        "device": device.device_kind,
        "platform": device.platform,
        "devices": devices,
        "cpu": processor(),
        "cores": cores(),
        "system": platform.system(),
        # How many cores other processes wanted over the last minute, where that is known.
        "load_before": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "versions": versions,
    }


def sentence(environment: dict[str, Any]) -> str:
    """Return the description in one line."""
    e = environment
    device = e["cpu"] if e["platform"] == "cpu" else f"{e['device']} ({e['cpu']})"
    count = f", {e['devices']} JAX devices" if e["devices"] > 1 else ""
    versions = ", ".join(f"{name} {v}" for name, v in e["versions"].items() if v)
    flags = f"; XLA_FLAGS={e['xla_flags']}" if e["xla_flags"] else ""
    return f"{device}, {e['cores']} cores{count}; {versions}{flags}"
