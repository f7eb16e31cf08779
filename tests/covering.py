"""A few rows of a table that hold every pair of values of any two of its columns."""

import itertools
from collections.abc import Hashable, Iterable


def pairs(row: tuple[Hashable, ...]) -> set[tuple]:
    """Return what stands together in a row: ((column, value), (column, value))."""
    return set(itertools.combinations(enumerate(row), 2))


def covering(rows: Iterable[tuple[Hashable, ...]]) -> set[tuple[Hashable, ...]]:
    """Choose rows greedily, each time one with the most pairs that no row has yet."""
    left, chosen = list(rows), set()
    missing = set().union(*map(pairs, left))
    while missing:
        best = max(left, key=lambda row: len(pairs(row) & missing))
        chosen.add(best)
        missing -= pairs(best)
    return chosen
