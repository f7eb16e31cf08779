"""Answers of the tool, how long it takes, and how long its rivals take on the same machine.

Every tool is a process of its own behind the protocol, on one core unless its label says otherwise.
Its loss and gradient are compared with forward mode before its times count.
"""

import contextlib
import itertools
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gradbench_lstm import published
from gradbench_lstm.forward_mode import loss_and_gradient
from gradbench_lstm.instances import InputError, Instance
from gradbench_lstm.models import FORMS
from jax_bptt.testing.tables import Table

SCRIPT = Path(__file__).parents[1] / "gradbench.py"
LIMIT = 1e-10
FUNCTIONS = ("objective", "jacobian")
OWN = "jax_bptt"
ROUNDS = 5
CHANCE = 1.5
CROWDED = 1024
"""Characters up to which PyTorch is tried with all cores too."""


class ToolError(Exception):
    """A tool that failed; the message is one line."""


@contextlib.contextmanager
def piped(arguments: Sequence[str]) -> Iterator[Callable[[str, Any], tuple[Any, list[float]]]]:
    """Run `gradbench.py serve`, talk to it through two pipes as GradBench does, and end it.

    Yields:
      `(function, fields) -> (output, milliseconds of each run)`.

    Raises:
      ToolError: the tool ended, or reported an error.
    """
    command = [sys.executable, str(SCRIPT), "serve", *arguments]
    process: Any = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8"
    )
    ids = itertools.count()

    def ask(**message):
        line = ""
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps({"id": next(ids)} | message), file=process.stdin, flush=True)
            line = process.stdout.readline()
        if not line:
            raise ToolError(f"the tool ended with status {process.wait()}")
        answer = json.loads(line)
        if "error" in answer:
            raise ToolError(answer["error"])
        return answer

    def evaluate(function, fields):
        answer = ask(kind="evaluate", module="lstm", function=function, input=fields)
        timings = answer["timings"]
        times = [t["nanoseconds"] / 1e6 for t in timings if t["name"] == "evaluate"]
        return answer["output"], times

    try:
        ask(kind="start", eval="lstm")
        ask(kind="define", module="lstm")
        yield evaluate
    finally:
        process.kill()
        process.communicate()


def candidates(count: int) -> dict[str, dict[str, tuple[str, ...]]]:
    """Return of each tool the ways of which the fastest counts, at c = `count`.

    A way is the arguments of `serve`, by what the table calls it.
    """
    torch: dict[str, tuple[str, ...]] = {"one core": ("--model", "torch")}
    if count <= CROWDED:
        torch["all cores"] = ("--model", "torch", "--multithreaded")
    return {
        OWN: {"": ("--model", OWN)},
        "jax": {name.removeprefix("jax-"): ("--model", name) for name in FORMS},
        "torch": torch,
    }


def measure(instance: Instance, tools: Iterable[str], seconds: float) -> dict[str, Any]:
    """Return a row: of each tool and function the time of its fastest candidate, and the error.

    The candidates take turns for `ROUNDS` rounds, and the time is the median of the rounds'
    medians. A candidate that is slower than `CHANCE` times another of its tool, or one run of which
    takes all the seconds, is left out after the first round.

    Args:
      instance: the input.
      tools: keys of `candidates`.
      seconds: how long a function is run in all rounds together.

    Raises:
      ToolError: a tool failed.
    """
    layers, count, bits = instance.sizes
    loss, gradient = loss_and_gradient(instance)
    expected = dict(zip(FUNCTIONS, (np.array(loss), gradient), strict=True))
    fields = instance.to_json() | {"min_runs": 1, "min_seconds": seconds / ROUNDS}
    every = candidates(count)
    found: dict[str, Any] = {tool: {name: {} for name in FUNCTIONS} for tool in tools}
    with contextlib.ExitStack() as stack:
        ways = {
            (tool, label): stack.enter_context(piped(arguments))
            for tool in found
            for label, arguments in every[tool].items()
        }
        for turn, name, (tool, label) in itertools.product(range(ROUNDS), FUNCTIONS, ways):
            of_tool = found[tool][name]
            if turn and _hopeless(of_tool, label, 1e3 * seconds):
                continue
            output, times = ways[tool, label](name, fields)
            medians, errors = of_tool.setdefault(label, ([], []))
            medians.append(statistics.median(times))
            errors.append(relative_error(np.array(output), expected[name]))
    fastest = {
        tool: {name: _fastest(of_tool) for name, of_tool in functions.items()}
        for tool, functions in found.items()
    }
    return {"l": layers, "c": count, "b": bits, "tools": fastest}


