"""The four jobs of `scripts/train.py`: data, loss, score and baseline of each."""

import argparse
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

import jax_bptt as jb
from jax_bptt.training import evaluate, losses, tasks
from trainer import ngram, text
from trainer.errors import track, user_input
from trainer.network import Network, require_memory

HELD_OUT_BATCHES = 8
"""Batches, drawn apart from training, over which the adding and copy results are means."""
WINDOW, LANE = 4096, 2048
"""Characters that a call reads when a network is measured, and those of a lane, which starts from a
fresh state: as many, or fewer where the batch has more lanes."""
TRAINING, MEASURING = 0, 1
"""Seeds, beside the run's own, of two independent streams of drawn batches."""


class Job(NamedTuple):
    """A task to learn."""

    summary: str  # one line on the data
    network: Network
    loss: Callable[..., losses.Loss]  # (layer, algorithm=None) -> loss
    batches: Callable[[int], Any]  # from the number of steps done to the next (xs, targets)
    units_per_step: int
    score: str  # the name, with its unit, of what is measured
    evaluate: Callable[[jb.Layer, Any], float]  # (layer, params) -> score, on held-out data
    baseline: float  # the score to beat
    baseline_name: str
    unit: str = "sequences"  # what is counted to say how fast training is
    curve: str | None = None  # the name of the loss as it is drawn, if not that of the score
    per_nat: float = 1.0  # the factor from the loss to that
    higher_is_better: bool = False  # of the score
    alphabet: str = ""  # the characters the network speaks in; empty if it speaks in none
    fingerprint: str | None = None  # what tells the text from others


def job_of(args: argparse.Namespace) -> Job:
    """Return the job that the arguments name."""
    return {"chars": chars, "adding": adding, "copy": copy, "digits": digits}[args.job](args)


def _network(
    args: argparse.Namespace, steps: int, reads: int, writes: int, vocabulary: int | None = None
) -> Network:
    """Return the network of these sizes if memory can hold it and a batch of so many steps."""
    cells = args.cell, args.hidden, args.layers, args.precision
    network = Network(*cells, reads, writes, vocabulary)
    require_memory(network, steps, args.batch)
    return network


def chars(args: argparse.Namespace) -> Job:
    """Return the language model of characters, which reads B places of the text side by side."""
    documents = text.read_documents(args.text) if args.text else text.reference_documents()
    corpus = text.split(documents)
    batches = text.training_windows(corpus.train, args.window, args.batch)
    size = len(corpus.characters)
    network = _network(args, args.window, args.embedding, size, size)
    counted = ngram.count(corpus.train, vocabulary_size=size, order=args.order)
    # A state that is carried much further than training has carried any may drift.
    lanes = max(args.batch, len(corpus.held_out) // LANE)
    steps = min(max(WINDOW // lanes, 1), -(-(len(corpus.held_out) - 1) // lanes))
    held_out = text.held_out_windows(corpus.held_out, steps, lanes)

    def measure(layer, params):
        nats = evaluate.carried_cross_entropy(layer, params, track(held_out, "measuring"))
        return nats / math.log(2)

    return Job(
        summary=f"{len(corpus.train):,} characters to train on, {len(corpus.held_out):,} held out, "
        f"an alphabet of {size}",
        network=network,
        loss=functools.partial(losses.carried, score=losses.cross_entropy),
        batches=batches,
        units_per_step=args.window * args.batch,
        score="bits per character",
        evaluate=measure,
        baseline=ngram.bits_per_character(counted, corpus.held_out),
        baseline_name=f"back-off n-gram of order {args.order} (interpolated Kneser-Ney)",
        unit="characters",
        per_nat=1 / math.log(2),
        alphabet=corpus.characters,
        fingerprint=text.fingerprint(corpus),
    )


def adding(args: argparse.Namespace) -> Job:
    """Return the adding problem: the sum of the two marked numbers in a sequence of T."""
    network = _network(args, args.length, 2, 1)
    draw = functools.partial(tasks.adding, length=args.length, batch=args.batch)
    with user_input():
        draw(np.random.default_rng(0))
    return Job(
        summary=f"the sum of two marked numbers among {args.length}",
        network=network,
        units_per_step=args.batch,
        score="mean squared error",
        baseline=tasks.ADDING_BASELINE,
        baseline_name="no memory (1/6)",
        **_drawn(draw, args.seed, losses.last_squared_error),
    )


def copy(args: argparse.Namespace) -> Job:
    """Return the copy task: M symbols of eight, to be written down D steps later."""
    delay, symbols, steps = args.delay, args.symbols, args.delay + 2 * args.symbols
    draw = functools.partial(tasks.copy, delay=delay, symbols=symbols, batch=args.batch)
    return Job(
        summary=f"{symbols} symbols to be repeated after {delay} steps",
        network=_network(args, steps, tasks.TOKENS, tasks.TOKENS, tasks.TOKENS),
        units_per_step=args.batch,
        score="cross-entropy in nats a step",
        baseline=tasks.copy_baseline(delay=delay, symbols=symbols),
        baseline_name=f"no memory ({symbols} ln 8 / {steps})",
        **_drawn(draw, args.seed, losses.cross_entropy),
    )


def digits(args: argparse.Namespace) -> Job:
    """Return the classification of handwritten digits read row by row or pixel by pixel."""
    with user_input():
        xs, targets, held_out_xs, held_out_targets = tasks.digits(args.seed, by_row=not args.pixels)
        batches = tasks.minibatches(xs, targets, args.seed, batch=args.batch)
    counts = np.bincount(held_out_targets)

    def accuracy(logits, targets):
        return evaluate.accuracy(logits[-1], targets)

    def measure(layer, params):
        held_out = [(held_out_xs, held_out_targets)]
        return evaluate.mean_score(layer, params, held_out, accuracy)

    return Job(
        summary=f"{len(targets)} images to train on, {counts.sum()} held out, {len(xs)} steps each",
        network=_network(args, len(xs), xs.shape[-1], 10),
        loss=functools.partial(losses.fresh, score=losses.last_cross_entropy),
        batches=batches,
        units_per_step=args.batch,
        score="accuracy",
        evaluate=measure,
        baseline=float(counts.max() / counts.sum()),
        baseline_name="always the commonest digit",
        curve="cross-entropy in nats",
        unit="images",
        higher_is_better=True,
    )


def _drawn(draw: Callable[..., Any], seed: int, score: Callable[..., Any]) -> dict[str, Any]:
    """Return loss, batches and evaluation, on others, of a task that is drawn batch by batch."""
    held_out = tasks.drawn(draw, seed, MEASURING)

    def measure(layer, params):
        batches = [held_out(k) for k in range(HELD_OUT_BATCHES)]
        return evaluate.mean_score(layer, params, batches, score)

    return {
        "loss": functools.partial(losses.fresh, score=score),
        "batches": tasks.drawn(draw, seed, TRAINING),
        "evaluate": measure,
    }
