"""Random compositions and the numbers that they are run on, for `jax_bptt.testing.fuzz`."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jax_bptt.algorithms.associative import associative
from jax_bptt.algorithms.autodiff import autodiff
from jax_bptt.algorithms.bptt import bptt
from jax_bptt.algorithms.checkpointed import checkpointed
from jax_bptt.algorithms.clipped import clipped
from jax_bptt.algorithms.fused import fused
from jax_bptt.algorithms.parallel_adjoint import parallel_adjoint
from jax_bptt.cells.slstm import SLSTMState
from jax_bptt.core import trees
from jax_bptt.core.types import Algorithm
from jax_bptt.testing import numerics
from jax_bptt.testing.fuzz import imaginary, programs
from jax_bptt.testing.fuzz.cells import chance, pick
from jax_bptt.testing.fuzz.imaginary import BATCH_AXIS, Naive, Point, in_batch, in_rows
from jax_bptt.testing.fuzz.loops import Flags
from jax_bptt.testing.fuzz.programs import Given, Program, Setting
from jax_bptt.testing.fuzz.subjects import Subject, draw_subject
from jax_bptt.testing.subject import Outputs

Generator = np.random.Generator
PyTree = Any

STEPS = (0, 1, 2, 3, 4, 5, 7, 7)
BATCHES = ((), (1,), (2,), (2,), (2, 3))
LANES = 2

WAYS = (
    (programs.grad, 8),
    (programs.by_hand, 5),
    (programs.jvp, 4),
    (programs.vmap, 3),
    (programs.windows, 4),
    (programs.steps, 2),
    (programs.checkpoint, 2),
    (programs.forward_over_reverse, 1),
    (programs.reverse_over_reverse, 1),
)
"""Ways to a derivative, and how often each is tried."""

SECOND = programs.forward_over_reverse, programs.reverse_over_reverse


NEARBY = 0.2
"""Scale of the directions of second derivatives, along which differences are taken."""


class Composition(NamedTuple):
    """A program and its shapes: all that the compiled program depends on.

    Attributes:
      setting: the subject, its algorithm, and what else the program needs.
      way: which program.
      jitted: whether the program is compiled as a whole, or its parts as they come.
      steps: T.
      batch: batch shape.
      dtype: of all floating numbers.
      options: names of those that are given; "state" and "key" among them.
      read: names of the outputs that the loss reads.
    """

    setting: Setting
    way: Callable[[Setting], Program]
    jitted: bool
    steps: int
    batch: tuple[int, ...]
    dtype: Any
    options: tuple[str, ...]
    read: tuple[str, ...]

    def __str__(self) -> str:
        """Return what the composition is, in a line."""
        subject, algorithm, cut, shared = self.setting
        way = self.way.__name__
        if self.way is programs.windows:
            way += f" cut at {cut}"
        if self.way is programs.vmap:
            way += " of shared parameters" if shared else " of all"
        words = [
            subject.name,
            f"algorithm={algorithm!r}",
            f"{way}{', jitted' if self.jitted else ''}",
            f"T={self.steps} batch={self.batch} {np.dtype(self.dtype).name}",
            f"given {', '.join(self.options) or 'no options'}",
            f"loss of {' and '.join(self.read)}",
        ]
        if subject.cell is not None and subject.reverse:
            words.insert(1, "reverse=True")
        return "; ".join(words)


def draw_composition(rng: Generator) -> Composition:
    """Draw a composition."""
    dtype = jnp.float32 if chance(rng, 0.08) else jnp.float64
    subject = draw_subject(rng, dtype)
    way = _way(rng, subject, dtype)
    algorithm = _algorithm(rng, subject, way)
    steps = pick(rng, STEPS)
    options = [name for name in ("lengths", "resets", "mask") if chance(rng, 0.35)]
    if "resets" in options and chance(rng, 0.5):
        options.append("reset_state")
    if "lengths" in options or "mask" in options:
        options += ["nan"] * chance(rng, 0.5)
    if way is programs.steps:
        options, steps = [], max(1, min(steps, 3))
    if chance(rng, 0.6):
        options.append("state")
    if subject.random and way is not programs.windows and chance(rng, 0.7):
        options.append("key")
    read = pick(rng, (Outputs._fields, Outputs._fields, ("last_state",), ("ys",)))
    batch = pick(rng, BATCHES[1:] if subject.batch_major else BATCHES)
    setting = Setting(subject, algorithm, int(rng.integers(steps + 1)), chance(rng, 0.5))
    jitted = chance(rng, 0.8)
    return Composition(setting, way, jitted, steps, batch, dtype, tuple(options), read)


def _way(rng: Generator, subject: Subject, dtype: Any) -> Callable[[Setting], Program]:
    """Draw a program that the subject allows."""

    def allowed(way):
        if way in SECOND:
            return subject.traits.smooth and dtype == jnp.float64
        if way is programs.windows:
            return subject.cell is not None or not subject.reverse
        alone = subject.cell is not None and not subject.batch_major
        if way is programs.steps:
            return alone and not subject.reverse
        return alone or way is not programs.by_hand

    return pick(rng, [way for way, times in WAYS if allowed(way) for _ in range(times)])


def _algorithm(rng: Generator, subject: Subject, way: Callable) -> Algorithm | None:
    if way is programs.steps or chance(rng, 0.2):
        return None
    if subject.traits.diagonal and chance(rng, 0.5):
        return associative()
    if chance(rng, 0.05):
        return fused()
    if way is not programs.by_hand and chance(rng, 0.15):
        return autodiff()
    if chance(rng, 0.15):
        length = pick(rng, (None, 1, 2))
        if chance(rng, 0.25):
            return checkpointed(block_length=length, on_host=True)
        return checkpointed(count=pick(rng, (None, 0, 1, 2)), block_length=length)
    if chance(rng, 0.1):
        return clipped(norm=1e9)  # out of reach
    if chance(rng, 0.1):
        return parallel_adjoint(block_length=pick(rng, (None, 1, 3)))
    return bptt(
        block_length=pick(rng, (None, 1, 2, 3, 4)), recompute=pick(rng, (None, True, False))
    )


class Case(NamedTuple):
    """A composition's arguments, with NaN where they are not read, and without; its naive loop."""

    given: Given
    clean: Given
    naive: Naive


