"""Exact derivatives of naive loops by imaginary steps, for `jax_bptt.testing.fuzz`.

    f(a + i h v) = f(a) + i h df(a) v + O(h^2)        h = 1e-40

With such an h there is no rounding in the imaginary part but that of its own arithmetic, and what
is of second order vanishes. A loop takes arrays with an axis N in front; in each of the N copies
another number has moved. The sequences of a batch do not meet, so that a number of an input or of
a state moves in all of them at once, and N does not grow with the batch.
"""

import math
from typing import Any, NamedTuple

import jax
import numpy as np

from jax_bptt.testing import numerics
from jax_bptt.testing.fuzz.equations import Complex
from jax_bptt.testing.fuzz.loops import Begin, Flags, Loop
from jax_bptt.testing.numerics import Leaves
from jax_bptt.testing.subject import Outputs

PyTree = Any

SIZE = 1e-40


class Point(NamedTuple):
    """All that a run depends on, as the library takes it.

    Attributes:
      params: parameters.
      xs: [T, *batch, ...].
      state: [*batch, ...]; None for the initial one.
      start: the state that resets go back to; None for the initial one.
    """

    params: PyTree
    xs: PyTree
    state: PyTree = None
    start: PyTree = None


BATCH_AXIS = Point(None, 1, 0, 0)
"""Which axis of the leaves of a point is the batch."""


class Naive(NamedTuple):
    """A naive loop with what a run takes besides its point.

    Attributes:
      loop: the loop.
      flags: of the sequences.
      key: of chance, or None.
      zeros: a state of zeros, [B, ...].
    """

    loop: Loop
    flags: Flags
    key: Any
    zeros: PyTree

    def __call__(self, point: Point) -> Outputs:
        """Run copies of a point, its complex leaves split."""
        copies = len(jax.tree.leaves(point.params)[0])
        zeros = jax.tree.map(lambda a: _copied(a, copies), split(self.zeros))

        def own(state):
            return self.loop.start(point.params, zeros) if state is None else state

        begin = Begin(own(point.state), own(point.start))
        return Outputs(*self.loop.run(point.params, point.xs, begin, self.flags, self.key))


def split(tree: PyTree) -> PyTree:
    """Return a tree with every complex leaf as its parts."""
    return jax.tree.map(lambda a: Complex(a.real, a.imag) if np.iscomplexobj(a) else a, tree)


def _joined(tree: PyTree, sign: int) -> PyTree:
    """Undo `split`, with re + i im for values and re - i im for gradients."""
    return jax.tree.map(
        lambda a: a.re + sign * 1j * a.im if isinstance(a, Complex) else a,
        tree,
        is_leaf=lambda a: isinstance(a, Complex),
    )


def _copied(leaf: np.ndarray, copies: int) -> np.ndarray:
    """Return a leaf [N, ...], an integer one [1, ...]."""
    if not numerics.is_inexact(leaf):
        return leaf[None]
    return np.repeat(leaf[None].astype(np.complex128), copies, 0)


def value(naive: Naive, point: Point) -> Outputs:
    """Return the outputs."""
    outputs = naive(jax.tree.map(lambda a: _copied(a, 1), split(point)))
    return _joined(jax.tree.map(lambda a: a[0].real, outputs), 1)


def pushforward(naive: Naive, point: Point, tangents: Point) -> Outputs:
    """Return the derivative of the outputs along tangents, None at leaves without any."""

    def moved(a, v):
        if a is None:
            return None
        return _copied(a, 1) if v is None else _copied(a, 1) + 1j * SIZE * v

    point, tangents = split(point), split(tangents)
    outputs = naive(jax.tree.map(moved, point, tangents, is_leaf=lambda a: a is None))
    return _joined(
        jax.tree.map(lambda a: a[0].imag / SIZE if np.iscomplexobj(a) else None, outputs), 1
    )


class _Moved(NamedTuple):
    """The numbers of a leaf in which it is moved: their places among the copies, their axes."""

    copies: slice
    batch_axis: int | None
    shape: tuple[int, ...]


def gradient(naive: Naive, point: Point, cotangents: Outputs) -> Point:
    """Return dL/d(point) of L = Re sum c y, None at leaves without a gradient."""
    moves, total = [], 0
    whole = split(point)
    for name, axis in zip(Point._fields, BATCH_AXIS, strict=True):
        for leaf in jax.tree.leaves(getattr(whole, name)):
            shape = leaf.shape if axis is None else leaf.shape[:axis] + leaf.shape[axis + 1 :]
            count = math.prod(shape) if numerics.is_inexact(leaf) else 0
            moves.append(_Moved(slice(total, total + count), axis, shape))
            total += count
    leaves, structure = jax.tree.flatten(whole)

    def moved(leaf, move):
        copies = _copied(leaf, total)
        if numerics.is_inexact(leaf):
            step = np.zeros((total, math.prod(move.shape)))
            step[move.copies] = np.eye(step.shape[1])
            step = step.reshape(total, *move.shape)
            if move.batch_axis is not None:
                step = np.expand_dims(step, 1 + move.batch_axis)
            copies = copies + 1j * SIZE * step
        return copies

    copies = jax.tree.unflatten(structure, list(map(moved, leaves, moves)))
    slopes = _slopes(naive(copies), cotangents)

    def found(leaf, move):
        if not numerics.is_inexact(leaf):
            return None
        own = slopes[move.copies]
        if move.batch_axis is None:
            return own.sum(1).reshape(move.shape)
        return np.moveaxis(own.reshape(*move.shape, own.shape[1]), -1, move.batch_axis)

    return _joined(jax.tree.unflatten(structure, list(map(found, leaves, moves))), -1)


def _slopes(outputs: Outputs, cotangents: Outputs) -> np.ndarray:
    """Return what each copy's step does to each sequence's part of the loss, [N, B]."""

    def conjugate(c):
        return Complex(c.real, -c.imag) if np.iscomplexobj(c) else c

    cotangents = jax.tree.map(conjugate, cotangents)
    total: Any = 0
    for axis, name in ((0, "last_state"), (1, "ys")):
        pairs = jax.tree.map(
            lambda c, y: None if c is None else c * (y.imag / SIZE),
            getattr(cotangents, name),
            getattr(outputs, name),
            is_leaf=lambda a: a is None,
        )
        for product in jax.tree.leaves(pairs):
            by_sequence = np.moveaxis(product, 1 + axis, 1)
            total = total + by_sequence.reshape(*by_sequence.shape[:2], -1).sum(-1)
    return total


def second(naive: Naive, point: Point, cotangents: Outputs, direction: Leaves) -> Leaves:
    """Return the derivative of the gradient along a direction, by central differences of it."""

    def at(size):
        moved = numerics.displaced(point, direction, size)
        return numerics.leaves(gradient(naive, moved, cotangents))

    return numerics.derivative(at)


def in_rows(tree: PyTree, axis: int, rank: int) -> PyTree:
    """Return a tree whose `rank` batch axes from `axis` on are one."""

    def leaf(a):
        shape = a.shape[:axis], a.shape[axis : axis + rank], a.shape[axis + rank :]
        return a.reshape((*shape[0], math.prod(shape[1]), *shape[2]))

    return jax.tree.map(leaf, tree)


def in_batch(tree: PyTree, axis: int, batch: tuple[int, ...]) -> PyTree:
    """Undo `in_rows`."""
    return jax.tree.map(lambda a: a.reshape((*a.shape[:axis], *batch, *a.shape[axis + 1 :])), tree)
