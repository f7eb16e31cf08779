"""The four jobs of `scripts/train.py`: what each learns, is measured by and compared with."""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jax import Array

from jax_bptt.cells.wrappers import embedding
from jax_bptt.core.types import Cell, PyTree
from jax_bptt.training import evaluate, losses, ngram, tasks, text
from jax_bptt.training.model import Model, layers

HELD_OUT_BATCHES = 8
"""Batches, drawn apart from training, over which the adding and copy results are means."""


class Network(NamedTuple):
    """What a job builds its cells from: a constructor, the size H, the number of layers."""

    constructor: Callable[..., Cell]
    hidden_size: int
    depth: int


class Score(NamedTuple):
    """A figure that says how good something is.

    Attributes:
      name: what it is, with its unit.
      value: the figure.
    """

    name: str
    value: float


class Job(NamedTuple):
    """Something to learn.

    Attributes:
      summary: one line on the data.
      cells: the network, from the input up.
      loss: `model -> loss`.
      batches: the training data, without end, (xs, targets, ...).
      batch: B.
      unit: what is counted to say how fast training is.
      units_per_step: how many of those a step takes in.
      curve: what the loss is drawn as.
      per_nat: the factor from the loss to that.
      evaluate: `(model, params) -> Score`, on data that is never trained on.
      baseline: what to beat.
      higher_is_better: of the score.
      alphabet: the characters the network speaks in; empty if it speaks in none.
    """

    summary: str
    cells: list[Cell]
    loss: Callable[[Model], losses.Loss]
    batches: Iterator[Any]
    batch: int
    unit: str
    units_per_step: int
    curve: str
    per_nat: float
    evaluate: Callable[[Model, PyTree], Score]
    baseline: Score
    higher_is_better: bool = False
    alphabet: str = ""


def chars(
    network: Network,
    documents: Sequence[str],
    *,
    embedding_size: int,
    length: int,
    batch: int,
    order: int,
) -> Job:
    """Return the character-level language model, to be compared with an n-gram.

    Args:
      network: the cells.
      documents: the text, from `text.reference_documents` or `text.read_documents`.
      embedding_size: I of the first cell.
      length: T of a window.
      batch: B, the number of places at which the text is read side by side.
      order: n of the baseline.

    Raises:
      InputError: the text is too short, or the order too high for the alphabet.
    """
    corpus = text.split(documents)
    vocabulary_size = len(corpus.characters)
    counted = ngram.count(corpus.train, vocabulary_size=vocabulary_size, order=order)
    held_out = text.held_out_windows(corpus.held_out, length, batch)
    name = "bits per character"
    return Job(
        summary=f"{len(corpus.train):,} characters to train on, {len(corpus.held_out):,} held out, "
        f"an alphabet of {vocabulary_size}",
        cells=_on_tokens(network, embedding_size, vocabulary_size, vocabulary_size),
        loss=functools.partial(losses.carried, score=losses.cross_entropy),
        batches=text.training_windows(corpus.train, length, batch),
        batch=batch,
        unit="characters",
        units_per_step=length * batch,
        curve=name,
        per_nat=1 / math.log(2),
        evaluate=lambda model, params: Score(
            name, evaluate.bits_per_character(model, params, held_out)
        ),
        baseline=Score(
            f"back-off n-gram of order {order} (interpolated Kneser-Ney)",
            ngram.bits_per_character(counted, corpus.held_out),
        ),
        alphabet=corpus.characters,
    )


def adding(network: Network, *, length: int, batch: int, seed: int) -> Job:
    """Return the adding problem: the sum of the two marked numbers in a sequence of T.

    Raises:
      InputError: the length is less than 2.
    """
    draw = functools.partial(tasks.adding, length=length, batch=batch)
    return Job(
        summary=f"the sum of two marked numbers among {length}",
        cells=_on_features(network, 2, 1),
        loss=functools.partial(losses.fresh, score=losses.last_squared_error, batch=batch),
        batches=tasks.stream(draw, seed),
        batch=batch,
        unit="sequences",
        units_per_step=batch,
        curve="mean squared error",
        per_nat=1.0,
        evaluate=_on_fresh_batches(
            draw, seed, name="mean squared error", score=losses.last_squared_error
        ),
        baseline=Score("no memory (1/6)", tasks.ADDING_BASELINE),
    )


def copy(network: Network, *, delay: int, symbols: int, batch: int, seed: int) -> Job:
    """Return the copy task: M symbols of eight, to be written down D steps later."""
    draw = functools.partial(tasks.copy, delay=delay, symbols=symbols, batch=batch)
    name = "cross-entropy in nats a step"
    return Job(
        summary=f"{symbols} symbols to be repeated after {delay} steps",
        cells=_on_tokens(network, tasks.TOKENS, tasks.TOKENS, tasks.TOKENS),
        loss=functools.partial(losses.fresh, score=losses.cross_entropy, batch=batch),
        batches=tasks.stream(draw, seed),
        batch=batch,
        unit="sequences",
        units_per_step=batch,
        curve=name,
        per_nat=1.0,
        evaluate=_on_fresh_batches(draw, seed, name=name, score=losses.cross_entropy),
        baseline=Score(
            f"no memory ({symbols} ln 8 / {delay + 2 * symbols})",
            tasks.copy_baseline(delay=delay, symbols=symbols),
        ),
    )


def digits(network: Network, *, by_row: bool, batch: int, seed: int) -> Job:
    """Return the classification of handwritten digits read row by row or pixel by pixel.

    Raises:
      InputError: scikit-learn is not installed, or the batch is larger than the training part.
    """
    xs, targets, held_out_xs, held_out_targets = tasks.digits(seed, by_row=by_row)
    share = np.bincount(held_out_targets).max() / len(held_out_targets)

    def measure(model, params):
        held_out = [(held_out_xs, held_out_targets)]
        score = evaluate.mean_score(model, params, held_out, _last_accuracy)
        return Score("accuracy", score)

    return Job(
        summary=f"{len(targets)} images to train on, {len(held_out_targets)} held out, "
        f"{len(xs)} steps each",
        cells=_on_features(network, xs.shape[-1], 10),
        loss=functools.partial(losses.fresh, score=losses.last_cross_entropy, batch=batch),
        batches=tasks.minibatches(xs, targets, seed, batch=batch),
        batch=batch,
        unit="images",
        units_per_step=batch,
        curve="cross-entropy in nats",
        per_nat=1.0,
        evaluate=measure,
        baseline=Score("always the commonest digit", float(share)),
        higher_is_better=True,
    )


def _on_features(network: Network, input_size: int, output_size: int) -> list[Cell]:
    return layers(
        network.constructor,
        input_size=input_size,
        hidden_size=network.hidden_size,
        output_size=output_size,
        depth=network.depth,
    )


def _on_tokens(
    network: Network, input_size: int, output_size: int, vocabulary_size: int
) -> list[Cell]:
    first, *others = _on_features(network, input_size, output_size)
    return [embedding(first, vocabulary_size=vocabulary_size), *others]


def _on_fresh_batches(
    draw: Callable[..., Any], seed: int, *, name: str, score: Callable[..., Array]
) -> Callable[[Model, PyTree], Score]:
    """Return an evaluation on batches whose generator is independent of training's."""

    def measure(model, params):
        rng = np.random.default_rng([seed, 1])
        batches = [draw(rng) for _ in range(HELD_OUT_BATCHES)]
        return Score(name, evaluate.mean_score(model, params, batches, score))

    return measure


def _last_accuracy(logits: Array, targets: Array) -> Array:
    return evaluate.accuracy(logits[-1], targets)
