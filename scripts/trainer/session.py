"""A run from beginning to end: check, train and save, measure, report."""

import contextlib
import functools
import signal
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

import jax_bptt as jb
from jax_bptt.training import devices, loop
from trainer import check, checkpoint, network, report, resume
from trainer.bars import bar
from trainer.errors import say
from trainer.interrupts import STATUS, Signals
from trainer.jobs import Job
from trainer.resume import Run
from trainer.sample import FIRST, sample
from trainer.telemetry import Writer

FAILED_CHECK, UNWRITTEN = 1, 3
"""Exit statuses: the gradient is wrong; the run is done and some results could not be written."""
RECENT = 50
"""Steps whose mean loss the progress bar shows."""


class Options(NamedTuple):
    """How to run a job.

    Attributes:
      settings: of the optimiser.
      algorithm: how the gradient is computed.
      mesh: the devices over which the batch is split.
      seed: of the parameters and the sample.
      check: whether to compare the gradient with `jax.grad` of the plain scan first.
      sample: number of characters to write at the end, for jobs with an alphabet.
      temperature: of the sample.
      plot: file for the learning curve, or None.
      json: file for the results, or None.
      checkpoint: folder to save in and go on from, or None.
      every: seconds between two checkpoints.
      telemetry: folder to write what is seen of the gradient to, or None.
    """

    settings: loop.Settings
    algorithm: jb.Algorithm
    mesh: Mesh
    seed: int
    check: bool
    sample: int
    temperature: float
    plot: str | None
    json: str | None
    checkpoint: str | None
    every: float
    telemetry: str | None


def run(job: Job, options: Options, arguments: dict[str, Any], signals: Signals) -> int:
    """Run a job, print what happens, and return the exit status.

    Args:
      job: what to learn.
      options: how.
      arguments: of the command line, for the results' file and the checkpoint.
      signals: what asks the run to end.

    Raises:
      InputError: the checkpoint is of another run, or cannot be written.
      FloatingPointError: the loss is not finite any more.
    """
    mesh, batches = options.mesh, job.batches
    job = job._replace(batches=lambda step: devices.split_batch(batches(step), mesh))
    layer = network.build(job.network)
    key_params, key_sample = jax.random.split(jax.random.key(options.seed))
    params = devices.replicate(jax.jit(layer.init)(key_params), mesh)
    state = devices.split_state(layer.initial_state(params, (job.batch,)), mesh)
    begun = Run(loop.start(params, state, options.settings), [])
    record = {"arguments": arguments, **report.environment(mesh), "baseline": job.baseline}
    with contextlib.ExitStack() as until_trained:
        save = None
        if options.checkpoint:
            folder = until_trained.enter_context(checkpoint.opened(options.checkpoint))
            about = {
                "settings": resume.settings(arguments, mesh.size, job.fingerprint),
                "network": job.network._asdict(),
                "alphabet": job.alphabet,
                "versions": record["versions"],
            }
            save = functools.partial(resume.save, folder, about=about)
            begun = resume.restore(folder, begun, about)
        report.beginning(job, options.settings, mesh, begun)
        if options.check:
            record["check"] = _errors(job, layer, begun, options.algorithm)
            if not report.passed(record["check"], job.network.precision):
                return FAILED_CHECK
        ended, saved = _train(job, layer, begun, options, signals, save)
    heard = signals.heard()
    status = (STATUS[heard] if heard else 0) if saved else UNWRITTEN
    if heard == signal.SIGTERM:
        place = f"saved in {options.checkpoint}" if save and saved else "not saved"
        say(f"terminated after {ended.progress.step} steps, {place}")
        return status
    if not ended.losses:
        report.line("interrupted before the first step: nothing has been learned")
        return status
    record |= report.training(job, ended, interrupted=heard is not None)
    # A sample is one sequence, and held-out data need not divide: one device does both.
    params = jax.device_put(ended.progress.learner.params, mesh.devices.flat[0])
    record["result"] = job.evaluate(layer, params)
    report.result(record["result"], job)
    if options.sample and job.alphabet:
        sizes = {"length": options.sample, "temperature": options.temperature}
        ids = sample(layer, params, FIRST, key_sample, **sizes)
        record["sample"] = report.sample(job.alphabet, ids, options.temperature)
    written = report.write(job, options.json, options.plot, record, ended.losses)
    return status if written else UNWRITTEN


def _errors(job: Job, layer: jb.Layer, run: Run, algorithm: jb.Algorithm) -> dict[str, float]:
    explicit, plain = (job.loss(layer, algorithm=a) for a in (algorithm, jb.autodiff()))
    params, _, state = run.progress.learner
    batch = job.batches(run.progress.step)
    return check.gradient_errors(explicit, plain, params, state, batch)


def _train(
    job: Job,
    layer: jb.Layer,
    run: Run,
    options: Options,
    signals: Signals,
    save: Callable[[Run], bool] | None,
) -> tuple[Run, bool]:
    """Train under a progress bar; return the run at its end, and whether all of it is written.

    Without `save` there is nothing to be saved, and it is.
    """
    if run.finished:
        return run, True
    loss = job.loss(layer, algorithm=options.algorithm)
    settings, first = options.settings, run.progress.step + 1

    def asked():
        return signals.heard() is not None

    written = Writer(options.telemetry, run.progress.step) if options.telemetry else None
    with (
        written or contextlib.nullcontext(),
        bar(total=settings.steps, initial=run.progress.step, unit="step") as shown,
        signals.deferring(),
    ):
        last_save = time.monotonic()
        for progress in loop.fit(loss, run.progress, job.batches, settings, asked):
            timed = run.timed + (progress.step > first)
            run.losses.append(progress.loss)
            run = Run(progress, run.losses, timed)
            if written:
                written.add(progress)
            _show(shown, job, run, refresh=progress.step == first)
            if save and time.monotonic() - last_save >= options.every:
                save(run)
                last_save = time.monotonic()
        run = run._replace(finished=not asked() or run.progress.step == settings.steps)
        new = run.finished or run.progress.step >= first
        saved = save(run) if save and new else True
    return run, saved and not (written and written.failed)


def _show(shown: Any, job: Job, run: Run, *, refresh: bool) -> None:
    """Move the bar on by a step. The first is shown at once: it says that compilation is over."""
    recent = sum(run.losses[-RECENT:]) / len(run.losses[-RECENT:])
    figures = {"loss": f"{recent:.4f}"}
    if job.per_nat != 1:
        figures[job.curve] = f"{recent * job.per_nat:.3f}"
    figures[f"{job.unit}/s"] = f"{report.speed(job, run):,.0f}"
    shown.set_postfix(figures, refresh=refresh)
    shown.update()
