"""The commands of scripts/train.py: train one of the jobs, sample from a network, export it."""

import argparse
import math

import jax

import jax_bptt as jb
from jax_bptt.training import devices, loop
from trainer import jobs, report, saved, session, telemetry, text
from trainer.errors import InputError, say, user_input
from trainer.interrupts import Signals
from trainer.session import UNWRITTEN as UNWRITTEN

BAD_INPUT = 2


def run(args: argparse.Namespace, signals: Signals) -> int:
    """Run the command that the arguments name; return the exit status."""
    try:
        if args.job == "sample":
            return saved.sample(args)
        if args.job == "export":
            return saved.export(args)
        return _train(args, signals)
    except (InputError, FloatingPointError) as error:
        say(f"error: {error}")
    except MemoryError as error:
        say(f"error: out of memory: {str(error) or 'take smaller sizes'}")
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        say(f"error: out of memory, take smaller sizes: {str(error).splitlines()[0][:200]}")
    return BAD_INPUT


def _train(args: argparse.Namespace, signals: Signals) -> int:
    report.try_out(args.json, args.plot)
    if args.telemetry:
        telemetry.try_out(args.telemetry)
    steps = args.steps or (None if args.seconds else args.default_steps)
    with user_input():
        mesh = devices.mesh(args.batch, args.devices)
    plain = args.algorithm == "autodiff"
    options = session.Options(
        settings=loop.Settings(args.learning_rate, args.clip, steps, args.seconds),
        algorithm=jb.autodiff() if plain else jb.bptt(block_length=args.block_length),
        mesh=mesh,
        seed=args.seed,
        check=args.check,
        sample=getattr(args, "sample", 0),
        temperature=getattr(args, "temperature", 1.0),
        plot=args.plot,
        json=args.json,
        checkpoint=args.checkpoint,
        every=args.checkpoint_every,
        telemetry=args.telemetry,
    )
    arguments = {**vars(args), "steps": steps}
    del arguments["default_steps"]
    # JSON has no infinity.
    arguments = {k: str(v) if v == math.inf else v for k, v in arguments.items()}
    with jax.enable_x64(args.precision == "float64"):
        job = job_of(args)
        if args.telemetry:
            job = job._replace(network=job.network._replace(watched=True))
        return session.run(job, options, arguments, signals)


def job_of(args: argparse.Namespace) -> jobs.Job:
    """Return the job that the arguments name."""
    shape = jobs.Shape(args.cell, args.hidden, args.layers, args.precision, args.batch)
    if args.job == "adding":
        return jobs.adding(shape, length=args.length, seed=args.seed)
    if args.job == "copy":
        return jobs.copy(shape, delay=args.delay, symbols=args.symbols, seed=args.seed)
    if args.job == "digits":
        return jobs.digits(shape, by_row=not args.pixels, seed=args.seed)
    return jobs.chars(
        shape,
        text.read_documents(args.text) if args.text else text.reference_documents(),
        embedding_size=args.embedding,
        length=args.window,
        order=args.order,
    )
