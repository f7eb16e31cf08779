"""Benchmark on an accelerator: the kernels of `jb.fused()`, the scan, and cuDNN.

Groups, each in a process of its own, so that one that hangs or crashes costs its own time alone:

    correct    the kernels against the scan, on the device itself
    heads      LSTM of heads of 32 to 128 units: fused, scan, scan as one CUDA graph, plain scan
    dense      the same of a dense LSTM
    torch      cuDNN's dense LSTM by PyTorch: float16, bfloat16, float32
    cudnn      cuDNN's dense LSTM by JAX: float32

Rows are in order of value; what does not fit into the time is listed as not run. The whole takes
less than eight minutes; `--groups heads --timeout 3600` runs all rows of a group. A model of heads
is another one than the dense model of the same size: ratios are of equal rows only.

The exit status is 1 if a kernel is wrong or a group failed or was timed out, and 2 without an
accelerator.
"""

import argparse
import json
import shlex
import sys
import time
from collections.abc import Sequence
from typing import Any

from accelerator import process, show
from accelerator.groups import GROUPS, NO_ACCELERATOR
from benchmarks import environment
from benchmarks.progress import progress

from jax_bptt.testing import tables
from jax_bptt.testing.arguments import Parser, output

TIMEOUT = 450.0


def seconds(text: str) -> float:
    """Read a positive number of seconds."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not value > 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number of seconds")
    return value


def make_parser() -> Parser:
    """Return the command line's parser."""
    parser = Parser(prog="bench_accelerator", description=__doc__)
    parser.add_argument("--groups", nargs="+", choices=GROUPS, default=list(GROUPS), help="all")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, on a CPU as well")
    parser.add_argument(
        "--timeout",
        type=seconds,
        default=TIMEOUT,
        metavar="SECONDS",
        help=f"for all groups together ({TIMEOUT:g}); each is ended when its share is over",
    )
    parser.add_argument("--json", type=output, metavar="FILE")
    parser.add_argument("--plot", type=output, metavar="FILE")
    return parser


def run(names: list[str], smoke: bool, timeout: float) -> dict[str, dict[str, Any]]:
    """Run groups one after the other; return their reports, all absent without an accelerator.

    A group has its share of what time is left, so that what one does not need the next ones have.
    """
    begin = time.monotonic()
    reports: dict[str, dict[str, Any]] = {}
    with progress(sum(len(GROUPS[name].planned(smoke)) for name in names), "row") as tick:
        for k, name in enumerate(names):
            share = GROUPS[name].share / sum(GROUPS[rest].share for rest in names[k:])
            allowed = share * (timeout - (time.monotonic() - begin))
            found = process.run(name, smoke, allowed, tick)
            reports[name] = {"title": GROUPS[name].title, "seconds": allowed, **found._asdict()}
            if found.reason == NO_ACCELERATOR:
                break
    return reports


def texts(reports: dict[str, dict[str, Any]]) -> list[str]:
    """Return what there is to print."""
    found = []
    for name, group in reports.items():
        if group["rows"]:
            make = show.correctness if name == "correct" else show.times
            found.append(tables.text(make(group["title"], group["rows"])))
        if group["ended"] != "done":
            found.append(f"{name}: {group['ended']} {group['reason']}".rstrip())
        if group["not_run"]:
            found.append(f"{name}, not run: " + "; ".join(group["not_run"]))
    return found


def wrong(reports: dict[str, dict[str, Any]]) -> bool:
    """Return whether a kernel is wrong, a way to run a row failed, or a group came to a bad end."""
    rows = [row for group in reports.values() for row in group["rows"]]
    parts = [c for row in rows for c in row.get("contestants", [])]
    failed = any(part["error"] for part in parts)
    bad = any(group["ended"] in ("failed", "timed out") for group in reports.values())
    return failed or bad or not all(row.get("met", True) for row in rows)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    args = make_parser().parse_args(argv)
    reports = run(args.groups, args.smoke, args.timeout)
    if any(group["reason"] == NO_ACCELERATOR for group in reports.values()):
        print(
            f"bench_accelerator: {NO_ACCELERATOR}; --smoke runs tiny sizes on a CPU",
            file=sys.stderr,
        )
        return 2
    ratios = show.ratios(reports)
    print("\n\n".join(texts(reports)))
    if ratios:
        print("\n" + tables.text(show.ratio_table(ratios)))
    proven = show.proven(reports)
    places = [group["environment"] for group in reports.values() if group["environment"]]
    if places:
        print("\n" + environment.sentence(places[0]))
        for name in proven:
            print(f"right in every case and faster than the scan: {name}")
    if args.json is not None:
        document = {
            "schema": 1,
            "command": shlex.join(["python", "scripts/bench_accelerator.py", *argv]),
            "environment": places[0] if places else None,
            "groups": reports,
            "ratios": ratios,
            "proven": proven,
        }
        args.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    if args.plot is not None:
        show.plot(reports, args.plot)
    return 1 if wrong(reports) else 0


if __name__ == "__main__":
    sys.exit(main())
