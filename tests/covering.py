"""A few rows of a table that hold all values of its columns, or all pairs of values of any two."""

import itertools
from collections.abc import Hashable, Iterable


def together(row: tuple[Hashable, ...], width: int) -> set[tuple]:
    """Return what stands together in a row: `width` times (column, value)."""
    return set(itertools.combinations(enumerate(row), width))


def covering(rows: Iterable[tuple[Hashable, ...]], width: int = 2) -> set[tuple[Hashable, ...]]:
    """Choose rows greedily, each time one with the most that no row has yet."""
    left, chosen = list(rows), set()
    missing = set().union(*(together(row, width) for row in left))
    while missing:
        best = max(left, key=lambda row: len(together(row, width) & missing))
        chosen.add(best)
        missing -= together(best, width)
    return chosen
