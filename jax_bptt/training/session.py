"""A run from beginning to end, as the terminal shows it: check, train, measure, report."""

import itertools
import json
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from jax_bptt.algorithms.autodiff import autodiff
from jax_bptt.core.types import Algorithm
from jax_bptt.training import check, devices, loop, plot
from jax_bptt.training.errors import InputError, optional_module, require
from jax_bptt.training.jobs import Job, Score
from jax_bptt.training.losses import Loss
from jax_bptt.training.model import stack
from jax_bptt.training.sample import sample
from jax_bptt.training.text import decode

INTERRUPTED = 130
"""Exit status of a run that Ctrl-C ended, as shells count signal 2."""
FAILED_CHECK = 1
RECENT = 50
"""Steps whose mean loss the progress bar shows."""


class Options(NamedTuple):
    """How to run a job.

    Attributes:
      settings: of the optimiser.
      algorithm: how the gradient is computed.
      mesh: the devices over which the batch is split.
      precision: float32, float64 or bfloat16, the dtype of the job's products, by which the check
        is judged.
      seed: of the parameters and the sample.
      check: whether to compare the gradient with `jax.grad` of the plain scan first.
      sample: number of characters to write at the end, for jobs with an alphabet.
      temperature: of the sample.
      plot: file for the learning curve, or None.
      json: file for the results, or None.
    """

    settings: loop.Settings
    algorithm: Algorithm
    mesh: Mesh
    precision: str
    seed: int
    check: bool
    sample: int
    temperature: float
    plot: str | None
    json: str | None


def run(job: Job, options: Options, about: dict[str, Any], stop: Callable[[], bool]) -> int:
    """Run a job, print what happens, and return the exit status.

    Args:
      job: what to learn.
      options: how.
      about: what else belongs in the results' file: the command's arguments, the version.
      stop: asked between steps; True ends training and goes on to the report.

    Returns:
      0; 1 if the gradient check failed; 130 if `stop` ended the run.

    Raises:
      InputError: an extra is missing, a file cannot be written, or there is too little data.
      FloatingPointError: the loss is not finite any more.
    """
    _require_outputs(options)
    mesh = options.mesh
    first = devices.split_batch(next(job.batches), mesh)
    others = (devices.split_batch(batch, mesh) for batch in job.batches)
    job = job._replace(batches=itertools.chain([first], others))
    model = stack(job.cells, algorithm=options.algorithm)
    key_params, key_sample = jax.random.split(jax.random.key(options.seed))
    params = devices.replicate(jax.jit(model.init)(key_params), mesh)
    state = devices.split_state(model.initial_state(params, (job.batch,)), mesh)
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    _say(f"data      {job.summary}")
    kind = mesh.devices.flat[0].device_kind
    where = f"{mesh.size} device{'s' * (mesh.size > 1)} ({kind})"
    _say(f"network   {size:,} parameters, {options.precision}, on {where}")
    _say(f"optimiser {_describe(options.settings)}")
    record = {**about, "baseline": job.baseline._asdict(), **_environment(mesh)}

    if options.check:
        plain = job.loss(stack(job.cells, algorithm=autodiff()))
        errors = check.gradient_errors(job.loss(model), plain, params, state, first)
        record["check"] = errors
        if not _report_check(errors, options.precision):
            return FAILED_CHECK

    learner = loop.start(params, state, options.settings)
    losses, last, speed = _train(job, job.loss(model), learner, options.settings, stop)
    interrupted = stop()
    if last is None:
        _say("interrupted before the first step: nothing has been learned")
        return INTERRUPTED
    if interrupted:
        _say(f"interrupted after {last.step} steps; this is what was learned so far")
    _say(
        f"trained   {last.step} steps in {last.seconds:.1f} s, not counting compilation; "
        f"{speed:,.0f} {job.unit} per second"
    )
    # A sample is one sequence, and held-out data need not divide: one device does both.
    params = jax.device_put(last.learner.params, mesh.devices.flat[0])
    result = job.evaluate(model, params)
    _report_result(result, job)
    if options.sample and job.alphabet:
        temperature = options.temperature
        ids = sample(model, params, key_sample, length=options.sample, temperature=temperature)
        record["sample"] = decode(job.alphabet, ids)
        _say(f"sample    {options.sample} characters at temperature {temperature:g}:\n")
        _say(record["sample"] + "\n")
    record |= {
        "result": result._asdict(),
        "interrupted": interrupted,
        "steps": last.step,
        "training_seconds": last.seconds,
        f"{job.unit}_per_second": speed,
    }
    _write(job, options, losses, result, record)
    return INTERRUPTED if interrupted else 0


