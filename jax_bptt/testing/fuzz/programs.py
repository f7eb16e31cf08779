"""Programs of a draw: the outputs of the library and a derivative, by one of several ways."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jax_bptt.algorithms.step import step
from jax_bptt.algorithms.unroll import bptt_gradients
from jax_bptt.core import trees
from jax_bptt.core.types import Algorithm
from jax_bptt.testing.fuzz.imaginary import Point
from jax_bptt.testing.fuzz.subjects import Subject
from jax_bptt.testing.subject import Outputs

PyTree = Any


class Given(NamedTuple):
    """The arguments of a program.

    Attributes:
      point: of the run.
      options: those of lengths [*batch], resets and mask [T, *batch] that there are, by name.
      key: of chance, or None.
      cotangents: of the outputs, None at those that the loss does not read.
      tangents: of the point, None at leaves without any.
    """

    point: Point
    options: dict[str, Any]
    key: Any
    cotangents: Outputs
    tangents: Point


class Setting(NamedTuple):
    """Static arguments of a program.

    Attributes:
      subject: what is run.
      algorithm: how, or None for the default.
      cut: where windows meet.
      shared: whether the lanes of a `vmap` share the parameters.
    """

    subject: Subject
    algorithm: Algorithm | None
    cut: int
    shared: bool


Run = Callable[[Point, dict[str, Any], Any], Outputs]
Program = Callable[[Given], dict[str, PyTree]]


def _run(setting: Setting, point: Point, options: dict[str, Any], key: Any) -> Outputs:
    subject = setting.subject
    params, xs, state, start = point
    more = dict(options) if start is None else options | {"reset_state": start}
    if setting.algorithm is not None:
        more["algorithm"] = setting.algorithm
    if subject.cell is not None:
        more["reverse"] = subject.reverse
    elif subject.random:
        more["key"] = key
    if subject.batch_major:
        swapped = {k: jnp.swapaxes(more[k], 0, 1) for k in ("resets", "mask") if k in more}
        last_state, ys = subject.run(params, _swapped(xs), state, **more | swapped)
        return Outputs(last_state, _swapped(ys))
    return Outputs(*subject.run(params, xs, state, **more))


def _swapped(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda a: jnp.swapaxes(a, 0, 1), tree)


def _loss(outputs: PyTree, cotangents: PyTree) -> Array:
    """Return Re sum c y over the cotangents that are not None."""
    leaves, structure = jax.tree.flatten(cotangents, is_leaf=lambda c: c is None)
    pairs = zip(leaves, structure.flatten_up_to(outputs), strict=True)
    first, *others = (jnp.sum(c * y).real for c, y in pairs if c is not None)
    return sum(others, start=first)


def _gradient_of(run: Run, given: Given) -> Callable[[Point], tuple[Point, Outputs]]:
    """Return `inexact leaves of a point -> (gradient, outputs)`."""
    _, rest = trees.partition(given.point)

    def loss(inexact):
        outputs = run(trees.combine(inexact, rest), given.options, given.key)
        return _loss(outputs, given.cotangents), outputs

    return jax.grad(loss, has_aux=True)


def grad(setting: Setting) -> Program:
    """`jax.grad`."""
    return _grad(partial(_run, setting))


def _grad(run: Run) -> Program:
    def program(given):
        found, outputs = _gradient_of(run, given)(trees.partition(given.point)[0])
        return {"outputs": outputs, "gradient": found}

    return program


def checkpoint(setting: Setting) -> Program:
    """`jax.grad` through `jax.checkpoint`."""
    return _grad(jax.checkpoint(partial(_run, setting)))


def by_hand(setting: Setting) -> Program:
    """`bptt_gradients`, of a cell."""
    cell = setting.subject.cell
    assert cell is not None

    def program(given):
        params, xs, state, start = given.point
        options = dict(given.options) if start is None else given.options | {"reset_state": start}
        found = bptt_gradients(
            cell,
            params,
            xs,
            state,
            given.cotangents.ys,
            given.cotangents.last_state,
            algorithm=setting.algorithm,
            reverse=setting.subject.reverse,
            **options,
        )
        return {"gradient": Point(*found) if state is not None else Point(*found[:2])}

    return program


def jvp(setting: Setting) -> Program:
    """`jax.jvp`."""

    def program(given):
        inexact, rest = trees.partition(given.point)

        def run(inexact):
            point = trees.combine(inexact, rest)
            return trees.partition(_run(setting, point, given.options, given.key))

        outputs, pushed, others = jax.jvp(run, (inexact,), (given.tangents,), has_aux=True)
        return {"outputs": trees.combine(outputs, others), "tangents": pushed}

    return program


def forward_over_reverse(setting: Setting) -> Program:
    """`jax.jvp` of `jax.grad`."""

    def program(given):
        gradient = _gradient_of(partial(_run, setting), given)
        inexact, _ = trees.partition(given.point)
        found = jax.jvp(lambda point: gradient(point)[0], (inexact,), (given.tangents,))
        return {"second": found[1]}

    return program


def reverse_over_reverse(setting: Setting) -> Program:
    """`jax.grad` of a product with `jax.grad`."""

    def program(given):
        gradient = _gradient_of(partial(_run, setting), given)
        inexact, _ = trees.partition(given.point)
        return {"second": jax.grad(lambda p: _loss(gradient(p)[0], given.tangents))(inexact)}

    return program


def vmap(setting: Setting) -> Program:
    """`jax.vmap` of `jax.grad`, over lanes that share the parameters or do not."""
    params = None if setting.shared else 0
    axes = Given(Point(params, 0, 0, 0), 0, None, 0, None)  # pyright: ignore[reportArgumentType]
    return jax.vmap(grad(setting), in_axes=(axes,))


def windows(setting: Setting) -> Program:
    """`jax.grad` through two windows, of which the later carries on with the state."""

    def run(point, options, key):
        steps = jax.tree.leaves(point.xs)[0].shape[0]
        parts = [slice(0, setting.cut), slice(setting.cut, steps)]
        state, ys = point.state, {}
        for part in reversed(parts) if setting.subject.reverse else parts:
            own = point._replace(xs=jax.tree.map(lambda a, p=part: a[p], point.xs), state=state)
            state, ys[part.start, part.stop] = _run(setting, own, _window(options, part), key)
        pieces = [ys[part.start, part.stop] for part in parts]
        return Outputs(state, jax.tree.map(lambda *y: jnp.concatenate(y), *pieces))

    return _grad(run)


def _window(options: dict[str, Any], part: slice) -> dict[str, Any]:
    """Return the options of a window; what a sequence has left of its length is at most all."""
    own = {name: flags[part] for name, flags in options.items() if name != "lengths"}
    if "lengths" in options:
        own["lengths"] = jnp.clip(options["lengths"] - part.start, 0, part.stop - part.start)
    return own


def steps(setting: Setting) -> Program:
    """`jax.grad` through single steps of a cell, without options."""
    cell = setting.subject.cell
    assert cell is not None

    def run(point, options, key):
        state, ys = point.state, []
        for t in range(jax.tree.leaves(point.xs)[0].shape[0]):
            x = jax.tree.map(lambda a, t=t: a[t], point.xs)
            state, y = step(cell, point.params, state, x)
            ys.append(y)
        return Outputs(state, jax.tree.map(lambda *y: jnp.stack(y), *ys))

    return _grad(run)
