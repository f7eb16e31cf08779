"""A tool as a process of its own, talked to through two pipes as GradBench does."""

import itertools
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

SCRIPT = Path(__file__).parents[1] / "gradbench.py"


class ToolError(Exception):
    """A tool that failed; the message is one line."""


class PipedTool:
    """The process; a context manager, which ends it by closing its input."""

    def __init__(self, arguments: Sequence[str]):
        """Start `gradbench.py serve` with these arguments, and the module."""
        command = [sys.executable, str(SCRIPT), "serve", *arguments]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8"
        )
        self._ids = itertools.count()
        self.name = self.ask(kind="start", eval="lstm")["tool"]
        self.ask(kind="define", module="lstm")

    def ask(self, **message: Any) -> dict[str, Any]:
        """Send a message and return its answer.

        Raises:
          ToolError: the tool ended, answered another message, or reported an error.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        identity = next(self._ids)
        try:
            self._process.stdin.write(json.dumps({"id": identity} | message) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise ToolError(f"the tool ended with status {self._process.wait()}") from None
        line = self._process.stdout.readline()
        if not line:
            raise ToolError(f"the tool ended with status {self._process.wait()}")
        answer = json.loads(line)
        if answer.get("id") != identity:
            raise ToolError(f"the tool answered message {answer.get('id')}, not {identity}")
        if "error" in answer:
            raise ToolError(answer["error"])
        return answer

    def evaluate(self, function: str, fields: dict[str, Any]) -> tuple[Any, list[float], float]:
        """Return (output, milliseconds of each run, milliseconds of the compiling call)."""
        answer = self.ask(kind="evaluate", module="lstm", function=function, input=fields)
        times: dict[str, list[float]] = {"evaluate": [], "compile": []}
        for timing in answer["timings"]:
            times[timing["name"]].append(timing["nanoseconds"] / 1e6)
        return answer["output"], times["evaluate"], sum(times["compile"])

    def __enter__(self) -> Self:
        """Return the tool."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close its input, which ends it, and wait for it."""
        if kind is not None:
            self._process.kill()
        self._process.communicate()
