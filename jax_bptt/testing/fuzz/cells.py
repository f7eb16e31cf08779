"""Random cells, each with its equations, for `jax_bptt.testing.fuzz`."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jax_bptt.cells.conv_lstm import conv_lstm
from jax_bptt.cells.ctrnn import ctrnn, ctrnn_euler
from jax_bptt.cells.elman import elman
from jax_bptt.cells.from_step import from_step
from jax_bptt.cells.gru import gru
from jax_bptt.cells.gru_reset_before import gru_reset_before
from jax_bptt.cells.indrnn import indrnn
from jax_bptt.cells.layer_norm_gru import layer_norm_gru
from jax_bptt.cells.layer_norm_lstm import layer_norm_lstm
from jax_bptt.cells.learned_state import learned_state
from jax_bptt.cells.lru import lru
from jax_bptt.cells.lstm import lstm
from jax_bptt.cells.lstm_peephole import lstm_peephole
from jax_bptt.cells.lstm_projected import lstm_projected
from jax_bptt.cells.mgu import mgu
from jax_bptt.cells.min_gru import min_gru
from jax_bptt.cells.min_lstm import min_lstm
from jax_bptt.cells.multi_head import multi_head
from jax_bptt.cells.reparametrized import low_rank, orthogonal, spectral_norm, weight_norm
from jax_bptt.cells.slstm import slstm
from jax_bptt.cells.ugrnn import ugrnn
from jax_bptt.cells.with_states import with_states
from jax_bptt.cells.wrappers import embedding
from jax_bptt.core.types import Cell, GatedStep
from jax_bptt.core.values import as_value
from jax_bptt.testing.fuzz import equations as equations
from jax_bptt.testing.fuzz.equations import Equations

Generator = np.random.Generator

WRAPPED = 0.3
"""How often a cell that can be wrapped is."""


class Traits(NamedTuple):
    """Properties of a cell, which decide what it can be combined with.

    Attributes:
      gated: whether its step is a `GatedStep` with a recurrent product.
      diagonal: whether its step is a `DiagonalStep`.
      square: whether its parameters have a w_s [H, G, H].
      prepares: whether it has a `prepare`.
      smooth: whether second derivatives can be had by differences: no kink, no steep norm.
    """

    gated: bool = True
    diagonal: bool = False
    square: bool = True
    prepares: bool = False
    smooth: bool = True


class Drawn(NamedTuple):
    """A cell with its equations and traits, and the size of its outputs, None if no vectors."""

    cell: Cell
    equations: Equations
    traits: Traits
    output_size: int | None


class _Row(NamedTuple):
    constructor: Callable[..., Cell]
    equations: Equations
    traits: Traits = Traits()
    settings: dict[str, Any] = {}


def pick(rng: Generator, choices: Any) -> Any:
    """Return one of several things, each as likely."""
    return choices[int(rng.integers(len(choices)))]


def chance(rng: Generator, probability: float) -> bool:
    """Return True with this probability."""
    return bool(rng.random() < probability)


ACTIVATIONS = (
    (jnp.tanh, np.tanh),
    (jnp.sin, np.sin),
    (jax.nn.softplus, equations.softplus),
    (jax.nn.relu, equations.relu),
)

FORGET_GATES = (
    (jax.nn.log_sigmoid, lambda a: -equations.softplus(-a)),
    (jnp.positive, lambda a: a),
)

_PLAIN = Traits(gated=False)
_LINEAR = Traits(gated=False, diagonal=True, square=False)


def _rows(rng: Generator) -> tuple[_Row, ...]:
    """Return a row for each of the library's cells on vectors, its settings drawn."""
    function, naive = pick(rng, ACTIVATIONS)
    forget_gate, log_f = pick(rng, FORGET_GATES)
    smooth = naive is not equations.relu
    time_step = pick(rng, (0.5, 1.0))
    leaky = Traits(prepares=True)
    return (
        _Row(elman, equations.elman(naive), Traits(smooth=smooth), dict(activation=function)),
        _Row(gru, equations.GRU),
        _Row(gru_reset_before, equations.GRU_RESET_BEFORE, _PLAIN),
        _Row(lstm, equations.LSTM),
        _Row(lstm_peephole, equations.LSTM_PEEPHOLE),
        _Row(
            lstm_projected,
            equations.LSTM_PROJECTED,
            Traits(gated=False, square=False),
            dict(projection_size=pick(rng, (1, 2, 5))),
        ),
        _Row(mgu, equations.MGU),
        _Row(ugrnn, equations.UGRNN),
        _Row(
            indrnn,
            equations.indrnn(naive),
            Traits(square=False, smooth=smooth),
            dict(activation=function),
        ),
        _Row(indrnn, equations.indrnn(lambda a: a), _LINEAR, dict(activation=None)),
        _Row(
            slstm,
            equations.slstm(log_f),
            Traits(smooth=False),
            dict(log_forget_gate=forget_gate),
        ),
        _Row(ctrnn, equations.ctrnn(time_step, False), leaky, dict(time_step=time_step)),
        _Row(ctrnn_euler, equations.ctrnn(time_step, True), leaky, dict(time_step=time_step)),
        _Row(lru, equations.LRU, _LINEAR),
        _Row(min_gru, equations.MIN_GRU, _LINEAR),
        _Row(min_lstm, equations.MIN_LSTM, _LINEAR),
        _Row(layer_norm_lstm, equations.LAYER_NORM_LSTM, Traits(gated=False, smooth=False)),
        _Row(layer_norm_gru, equations.LAYER_NORM_GRU, Traits(gated=False, smooth=False)),
    )


