"""The four jobs of `scripts/train.py`: data, loss, score and baseline of each."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jax import Array

import jax_bptt as jb
from jax_bptt.training import evaluate, losses, tasks
from trainer import ngram, text
from trainer.bars import track
from trainer.errors import user_input
from trainer.network import Network, require_memory

HELD_OUT_BATCHES = 8
"""Batches, drawn apart from training, over which the adding and copy results are means."""
WINDOW, LANE = 4096, 2048
"""Characters that a call reads when a network is measured, and those of a lane, which starts from a
fresh state: as many, or fewer where the batch has more lanes."""
TRAINING, MEASURING = 0, 1
"""Seeds, beside the run's own, of two independent streams of drawn batches."""


class Score(NamedTuple):
    """A figure that says how good something is.

    Attributes:
      name: what it is, with its unit.
      value: the figure.
    """

    name: str
    value: float


class Job(NamedTuple):
    """A task to learn.

    Attributes:
      summary: one line on the data.
      network: the cells.
      loss: `(layer, algorithm=None) -> loss`.
      batches: from the number of steps done to the next batch, (xs, targets).
      batch: B.
      unit: the name of what is counted to say how fast training is.
      units_per_step: how many of those a step takes in.
      curve: the name, with its unit, of the loss as it is drawn.
      per_nat: the factor from the loss to that.
      evaluate: `(layer, params) -> Score`, on data that is never trained on.
      baseline: the score to beat.
      higher_is_better: of the score.
      alphabet: the characters the network speaks in; empty if it speaks in none.
      fingerprint: what tells this data from other data that the options could name.
    """

    summary: str
    network: Network
    loss: Callable[..., losses.Loss]
    batches: Callable[[int], Any]
    batch: int
    unit: str
    units_per_step: int
    curve: str
    per_nat: float
    evaluate: Callable[[jb.Layer, Any], Score]
    baseline: Score
    higher_is_better: bool = False
    alphabet: str = ""
    fingerprint: str | None = None


class Shape(NamedTuple):
    """The options that all jobs share: cells, and the batch B."""

    cell: str
    hidden_size: int
    depth: int
    precision: str
    batch: int

    def network(self, input_size: int, output_size: int, vocabulary: int | None = None) -> Network:
        """Return the network that reads and writes in these sizes."""
        return Network(*self[:4], input_size, output_size, vocabulary)


