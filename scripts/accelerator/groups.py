"""Groups of measurements, each of which runs in a process of its own.

What a group has to say it prints as lines of JSON: first which rows it means to measure, then each
row when it is done, so that a group that hangs, or crashes the device, loses only what it had not
reached.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from benchmarks import environment, measure

from accelerator import contestants, correct, rows
from accelerator.rows import Row
from jax_bptt.testing.libraries import roster

ROUNDS = 7
CLOSING = 3.0
"""Seconds before its time is up at which a group begins no further row."""

NO_ACCELERATOR = "no accelerator was found"

Ways = dict[str, Callable[[], Callable[[], Any]] | str]


class Group(NamedTuple):
    """A group of measurements."""

    title: str  # for the tables
    share: float  # of the time of all groups
    rows: Sequence[Any]  # in order of value
    smoke: Sequence[Any]  # rows of a smoke run
    # `row -> ways to run it`; None where the rows are cases of kernels to be compared
    ways: Callable[[Row], Ways] | None
    on_host: bool = False  # whether JAX is to leave the accelerator alone

    def planned(self, smoke: bool) -> Sequence[Any]:
        """Return the rows to measure."""
        return self.smoke if smoke else self.rows

    def measure(self, row: Any, smoke: bool, device: str) -> dict[str, Any]:
        """Return what is found of a row."""
        if self.ways is None:
            return correct.compare(row, smoke)
        found = measured(row, self.ways(row), 2 if smoke else ROUNDS, device)
        own = self.ways is contestants.library
        return found | ({"kernel": contestants.kernel(row)} if own else {})


TINY = rows.tiny(("float32",), 64)
GROUPS = {
    "correct": Group(
        "Kernels against the scan, on the device", 0.16, correct.CASES, correct.SMOKE, None
    ),
    "heads": Group(
        "LSTM of heads, the kernel against the scan",
        0.33,
        rows.heads(),
        rows.tiny(("bfloat16",), 32)[1:],
        contestants.library,
    ),
    "dense": Group("Dense LSTM", 0.28, rows.dense(), TINY[:1], contestants.library),
    "torch": Group(
        "Dense LSTM, cuDNN by PyTorch",
        0.14,
        rows.cudnn(("float16", "bfloat16", "float32")),
        TINY,
        contestants.cudnn_by_torch,
        on_host=True,
    ),
    "cudnn": Group(
        "Dense LSTM, cuDNN by JAX", 0.09, rows.cudnn(("float32",)), TINY[:1], contestants.cudnn
    ),
}
"""In the order in which they run."""


def measured(row: Row, ways: Ways, rounds: int, device: str) -> dict[str, Any]:
    """Time the ways to run a row in turn, round after round; those that fail say why."""
    calls, entries = {}, []
    for name, prepare in ways.items():
        entry: dict[str, Any] = {"name": name, "absent": None, "error": None}
        entries.append(entry)
        if isinstance(prepare, str):
            entry["absent"] = prepare
            continue
        begin = time.perf_counter()
        # Any error: those of Pallas's lowering, of MLIR and of PyTorch have no public class in
        # common, and which of them a device raises on which nobody has run this is not known. It
        # costs this way alone, and is in the report and in the exit status.
        try:
            calls[name] = prepare()
            calls[name]()
        except Exception as error:
            calls.pop(name, None)
            entry["error"] = f"{type(error).__name__}: {str(error)[:500]}"
        entry["first_call_s"] = time.perf_counter() - begin
    seconds = measure.rounds(calls, rounds, lambda: None) if calls else {}
    for entry in entries:
        if entry["name"] in seconds:
            spread = measure.spread(seconds[entry["name"]])
            entry |= spread | {"us_per_step": 1e6 * spread["seconds"] / row.T}
            entry |= rows.shares(row, spread["seconds"], device)
    return {"name": str(row), **row._asdict(), "contestants": entries}


def run(name: str, smoke: bool, seconds: float) -> None:
    """Run a group for at most so many seconds, and print what it finds."""
    begin, longest = time.perf_counter(), 0.0
    group = GROUPS[name]
    if group.on_host:
        jax.config.update("jax_platforms", "cpu")
    planned = group.planned(smoke)
    say(event="plan", rows=[str(row) for row in planned])
    if name == "torch" and (reason := roster.absence("torch")):
        say(event="absent", reason=reason)
        return
    described = environment.describe(1)
    if name == "torch":
        described["device"] = described["platform"] = contestants.torch_device()
    if described["platform"] == "cpu" and not smoke:
        say(event="absent", reason=NO_ACCELERATOR)
        return
    say(event="environment", environment=described)
    for row in planned:
        started = time.perf_counter()
        if started - begin + longest + CLOSING > seconds:
            break
        say(event="row", row=group.measure(row, smoke, described["device"]))
        longest = max(longest, time.perf_counter() - started)
    say(event="end")


def say(**event: Any) -> None:
    """Print an event."""
    print(json.dumps(event), flush=True)


def main() -> None:
    """Run one group, as `bench_accelerator.py` calls it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("group", choices=GROUPS)
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--seconds", type=float, required=True)
    args = parser.parse_args()
    run(args.group, args.smoke, args.seconds)


if __name__ == "__main__":
    main()
