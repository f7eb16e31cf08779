"""Streams that close, break or fill up, and files that are written whole or not at all."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from trainer import files
from trainer.errors import InputError

SCRIPTS = Path(__file__).parents[2] / "scripts"
PROGRAM = f"""
import os, sys
sys.path.insert(0, {str(SCRIPTS)!r})
from trainer import streams
with streams.enduring() as lost:
    for number in range(10000):
        print("line", number, "é")
    print("on stderr", file=sys.stderr)
    opened = os.open(os.devnull, os.O_RDONLY)
    sys.exit(10 * lost() + (opened < 3))
"""


def shell(redirections):
    """Return the exit status of the program under bash, and what came out on stdout and stderr."""
    command = f'set -o pipefail; "$0" -c "$1" {redirections}'
    environment = {**os.environ, "PYTHONIOENCODING": "ascii:strict"}
    argv = ["bash", "-c", command, sys.executable, PROGRAM]
    return subprocess.run(argv, capture_output=True, text=True, env=environment)


LOST = "train.py: stdout cannot be written ({}): going on without it\non stderr\n"


@pytest.mark.parametrize(
    "redirections, status, error",
    [
        ("", 0, "on stderr\n"),
        ("| head -1", 10, LOST.format("Broken pipe")),
        (">&-", 10, LOST.format("it is closed")),
        (">/dev/full", 10, LOST.format("No space left on device")),
        ("2>&-", 0, ""),
        ("2>/dev/full", 0, ""),
        ("<&- >&- 2>&-", 10, ""),
        (">/dev/full 2>&1", 10, ""),
    ],
)
def test_a_stream_that_cannot_be_written_is_one_line(redirections, status, error):
    done = shell(redirections)
    assert (done.returncode, done.stderr) == (status, error)
    if not redirections:
        assert done.stdout.splitlines()[-1] == r"line 9999 \xe9"


def test_a_file_is_replaced_as_a_whole_or_left_as_it_was(tmp_path, monkeypatch):
    path, link = tmp_path / "r.json", tmp_path / "link"
    link.symlink_to(path)
    files.write(str(link), b"old")
    assert link.is_symlink() and path.read_bytes() == b"old"
    files.try_out(str(path))
    assert path.read_bytes() == b"old"

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    for attempt in lambda: files.write(str(path), b"new"), lambda: files.try_out(str(path)):
        with pytest.raises(InputError, match="cannot write .*r.json: No space left on device"):
            attempt()
    assert path.read_bytes() == b"old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link", "r.json"]


def test_what_is_no_regular_file_is_written_directly():
    files.try_out("/dev/null")
    files.write("/dev/null", b"gone")
    with pytest.raises(InputError, match="cannot write /dev/full: No space left on device"):
        files.write("/dev/full", b"more")
