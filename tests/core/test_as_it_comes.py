"""The library as it comes: one device, all of XLA's optimisations, the default path."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.as_it_comes import CASES
from tests.registry import slow_unless

# What tests/conftest.py sets for all other tests.
OURS = "XLA_FLAGS", "NPROC"


@pytest.mark.parametrize("names", [["lstm"], slow_unless(False, [n for n in CASES if n != "lstm"])])
def test_gradients_with_xla_as_it_comes(names):
    environment = {name: value for name, value in os.environ.items() if name not in OURS}
    command = [sys.executable, "-W", "error", "-m", "tests.as_it_comes", *names]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines() == [f"{name}: ok" for name in names]
