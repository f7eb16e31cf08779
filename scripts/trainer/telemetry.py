"""Telemetry of a run: its gradient through time, as JSON lines and as events for TensorBoard.

Every tenth step has a line: the loss, the norm of the gradient, and of each layer's adjoints
lambda_t = dL/ds_t, over time and batch, the root mean square and how many are in which decade.
"""

import contextlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from jax_bptt.cells.watched import LEAST, Seen
from jax_bptt.training import loop
from trainer import files
from trainer.errors import InputError, optional_module, say

EVERY = 10
"""Steps between two lines."""
NAME = "telemetry.jsonl"


def try_out(folder: str) -> None:
    """Raise `InputError` for a folder that could not be written to, or if an extra is missing."""
    optional_module("tensorboardX", extra="telemetry")
    files.make_folder(folder)
    files.try_out(str(Path(folder, NAME)))


def _line(progress: loop.Progress) -> dict[str, Any]:
    shown = progress.telemetry
    assert shown is not None  # the cells of such a run are watched
    return {
        "step": progress.step,
        "loss": progress.loss,
        "gradient_norm": float(shown.gradient_norm),
        "adjoints": {path: _adjoints(seen) for path, seen in shown.seen.items()},
    }


def _adjoints(seen: Seen) -> dict[str, Any]:
    decades = np.asarray(seen.decades)
    mean = float(seen.squares) / max(decades.sum(), 1)
    found = {str(LEAST + int(k)): int(decades[k]) for k in np.flatnonzero(decades)}
    return {"rms": math.sqrt(mean), "nonfinite": int(seen.nonfinite), "decades": found}


class Writer(contextlib.AbstractContextManager):
    """Writes lines and events; what cannot be written is said once, and training goes on."""

    def __init__(self, folder: str, step: int):
        """Open a folder, for a run that goes on after so many steps."""
        self.failed = False
        self._path = Path(folder) / NAME
        try:
            kept = self._path.read_text(encoding="utf-8") if self._path.exists() else ""
            # Steps after the last checkpoint come again; a line that was cut short does not count.
            lines = [line for line in kept.splitlines() if line.endswith("}")]
            lines = [line for line in lines if json.loads(line)["step"] <= step]
            files.write(str(self._path), "".join(f"{line}\n" for line in lines).encode())
            self._lines = open(self._path, "a", encoding="utf-8")
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"cannot go on in {self._path}: {error}") from error
        module = optional_module("tensorboardX", extra="telemetry")
        self._events = module.SummaryWriter(logdir=folder, purge_step=step + 1)

    def __exit__(self, *error: object) -> None:
        """Close both files."""
        self._try(self._lines.close)
        self._try(self._events.close)

    def add(self, progress: loop.Progress) -> None:
        """Write a step, if it is one of those that are written."""
        if progress.step % EVERY == 0 and not self.failed:
            self._try(lambda: self._write(_line(progress)))

    def _write(self, found: dict[str, Any]) -> None:
        self._lines.write(json.dumps(found) + "\n")
        self._lines.flush()
        step, add = found["step"], self._events.add_scalar
        add("loss", found["loss"], step)
        add("gradient norm", found["gradient_norm"], step)
        for path, seen in found["adjoints"].items():
            add(f"adjoints{path}/rms", seen["rms"], step)
            add(f"adjoints{path}/nonfinite", seen["nonfinite"], step)
            smallest = min(map(int, seen["decades"]), default=LEAST)
            add(f"adjoints{path}/smallest decade", smallest, step)

    def _try(self, write: Callable[[], None]) -> None:
        try:
            write()
        except OSError as error:
            if not self.failed:
                say(f"cannot write {self._path.parent}: {error.strerror}; no more telemetry")
            self.failed = True
