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

import functools
import math
from typing import NamedTuple

import numpy as np

from trainer.bars import track
from trainer.errors import require

CHUNK = 2**22
"""Characters whose n-grams are counted at once, so that a long text takes no more memory."""
DENSE = 2**22
"""Largest number of possible n-grams for which each has a counter; more are sorted instead."""


class Level(NamedTuple):
    """The counts of one order k, as sorted keys to search in.

    Attributes:
      grams: the k-grams seen, as numbers in base V + 1, sorted.
      counts: c of each.
      contexts: the (k - 1)-grams among them, sorted.
      totals: c of each context.
      distinct: d of each context.
      discount: D_k.
    """

    grams: np.ndarray
    counts: np.ndarray
    contexts: np.ndarray
    totals: np.ndarray
    distinct: np.ndarray
    discount: float


class NGram(NamedTuple):
    """A counted model: the alphabet's size V and the levels of order 1, 2, ..., highest last."""

    vocabulary_size: int
    levels: tuple[Level, ...]


def count(ids: np.ndarray, *, vocabulary_size: int, order: int = 3) -> NGram:
    """Return the n-gram model of a text.

    Args:
      ids: the text, [N] integers below V.
      vocabulary_size: V.
      order: n, the length of the longest n-gram; its contexts have n - 1 characters.

    Raises:
      InputError: n-grams of this order do not fit into 64-bit keys.
    """
    base = vocabulary_size + 1
    require(
        order < 64 and base**order < 2**63,
        f"an n-gram of order {order} over {vocabulary_size} characters is too high; "
        f"take at most {int(63 / math.log2(base))}",
    )
    grams, counts = _counted(ids, order, base)
    levels = [_level(grams, counts, base)]
    for k in range(order - 1, 0, -1):
        # The distinct (k+1)-grams, each without its first character, are the continuations.
        grams, counts = np.unique(grams % base**k, return_counts=True)
        levels.insert(0, _level(grams, counts, base))
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
    parts = [(np.zeros(0, np.int64), np.zeros(0, np.int64))]
    for keys in chunks:
        parts.append(np.unique(keys, return_counts=True))
        # Merged with its like alone, a count is moved as often as the logarithm of the chunks.
        while len(parts) > 1 and len(parts[-2][0]) <= 2 * len(parts[-1][0]):
            parts.append(_merged(parts.pop(), parts.pop()))
    return functools.reduce(_merged, reversed(parts))


def _merged(
    one: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    grams, place = np.unique(np.concatenate([one[0], other[0]]), return_inverse=True)
    counts = np.bincount(place, np.concatenate([one[1], other[1]]), len(grams))
    return grams, counts.astype(np.int64)


def _keys(ids: np.ndarray, order: int, base: int) -> np.ndarray:
    """Return the n-grams ending at positions n - 1, n, ... as numbers in `base`, [N - n + 1]."""
    count = max(len(ids) - order + 1, 0)
    keys = np.zeros(count, np.int64)
    for i in range(order):
        keys = keys * base + ids[i : i + count]
    return keys


def _level(grams: np.ndarray, counts: np.ndarray, base: int) -> Level:
    contexts, place = np.unique(grams // base, return_inverse=True)
    totals = np.bincount(place, counts, len(contexts))
    distinct = np.bincount(place, minlength=len(contexts))
    once, twice = np.sum(counts == 1), np.sum(counts == 2)
    # Ney, Essen and Kneser (1994): n1 / (n1 + 2 n2); the added ones keep the discount of a text
    # with n1 = 0 or n2 = 0 away from 0, which would leave no probability for the unseen, and 1.
    discount = (once + 1) / (once + 1 + 2 * (twice + 1))
    return Level(grams, counts, contexts, totals, distinct, float(discount))


def probabilities(model: NGram, contexts: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Return P(ids | contexts), [N].

    Args:
      model: the counts.
      contexts: the n - 1 characters before each, [N, n - 1]; V where the text had not begun.
      ids: the characters, [N].
    """
    base = model.vocabulary_size + 1
    p = np.full(len(ids), 1 / model.vocabulary_size)
    for k, level in enumerate(model.levels, start=1):
        context = np.zeros(len(ids), np.int64)
        for column in range(contexts.shape[1] - (k - 1), contexts.shape[1]):
            context = context * base + contexts[:, column]
        counts = _look_up(level.grams, level.counts, context * base + ids)
        totals = _look_up(level.contexts, level.totals, context)
        distinct = _look_up(level.contexts, level.distinct, context)
        seen = np.maximum(totals, 1)
        discounted = np.maximum(counts - level.discount, 0) + level.discount * distinct * p
        p = np.where(totals > 0, discounted / seen, p)
    return p


def _look_up(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Return the value of each wanted key, and zero where there is none."""
    if not len(keys):
        return np.zeros(len(wanted))
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[at] == wanted, values[at], 0)


def bits_per_character(model: NGram, ids: np.ndarray) -> float:
    """Return the mean of -log2 P over every character of a text but the first.

    Args:
      model: the counts of another text.
      ids: the text, [M], at least two characters.
    """
    order, base = len(model.levels), model.vocabulary_size + 1
    before = np.full(max(order - 2, 0), model.vocabulary_size)
    text = np.concatenate([before, ids]) if order > 1 else ids[1:]
    # Equal n-grams have equal probabilities, and few of a long text's are distinct.
    grams, counts = _counted(text, order, base)
    places = base ** np.arange(order - 1, 0, -1, dtype=np.int64)
    contexts = grams[:, None] // places % base
    p = probabilities(model, contexts, grams % base)
    return float(-np.sum(counts * np.log2(p)) / np.sum(counts))
