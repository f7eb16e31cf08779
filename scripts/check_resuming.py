"""Kill a run of scripts/train.py at random moments, let it go on, and compare what it learns.

Each of N runs gets one signal, SIGINT, SIGTERM or SIGKILL, at a moment drawn uniformly: of half the
runs from the time before the first checkpoint, when they import, read and compile, of half from the
time after it, when they train, write a checkpoint several times a second, and report. The same
command then goes on to the end, and the digest of its parameters, optimiser, state and losses must
be that of the run nobody stopped. A run that ends before its moment is not counted, and another one
takes its place.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

TRAIN = Path(__file__).with_name("train.py")
ENDS = {
    signal.SIGINT: {130, 1, -signal.SIGINT},  # 1 or -2: it came before there was a handler
    signal.SIGTERM: {143, -signal.SIGTERM},
    signal.SIGKILL: {-signal.SIGKILL},
}
"""Exit statuses of a run that a signal has ended."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run; return 0 if every run learned the same, 1 if not."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=30, metavar="N", help="(%(default)s)")
    parser.add_argument("--steps", type=int, default=2000, metavar="N", help="(%(default)s)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the moments")
    args = parser.parse_args(argv)
    draw = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as place:
        text = Path(place, "text.txt")
        text.write_text("".join(draw.choices("abcdefgh .\n", k=5000)))
        whole = Path(place, "whole")
        began = time.monotonic()
        process = _run(text, whole, args.steps)
        _await_checkpoint(process, whole)
        before = time.monotonic() - began
        if process.wait() != 0:
            print("the run that nobody stopped has failed", file=sys.stderr)
            return 1
        after = time.monotonic() - began - before
        print(
            f"not stopped: {before:.1f} s to the first checkpoint, {after:.1f} s from "
            f"there to the end; digest {_digest(whole)[:16]}",
            flush=True,
        )
        same = number = 0
        while number < args.kills:
            folder = Path(tempfile.mkdtemp(dir=place))
            asked, late = list(ENDS)[number % 3], number % 2 == 1
            moment = draw.uniform(0, after if late else before)
            process = _run(text, folder, args.steps)
            if late:
                _await_checkpoint(process, folder)
            try:
                status = process.wait(timeout=moment)
            except subprocess.TimeoutExpired:
                os.kill(process.pid, asked)
                status = process.wait()
            if status == 0:
                continue
            number += 1
            step = _last(folder)
            finished = _run(text, folder, args.steps).wait()
            alike = finished == 0 and _digest(folder) == _digest(whole)
            expected = status in ENDS[asked]
            same += alike and expected
            since = "after the first checkpoint" if late else "after the start"
            print(
                f"{number:2} {asked.name:7} {moment:5.2f} s {since:26}: status {status:4}, "
                f"{step:5} of {args.steps} steps saved; then {'the same' if alike else 'DIFFERENT'}"
                f"{'' if expected else ' (status not expected)'}",
                flush=True,
            )
    print(f"{same} of {args.kills} runs end as the one that nobody stopped")
    return 0 if same == args.kills else 1


def _run(text: Path, folder: Path, steps: int) -> subprocess.Popen:
    options = "--cell elman --hidden 8 --embedding 4 --window 8 --batch 4 --sample 0"
    argv = ["chars", "--text", text, "--steps", str(steps), *options.split()]
    argv += ["--checkpoint", folder, "--checkpoint-every", "0.2"]
    quiet = subprocess.DEVNULL
    return subprocess.Popen([sys.executable, TRAIN, *argv], stdout=quiet, stderr=quiet)


def _await_checkpoint(process: subprocess.Popen, folder: Path) -> None:
    while process.poll() is None and not _last(folder):
        time.sleep(0.01)


def _last(folder: Path) -> int:
    """Return the last step that has been saved, 0 if none has."""
    return max((int(place.name[5:]) for place in folder.glob("step-*")), default=0)


def _digest(folder: Path) -> str:
    """Return the digest of the last checkpoint's arrays, as the run has written it."""
    last = max(folder.glob("step-*"))
    return json.loads((last / "run.json").read_text())["record"]["arrays"]


if __name__ == "__main__":
    sys.exit(main())