def draw_cell(rng: Generator, dtype: Any, input_size: int | None = None) -> Drawn:
    """Draw a cell on vectors, and what is wrapped around it.

    Args:
      rng: where chance comes from.
      dtype: of the parameters.
      input_size: I; drawn if None, and then the cell may as well take tokens.
    """
    diagonal = chance(rng, 0.15)  # a third more of those that `associative` takes
    rows = [row for row in _rows(rng) if row.traits.diagonal or not diagonal]
    row = pick(rng, rows)
    hidden, outputs = pick(rng, (1, 2, 3, 4)), pick(rng, (None, None, 2, 3))
    if row.constructor in (layer_norm_lstm, layer_norm_gru):
        hidden = 4  # the norm of fewer units is often near a point of no variance
    inputs = input_size or pick(rng, (1, 2, 3))
    cell = row.constructor(inputs, hidden, **row.settings, output_size=outputs, dtype=dtype)
    size = outputs or row.settings.get("projection_size", hidden)
    drawn = Drawn(cell, row.equations, row.traits, size)
    if row.traits.square and chance(rng, WRAPPED):
        drawn = _reparametrized(rng, drawn, hidden)
    if input_size is None and chance(rng, 0.1):
        drawn = _with_states(drawn)
    if input_size is None and chance(rng, 0.15):
        table = pick(rng, (2, 5))
        drawn = drawn._replace(
            cell=embedding(drawn.cell, vocabulary_size=table),
            equations=equations.embedding(drawn.equations),
        )
    if chance(rng, 0.15):
        drawn = drawn._replace(
            cell=learned_state(drawn.cell), equations=equations.learned_state(drawn.equations)
        )
    return drawn


def _with_states(drawn: Drawn) -> Drawn:
    """Return a cell with its states among its outputs, which are then no vectors."""
    own = drawn.equations

    def readout(p, s):
        return own.readout(p, s), s

    return drawn._replace(
        cell=with_states(drawn.cell), equations=own._replace(readout=readout), output_size=None
    )


def _reparametrized(rng: Generator, drawn: Drawn, hidden: int) -> Drawn:
    """Put another recurrent matrix into a cell, or one of one of another."""
    cell, own, traits, size = drawn
    if chance(rng, 0.3):
        cell = spectral_norm(cell)
        own, traits = equations.prepared(own, equations.spectral_norm), _prepared(traits)
    choices = ["low_rank", "orthogonal", "weight_norm"]
    if traits.gated and not traits.prepares:
        choices += ["multi_head", "multi_head"]
    match pick(rng, choices):
        case "low_rank":
            cell = low_rank(cell, rank=int(rng.integers(1, hidden + 1)))
            own, traits = equations.prepared(own, equations.low_rank), _prepared(traits)
        case "orthogonal":
            cell = orthogonal(cell)
            own, traits = equations.prepared(own, equations.orthogonal), _prepared(traits)
        case "weight_norm":
            cell = weight_norm(cell)
            own, traits = equations.prepared(own, equations.weight_norm), _prepared(traits)
        case "multi_head":
            cell = multi_head(cell, heads=pick(rng, [n for n in (1, 2, 4) if hidden % n == 0]))
            own = equations.prepared(own, equations.multi_head)
    return Drawn(cell, own, traits, size)


