"""Networks to look at: trained here or by train.py, each with its run, its loss and its report."""

import argparse
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from trainer import jobs, network, saved
from trainer.errors import require

import jax_bptt as jb
from flow import page
from jax_bptt import diagnostics
from jax_bptt.diagnostics import Report, Trajectory, plots
from jax_bptt.training import loop

SPANS = 1, 8, 4, 2
"""T over these, and one step, are the spans whose singular values are drawn."""


class Look(NamedTuple):
    """A cell at a moment of its training: its run on a batch, and dL/dys of that batch's loss."""

    name: str
    run: Trajectory
    d_ys: Any
    loss: float
    report: Report


def of_training(args: argparse.Namespace) -> Iterator[Look]:
    """Train, and yield a look at each cell, or with `--moments` three at the first one."""
    at = (0, args.steps // 2, args.steps) if args.moments else (args.steps,)
    for cell in args.cells[:1] if args.moments else args.cells:
        # Of copy: three symbols, and as long a delay as the length leaves.
        told = {"job": args.task, "cell": cell, "layers": 1, "precision": "float32"}
        told |= {"symbols": 3, "delay": max(args.length - 6, 1)}
        job = jobs.job_of(argparse.Namespace(**vars(args), **told))
        for step, params in zip(at, moments(job, args, at), strict=True):
            when = f", {f'after {step} steps' if step else 'before training'}" * args.moments
            # On one batch, that of the end, so that only the parameters differ.
            yield from looked(cell + when, job, params, args.steps)


def moments(job: jobs.Job, args: argparse.Namespace, at: tuple[int, ...]) -> Iterator[Any]:
    """Train, and yield the parameters after so many steps."""
    layer = network.build(job.network)
    settings = loop.Settings(5e-3, 1.0, args.steps)
    params = layer.init(jax.random.key(args.seed))
    if 0 in at:
        yield params
    begun = loop.start(params, (), settings)
    for progress in loop.fit(job.loss(layer), begun, job.batches, settings):
        if progress.step in at:
            # The next step consumes its buffers.
            yield jax.tree.map(jnp.array, progress.learner.params)


def of_checkpoint(args: argparse.Namespace) -> Iterator[Look]:
    """Yield a look for each layer of a network that train.py has saved."""
    sizes, _, params, record = saved.load(str(args.checkpoint))
    if sizes.watched:
        params = tuple(each.cell for each in params)
    # Of a text its fingerprint is saved, and not where it is.
    told = record["settings"] | {"text": args.text, "order": 1}
    job = jobs.job_of(argparse.Namespace(**told))
    text = record["settings"].get("text")
    require(
        job.fingerprint == text,
        f"{args.checkpoint} is of another text, {text}: name its files by --text",
    )
    job = job._replace(network=sizes._replace(watched=False))
    with jax.enable_x64(sizes.precision == "float64"):
        params = jax.tree.map(jnp.asarray, params)
        yield from looked(record["settings"]["cell"], job, params, record["step"])


def looked(name: str, job: jobs.Job, params: Any, step: int) -> Iterator[Look]:
    """Yield a look for each layer of the network, at a batch that it was not trained on yet."""
    layer = network.build(job.network)
    xs, targets = jax.tree.map(jnp.asarray, job.batches(step))
    assert layer.made_by is not None  # a stack, as `network.build` makes it
    ys, runs = xs, []
    for entry, of_entry in zip(layer.made_by.args, params, strict=True):
        runs.append(diagnostics.trajectory(entry.made_by.args[0], of_entry, ys))
        ys = runs[-1].ys

    def score(ys):
        """Return the loss of outputs, as that of a network that puts them out."""
        given = layer._replace(apply=lambda params, xs, state=None, **options: (state, ys))
        return job.loss(given)(params, None, (xs, targets))[0]

    loss, d_ys = jax.value_and_grad(score)(ys)
    found = []
    for k in reversed(range(len(runs))):
        where = f"{name}, layer {k}" if len(runs) > 1 else name
        found.append(Look(where, runs[k], d_ys, float(loss), diagnostics.report(runs[k], d_ys)))
        if k:
            run = runs[k]
            d_ys = jb.bptt_gradients(run.cell, run.params, run.inputs.xs, d_ys=d_ys)[1]
    yield from reversed(found)


def pictures(look: Look, name: str) -> dict[str, str]:
    """Return every picture of a look, by the title of its section, as SVG."""
    run, told = look.run, look.report
    spans = sorted({1, *(max(run.steps // k, 1) for k in SPANS)})
    spectra = [diagnostics.jacobian_spectrum(run, run.steps - k) for k in spans]
    drawn = {
        "Which state, which loss": plots.contribution_map(
            diagnostics.contribution_map(run, look.d_ys)
        ),
        "What a window would have cost": plots.truncation_curve(told.curve),
        "How much arrives": plots.adjoint_norms(told.norms),
        "Lyapunov exponents as they settle": plots.lyapunov_spectrum(told.spectrum),
        "Singular values over spans": plots.jacobian_spectrum(spectra),
    }
    if told.saturated is not None:
        drawn["Saturated gates"] = plots.saturation(told.saturated)
    return {title: page.svg(axes, f"{name}{k}") for k, (title, axes) in enumerate(drawn.items())}
