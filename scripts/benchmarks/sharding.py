"""The mode `devices`: what `jit` makes of arrays split over devices, against `shard_map`.

The parameters are replicated, and the batch of inputs and targets is split. Under `jit` that is
all that is said, and XLA's partitioner does the rest; under `shard_map` a device runs its part.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import jax_bptt as jb
from benchmarks import data, hlo, library, measure, models, network
from benchmarks.data import GATES, Row
from benchmarks.race import Settings

SHAPES = ((128, 40, 64, 128),)
"""Default (T, B, I, H). Five divides B and no other size, so that rows of a product stand out from
features however the partitioner joins the axes."""

DEVICES = (2, 4, 8)
"""Default numbers of devices."""

CELLS = ("elman", "gru", "lstm", "two_bidirectional_lstm_with_lengths")

SPECS = (P(), P(None, "batch"), P(None, "batch"), P("batch"))
"""Where parameters, inputs [T, B, I], targets [T, B, ...] and lengths [B] are."""


class Problem(NamedTuple):
    """Something to differentiate."""

    loss: Callable[..., Any]  # `(params, xs, targets, lengths) -> number`
    # what to take its gradient at; only the networks read the lengths
    args: tuple[Any, Any, Any, Any]


def problem(row: Row) -> Problem:
    """Return the squared error of the library's layer for a row, on data drawn for it."""
    algorithm, lengths = jb.bptt(), network.lengths(row)
    if row.cell in network.DEPTHS:
        layers = network.own(row, algorithm)
        params: Any = layers.pack(network.weights(row))
        outputs: Callable[..., Any] = layers.run
    else:
        model = library.model(row, algorithm)
        params = model.pack(models.cast(data.draw(row._replace(T=1)).weights, row.dtype))
        outputs = lambda params, xs, lengths: model.run(params, xs)  # noqa: E731
    rng = np.random.default_rng(0)
    xs = jnp.asarray(rng.standard_normal((row.T, row.B, row.I)), row.dtype)
    ys = jax.eval_shape(outputs, params, xs, lengths)
    targets = jnp.asarray(rng.standard_normal(ys.shape), row.dtype)

    def loss(params, xs, targets, lengths):
        return jnp.sum((outputs(params, xs, lengths) - targets) ** 2)

    return Problem(loss, (params, xs, targets, lengths))


def ways(loss: Callable[..., Any], mesh: Mesh) -> dict[str, Callable[..., Any]]:
    """Return the gradient with respect to parameters and inputs in both ways."""
    gradient = jax.grad(loss, argnums=(0, 1))
    return {
        "jit": gradient,
        "shard_map": jax.shard_map(gradient, mesh=mesh, in_specs=SPECS, out_specs=SPECS[:2]),
    }


def place(args: tuple[Any, ...], mesh: Mesh) -> tuple[Any, ...]:
    """Put arguments where `SPECS` says."""
    return tuple(
        jax.device_put(arg, NamedSharding(mesh, spec))
        for arg, spec in zip(args, SPECS, strict=True)
    )


def features(row: Row) -> set[int]:
    """Return the numbers of features that the products of a row can have."""
    gates = GATES.get(row.cell, GATES[network.CELL])
    inputs = {row.I, 2 * row.H} if row.cell in network.DEPTHS else {row.I}
    return inputs | {row.H, gates * row.H} | {i + row.H for i in inputs}


def run_row(row: Row, settings: Settings, tick: Callable[[], Any]) -> list[dict[str, Any]]:
    """Compile both ways, read the programs, compare with one device in float64, and time.

    Nothing is found of a row whose batch the devices do not divide.
    """
    (devices,) = settings.devices
    if row.B % devices:
        return []
    mesh = Mesh(np.array(jax.devices()[:devices]), ("batch",))
    made = problem(row)
    whole = measure.compiled(jax.grad(made.loss, argnums=(0, 1)), made.args).executable
    placed = place(made.args, mesh)
    error = _float64_errors(row, mesh)
    entries: list[dict[str, Any]] = []
    calls: dict[str, Callable[[], Any]] = {}
    for name, gradient in ways(made.loss, mesh).items():
        compiled = measure.compiled(gradient, placed)
        calls[name] = compiled.call
        program = hlo.parse(compiled.executable.as_text())
        entries.append(
            {
                "name": name,
                "collectives": hlo.collectives(program),
                "product_rows": _rows(program, row),
                "error": error[name],
            }
        )
    seconds = measure.rounds(calls, settings.rounds, lambda: None)
    tick()
    for entry in entries:
        times = seconds[entry["name"]]
        entry |= measure.spread(times)
        entry["against_shard_map"] = measure.ratio(times, seconds["shard_map"])
    found = {"devices": devices, "whole_product_rows": _rows(hlo.parse(whole.as_text()), row)}
    return [{**row._asdict(), **found, "competitors": entries}]


def _rows(program: hlo.Program, row: Row) -> list[int] | None:
    """Return the rows of all products, None for sizes at which they look like features."""
    try:
        return hlo.rows(program, features(row))
    except ValueError:
        return None


def _float64_errors(row: Row, mesh: Mesh) -> dict[str, float]:
    """Return the largest error of each way's gradient against one device, all in float64."""
    with jax.enable_x64(True):
        made = problem(row._replace(dtype="float64"))
        want = models.named(jax.jit(jax.grad(made.loss, argnums=(0, 1)))(*made.args))
        placed = place(made.args, mesh)
        errors = {}
        for name, gradient in ways(made.loss, mesh).items():
            found = measure.errors(models.named(jax.jit(gradient)(*placed)), want)
            errors[name] = max(found.values())
        return errors


def run_in_processes(command: list[str], devices: list[int]) -> dict[str, Any]:
    """Run a command for each number of devices, which JAX fixes at its start; join the reports.

    Args:
      command: of this mode, without `--devices` and `--json`.
      devices: the numbers.

    Raises:
      RuntimeError: one of the processes failed; the message is what it had to say.
    """
    rows = []
    for count in devices:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "report.json"
            own = ["--devices", str(count), "--json", str(path)]
            done = subprocess.run([*command, *own], capture_output=True, text=True)
            if done.returncode != 0:
                raise RuntimeError(f"{count} devices: {done.stderr.strip()}")
            sys.stderr.write(done.stderr)
            rows += json.loads(path.read_text(encoding="utf-8"))["rows"]
    return {"rows": rows}