def _prepared(traits: Traits) -> Traits:
    return traits._replace(prepares=True)


def draw_other_cell(rng: Generator, dtype: Any) -> Drawn:
    """Draw a cell that stands alone: on images, or with states and outputs of a user's own."""
    return pick(rng, (_images, _counted, _two_speeds))(rng, dtype)


def _images(rng: Generator, dtype: Any) -> Drawn:
    cell = conv_lstm(
        pick(rng, (1, 2)),
        pick(rng, (1, 2)),
        image_shape=pick(rng, ((2, 3), (1, 2))),
        kernel_shape=pick(rng, ((2, 2), (3, 1))),
        output_size=pick(rng, (None, 1)),
        dtype=dtype,
    )
    return Drawn(cell, equations.CONV_LSTM, Traits(square=False), None)


class Counted(NamedTuple):
    """A state with an integer, the number of steps taken."""

    s: Any
    steps: Any


class CountedWeights(NamedTuple):
    """Matrices [H, H] and [I, H]."""

    w_s: Array
    w_x: Array


def _zeros(dtype: Any, *shapes: tuple[int, ...]) -> Callable:
    return lambda key: CountedWeights(*(jnp.zeros(shape, dtype) for shape in shapes))


@as_value
def counted(*, gated: bool, any_batch: bool, dtype: Any) -> Cell:
    """Return a cell whose state moves the less the more steps there have been."""

    def pointwise(w, state, drive, feedback):
        pace = 1 / (1 + state.steps.astype(drive.dtype))
        s = state.s + pace[..., None] * (jnp.tanh(drive + feedback) - state.s)
        return Counted(s, state.steps + 1)

    step = GatedStep(lambda w, state: state.s @ w.w_s, pointwise)
    return from_step(
        step if gated else lambda w, state, drive: step(w, state, drive),
        init=_zeros(dtype, (3, 3), (2, 3)),
        initial_state=lambda w, batch: Counted(
            jnp.zeros((*batch, 3), dtype), jnp.zeros(batch, jnp.int32)
        ),
        input_shape=(2,),
        project=lambda w, x: x @ w.w_x,
        readout=lambda w, state: state.s,
        any_batch=any_batch,
    )


def _counted(rng: Generator, dtype: Any) -> Drawn:
    def naive(p, state, x, h):
        pace = 1 / (1.0 + state.steps[..., None])
        moved = np.tanh(x @ p.w_x + h @ p.w_s)
        return Counted(pace * moved + (1 - pace) * state.s, state.steps + 1)

    gated = chance(rng, 0.5)
    cell = counted(gated=gated, any_batch=chance(rng, 0.5), dtype=dtype)
    own = Equations(naive, lambda s: s.s, lambda p, s: s.s)
    return Drawn(cell, own, Traits(gated=gated, square=False), None)


@as_value
def two_speeds(*, any_batch: bool, dtype: Any) -> Cell:
    """Return a cell with a plain step over dicts, one leaf of which has no units."""

    def step(w, state, x):
        fast = jnp.tanh(state["fast"] @ w.w_s + x @ w.w_x + state["slow"][..., None])
        return {"fast": fast, "slow": 0.5 * state["slow"] + (fast * fast).sum(-1)}

    return from_step(
        step,
        init=_zeros(dtype, (2, 2), (2, 2)),
        initial_state=lambda w, batch: {
            "fast": jnp.zeros((*batch, 2), dtype),
            "slow": jnp.zeros(batch, dtype),
        },
        input_shape=(2,),
        any_batch=any_batch,
    )


def _two_speeds(rng: Generator, dtype: Any) -> Drawn:
    def naive(p, state, x, h):
        fast = np.tanh(h @ p.w_s + x @ p.w_x + state["slow"][..., None])
        return {"fast": fast, "slow": 0.5 * state["slow"] + (fast**2).sum(-1)}

    cell = two_speeds(any_batch=chance(rng, 0.5), dtype=dtype)
    own = Equations(naive, lambda s: s["fast"], lambda p, s: s)
    return Drawn(cell, own, Traits(gated=False, square=False), None)
