"""Naive loops over time for cells and layers, in NumPy, for `jax_bptt.testing.fuzz`.

As in `equations` every array leads with an axis N of copies. All batch axes are one, B. What
the sequence options mean is written out here, step by step and choice by choice.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from jax_bptt.testing.fuzz.equations import Complex, Equations

PyTree = Any


class Flags(NamedTuple):
    """Options of the sequences, as flags of each step, and their batch.

    Attributes:
      within: bool [T, B], whether a step is one of the sequence's length.
      mask: bool [T, B], whether it is taken.
      resets: bool [T, B].
      batch: the batch shape of B rows.
    """

    within: np.ndarray
    mask: np.ndarray
    resets: np.ndarray
    batch: tuple[int, ...]

    @property
    def read(self) -> np.ndarray:
        """Where an input is read, [T, B]."""
        return self.within & self.mask

    @property
    def lasts(self) -> np.ndarray:
        """Where a step is the last one before a first one, where resets mark those, [T, B]."""
        firsts = self.resets & self.within
        return np.concatenate([firsts[1:], np.zeros_like(firsts[:1])])


class Begin(NamedTuple):
    """Where a run begins, and where a reset goes back to."""

    state: PyTree
    restart: PyTree


class Loop(NamedTuple):
    """A naive cell or layer.

    Attributes:
      run: `(params, xs, begin, flags, key) -> (last_state, ys)`; without a key nothing is random.
      start: `(params, zeros) -> state`, the initial state.
    """

    run: Callable[..., tuple[PyTree, PyTree]]
    start: Callable[..., PyTree]


def choose(where: np.ndarray, a: PyTree, b: PyTree) -> PyTree:
    """Take a where told to and b elsewhere; `where` [..., B] meets axis 1 and what follows."""

    def leaf(a, b):
        return np.where(where.reshape(1, *where.shape, *[1] * (a.ndim - 1 - where.ndim)), a, b)

    return jax.tree.map(leaf, a, b)


def _zero(tree: PyTree) -> PyTree:
    return jax.tree.map(np.zeros_like, tree)


class _Chance(NamedTuple):
    """Random changes of a step: of the state the product reads, and of the state that comes out."""

    dropped: Callable[..., Any] = lambda t, h: h
    zoned: Callable[..., PyTree] = lambda t, old, new: new


def _over_time(equations: Equations, reverse: bool, drawn: Callable) -> Loop:
    """Return the loop in which `drawn(begin, flags, key)` is the chance."""

    def run(params, xs, begin, flags, key):
        p, s = equations.prepare(params), begin.state
        nothing = _zero(equations.readout(p, s))
        luck, ys = drawn(begin, flags, key), {}
        steps = range(len(flags.mask))
        for t in reversed(steps) if reverse else steps:
            s = choose(flags.resets[t] & flags.within[t], begin.restart, s)
            h = luck.dropped(t, equations.hidden(s))
            new = luck.zoned(t, s, equations.step(p, s, xs[:, t], h))
            s = choose(flags.read[t], new, s)
            ys[t] = choose(flags.within[t], equations.readout(p, s), nothing)
        return s, _stacked([ys[t] for t in steps], nothing)

    return Loop(run, equations.start)


def _stacked(ys: list[PyTree], like: PyTree) -> PyTree:
    """Return outputs of single steps, each like the last argument, as arrays [N, T, B, ...]."""
    if not ys:
        return jax.tree.map(lambda y: np.zeros((len(y), 0, *y.shape[1:]), y.dtype), like)
    return jax.tree.map(lambda *y: np.stack(y, 1), *ys)


def cell_loop(equations: Equations, reverse: bool) -> Loop:
    """s_t = step(s_{t-1}, x_t), resets before the step in the order in which time is run."""
    return _over_time(equations, reverse, lambda begin, flags, key: _Chance())


def layer_loop(equations: Equations, reverse: bool) -> Loop:
    """As `cell_loop`, but a reset parts a step from the one before it in either direction."""
    return _parted(cell_loop(equations, reverse), reverse)


def _parted(loop: Loop, reverse: bool) -> Loop:
    """Return the loop on resets that mark first steps; one beyond the end of a sequence is none."""
    if not reverse:
        return loop

    def run(params, xs, begin, flags, key):
        return loop.run(params, xs, begin, flags._replace(resets=flags.lasts), key)

    return loop._replace(run=run)


def _bernoulli(key: Any, probability: float, shape: tuple, batch: tuple) -> np.ndarray:
    """Draw booleans of a shape that holds None where the batch is to be: [..., B, ...]."""
    at = shape.index(None)
    leading, units = shape[:at], shape[at + 1 :]
    drawn = jax.random.bernoulli(key, probability, (*leading, *batch, *units))
    return np.asarray(drawn).reshape(*leading, math.prod(batch), *units)


def zoneout_loop(equations: Equations, rate: float, reverse: bool) -> Loop:
    """Krueger et al. (2017): some units keep their state, or without chance all a part of it."""

    def drawn(begin, flags, key):
        inexact = [leaf for leaf in _leaves(begin.state) if not _is_integer(leaf)]
        shapes = [jax.tree.leaves(leaf)[0].shape[2:] for leaf in inexact]
        keys = [None] * len(shapes) if key is None else jax.random.split(key, len(shapes))
        steps = len(flags.mask)
        masks = [
            rate if k is None else _bernoulli(k, rate, (steps, None, *units), flags.batch)
            for k, units in zip(keys, shapes, strict=True)
        ]

        def blend(t, m, old, new):
            if isinstance(m, float):
                return jax.tree.map(lambda a, b: m * a + (1 - m) * b, old, new)
            return choose(m[t], old, new)

        def zoned(t, old, new):
            left = iter(masks)
            blended = [
                b if _is_integer(b) else blend(t, next(left), a, b)
                for a, b in zip(_leaves(old), _leaves(new), strict=True)
            ]
            whole = jax.tree.structure(new, is_leaf=lambda a: isinstance(a, Complex))
            return jax.tree.unflatten(whole, blended)

        return _Chance(zoned=zoned)

    return _parted(_over_time(equations, reverse, drawn), reverse)


def _leaves(state: PyTree) -> list[Any]:
    """Return the leaves of a state as the library has them, a complex one as one."""
    return jax.tree.leaves(state, is_leaf=lambda a: isinstance(a, Complex))


def _is_integer(leaf: Any) -> bool:
    return not isinstance(leaf, Complex) and leaf.dtype.kind == "i"


class Drop(NamedTuple):
    """How recurrent dropout drops: this part of the units, the same at all steps or not."""

    rate: float
    per_step: bool


def recurrent_dropout_loop(equations: Equations, drop: Drop, reverse: bool) -> Loop:
    """Gal and Ghahramani (2016), Semeniuta et al. (2016): units that the product does not see."""

    def drawn(begin, flags, key):
        if key is None:
            return _Chance()
        units = equations.hidden(begin.state).shape[2:]
        (own,) = jax.random.split(key, 1)
        leading = flags.mask.shape[:1] if drop.per_step else ()
        kept = _bernoulli(own, 1 - drop.rate, (*leading, None, *units), flags.batch)

        def dropped(t, h):
            mask = kept[t] if drop.per_step else kept
            return choose(mask, h / (1 - drop.rate), np.zeros_like(h))

        return _Chance(dropped=dropped)

    return _parted(_over_time(equations, reverse, drawn), reverse)


def dropout_loop(masks: Callable[..., Any]) -> Loop:
    """Srivastava et al. (2014); `masks(key, shape)` is what ones of that shape become."""

    def run(params, xs, begin, flags, key):
        ys = choose(flags.read, xs, np.zeros_like(xs))
        if key is not None:
            steps, features = flags.mask.shape[:1], xs.shape[3:]
            factors = np.asarray(masks(key, (*steps, *flags.batch, *features)))
            ys = ys * factors.reshape(1, *xs.shape[1:])
        return (), ys

    return Loop(run, lambda params, zeros: ())


def turned_loop(loop: Loop) -> Loop:
    """Return the loop on sequences turned round, so that padding comes first and holds the state.

    A mark of a first step is then one of a last step, and moves to the step before it.
    """

    def run(params, xs, begin, flags, key):
        every = np.ones_like(flags.within)
        turned = Flags(every, flags.read[::-1], flags.lasts[::-1], flags.batch)
        last, ys = loop.run(params, xs[:, ::-1], begin, turned, key)
        ys = ys[:, ::-1]
        return last, choose(flags.within, ys, _zero(ys))

    return loop._replace(run=run)


def bidirectional_loop(forward: Loop, backward: Loop) -> Loop:
    """Schuster and Paliwal (1997); each direction has a key of its own."""

    def run(params, xs, begin, flags, key):
        keys = (None, None) if key is None else jax.random.split(key)
        (one, other), (restart, other_restart) = begin
        last, ys = forward.run(params.forward, xs, Begin(one, restart), flags, keys[0])
        back, zs = backward.run(params.backward, xs, Begin(other, other_restart), flags, keys[1])
        return type(begin.state)(last, back), np.concatenate([ys, zs], -1)

    def start(params, zeros):
        return type(zeros)(
            forward.start(params.forward, zeros.forward),
            backward.start(params.backward, zeros.backward),
        )

    return Loop(run, start)


def stack_loop(*loops: Loop) -> Loop:
    """Each loop on the outputs of the one before, with a key of its own."""

    def run(params, xs, begin, flags, key):
        keys = [None] * len(loops) if key is None else jax.random.split(key, len(loops))
        lasts = []
        for k, loop in enumerate(loops):
            own = Begin(begin.state[k], begin.restart[k])
            last, xs = loop.run(params[k], xs, own, flags, keys[k])
            lasts.append(last)
        return tuple(lasts), xs

    def start(params, zeros):
        return tuple(loop.start(params[k], zeros[k]) for k, loop in enumerate(loops))

    return Loop(run, start)


def residual_loop(loop: Loop) -> Loop:
    """He et al. (2016): what is read is added."""

    def run(params, xs, begin, flags, key):
        last, ys = loop.run(params, xs, begin, flags, key)
        return last, ys + choose(flags.read, xs, np.zeros_like(xs))

    return loop._replace(run=run)