def _draw_case(composition: Composition, rng: Generator, params: PyTree, key: Any) -> Case:
    """Draw the numbers of a run but for its parameters and its key, in NumPy."""
    subject, steps = composition.setting.subject, composition.steps
    batch, names, dtype = composition.batch, composition.options, composition.dtype
    zeros = jax.eval_shape(lambda p: subject.initial_state(p, batch), params)
    xs = _inputs(rng, subject.input_spec, (steps, *batch), dtype)
    state = _drawn(rng, zeros) if "state" in names else None
    start = _drawn(rng, zeros) if "reset_state" in names else None
    point = Point(params, xs, state, start)

    given = {
        "lengths": np.asarray(rng.integers(0, steps + 1, batch, np.int32)),
        "resets": np.asarray(rng.random((steps, *batch)) < 0.3),
        "mask": np.asarray(rng.random((steps, *batch)) < 0.7),
    }
    options = {name: value for name, value in given.items() if name in names}
    rows = {name: in_rows(a, a.ndim - len(batch), len(batch)) for name, a in options.items()}
    every = np.ones((steps, int(np.prod(batch))), bool)
    within = every & (np.arange(steps)[:, None] < rows.get("lengths", steps))
    flags = Flags(within, rows.get("mask", every), rows.get("resets", ~every), batch)
    blank = jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), zeros)
    naive = Naive(subject.loop, flags, key, in_rows(blank, 0, len(batch)))

    outputs = _batched(imaginary.value(naive, _in_rows(point, len(batch))), batch)
    cotangents = Outputs(
        *(
            jax.tree.map(lambda a: _noise(rng, a, dtype), getattr(outputs, name))
            if name in composition.read
            else None
            for name in Outputs._fields
        )
    )
    tangents = jax.tree.map(lambda a: _noise(rng, a, dtype), point)
    if composition.way in SECOND:
        tangents = jax.tree.map(lambda a: np.asarray(NEARBY * a), tangents)
    clean = Given(point, options, key, cotangents, tangents)
    if "nan" not in names:
        return Case(clean, clean, naive)
    read = flags.read.reshape(steps, *batch)
    poisoned = jax.tree.map(lambda a: _unread(a, read), xs)
    return Case(clean._replace(point=point._replace(xs=poisoned)), clean, naive)


def _drawn(rng: Generator, specs: PyTree) -> PyTree:
    """Draw parameters or a state, so that nothing hides behind a zero; small integers."""

    def leaf(spec):
        if not trees.is_inexact(spec):
            return np.ones(spec.shape, spec.dtype)
        return np.asarray(0.7 * _noise(rng, spec, spec.dtype), spec.dtype)

    def positive(state):
        # What an sLSTM divides by has grown from one.
        return state._replace(n=1 + abs(state.n)) if isinstance(state, SLSTMState) else state

    drawn = jax.tree.map(leaf, specs)
    return jax.tree.map(positive, drawn, is_leaf=lambda a: isinstance(a, SLSTMState))


