"""What the tool answers, how long it takes, and how long its rivals take on the same machine.

Every tool is a process of its own behind the protocol, on one core unless its label says otherwise.
Its loss and gradient are compared with forward mode before its times count.
"""

import json
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from benchmarks.report import Table

from gradbench_lstm import published
from gradbench_lstm.forward_mode import loss_and_gradient
from gradbench_lstm.instances import InputError, Instance
from gradbench_lstm.models import FORMS
from gradbench_lstm.pipe import PipedTool

LIMIT = 1e-10
FUNCTIONS = ("objective", "jacobian")
OWN = "jax_bptt"
CROWDED = 1024
"""Characters up to which PyTorch is tried with all cores too."""


class Candidate(NamedTuple):
    """A way to run a tool: what the table calls it, and the arguments of `serve`."""

    label: str
    arguments: tuple[str, ...]


def candidates(count: int) -> dict[str, list[Candidate]]:
    """Return the tools, and of each the ways of which the fastest counts, at c = `count`."""
    torch = [Candidate("one core", ("--model", "torch"))]
    if count <= CROWDED:
        torch.append(Candidate("all cores", ("--model", "torch", "--multithreaded")))
    return {
        OWN: [Candidate("", ("--model", OWN))],
        "jax": [Candidate(name.removeprefix("jax-"), ("--model", name)) for name in FORMS],
        "torch": torch,
    }


def measure(instance: Instance, tools: Iterable[str], seconds: float) -> dict[str, Any]:
    """Return a row: of each tool and function the median milliseconds, and the error.

    Args:
      instance: the input.
      tools: keys of `candidates`.
      seconds: how long a function is run again.

    Raises:
      ToolError: a tool failed.
    """
    layers, count, bits = instance.sizes
    loss, gradient = loss_and_gradient(instance)
    expected = dict(zip(FUNCTIONS, (np.array(loss), gradient), strict=True))
    fields = instance.to_json() | {"min_runs": 1, "min_seconds": seconds}
    every = candidates(count)
    columns = {}
    for tool in tools:
        columns[tool] = {name: None for name in FUNCTIONS}
        for candidate in every[tool]:
            with PipedTool(candidate.arguments) as piped:
                for name in FUNCTIONS:
                    found = _run(piped, name, fields, expected[name]) | {"form": candidate.label}
                    columns[tool][name] = _faster(columns[tool][name], found)
    return {"l": layers, "c": count, "b": bits, "tools": columns}


def _run(
    piped: PipedTool, name: str, fields: dict[str, Any], expected: np.ndarray
) -> dict[str, Any]:
    output, times, compiling = piped.evaluate(name, fields)
    return {
        "ms": statistics.median(times),
        "runs": len(times),
        "compile_ms": compiling,
        "error": relative_error(np.array(output), expected),
    }


def _faster(one: dict[str, Any] | None, other: dict[str, Any]) -> dict[str, Any]:
    """Return the faster of two, with the larger of their errors."""
    if one is None:
        return other
    return min(one, other, key=lambda r: r["ms"]) | {"error": max(one["error"], other["error"])}


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
    """Return rows and those of other sizes in a file of results, which is then written anew.

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
