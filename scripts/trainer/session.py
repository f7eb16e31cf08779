"""The commands of scripts/train.py; a run from beginning to end: check, train, measure, report."""

import argparse
import contextlib
import functools
import math
import signal
import time
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

import jax_bptt as jb
from jax_bptt.training import devices, loop, losses
from trainer import check, checkpoint, errors, files, report, resume, saved, telemetry, text
from trainer.interrupts import STATUS, Signals
from trainer.jobs import Job, job_of
from trainer.network import build
from trainer.resume import Run

RECENT = 50
"""Steps whose mean loss the progress bar shows."""


def command(args: argparse.Namespace, signals: Signals) -> int:
    """Run the command that the arguments name; return the exit status."""
    try:
        if args.job == "sample":
            return saved.sample(args)
        if args.job == "export":
            return saved.export(args)
        return run(args, signals)
    except (errors.InputError, FloatingPointError) as error:
        errors.say(f"error: {error}")
    except MemoryError as error:
        errors.say(f"error: out of memory: {str(error) or 'take smaller sizes'}")
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        errors.say(f"error: out of memory, take smaller sizes: {str(error).splitlines()[0][:200]}")
    return errors.BAD_INPUT


def run(args: argparse.Namespace, signals: Signals) -> int:
    """Train as the arguments say until it is done or asked to end; return the exit status."""
    # Before the work, not after it, what would fail at the end.
    errors.optional_module("tqdm", extra="train")
    if args.plot:
        report.require_format(args.plot)
    for path in filter(None, (args.json, args.plot)):
        files.try_out(path)
    if args.telemetry:
        telemetry.try_out(args.telemetry)
    with errors.user_input():
        mesh = devices.mesh(args.batch, args.devices)
    with jax.enable_x64(args.precision == "float64"):
        job = job_of(args)
        if args.telemetry:
            job = job._replace(network=job.network._replace(watched=True))
        return _run(job, args, mesh, signals)


def _run(job: Job, args: argparse.Namespace, mesh: Mesh, signals: Signals) -> int:
    batches = job.batches
    job = job._replace(batches=lambda step: devices.split_batch(batches(step), mesh))
    layer = build(job.network)
    plain = job.loss(layer, algorithm=jb.autodiff())
    loss = plain if args.algorithm == "autodiff" else job.loss(layer, algorithm=jb.bptt())
    key_params, key_sample = jax.random.split(jax.random.key(args.seed))
    params = devices.replicate(jax.jit(layer.init)(key_params), mesh)
    state = devices.split_state(layer.initial_state(params, (args.batch,)), mesh)
    begun = Run(loop.start(params, state, _settings(args)), [])
    # JSON has no infinity.
    arguments = {k: str(v) if v == math.inf else v for k, v in vars(args).items()}
    record = {"arguments": arguments, **report.environment(mesh)}
    about = {
        "settings": resume.settings(arguments, mesh.size, job.fingerprint),
        "network": job.network._asdict(),
        "alphabet": job.alphabet,
        "versions": record["versions"],
    }
    with contextlib.ExitStack() as until_trained:
        folder = None
        if args.checkpoint:
            folder = until_trained.enter_context(checkpoint.opened(args.checkpoint))
            begun = resume.restore(folder, begun, about)
        save = functools.partial(resume.save, folder, about=about)
        report.beginning(job, args, mesh, begun)
        if args.check:
            params, _, state = begun.progress.learner
            batch = job.batches(begun.progress.step)
            record["check"] = check.gradient_errors(loss, plain, params, state, batch)
            if not report.passed(record["check"], args.precision):
                return errors.FAILED_CHECK
        ended, written = _train(job, loss, begun, args, signals, save)
    heard = signals.heard()
    status = (STATUS[heard] if heard else 0) if written else errors.UNWRITTEN
    if heard == signal.SIGTERM:
        place = f"saved in {args.checkpoint}" if args.checkpoint and written else "not saved"
        errors.say(f"terminated after {ended.progress.step} steps, {place}")
        return status
    if not ended.losses:
        print("interrupted before the first step: nothing has been learned")
        return status
    record |= report.training(job, ended, interrupted=heard is not None)
    # A sample is one sequence, and held-out data need not divide: one device does both.
    params = jax.device_put(ended.progress.learner.params, mesh.devices.flat[0])
    record |= report.result(job, job.evaluate(layer, params))
    if job.alphabet and args.sample:
        ids = saved.draw(layer, params, saved.FIRST, key_sample, args.sample, args.temperature)
        record["sample"] = text.decode(job.alphabet, ids)
        print(f"sample    {len(ids)} characters at temperature {args.temperature:g}:\n")
        print(record["sample"] + "\n")
    return status if report.write(job, args, record, ended.losses) else errors.UNWRITTEN


def _settings(args: argparse.Namespace) -> loop.Settings:
    return loop.Settings(args.learning_rate, args.clip, args.steps, args.seconds)


def _train(
    job: Job,
    loss: losses.Loss,
    run: Run,
    args: argparse.Namespace,
    signals: Signals,
    save: Callable[[Run], bool],
) -> tuple[Run, bool]:
    """Train under a progress bar; return the run at its end, and whether all of it is written."""
    if run.finished:
        return run, True
    first = run.progress.step + 1

    def asked():
        return signals.heard() is not None

    writer = telemetry.Writer(args.telemetry, run.progress.step) if args.telemetry else None
    with (
        writer or contextlib.nullcontext(),
        errors.bar(total=args.steps, initial=run.progress.step, unit="step") as shown,
        signals.deferring(),
    ):
        last_save = time.monotonic()
        for progress in loop.fit(loss, run.progress, job.batches, _settings(args), asked):
            run.losses.append(progress.loss)
            run = Run(progress, run.losses, run.timed + (progress.step > first))
            if writer:
                writer.add(progress)
            # The first is shown at once: it says that compilation is over.
            shown.set_postfix(_figures(job, run), refresh=progress.step == first)
            shown.update()
            if time.monotonic() - last_save >= args.checkpoint_every:
                save(run)
                last_save = time.monotonic()
        run = run._replace(finished=not asked() or run.progress.step == args.steps)
        new = run.finished or run.progress.step >= first
        kept = save(run) if new else True
    return run, kept and not (writer and writer.failed)


def _figures(job: Job, run: Run) -> dict[str, Any]:
    """Return what the bar shows."""
    recent = sum(run.losses[-RECENT:]) / len(run.losses[-RECENT:])
    figures = {"loss": f"{recent:.4f}"}
    if job.per_nat != 1:
        figures[job.score] = f"{recent * job.per_nat:.3f}"
    return figures | {f"{job.unit}/s": f"{report.speed(job, run):,.0f}"}
