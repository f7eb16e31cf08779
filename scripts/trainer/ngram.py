"""The baseline: an n-gram model that backs off to shorter contexts, counted and not trained.

Interpolated Kneser-Ney smoothing with one discount per order (Kneser and Ney 1995, "Improved
backing-off for m-gram language modeling", ICASSP; in the interpolated form of Chen and Goodman
1999, "An empirical study of smoothing techniques for language modeling", Computer Speech and
Language 13(4)). With h a context of k - 1 characters, h' the same without its first,

    P_k(w | h) = max(c(h w) - D_k, 0) / c(h) + D_k d(h) / c(h) P_{k-1}(w | h')
    P_0(w)     = 1 / V

where c(h) = sum_w c(h w), and d(h) is the number of distinct w seen after h. At the highest order
c counts occurrences; below it c(h w) is the number of distinct characters seen before h w, which
keeps a character that only ever follows one context from looking frequent after others. A context
never seen has P_k = P_{k-1}. Every P_k(. | h) sums to one.
"""

import math
from typing import NamedTuple

import numpy as np

from trainer.errors import require, track

CHUNK = 2**22
"""Characters whose n-grams are counted at once, so that a long text takes no more memory."""
DENSE = 2**22
"""Largest number of possible n-grams for which each has a counter; more are sorted instead."""


class Level(NamedTuple):
    """The counts of one order k."""

    grams: np.ndarray  # the k-grams seen, as numbers in base V + 1, sorted
    before: np.ndarray  # the sum of c over those that come before each, and over all
    discount: float  # D_k


class NGram(NamedTuple):
    """A counted model: the alphabet's size V and the levels of order 1, 2, ..., highest last."""

    vocabulary_size: int
    levels: tuple[Level, ...]


def count(ids: np.ndarray, *, vocabulary_size: int, order: int) -> NGram:
    """Return the n-gram model of a text, [N] integers below V."""
    base = vocabulary_size + 1
    require(
        order < 64 and base**order < 2**63,
        f"an n-gram of order {order} over {vocabulary_size} characters is too high; "
        f"take at most {int(63 / math.log2(base))}",
    )
    grams, counts = _counted(ids, order, base)
    levels = [_level(grams, counts)]
    for k in range(order - 1, 0, -1):
        # The distinct (k+1)-grams, each without its first character, are the continuations.
        grams, counts = np.unique(grams % base**k, return_counts=True)
        levels.insert(0, _level(grams, counts))
    return NGram(vocabulary_size, tuple(levels))


def _counted(ids: np.ndarray, order: int, base: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the distinct n-grams of a text, sorted, and the number of times each occurs."""
    starts = range(0, max(len(ids) - order + 1, 0), CHUNK)
    chunks = (
        _keys(ids[start : start + CHUNK + order - 1], order, base)
        for start in track(starts, "counting n-grams")
    )
    if base**order <= DENSE:
        every = np.zeros(base**order, np.int64)
        for keys in chunks:
            every += np.bincount(keys, minlength=len(every))
        grams = np.flatnonzero(every)
        return grams, every[grams]
    empty = np.zeros(0, np.int64), np.zeros(0, np.int64)
    parts = [empty, *(np.unique(keys, return_counts=True) for keys in chunks)]
    grams, counts = (np.concatenate(part) for part in zip(*parts, strict=True))
    grams, place = np.unique(grams, return_inverse=True)
    return grams, np.bincount(place, counts, len(grams)).astype(np.int64)


def _keys(ids: np.ndarray, order: int, base: int) -> np.ndarray:
    """Return the n-grams ending at positions n - 1, n, ... as numbers in `base`, [N - n + 1]."""
    keys = np.zeros(len(ids) - order + 1, np.int64)
    for i in range(order):
        keys = keys * base + ids[i : i + len(keys)]
    return keys


def _level(grams: np.ndarray, counts: np.ndarray) -> Level:
    once, twice = np.sum(counts == 1), np.sum(counts == 2)
    # Ney, Essen and Kneser (1994): n1 / (n1 + 2 n2); the added ones keep the discount of a text
    # with n1 = 0 or n2 = 0 away from 0, which would leave no probability for the unseen, and 1.
    discount = (once + 1) / (once + 1 + 2 * (twice + 1))
    return Level(grams, np.append(0, np.cumsum(counts)), float(discount))


def probabilities(model: NGram, grams: np.ndarray) -> np.ndarray:
    """Return the probability of the last character of each n-gram after its others, [N].

    Args:
      model: the counts.
      grams: as numbers in base V + 1, [N]; a character is V where the text had not begun.
    """
    base = model.vocabulary_size + 1
    p = np.full(len(grams), 1 / model.vocabulary_size)
    for k, level in enumerate(model.levels, start=1):
        gram = grams % base**k
        context = gram // base * base
        # Where the k-gram is among those seen, and where all that begin with its context are.
        at, past = np.searchsorted(level.grams, [gram, gram + 1])
        low, high = np.searchsorted(level.grams, [context, context + base])
        counts = level.before[past] - level.before[at]
        totals = level.before[high] - level.before[low]
        discounted = np.maximum(counts - level.discount, 0) + level.discount * (high - low) * p
        p = np.where(totals > 0, discounted / np.maximum(totals, 1), p)
    return p


def bits_per_character(model: NGram, ids: np.ndarray) -> float:
    """Return the mean of -log2 P over every character but the first of another text, [M], M > 1."""
    order, base = len(model.levels), model.vocabulary_size + 1
    before = np.full(max(order - 2, 0), model.vocabulary_size)
    text = np.concatenate([before, ids]) if order > 1 else ids[1:]
    # Equal n-grams have equal probabilities, and few of a long text's are distinct.
    grams, counts = _counted(text, order, base)
    return float(-np.sum(counts * np.log2(probabilities(model, grams))) / np.sum(counts))