def _train(
    job: Job,
    loss: Loss,
    learner: loop.Learner,
    settings: loop.Settings,
    stop: Callable[[], bool],
) -> tuple[list[float], loop.Progress | None, float]:
    """Train under a progress bar.

    Returns:
      The loss of every step; where the run stood after the last, None if there was none; and the
      speed in the job's units per second, without the first step, which compiles.
    """
    tqdm = optional_module("tqdm", extra="train").tqdm
    seconds_between = 0.2 if sys.stderr.isatty() else 10
    losses, last, speed = [], None, 0.0
    with tqdm(total=settings.steps, unit="step", mininterval=seconds_between) as bar:
        for last in loop.fit(loss, learner, job.batches, settings, stop):
            losses.append(last.loss)
            recent = sum(losses[-RECENT:]) / len(losses[-RECENT:])
            shown = {"loss": f"{recent:.4f}"}
            if job.per_nat != 1:
                shown[job.curve] = f"{recent * job.per_nat:.3f}"
            if last.step > 1:
                speed = (last.step - 1) * job.units_per_step / last.seconds
            # The first step is shown at once: it says that compilation is over.
            bar.set_postfix({**shown, f"{job.unit}/s": f"{speed:,.0f}"}, refresh=last.step == 1)
            bar.update()
    return losses, last, speed


def _report_check(errors: dict[str, float], precision: str) -> bool:
    """Print the gradient's errors; return whether rounding explains them."""
    tolerance, largest = check.TOLERANCE[precision], max(errors.values())
    for path, error in errors.items():
        _say(f"check     {path}: relative error {error:.1e}")
    # Written so that an error of nan fails.
    passed = largest <= tolerance
    verdict = "ok" if passed else "FAILED"
    _say(
        f"check     explicit gradient against jax.grad of the plain scan, {precision}: {verdict}, "
        f"largest relative error {largest:.1e}, tolerance {tolerance:.0e}"
    )
    if not passed:
        message = f"the gradient check failed: {largest:.1e} is more than {tolerance:.0e}"
        print(message, file=sys.stderr)
    return passed


def _report_result(result: Score, job: Job) -> None:
    ahead = result.value - job.baseline.value
    if not job.higher_is_better:
        ahead = -ahead
    _say(f"held-out  {result.value:.4f} {result.name}")
    _say(f"baseline  {job.baseline.value:.4f} {result.name}: {job.baseline.name}")
    winner = "the network" if ahead > 0 else "the baseline"
    _say(f"winner    {winner}, by {abs(ahead):.4f}")


def _write(
    job: Job, options: Options, losses: list[float], result: Score, record: dict[str, Any]
) -> None:
    """Write the files that were asked for."""
    if options.plot:
        levels = {"held-out": result.value, job.baseline.name: job.baseline.value}
        # An accuracy has no place on the axis of a loss.
        levels = {} if job.higher_is_better else levels
        curve = [loss * job.per_nat for loss in losses]
        plot.learning_curve(options.plot, curve, levels=levels, label=job.curve)
    if options.json:
        try:
            Path(options.json).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise InputError(f"cannot write {options.json}: {error.strerror}") from error


def _require_outputs(options: Options) -> None:
    """Raise before the work, not after it, for what would fail at the end."""
    optional_module("tqdm", extra="train")
    if options.plot:
        plot.require_format(options.plot)
    for path in filter(None, (options.plot, options.json)):
        folder = Path(path).parent
        require(folder.is_dir(), f"cannot write {path}: there is no folder {folder}")
        require(not Path(path).is_dir(), f"cannot write {path}: it is a folder")


def _describe(settings: loop.Settings) -> str:
    limits = [f"{settings.steps} steps"] if settings.steps else []
    limits += [f"{settings.seconds:g} seconds"] if settings.seconds else []
    return (
        f"Adam, learning rate {settings.learning_rate:g} with a cosine to zero, gradient clipped "
        f"at global norm {settings.clip:g}, {' or '.join(limits)}"
    )


def _environment(mesh: Mesh) -> dict[str, Any]:
    device = mesh.devices.flat[0]
    versions = {m.__name__: m.__version__ for m in (jax, optax, np)}
    versions["python"] = platform.python_version()
    return {
        "versions": versions,
        "device": {"platform": device.platform, "kind": device.device_kind, "count": mesh.size},
    }


def _say(line: str) -> None:
    print(line, flush=True)
