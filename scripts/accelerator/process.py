"""A group in a process of its own, which is ended when its time is up."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

SCRIPTS = Path(__file__).resolve().parents[1]
COMMAND = [sys.executable, "-m", "accelerator.groups"]
OWN_SHARE = 0.85
"""Share of its time that a group plans with; the rest is for the row that it has begun."""


class Outcome(NamedTuple):
    """Outcome of a group."""

    # "done", "out of time" where it left rows out, "timed out" where it was ended, "failed" or
    # "absent"
    ended: str
    reason: str  # why, for the last two
    rows: list[dict[str, Any]]  # what it measured
    not_run: list[str]  # names of the rows that it did not
    environment: dict[str, Any]  # of its process


def run(name: str, smoke: bool, seconds: float, tick: Callable[[], Any]) -> Outcome:
    """Run a group; call `tick` for each row.

    Args:
      name: of the group.
      smoke: whether with tiny sizes.
      seconds: when it is ended.
      tick: called when a row is done.
    """
    command = [*COMMAND, name, "--seconds", str(OWN_SHARE * seconds)] + ["--smoke"] * smoke
    folders = [str(SCRIPTS), str(SCRIPTS.parent), os.environ.get("PYTHONPATH", "")]
    settings = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, folders)),
        # PyTorch's group needs the memory as well, and this process none of it.
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    }
    events: list[dict[str, Any]] = []
    timed_out = threading.Event()
    with tempfile.TemporaryFile("w+") as errors:
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": errors, "text": True}
        with subprocess.Popen(command, env=settings, start_new_session=True, **pipes) as process:
            watch = threading.Timer(seconds, lambda: timed_out.set() or _end(process))
            watch.start()
            try:
                assert process.stdout is not None
                for line in process.stdout:
                    if line.startswith('{"event": '):
                        events.append(json.loads(line))
                        if events[-1]["event"] == "row":
                            tick()
                status = process.wait()
            finally:
                watch.cancel()
                _end(process)
        errors.seek(0)
        said = errors.read().strip().splitlines()
    return outcome(events, timed_out.is_set(), status, said[-1] if said else "")


def _end(process: subprocess.Popen) -> None:
    """End a process and what it has started, if it has not ended by itself."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)


def outcome(events: list[dict[str, Any]], timed_out: bool, status: int, said: str) -> Outcome:
    """Return what became of a group, from its events, its exit status and its last words."""
    by_kind = {event["event"]: event for event in events}  # there is one of each, but for rows
    done = [event["row"] for event in events if event["event"] == "row"]
    names = {row["name"] for row in done}
    planned = by_kind.get("plan", {"rows": []})["rows"]
    not_run = [name for name in planned if name not in names]
    found = by_kind.get("environment", {"environment": {}})["environment"]
    if "absent" in by_kind:
        ended, reason = "absent", by_kind["absent"]["reason"]
    elif timed_out:
        ended, reason = "timed out", ""
    elif status != 0 or "end" not in by_kind:
        ended, reason = "failed", f"exit status {status}: {said}"
    else:
        ended, reason = ("out of time" if not_run else "done"), ""
    return Outcome(ended, reason, done, not_run, found)
