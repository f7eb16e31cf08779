"""A run as the terminal shows it and the files keep it."""

import functools
import json
import platform
import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh

import jax_bptt as jb
from jax_bptt.training import loop
from trainer import check, files, plot, text
from trainer.errors import InputError, optional_module, say
from trainer.jobs import Job, Score
from trainer.resume import Run


def line(text: str) -> None:
    """Print a line."""
    print(text, flush=True)


def try_out(json_path: str | None, plot_path: str | None) -> None:
    """Raise before the work, not after it, for what would fail at the end.

    Raises:
      InputError: a file cannot be written, or an extra is missing.
    """
    optional_module("tqdm", extra="train")
    if plot_path:
        plot.require_format(plot_path)
    for path in filter(None, (json_path, plot_path)):
        files.try_out(path)


def environment(mesh: Mesh) -> dict[str, Any]:
    """Return the versions and the devices of a run."""
    device = mesh.devices.flat[0]
    versions = {m.__name__: m.__version__ for m in (jb, jax, optax, np)}
    return {
        "versions": versions | {"python": platform.python_version()},
        "device": {"platform": device.platform, "kind": device.device_kind, "count": mesh.size},
    }


def beginning(job: Job, settings: loop.Settings, mesh: Mesh, run: Run) -> None:
    """Print what is about to be trained, and how."""
    size = sum(leaf.size for leaf in jax.tree.leaves(run.progress.learner.params))
    where = f"{mesh.size} device{'s' * (mesh.size > 1)} ({mesh.devices.flat[0].device_kind})"
    line(f"data      {job.summary}")
    line(f"network   {size:,} parameters, {job.network.precision}, on {where}")
    limits = [f"{settings.steps} steps"] if settings.steps else []
    limits += [f"{settings.seconds:g} seconds"] if settings.seconds else []
    line(
        f"optimiser Adam, learning rate {settings.learning_rate:g} with a cosine to zero, gradient "
        f"clipped at global norm {settings.clip:g}, {' or '.join(limits)}"
    )
    if run.finished:
        line(
            f"finished  all of its {run.progress.step} steps were saved; this is their report again"
        )
    elif run.progress.step:
        line(f"goes on   after the {run.progress.step} steps that were saved")


def passed(errors: dict[str, float], precision: str) -> bool:
    """Print the gradient's errors; return whether rounding explains them."""
    tolerance, largest = check.TOLERANCE[precision], max(errors.values())
    for path, error in errors.items():
        line(f"check     {path}: relative error {error:.1e}")
    # Written so that an error of nan fails.
    passed = largest <= tolerance
    verdict = "ok" if passed else "FAILED"
    line(
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
        line(f"interrupted after {steps} steps; this is what was learned so far")
    line(
        f"trained   {steps} steps in {seconds:.1f} s, not counting compilation; "
        f"{speed(job, run):,.0f} {job.unit} per second"
    )
    return {
        "interrupted": interrupted,
        "steps": steps,
        "training_seconds": seconds,
        f"{job.unit}_per_second": speed(job, run),
    }


def result(score: Score, job: Job) -> None:
    """Print the network's score beside that of the baseline."""
    ahead = score.value - job.baseline.value
    if not job.higher_is_better:
        ahead = -ahead
    line(f"held-out  {score.value:.4f} {score.name}")
    line(f"baseline  {job.baseline.value:.4f} {score.name}: {job.baseline.name}")
    winner = "the network" if ahead > 0 else "the baseline"
    line(f"winner    {winner}, by {abs(ahead):.4f}")


def sample(alphabet: str, ids: np.ndarray, temperature: float) -> str:
    """Print a sample; return its text."""
    characters = text.decode(alphabet, ids)
    line(f"sample    {len(ids)} characters at temperature {temperature:g}:\n")
    line(characters + "\n")
    return characters


def write(
    job: Job,
    json_path: str | None,
    plot_path: str | None,
    record: dict[str, Any],
    losses: list[float],
) -> bool:
    """Write the files that were asked for, figures before pictures.

    A file that cannot be written is one line on stderr, and does not keep the other from it.

    Returns:
      Whether all were written.
    """
    score, baseline = record["result"], record["baseline"]
    record = record | {"result": score._asdict(), "baseline": baseline._asdict()}
    # An accuracy has no place on the axis of a loss.
    levels = {"held-out": score.value, baseline.name: baseline.value}
    levels = {} if job.higher_is_better else levels
    curve = [loss * job.per_nat for loss in losses]
    wanted: list[tuple[str, Callable[[], bytes]]] = []
    if json_path:
        wanted.append((json_path, lambda: (json.dumps(record, indent=2) + "\n").encode()))
    if plot_path:
        draw = functools.partial(plot.learning_curve, levels=levels, label=job.curve)
        wanted.append((plot_path, lambda: draw(plot_path, curve)))
    failures = 0
    for path, content in wanted:
        try:
            files.write(path, content())
        except InputError as error:
            failures += 1
            say(str(error))
    return not failures
