"""A run as the terminal shows it and the files keep it."""

import argparse
import io
import json
import platform
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh

import jax_bptt as jb
from trainer import check, files
from trainer.errors import InputError, optional_module, require, say
from trainer.jobs import Job
from trainer.resume import Run

SMOOTHING = 50
"""Steps over which the drawn curve is a running mean."""


def environment(mesh: Mesh) -> dict[str, Any]:
    """Return the versions and the devices of a run."""
    device = mesh.devices.flat[0]
    versions = {m.__name__: m.__version__ for m in (jb, jax, optax, np)}
    return {
        "versions": versions | {"python": platform.python_version()},
        "device": {"platform": device.platform, "kind": device.device_kind, "count": mesh.size},
    }


def beginning(job: Job, args: argparse.Namespace, mesh: Mesh, run: Run) -> None:
    """Print what is about to be trained, and how."""
    size = sum(leaf.size for leaf in jax.tree.leaves(run.progress.learner.params))
    where = f"{mesh.size} device{'s' * (mesh.size > 1)} ({mesh.devices.flat[0].device_kind})"
    print(f"data      {job.summary}")
    print(f"network   {size:,} parameters, {job.network.precision}, on {where}")
    limits = [f"{args.steps} steps"] if args.steps else []
    limits += [f"{args.seconds:g} seconds"] if args.seconds else []
    print(
        f"optimiser Adam, learning rate {args.learning_rate:g} with a cosine to zero, gradient "
        f"clipped at global norm {args.clip:g}, {' or '.join(limits)}"
    )
    steps = run.progress.step
    if run.finished:
        print(f"finished  all of its {steps} steps were saved; this is their report again")
    elif steps:
        print(f"goes on   after the {steps} steps that were saved")


def passed(errors: dict[str, float], precision: str) -> bool:
    """Print the gradient's errors; return whether rounding explains them."""
    tolerance, largest = check.TOLERANCE[precision], np.max([*errors.values()])  # NaN if one is
    for path, error in errors.items():
        print(f"check     {path}: relative error {error:.1e}")
    # Written so that an error of NaN fails.
    passed = largest <= tolerance
    verdict = "ok" if passed else "FAILED"
    print(
        f"check     explicit gradient against jax.grad of the plain scan, {precision}: {verdict}, "
        f"largest relative error {largest:.1e}, tolerance {tolerance:.0e}"
    )
    if not passed:
        message = f"the gradient check failed: {largest:.1e} is more than {tolerance:.0e}"
        print(message, file=sys.stderr)
    return passed


def speed(job: Job, run: Run) -> float:
    """Return the job's units per second, without the steps that compile."""
    return run.timed * job.units_per_step / run.progress.seconds if run.timed else 0.0


def training(job: Job, run: Run, *, interrupted: bool) -> dict[str, Any]:
    """Print how training went; return it for the results' file."""
    steps, seconds = run.progress.step, run.progress.seconds
    if interrupted:
        print(f"interrupted after {steps} steps; this is what was learned so far")
    print(
        f"trained   {steps} steps in {seconds:.1f} s, not counting compilation; "
        f"{speed(job, run):,.0f} {job.unit} per second"
    )
    return {
        "interrupted": interrupted,
        "steps": steps,
        "training_seconds": seconds,
        f"{job.unit}_per_second": speed(job, run),
    }


def result(job: Job, value: float) -> dict[str, Any]:
    """Print the network's score beside that of the baseline; return both for the results' file."""
    ahead = value - job.baseline if job.higher_is_better else job.baseline - value
    print(f"held-out  {value:.4f} {job.score}")
    print(f"baseline  {job.baseline:.4f} {job.score}: {job.baseline_name}")
    winner = "the network" if ahead > 0 else "the baseline"
    print(f"winner    {winner}, by {abs(ahead):.4f}")
    return {
        "result": {"name": job.score, "value": value},
        "baseline": {"name": job.baseline_name, "value": job.baseline},
    }


def require_format(path: str) -> None:
    """Raise `InputError` unless a curve can be drawn into a file of this name."""
    known = sorted(_figure().canvas.get_supported_filetypes())
    require(
        Path(path).suffix[1:].lower() in known,
        f"cannot draw into {path}: its ending is none of {', '.join(known)}",
    )


def learning_curve(
    path: str, losses: Sequence[float], *, levels: Mapping[str, float], label: str
) -> bytes:
    """Return the picture, for a file of this name, of the loss of every step.

    The `levels` are horizontal lines to compare it with, by what they are called.
    """
    figure = _figure()
    axes = figure.add_subplot()
    width = min(SMOOTHING, len(losses))
    smooth = np.convolve(losses, np.full(width, 1 / width), mode="valid")
    axes.plot(np.arange(len(smooth)) + width, smooth, label="training (running mean)")
    for number, (name, level) in enumerate(levels.items(), start=1):
        axes.axhline(level, linestyle="--", color=f"C{number}", label=f"{name}: {level:.4g}")
    axes.set_xlabel("steps")
    axes.set_ylabel(label)
    axes.legend()
    picture = io.BytesIO()
    figure.savefig(picture, format=Path(path).suffix[1:].lower())
    return picture.getvalue()


def _figure() -> Any:
    figure = optional_module("matplotlib.figure", extra="plot")
    return figure.Figure(figsize=(7, 4), layout="constrained")


def write(job: Job, args: argparse.Namespace, record: dict[str, Any], losses: list[float]) -> bool:
    """Write the files that were asked for, figures before pictures; return whether all were.

    A file that cannot be written is one line on stderr, and does not keep the other from it.
    """

    def figures():
        return (json.dumps(record, indent=2) + "\n").encode()

    def picture():
        levels = {"held-out": record["result"]["value"], job.baseline_name: job.baseline}
        # An accuracy has no place on the axis of a loss.
        levels = {} if job.curve else levels
        curve = [loss * job.per_nat for loss in losses]
        return learning_curve(args.plot, curve, levels=levels, label=job.curve or job.score)

    failures = 0
    for path, content in ((args.json, figures), (args.plot, picture)):
        try:
            if path:
                files.write(path, content())
        except InputError as error:
            failures += 1
            say(str(error))
    return not failures