def _hopeless(of_tool: dict[str, Any], label: str, most: float) -> bool:
    """Return whether a candidate has no chance, or no time, to be run again."""
    first = of_tool[label][0][0]
    return first > most or first > CHANCE * min(medians[0] for medians, _ in of_tool.values())


def _fastest(of_tool: dict[str, Any]) -> dict[str, Any]:
    """Return the fastest candidate of a tool, with the largest error of all."""
    # Those left out after a round cannot be the fastest, unless a single run was too long for all.
    label = min(of_tool, key=lambda label: statistics.median(of_tool[label][0]))
    medians = of_tool[label][0]
    return {
        "form": label,
        "ms": statistics.median(medians),
        "rounds": len(medians),
        "error": max(max(errors) for _, errors in of_tool.values()),
    }


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """Return the largest difference over the largest number; infinity for another shape."""
    if found.shape != expected.shape:
        return float("inf")
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def wrong(row: dict[str, Any]) -> list[str]:
    """Return the functions whose error is over the limit, as text."""
    return [
        f"{tool} {name} l={row['l']} c={row['c']}: error {r['error']:.1e} is over {LIMIT:.0e}"
        for tool, functions in row["tools"].items()
        for name, r in functions.items()
        if not r["error"] <= LIMIT
    ]


def merged(path: Path | None, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return rows and those of other sizes in the file of results, if any, and write it anew.

    Raises:
      InputError: the file cannot be read or written.
    """
    if path is None:
        return rows
    try:
        old = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
        by_size = {(row["l"], row["c"]): row for row in [*old, *rows]}
        every = [by_size[size] for size in sorted(by_size)]
        path.write_text(json.dumps(every, indent=1) + "\n", encoding="utf-8")
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"{path} cannot be used as results of this script: {error!r}") from None
    return every


def tables(rows: list[dict[str, Any]]) -> list[Table]:
    """Return the table of this machine, and where sizes are published that of the other machine."""
    found = [here(rows)]
    sizes = [(row["l"], row["c"]) for row in rows]
    shown = [size for size in published.SIZES if size in sizes]
    if shown and all(OWN in row["tools"] for row in rows):
        found.append(elsewhere(rows, shown))
    return found


def here(rows: list[dict[str, Any]]) -> Table:
    """Return the table of this machine: own times, and how many times as long others take."""
    tools = [tool for tool in candidates(0) if all(tool in row["tools"] for row in rows)]
    header = ["l, c"]
    for tool in tools:
        unit = "ms" if tool == OWN else "ms (x)"
        header += [f"{tool} {short}, {unit}" for short in ("objective", "gradient")]
    header += ["fastest jax forms"] * ("jax" in tools) + ["largest error"]
    lines = []
    for row in rows:
        line = [f"{row['l']}, {row['c']}"]
        for tool in tools:
            for name in FUNCTIONS:
                ms, own = row["tools"][tool][name]["ms"], row["tools"].get(OWN, {}).get(name)
                ratio = "" if tool == OWN or own is None else f" ({ms / own['ms']:.1f})"
                line.append(_ms(ms) + ratio)
        if "jax" in tools:
            line.append(", ".join(row["tools"]["jax"][name]["form"] for name in FUNCTIONS))
        errors = [row["tools"][tool][name]["error"] for tool in tools for name in FUNCTIONS]
        lines.append([*line, f"{max(errors):.0e}"])
    return Table("This machine, one core", header, lines)


def elsewhere(rows: list[dict[str, Any]], sizes: list[tuple[int, int]]) -> Table:
    """Return the published times beside own ones: two machines, of which ratios mean little."""
    by_size = {(row["l"], row["c"]): row["tools"][OWN] for row in rows}
    header = ["tool", *(f"l={layers}, c={count}" for layers, count in sizes)]
    own = [", ".join(_ms(by_size[size][name]["ms"]) for name in FUNCTIONS) for size in sizes]
    lines = [[f"{OWN}, this machine", *own]]
    for tool, times in published.TIMES.items():
        lines.append([tool, *(", ".join(map(_ms, times.get(size, ()))) or "-" for size in sizes)])
    title = (
        "Objective, gradient in ms: the published times of GradBench's nightly run of 14 March "
        "2026, which are of another machine"
    )
    return Table(title, header, lines)


def _ms(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"
