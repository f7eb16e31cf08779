"""When to keep a state and when to run a block again: the fewest runs for so many states.

    t(n, c) = min_y  y + t(n - y, c - 1) + t(y, c)          t(n, 0) = n (n - 1) / 2

are the blocks to run forward in order to reverse n of them with c states beside the first: up to
block y, whose first state is kept, then for what comes after it, then for what comes before. Where
r is the least with n <= b(c, r) = C(c + 1 + r, r), no block is run more than r times, and

    t(n, c) = r n - b(c + 1, r - 1)

A. Griewank and A. Walther (2000), "Algorithm 799: revolve", ACM Transactions on Mathematical
Software 26(1).
"""

import math
from typing import NamedTuple

import numpy as np


class Actions(NamedTuple):
    """Blocks in the order in which they are run, int32 [M] each, `reverse` bool.

    Attributes:
      block: which.
      load: the slot of the state that enters it.
      store: the slot for the state that leaves it.
      reverse: whether it is reversed then.
    """

    block: np.ndarray
    load: np.ndarray
    store: np.ndarray
    reverse: np.ndarray


def repetitions(blocks: int, count: int) -> int:
    """Return r, how often a block is run forward at most."""
    r = 0
    while _within(count, r) < blocks:
        r += 1
    return r


def runs(blocks: int, count: int) -> int:
    """Return t(n, c) for n >= 1. The run of a block within its reversal is not in it."""
    r = repetitions(blocks, count)
    return r * blocks - _within(count + 1, r - 1)


def schedule(blocks: int, count: int) -> tuple[Actions, Actions]:
    """Return what the forward pass runs, and what the reverse pass runs.

    Slots: the first state, c kept ones, the state that the latest run came to, the last state.

    Args:
      blocks: n.
      count: c.
    """
    latest, end = count + 1, count + 2
    forward, backward = [], []
    held, n = [0], blocks  # where stretches begin whose first states are in slots 0, 1, ...
    while n > 0:
        first, slot = held[-1], len(held) - 1
        free = count - slot
        branches = n - first > 1 and free > 0
        ahead = _split(n - first, free) if branches else n - 1 - first
        runs = backward if backward else forward
        for k in range(ahead):
            store = slot + 1 if branches and k == ahead - 1 else latest
            runs.append((first + k, latest if k else slot, store, False))
        if branches:
            held.append(first + ahead)
            continue
        n -= 1
        backward.append((n, latest if ahead else slot, latest, True))
        if not ahead:
            held.pop()
    if blocks:
        block, load, _, _ = backward[0]
        forward.append((block, load, end, False))
    return _stacked(forward), _stacked(backward)


def _within(count: int, r: int) -> int:
    """Return b(c, r), how many blocks can be reversed with c states and r runs of each."""
    return math.comb(count + 1 + r, r) if r >= 0 else 0


def _split(blocks: int, count: int) -> int:
    """Return the least y that attains t(n, c), for n >= 2 and c >= 1."""
    r = repetitions(blocks, count)
    return max(1, _within(count, r - 2), blocks - _within(count - 1, r))


def _stacked(actions: list[tuple[int, int, int, bool]]) -> Actions:
    block, load, store, reverse = np.array(actions, np.int32).reshape(-1, 4).T
    return Actions(block, load, store, reverse.astype(bool))
