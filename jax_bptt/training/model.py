"""A network as a stack of cells, each of which reads the outputs of the one below."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax

from jax_bptt.algorithms.unroll import unroll
from jax_bptt.core.types import Algorithm, Cell, PyTree


class Model(NamedTuple):
    """A network as pure functions; parameters and state are tuples with one entry a layer.

    Attributes:
      init: `key -> params`.
      initial_state: `(params, batch_shape) -> state`.
      apply: `(params, xs, state) -> (last_state, ys)`, over xs [T, *batch, ...].
    """

    init: Callable[..., tuple[PyTree, ...]]
    initial_state: Callable[..., tuple[PyTree, ...]]
    apply: Callable[..., tuple[tuple[PyTree, ...], PyTree]]


def layers(
    constructor: Callable[..., Cell],
    *,
    input_size: int,
    hidden_size: int,
    output_size: int,
    depth: int = 1,
) -> list[Cell]:
    """Return `depth` cells that fit on one another, the last with a readout.

    Args:
      constructor: a cell constructor of the library, such as `lstm`.
      input_size: I of the first cell; the others read H.
      hidden_size: H of every cell.
      output_size: O of the last one's readout.
      depth: the number of cells, at least 1.
    """
    inputs = [input_size] + [hidden_size] * (depth - 1)
    outputs = [None] * (depth - 1) + [output_size]
    return [
        constructor(input_size=i, hidden_size=hidden_size, output_size=o)
        for i, o in zip(inputs, outputs, strict=True)
    ]


def stack(cells: Sequence[Cell], *, algorithm: Algorithm | None = None) -> Model:
    """Return the network in which cell k + 1 reads the outputs of cell k.

    Each layer runs over the whole sequence before the next begins, so that a layer's input
    products are one product over time.

    Args:
      cells: from the input up.
      algorithm: how each layer's gradient is computed; `unroll`'s default if None.

    Example:
      >>> import jax, jax.numpy as jnp, jax_bptt as jb
      >>> from jax_bptt.training.model import layers, stack
      >>> model = stack(layers(jb.gru, input_size=3, hidden_size=8, output_size=2, depth=2))
      >>> params = model.init(jax.random.key(0))
      >>> state = model.initial_state(params, (4,))
      >>> model.apply(params, jnp.ones((5, 4, 3)), state)[1].shape
      (5, 4, 2)
    """

    def init(key):
        keys = jax.random.split(key, len(cells))
        return tuple(cell.init(k) for cell, k in zip(cells, keys, strict=True))

    def initial_state(params, batch_shape):
        return tuple(
            cell.initial_state(p, batch_shape) for cell, p in zip(cells, params, strict=True)
        )

    def apply(params, xs, state):
        last_states = []
        for cell, p, s in zip(cells, params, state, strict=True):
            last_state, xs = unroll(cell, p, xs, s, algorithm=algorithm)
            last_states.append(last_state)
        return tuple(last_states), xs

    return Model(init, initial_state, apply)