def _noise(rng: Generator, like: Any, dtype: Any) -> Any:
    """Draw normal numbers of a precision, complex ones for a complex leaf, None for integers."""
    if not trees.is_inexact(like):
        return None
    numbers = rng.normal(size=like.shape)
    if jnp.issubdtype(like.dtype, jnp.complexfloating):
        numbers = numbers + 1j * rng.normal(size=like.shape)
        return np.asarray(numbers, np.complex64 if jnp.finfo(dtype).bits == 32 else np.complex128)
    return np.asarray(numbers, jnp.finfo(dtype).dtype)


def _inputs(rng: Generator, spec: Any, leading: tuple[int, ...], dtype: Any) -> np.ndarray:
    shape = (*leading, *spec.shape)
    if trees.is_inexact(spec):
        return rng.normal(size=shape).astype(dtype)
    return rng.integers(0, spec.vocabulary_size, shape, np.int32)


def _unread(xs: np.ndarray, read: np.ndarray) -> np.ndarray:
    """Put NaN into inputs where they are not read."""
    if not trees.is_inexact(xs):
        return xs
    return np.where(
        read.reshape(*read.shape, *[1] * (xs.ndim - read.ndim)), xs, xs.dtype.type("nan")
    )


def _in_rows(point: Point, rank: int) -> Point:
    """Return a point whose batch axes are one."""
    return Point(
        *(
            tree if axis is None else in_rows(tree, axis, rank)
            for tree, axis in zip(point, BATCH_AXIS, strict=True)
        )
    )


def _batched(outputs: Outputs, batch: tuple[int, ...]) -> Outputs:
    return Outputs(in_batch(outputs.last_state, 0, batch), in_batch(outputs.ys, 1, batch))


def draw_numbers(
    composition: Composition, rng: Generator
) -> tuple[Given, Callable[[], dict[str, PyTree]]]:
    """Draw the arguments of a program.

    Args:
      composition: what the program is made of.
      rng: where chance comes from.

    Returns:
      The arguments, and a function that works out what the program is to return.
    """
    subject, lanes = composition.setting.subject, LANES if composition.way is programs.vmap else 1
    specs = jax.eval_shape(subject.init, jax.random.key(0))
    key = jax.random.key(int(rng.integers(2**31))) if "key" in composition.options else None
    shared = lanes == 1 or composition.setting.shared
    params = [_drawn(rng, specs)] * lanes if shared else [_drawn(rng, specs) for _ in range(lanes)]
    cases = [_draw_case(composition, rng, own, key) for own in params]
    if lanes == 1:
        return cases[0].given, lambda: _expected(composition, cases[0])

    given = _stacked([case.given._replace(key=None, tangents=None) for case in cases])
    if shared:
        given = given._replace(point=given.point._replace(params=params[0]))
    return given._replace(key=key), lambda: _stacked([_expected(composition, c) for c in cases])


def _stacked(lanes: list[Any]) -> Any:
    return jax.tree.map(lambda *leaves: np.stack(leaves), *lanes)


def _expected(composition: Composition, case: Case) -> dict[str, PyTree]:
    """Return what the program is to return, from the naive loop."""
    batch, (_, clean, naive) = composition.batch, case
    rank = len(batch)
    point, tangents = _in_rows(clean.point, rank), _in_rows(clean.tangents, rank)
    last_state, ys = clean.cotangents
    cotangents = Outputs(in_rows(last_state, 0, rank), in_rows(ys, 1, rank))

    def as_point(tree):
        return Point(
            *(
                part if axis is None else in_batch(part, axis, batch)
                for part, axis in zip(tree, BATCH_AXIS, strict=True)
            )
        )

    way = composition.way
    if way in SECOND:
        direction = numerics.leaves(tangents)
        found = imaginary.second(naive, point, cotangents, direction)
        return {"second": as_point(numerics.filled(point, found))}
    if way is programs.jvp:
        outputs = imaginary.value(naive, point)
        pushed = imaginary.pushforward(naive, point, tangents)
        return {"outputs": _batched(outputs, batch), "tangents": _batched(pushed, batch)}
    gradient = as_point(imaginary.gradient(naive, point, cotangents))
    if way is programs.by_hand:
        return {"gradient": gradient._replace(start=None)}
    return {
        "outputs": _batched(imaginary.value(naive, point), batch),
        "gradient": gradient,
    }
