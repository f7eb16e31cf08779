"""Dropout on the recurrent connections: one mask for a whole sequence, or one for every step."""

import jax
import jax.numpy as jnp

from jax_bptt.algorithms import argument_checks, option_checks
from jax_bptt.core import checks, jaxprs, trees
from jax_bptt.core.types import Cell, GatedStep, PyTree
from jax_bptt.core.values import as_value
from jax_bptt.layers.layer import Layer, check_cell, check_reverse, layer
from jax_bptt.layers.masks import MISSING, Masked, check_key, check_rate, draw, drop, without_batch


@as_value
def recurrent_dropout(cell: Cell, *, rate: float, reverse: bool = False) -> Layer:
    """Return the layer that runs `cell` with dropout on its recurrent product, one mask a sequence.

        s_t = pointwise(s_{t-1}, drive_t, mix(m s_{t-1} / (1 - rate)))        m in {0, 1}

    What enters the product is dropped, the same units at every step, and after `resets` too; what
    a gate carries over within a unit is not. `apply` needs a key; with `key=None` the layer is
    `layer(cell)`. Params and state are the cell's own. The mask travels with the state, a byte for
    every unit and step, and the cell stays a `GatedStep`.

    Args:
      cell: a `Cell` whose step is a `GatedStep` with a recurrent product.
      rate: the part of the units that is dropped, in [0, 1).
      reverse: whether time runs backwards, as in `layer`.

    Returns:
      A `Layer`.

    Raises:
      TypeError: `cell` is no cell with a `GatedStep`, or `reverse` no boolean; in `apply`, the key
        is left out.
      ValueError: the rate is no number in [0, 1), or the cell's product reads no state.

    References:
      Y. Gal and Z. Ghahramani (2016), "A theoretically grounded application of dropout in recurrent
      neural networks", NeurIPS.

    Example:
      >>> import jax, jax.numpy as jnp, jax_bptt as jb
      >>> layer = jb.recurrent_dropout(jb.lstm(input_size=3, hidden_size=5), rate=0.3)
      >>> params = layer.init(jax.random.key(0))
      >>> last_state, _ = layer.apply(params, jnp.ones((7, 2, 3)), key=jax.random.key(1))
      >>> last_state.h.shape
      (2, 5)
    """
    name = "recurrent_dropout"
    _check(name, cell, reverse)
    rate = check_rate(name, rate)
    plain = layer(cell, reverse=reverse)

    def apply(params, xs, state=None, *, key=MISSING, resets=None, reset_state=None, **options):
        option_checks.named(name, options)
        given = {"resets": resets, "reset_state": reset_state}
        if check_key(name, key) is None:
            return plain.apply(params, xs, state, **given, **options)
        params, xs, state = argument_checks.inputs(name, cell, params, xs, state)
        expected = argument_checks.state_spec(cell, params, xs)
        argument_checks.given_state(name, "reset_state", cell, xs, reset_state, expected)
        mixed = _mixed(name, cell, params, xs)
        masks = draw(key, 1 - rate, mixed)
        own = cell.initial_state(params, checks.batch_shape(cell, xs))
        if resets is not None:
            # A reset goes back to another state, and keeps the mask.
            given["reset_state"] = Masked(own if reset_state is None else reset_state, masks)
        start = Masked(own if state is None else state, masks)
        masked = layer(_masked_state(cell, rate, mixed), reverse=reverse)
        last_state, ys = masked.apply(params, xs, start, **given, **options)
        return last_state.value, ys

    return plain._replace(apply=apply)


@as_value
def recurrent_dropout_per_step(cell: Cell, *, rate: float, reverse: bool = False) -> Layer:
    """Return the layer that runs `cell` with dropout on its recurrent product, a mask every step.

        s_t = pointwise(s_{t-1}, drive_t, mix(m_t s_{t-1} / (1 - rate)))        m_t in {0, 1}

    As `recurrent_dropout`, but with masks that are drawn afresh for every step and sequence: more
    noise, and none that lasts. The masks come with the inputs, a byte for every unit and step. A
    product that depends on more than the state is no `mix`, so this runs as a plain step, with
    the slower reverse pass.

    Args:
      cell: a `Cell` whose step is a `GatedStep` with a recurrent product.
      rate: the part of the units that is dropped, in [0, 1).
      reverse: whether time runs backwards, as in `layer`.

    Returns:
      A `Layer`.

    Raises:
      TypeError: `cell` is no cell with a `GatedStep`, or `reverse` no boolean; in `apply`, the key
        is left out.
      ValueError: the rate is no number in [0, 1), or the cell's product reads no state.

    References:
      S. Semeniuta, A. Severyn and E. Barth (2016), "Recurrent dropout without memory loss", COLING,
      compare masks of both kinds, there on the candidate of the cell state.

    Example:
      >>> import jax, jax.numpy as jnp, jax_bptt as jb
      >>> layer = jb.recurrent_dropout_per_step(jb.gru(input_size=3, hidden_size=5), rate=0.3)
      >>> params = layer.init(jax.random.key(0))
      >>> layer.apply(params, jnp.ones((7, 2, 3)), key=jax.random.key(1))[1].shape
      (7, 2, 5)
    """
    name = "recurrent_dropout_per_step"
    _check(name, cell, reverse)
    rate = check_rate(name, rate)
    plain = layer(cell, reverse=reverse)

    def apply(params, xs, state=None, *, key=MISSING, **options):
        option_checks.named(name, options)
        if check_key(name, key) is None:
            return plain.apply(params, xs, state, **options)
        params, xs, state = argument_checks.inputs(name, cell, params, xs, state)
        mixed = _mixed(name, cell, params, xs)
        steps = jax.tree.leaves(xs)[0].shape[0]
        inputs = Masked(xs, draw(key, 1 - rate, mixed, (steps,)))
        spec = without_batch(mixed, checks.batch_shape(cell, xs))
        masked = layer(_masked_input(cell, rate, spec), reverse=reverse)
        return masked.apply(params, inputs, state, **options)

    return plain._replace(apply=apply)


