"""GradBench's protocol: a JSON message a line comes in, and one goes out for each.

    start      {"id", "tool"}
    define     {"id", "success"}, with an "error" where it is false
    evaluate   {"id", "success", "output", "timings"}, or an "error"
    others     {"id"}, as for `analysis`

Nothing else is written to the output. What is wrong with a message is said in its answer, in one
line; a line that is no message is answered with the id null.
"""

import json
import math
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from gradbench_lstm.instances import InputError, Instance, from_json

MODULE = "lstm"


class Model(NamedTuple):
    """The functions of a tool.

    Attributes:
      place: `instance -> arguments`, ahead of the timed runs.
      functions: `objective` and `jacobian` of the arguments.
      compiles: whether the first call with arrays of a shape compiles.
    """

    place: Callable[[Instance], Iterable[Any]]
    functions: Mapping[str, Callable[..., Any]]
    compiles: bool


class Tool(NamedTuple):
    """A tool: its name, and what loads its model when a message first needs it."""

    name: str
    load: Callable[[], Model]


def serve(tool: Tool, lines: Iterable[bytes], write: Callable[[str], Any]) -> None:
    """Answer every line until there are no more; `write` takes an answer with its line end."""
    for line in lines:
        if line.strip():
            write(json.dumps(answer(tool, line)) + "\n")


def answer(tool: Tool, line: bytes) -> dict[str, Any]:
    """Return the answer to one line."""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError) as error:  # also bytes that are no UTF-8
        return _failure(None, f"no JSON: {error}")
    if not isinstance(message, dict) or "id" not in message:
        return _failure(None, "a message must be an object with an id and a kind")
    try:
        return {"id": message["id"]} | _respond(tool, message)
    except Exception as error:  # whatever it is, the tool answers and goes on
        text = " ".join(str(error).split()) or type(error).__name__
        known = isinstance(error, InputError)
        return _failure(message["id"], text if known else f"{type(error).__name__}: {text}")


def _respond(tool: Tool, message: dict[str, Any]) -> dict[str, Any]:
    kind = message.get("kind")
    if kind == "start":
        return {"tool": tool.name}
    if kind not in ("define", "evaluate"):
        return {}
    if message.get("module") != MODULE:
        raise InputError(f"no module {message.get('module')!r}; this tool has {MODULE}")
    model = tool.load()
    if kind == "define":
        return {"success": True}
    return evaluate(model, message.get("function"), message.get("input"))


def evaluate(model: Model, name: Any, fields: Any) -> dict[str, Any]:
    """Run a function until `min_runs` runs and `min_seconds` in them are reached.

    A first call, which compiles where no input of that size came before, is timed as `compile`.

    Raises:
      InputError: there is no such function, or the input is wrong.
    """
    if not isinstance(name, str) or name not in model.functions:
        raise InputError(f"no function {name!r}; there are {', '.join(model.functions)}")
    instance = from_json(fields)
    runs = _number(fields, "min_runs", whole=True)
    nanoseconds = 1e9 * _number(fields, "min_seconds", whole=False)
    function, arguments = model.functions[name], model.place(instance)
    timings = []
    if model.compiles:
        timings.append(_timed("compile", function, arguments)[0])
    output, taken, spent = None, 0, 0
    while taken < max(runs, 1) or spent < nanoseconds:
        timing, output = _timed("evaluate", function, arguments)
        timings.append(timing)
        taken, spent = taken + 1, spent + timing["nanoseconds"]
    result = np.asarray(output)
    if not np.isfinite(result).all():
        raise InputError(f"the {name} of this input is not finite")
    return {"success": True, "output": result.tolist(), "timings": timings}


def _timed(name: str, function: Callable[..., Any], arguments: Iterable[Any]) -> tuple[Any, Any]:
    start = time.perf_counter_ns()
    output = jax.block_until_ready(function(*arguments))  # there, and not only begun
    return {"name": name, "nanoseconds": time.perf_counter_ns() - start}, output


def _number(fields: dict[str, Any], name: str, whole: bool) -> float:
    """Return `min_runs` or `min_seconds`, 1 where it is not given."""
    value = fields.get(name, 1)
    if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
        raise InputError(f"{name} must be a{' whole' * whole} number, got {value!r}")
    if not math.isfinite(value) or value < 0:
        raise InputError(f"{name} must be finite and not negative, got {value!r}")
    return value


def _failure(identity: Any, error: str) -> dict[str, Any]:
    return {"id": identity, "success": False, "error": error}