def chars(
    shape: Shape, documents: Sequence[str], *, embedding_size: int, length: int, order: int
) -> Job:
    """Return the character-level language model, to be compared with an n-gram.

    Args:
      shape: cells and batch; B places of the text are read side by side.
      documents: the text, from `text.reference_documents` or `text.read_documents`.
      embedding_size: I of the first cell.
      length: T of a window.
      order: n of the baseline.

    Raises:
      InputError: the text is too short, or the order too high for the alphabet.
    """
    corpus = text.split(documents)
    batches = text.training_windows(corpus.train, length, shape.batch)
    vocabulary_size = len(corpus.characters)
    network = shape.network(embedding_size, vocabulary_size, vocabulary_size)
    require_memory(network, length, shape.batch)
    counted = ngram.count(corpus.train, vocabulary_size=vocabulary_size, order=order)
    # A state that is carried much further than training has carried any may drift.
    lanes = max(shape.batch, len(corpus.held_out) // LANE)
    steps = min(max(WINDOW // lanes, 1), -(-(len(corpus.held_out) - 1) // lanes))
    held_out = text.held_out_windows(corpus.held_out, steps, lanes)
    name = "bits per character"

    def measure(layer, params):
        nats = evaluate.carried_cross_entropy(layer, params, track(held_out, "measuring"))
        return Score(name, nats / math.log(2))

    return Job(
        summary=f"{len(corpus.train):,} characters to train on, {len(corpus.held_out):,} held out, "
        f"an alphabet of {vocabulary_size}",
        network=network,
        loss=functools.partial(losses.carried, score=losses.cross_entropy),
        batches=batches,
        batch=shape.batch,
        unit="characters",
        units_per_step=length * shape.batch,
        curve=name,
        per_nat=1 / math.log(2),
        evaluate=measure,
        baseline=Score(
            f"back-off n-gram of order {order} (interpolated Kneser-Ney)",
            ngram.bits_per_character(counted, corpus.held_out),
        ),
        alphabet=corpus.characters,
        fingerprint=text.fingerprint(corpus),
    )


def adding(shape: Shape, *, length: int, seed: int) -> Job:
    """Return the adding problem: the sum of the two marked numbers in a sequence of T.

    Raises:
      InputError: the length is less than 2.
    """
    network = shape.network(2, 1)
    require_memory(network, length, shape.batch)
    draw = functools.partial(tasks.adding, length=length, batch=shape.batch)
    with user_input():
        draw(np.random.default_rng(0))
    return Job(
        summary=f"the sum of two marked numbers among {length}",
        network=network,
        loss=functools.partial(losses.fresh, score=losses.last_squared_error),
        batches=tasks.drawn(draw, seed, TRAINING),
        batch=shape.batch,
        unit="sequences",
        units_per_step=shape.batch,
        curve="mean squared error",
        per_nat=1.0,
        evaluate=_on_drawn_batches(
            draw, seed, name="mean squared error", score=losses.last_squared_error
        ),
        baseline=Score("no memory (1/6)", tasks.ADDING_BASELINE),
    )


def copy(shape: Shape, *, delay: int, symbols: int, seed: int) -> Job:
    """Return the copy task: M symbols of eight, to be written down D steps later."""
    network = shape.network(tasks.TOKENS, tasks.TOKENS, tasks.TOKENS)
    require_memory(network, delay + 2 * symbols, shape.batch)
    draw = functools.partial(tasks.copy, delay=delay, symbols=symbols, batch=shape.batch)
    name = "cross-entropy in nats a step"
    return Job(
        summary=f"{symbols} symbols to be repeated after {delay} steps",
        network=network,
        loss=functools.partial(losses.fresh, score=losses.cross_entropy),
        batches=tasks.drawn(draw, seed, TRAINING),
        batch=shape.batch,
        unit="sequences",
        units_per_step=shape.batch,
        curve=name,
        per_nat=1.0,
        evaluate=_on_drawn_batches(draw, seed, name=name, score=losses.cross_entropy),
        baseline=Score(
            f"no memory ({symbols} ln 8 / {delay + 2 * symbols})",
            tasks.copy_baseline(delay=delay, symbols=symbols),
        ),
    )


def digits(shape: Shape, *, by_row: bool, seed: int) -> Job:
    """Return the classification of handwritten digits read row by row or pixel by pixel.

    Raises:
      InputError: scikit-learn is not installed, or the batch is larger than the training part.
    """
    with user_input():
        xs, targets, held_out_xs, held_out_targets = tasks.digits(seed, by_row=by_row)
        batches = tasks.minibatches(xs, targets, seed, batch=shape.batch)
    network = shape.network(xs.shape[-1], 10)
    require_memory(network, len(xs), shape.batch)
    share = np.bincount(held_out_targets).max() / len(held_out_targets)

    def measure(layer, params):
        held_out = [(held_out_xs, held_out_targets)]
        return Score("accuracy", evaluate.mean_score(layer, params, held_out, _last_accuracy))

    return Job(
        summary=f"{len(targets)} images to train on, {len(held_out_targets)} held out, "
        f"{len(xs)} steps each",
        network=network,
        loss=functools.partial(losses.fresh, score=losses.last_cross_entropy),
        batches=batches,
        batch=shape.batch,
        unit="images",
        units_per_step=shape.batch,
        curve="cross-entropy in nats",
        per_nat=1.0,
        evaluate=measure,
        baseline=Score("always the commonest digit", float(share)),
        higher_is_better=True,
    )


def _on_drawn_batches(
    draw: Callable[..., Any], seed: int, *, name: str, score: Callable[..., Array]
) -> Callable[[jb.Layer, Any], Score]:
    """Return an evaluation on batches that are independent of training's."""
    batches = tasks.drawn(draw, seed, MEASURING)

    def measure(layer, params):
        held_out = [batches(k) for k in range(HELD_OUT_BATCHES)]
        return Score(name, evaluate.mean_score(layer, params, held_out, score))

    return measure


def _last_accuracy(logits: Array, targets: Array) -> Array:
    return evaluate.accuracy(logits[-1], targets)