def _check(function: str, cell: Cell, reverse: bool) -> None:
    check_cell(function, cell)
    check_reverse(function, reverse)
    checks.require(
        isinstance(cell.step, GatedStep),
        f"{function}: the cell's step must be a GatedStep, whose `mix` says what the recurrent "
        "product reads. For a plain step take jb.zoneout, or drop the state inside the step.",
        TypeError,
    )


def _mixed(function: str, cell: Cell, params: PyTree, xs: PyTree) -> PyTree:
    """Describe the masks of what the recurrent product reads of the state, None at other leaves."""
    assert isinstance(cell.step, GatedStep)
    state, weights = argument_checks.state_spec(cell, params, xs), cell.prepare(params)
    read = jaxprs.used_leaves(cell.step.mix, weights, state)[1]
    mixed = jax.tree.map(
        lambda s, used: (
            jax.ShapeDtypeStruct(s.shape, jnp.bool_) if used and trees.is_inexact(s) else None
        ),
        state,
        read,
    )
    checks.require(
        len(jax.tree.leaves(mixed)) > 0,
        f"{function}: the cell has no recurrent product, its `mix` reads no floating-point state, "
        "so there is nothing to drop. Take jb.zoneout.",
    )
    return mixed


@as_value
def _masked_state(cell: Cell, rate: float, mixed: PyTree) -> Cell:
    """Return `cell` on states `Masked`, whose mask stays the same and thins what `mix` reads.

    The mask is a constant of the state, so that `mix` is as linear in the state as before, and
    every function within a unit is that of the cell.
    """
    step = cell.step
    assert isinstance(step, GatedStep)

    def initial_state(params, batch_shape):
        state = cell.initial_state(params, batch_shape)
        keep = jax.tree.map(
            lambda m, s: None if m is None else jnp.ones(s.shape, jnp.bool_),
            mixed,
            state,
            is_leaf=lambda m: m is None,
        )
        return Masked(state, keep)

    def mix(weights, state):
        return step.mix(weights, drop(state.value, state.mask, rate))

    def pointwise(weights, state, drive, feedback):
        return state._replace(value=step.pointwise(weights, state.value, drive, feedback))

    masked = GatedStep(mix, pointwise, heads=step.heads)
    if step.pointwise_fwd is not None and step.pointwise_bwd is not None:
        fwd, bwd = step.pointwise_fwd, step.pointwise_bwd

        def pointwise_fwd(weights, state, drive, feedback, new_state):
            return fwd(weights, state.value, drive, feedback, new_state.value)

        def pointwise_bwd(residuals, d_state):
            d_value, d_drive, d_feedback = bwd(residuals, d_state.value)
            return d_state._replace(value=d_value), d_drive, d_feedback

        masked = masked._replace(pointwise_fwd=pointwise_fwd, pointwise_bwd=pointwise_bwd)
    return cell._replace(
        initial_state=initial_state,
        step=masked,
        readout=lambda weights, state: cell.readout(weights, state.value),
    )


@as_value
def _masked_input(cell: Cell, rate: float, spec: PyTree) -> Cell:
    """Return `cell` on inputs `Masked`, each with the mask of what `mix` reads at that step."""
    step = cell.step
    assert isinstance(step, GatedStep)

    def masked(weights, state, drive):
        feedback = step.mix(weights, drop(state, drive.mask, rate))
        return step.pointwise(weights, state, drive.value, feedback)

    return cell._replace(
        step=masked,
        project=lambda weights, x: Masked(cell.project(weights, x.value), x.mask),
        input_spec=Masked(cell.input_spec, spec),
    )
