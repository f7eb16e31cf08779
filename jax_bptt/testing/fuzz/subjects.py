"""Random cells and layers of the library with their loops, for `jax_bptt.testing.fuzz`."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jax_bptt.algorithms.unroll import unroll
from jax_bptt.core.types import Cell
from jax_bptt.layers.batch_major import batch_major
from jax_bptt.layers.dropout import dropout, variational_dropout
from jax_bptt.layers.layer import Layer, bidirectional, layer
from jax_bptt.layers.recurrent_dropout import recurrent_dropout, recurrent_dropout_per_step
from jax_bptt.layers.stack import residual, stack
from jax_bptt.layers.zoneout import zoneout
from jax_bptt.testing.fuzz import loops as loops
from jax_bptt.testing.fuzz.cells import Drawn, Traits, chance, draw_cell, draw_other_cell, pick
from jax_bptt.testing.fuzz.loops import Loop

Generator = np.random.Generator

RATES = 0.25, 0.5


class Subject(NamedTuple):
    """The subject of a draw: a cell or a layer, and the same as a loop in NumPy.

    Attributes:
      name: the calls that make it.
      run: `(params, xs, state, **options) -> (last_state, ys)`, of the library.
      init: `key -> params`.
      initial_state: `(params, batch_shape) -> state`.
      input_spec: describes an input.
      loop: the same in NumPy.
      traits: what can be done with it.
      cell: for a cell by itself; None for a layer.
      reverse: whether time runs backwards in all of it or in a part.
      random: whether it takes a key.
      batch_major: whether the batch leads.
    """

    name: str
    run: Callable[..., Any]
    init: Callable[..., Any]
    initial_state: Callable[..., Any]
    input_spec: Any
    loop: Loop
    traits: Traits
    cell: Cell | None = None
    reverse: bool = False
    random: bool = False
    batch_major: bool = False


class _Part(NamedTuple):
    """A layer on its way into a subject."""

    layer: Layer
    loop: Loop
    traits: Traits
    input_spec: Any
    output_size: int | None
    reverse: bool = False
    random: bool = False


def draw_subject(rng: Generator, dtype: Any) -> Subject:
    """Draw a cell by itself, half of the time, or a layer."""
    if chance(rng, 0.5):
        drawn = draw_other_cell(rng, dtype) if chance(rng, 0.15) else draw_cell(rng, dtype)
        return _by_itself(rng, drawn)
    part = pick(rng, (_around_cell, _both_ways, _stacked, _stacked))(rng, dtype, None)
    swapped = chance(rng, 0.2)
    whole = batch_major(part.layer) if swapped else part.layer
    return Subject(
        name=repr(whole),
        run=whole.apply,
        init=whole.init,
        initial_state=whole.initial_state,
        input_spec=part.input_spec,
        loop=part.loop,
        traits=part.traits,
        reverse=part.reverse,
        random=part.random,
        batch_major=swapped,
    )


def _by_itself(rng: Generator, drawn: Drawn) -> Subject:
    cell, reverse, swapped = drawn.cell, chance(rng, 0.3), chance(rng, 0.1)
    run = partial(unroll, cell)
    return Subject(
        name=f"batch_major(unroll) of {cell!r}" if swapped else repr(cell),
        run=batch_major(run) if swapped else run,
        init=cell.init,
        initial_state=cell.initial_state,
        input_spec=cell.input_spec,
        loop=loops.cell_loop(drawn.equations, reverse),
        traits=drawn.traits,
        cell=cell,
        reverse=reverse,
        batch_major=swapped,
    )


def _around_cell(
    rng: Generator, dtype: Any, input_size: int | None, *, one_way: bool = False
) -> _Part:
    """A layer of one cell, with or without chance, in either direction or forwards."""
    if input_size is None and chance(rng, 0.1):
        drawn = draw_other_cell(rng, dtype)
    else:
        drawn = draw_cell(rng, dtype, input_size)
    cell, own, traits, size = drawn
    reverse, rate = not one_way and chance(rng, 0.3), pick(rng, RATES)
    kinds = ["plain", "plain", "zoneout"] + 2 * ["dropout"] * traits.gated
    match pick(rng, kinds):
        case "zoneout":
            made = zoneout(cell, rate=rate, reverse=reverse)
            loop = loops.zoneout_loop(own, rate, reverse)
        case "dropout":
            per_step = chance(rng, 0.5)
            wrap = recurrent_dropout_per_step if per_step else recurrent_dropout
            made = wrap(cell, rate=rate, reverse=reverse)
            loop = loops.recurrent_dropout_loop(own, loops.Drop(rate, per_step), reverse)
        case _:
            made, loop = layer(cell, reverse=reverse), loops.layer_loop(own, reverse)
            return _Part(made, loop, traits, cell.input_spec, size, reverse)
    return _Part(made, loop, traits, cell.input_spec, size, reverse, random=True)


def _both_ways(rng: Generator, dtype: Any, input_size: int | None) -> _Part:
    """Two cells on the same inputs, or two layers."""
    inputs = input_size or pick(rng, (2, 3))
    if chance(rng, 0.3):
        one, other = (_around_cell(rng, dtype, inputs, one_way=True) for _ in range(2))
        made = bidirectional(one.layer, other.layer)
        loop = loops.bidirectional_loop(one.loop, loops.turned_loop(other.loop))
        spec, random = one.input_spec, one.random or other.random
    else:
        one, other = (draw_cell(rng, dtype, inputs) for _ in range(2))
        made = bidirectional(one.cell, other.cell)
        loop = loops.bidirectional_loop(
            loops.layer_loop(one.equations, False), loops.layer_loop(other.equations, True)
        )
        spec, random = one.cell.input_spec, False
    assert one.output_size is not None and other.output_size is not None
    size = one.output_size + other.output_size
    return _Part(made, loop, _common(one.traits, other.traits), spec, size, True, random)


def _stacked(rng: Generator, dtype: Any, input_size: int | None) -> _Part:
    """Layers on top of one another, with dropouts before, between and behind."""
    size = input_size or pick(rng, (2, 3))
    parts = [_dropped(rng, size)] * chance(rng, 0.2)
    parts.append(_inner(rng, dtype, size))
    while len(parts) < 2 or (len(parts) < 3 and chance(rng, 0.3)):
        size = parts[-1].output_size
        parts.append(_dropped(rng, size) if chance(rng, 0.25) else _inner(rng, dtype, size))
    made = stack(*(part.layer for part in parts))
    traits = parts[0].traits
    for part in parts[1:]:
        traits = _common(traits, part.traits)
    return _Part(
        made,
        loops.stack_loop(*(part.loop for part in parts)),
        traits,
        parts[0].input_spec,
        parts[-1].output_size,
        any(part.reverse for part in parts),
        any(part.random for part in parts),
    )


def _inner(rng: Generator, dtype: Any, input_size: int | None) -> _Part:
    """A layer of a stack, around cells."""
    if chance(rng, 0.15):
        return _both_ways(rng, dtype, input_size)
    part = _around_cell(rng, dtype, input_size)
    if part.output_size == input_size:
        made, loop = residual(part.layer), loops.residual_loop(part.loop)
        return part._replace(layer=made, loop=loop)
    return part


def _dropped(rng: Generator, size: int | None) -> _Part:
    made = pick(rng, (dropout, variational_dropout))(rate=pick(rng, RATES))

    def masks(key, shape):
        return made.apply((), jnp.ones(shape), key=key)[1]

    spec = jax.ShapeDtypeStruct((size,), jnp.float32)
    diagonal = Traits(gated=False, diagonal=True)
    return _Part(made, loops.dropout_loop(masks), diagonal, spec, size, random=True)


def _common(a: Traits, b: Traits) -> Traits:
    """Return the traits of what is made of both."""
    return Traits(*(x and y for x, y in zip(a, b, strict=True)))
