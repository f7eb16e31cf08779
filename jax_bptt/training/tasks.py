"""Tasks that need a memory, with the result that no memory can better.

S. Hochreiter and J. Schmidhuber (1997), "Long short-term memory", Neural Computation 9(8), pose
both the adding and a copying problem; the forms here are those of M. Arjovsky, A. Shah and
Y. Bengio (2016), "Unitary evolution recurrent neural networks", ICML; flip-flops are those of
Sussillo and Barak (2013). Batches are drawn afresh at
every step, so that what is learned is the rule and not the examples.

Training data is a function from the number of steps done to the next batch, so that a run can go
on from any place.
"""

import functools
import math
from collections.abc import Callable

import numpy as np

from jax_bptt.core.checks import require

Batches = Callable[[int], tuple[np.ndarray, np.ndarray]]
"""`step -> (xs, targets)`, the same for the same step."""
SYMBOLS = 8
"""Number of symbols that the copy task can ask to remember."""
BLANK, GO = SYMBOLS, SYMBOLS + 1
"""Copy task: nothing to read or write; the signal to write."""
TOKENS = SYMBOLS + 2
ADDING_BASELINE = 1 / 6
"""Mean squared error of answering 1: the variance of the sum of two numbers uniform in [0, 1]."""


def adding(rng: np.random.Generator, *, length: int, batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Return sequences of numbers of which two are marked, and the sum of those two.

    A step shows a number uniform in [0, 1] and a mark, which is 1 once in the first half of the
    sequence and once in the second, and 0 elsewhere.

    Args:
      rng: where the randomness comes from.
      length: T, at least 2.
      batch: B.

    Returns:
      xs [T, B, 2], numbers and marks, and targets [B].

    Raises:
      ValueError: the length is less than 2.
    """
    require(length >= 2, f"the adding problem needs a length of at least 2, got {length}")
    numbers = rng.uniform(size=(length, batch))
    marks = np.zeros((length, batch))
    lanes = np.arange(batch)
    marks[rng.integers(0, length // 2, batch), lanes] = 1
    marks[rng.integers(length // 2, length, batch), lanes] = 1
    return np.stack([numbers, marks], axis=-1), np.sum(numbers * marks, axis=0)


def copy(
    rng: np.random.Generator, *, delay: int, symbols: int, batch: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return sequences that show M symbols, wait, and ask for the symbols again.

    In: M symbols, D - 1 blanks, the signal to write, M blanks. Out: M + D blanks, then the M
    symbols in order. Every sequence has D + 2 M steps.

    Args:
      rng: where the randomness comes from.
      delay: D, at least 1.
      symbols: M, at least 1.
      batch: B.

    Returns:
      xs and targets, tokens [D + 2 M, B].
    """
    message = rng.integers(0, SYMBOLS, (symbols, batch), dtype=np.int32)
    xs = np.full((delay + 2 * symbols, batch), BLANK, np.int32)
    targets = xs.copy()
    xs[:symbols] = message
    xs[symbols + delay - 1] = GO
    targets[symbols + delay :] = message
    return xs, targets


def copy_baseline(*, delay: int, symbols: int) -> float:
    """Return the cross-entropy, in nats a step, of knowing when to write but not what.

    M ln 8 / (D + 2 M): nothing is lost on the blanks, and each symbol is a guess among eight.
    """
    return symbols * math.log(SYMBOLS) / (delay + 2 * symbols)


def flip_flop(
    rng: np.random.Generator, *, length: int, batch: int, bits: int = 3, rate: float = 0.2
) -> tuple[np.ndarray, np.ndarray]:
    """Return pulses that set bits, and the bits: each is what its own last pulse was.

    A pulse is 1 or -1, and nothing is 0. The first step sets every bit, so that all are known.
    D. Sussillo and O. Barak (2013), "Opening the black box", Neural Computation 25(3).

    Args:
      rng: where the randomness comes from.
      length: T.
      batch: B.
      bits: N, each with an input and an output of its own.
      rate: the probability of a pulse, of each bit at each step.

    Returns:
      xs and targets, [T, B, N].
    """
    shape = length, batch, bits
    pulsed = rng.uniform(size=shape) < rate
    pulsed[:1] = True
    xs = np.where(pulsed, rng.choice([-1.0, 1.0], shape), 0.0)
    last = np.where(pulsed, np.arange(length)[:, None, None], 0)
    return xs, np.take_along_axis(xs, np.maximum.accumulate(last, axis=0), axis=0)


def drawn(draw: Callable[..., tuple[np.ndarray, np.ndarray]], *seeds: int) -> Batches:
    """Return batches that are drawn, each by a generator of its own.

    Args:
      draw: `rng -> (xs, targets)`, such as `functools.partial(adding, length=50, batch=32)`.
      seeds: what the generators are made from, beside the step: batches of unequal seeds are
        independent.
    """
    return lambda step: draw(np.random.default_rng([*seeds, step]))


def digits(seed: int, *, by_row: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return scikit-learn's 1797 handwritten digits of 8 x 8 pixels as sequences, split in two.

    Args:
      seed: of the split; a fifth is held out.
      by_row: whether a step shows a row of 8 pixels (T = 8), or a single one (T = 64).

    Returns:
      (train xs [T, N, I], train targets [N], held-out xs [T, M, I], held-out targets [M]), pixels
      from 0 to 1, targets 0 to 9.

    Raises:
      ModuleNotFoundError: scikit-learn, the extra `data`, is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "scikit-learn, which has the digits, is not installed: run "
            "pip install 'jax_bptt[data]', or from a clone pip install -e '.[data]'"
        ) from error
    images, targets = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(targets))
    steps, features = (8, 8) if by_row else (64, 1)
    xs = (images[order] / 16).reshape(-1, steps, features).swapaxes(0, 1)
    targets = targets[order].astype(np.int32)
    held_out = len(targets) // 5
    return xs[:, held_out:], targets[held_out:], xs[:, :held_out], targets[:held_out]


def minibatches(xs: np.ndarray, targets: np.ndarray, seed: int, *, batch: int) -> Batches:
    """Return batches of examples, each epoch in a new order, the remainder of one left out.

    Args:
      xs: [T, N, I].
      targets: [N].
      seed: of the orders.
      batch: B, at most N.

    Raises:
      ValueError: there are fewer than B examples.
    """
    examples = len(targets)
    require(
        batch <= examples,
        f"a batch of {batch} is more than the {examples} training examples: take a smaller one",
    )

    @functools.lru_cache(maxsize=1)
    def order(epoch):
        return np.random.default_rng([seed, epoch]).permutation(examples)

    def at(step):
        epoch, place = divmod(step, examples // batch)
        chosen = order(epoch)[place * batch : (place + 1) * batch]
        return xs[:, chosen], targets[chosen]

    return at
