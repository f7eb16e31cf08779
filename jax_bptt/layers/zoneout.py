"""Zoneout: at every step some units keep the state they had."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jax_bptt.algorithms import argument_checks, option_checks
from jax_bptt.core import checks, trees
from jax_bptt.core.types import Cell, DiagonalStep, GatedStep, PyTree
from jax_bptt.core.values import as_value
from jax_bptt.layers.layer import Layer, check_cell, check_reverse, layer
from jax_bptt.layers.masks import (
    MISSING,
    Masked,
    check_key,
    check_rate,
    draw,
    inexact,
    without_batch,
)


@as_value
def zoneout(cell: Cell, *, rate: float, reverse: bool = False) -> Layer:
    """Return the layer that runs `cell` with zoneout.

        s_t = m_t s_{t-1} + (1 - m_t) step(s_{t-1}, x_t)        m_t in {0, 1}, one with `rate`

    A mask is drawn for every step, sequence, unit and floating-point leaf of the state (an LSTM's
    h and c have their own). `apply` needs a key; with `key=None` the masks are at their
    expectation, m_t = rate. Params and state are the cell's own; a `GatedStep` or `DiagonalStep`
    stays one. The masks come with the inputs, a byte for every unit and step.

    Args:
      cell: a `Cell`.
      rate: the part of the units that keep their state, in [0, 1).
      reverse: whether time runs backwards, as in `layer`.

    Returns:
      A `Layer`.

    Raises:
      TypeError: `cell` is no cell, or `reverse` no boolean; in `apply`, the key is left out.
      ValueError: the rate is no number in [0, 1).

    References:
      D. Krueger et al. (2017), "Zoneout: regularizing RNNs by randomly preserving hidden
      activations", ICLR.

    Example:
      >>> import jax, jax.numpy as jnp, jax_bptt as jb
      >>> layer = jb.zoneout(jb.gru(input_size=3, hidden_size=5), rate=0.1)
      >>> params = layer.init(jax.random.key(0))
      >>> layer.apply(params, jnp.ones((7, 2, 3)), key=jax.random.key(1))[1].shape
      (7, 2, 5)
    """
    check_cell("zoneout", cell)
    check_reverse("zoneout", reverse)
    rate = check_rate("zoneout", rate)
    plain = layer(cell, reverse=reverse)

    def apply(params, xs, state=None, *, key=MISSING, **options):
        option_checks.named("zoneout", options)
        key = check_key("zoneout", key)
        params, xs, state = argument_checks.inputs("zoneout", cell, params, xs, state)
        floating = inexact(argument_checks.state_spec(cell, params, xs))
        spec = without_batch(floating, checks.batch_shape(cell, xs))
        if key is None:
            drawn, zoned = (), _zoned(cell, spec, rate)
        else:
            drawn = draw(key, rate, floating, jax.tree.leaves(xs)[0].shape[:1])
            zoned = _zoned(cell, spec, None)
        zoned = layer(zoned, reverse=reverse)
        return zoned.apply(params, Masked(xs, drawn), state, **options)

    return plain._replace(apply=apply)


@as_value
def _zoned(cell: Cell, spec: PyTree, rate: float | None) -> Cell:
    """Return `cell` on inputs `Masked`, whose step blends the old state into the new one.

    Args:
      cell: any cell.
      spec: describes the mask of one step, as in `Cell.input_spec`.
      rate: what to blend with, and then no masks come with the inputs; None for those masks.
    """
    expected = jax.tree.map(lambda _: rate, spec)
    spec = spec if rate is None else ()

    def masks(mask):
        return mask if rate is None else expected

    step = cell.step
    if isinstance(step, GatedStep):
        zoned = _gated(step, masks)
    elif isinstance(step, DiagonalStep):

        def coefficients(weights, drive):
            a, b = step.coefficients(weights, drive.value)
            m = masks(drive.mask)
            return _blend(m, jax.tree.map(jnp.ones_like, a), a), _blend(m, _zeros(b), b)

        zoned = DiagonalStep(coefficients)
    else:

        def zoned(weights, state, drive):
            return _blend(masks(drive.mask), state, step(weights, state, drive.value))

    return cell._replace(
        step=zoned,
        project=lambda weights, x: Masked(cell.project(weights, x.value), x.mask),
        input_spec=Masked(cell.input_spec, spec),
    )


def _gated(step: GatedStep, masks: Callable[[PyTree], PyTree]) -> GatedStep:
    """Blending acts unit by unit, so that a gated step stays one.

    With m the mask and ds = dL/ds_t, the step is met by (1 - m) ds and s_{t-1} by m ds besides.
    What the step's own pair takes for the new state is the one before blending.
    """

    def pointwise(weights, state, drive, feedback):
        moved = step.pointwise(weights, state, drive.value, feedback)
        return _blend(masks(drive.mask), state, moved)

    zoned = GatedStep(step.mix, pointwise, heads=step.heads)
    if step.pointwise_fwd is None or step.pointwise_bwd is None:
        return zoned
    fwd, bwd = step.pointwise_fwd, step.pointwise_bwd

    def pointwise_fwd(weights, state, drive, feedback, new_state):
        moved = step.pointwise(weights, state, drive.value, feedback)
        return drive.mask, fwd(weights, state, drive.value, feedback, moved)

    def pointwise_bwd(residuals, d_state):
        mask, inner = residuals
        m, zeros = masks(mask), _zeros(d_state)
        d_prev, d_drive, d_feedback = bwd(inner, _blend(m, zeros, d_state))
        no_gradient = jax.tree.map(lambda _: None, mask)
        d_prev = trees.add(d_prev, _blend(m, d_state, zeros))
        return d_prev, Masked(d_drive, no_gradient), d_feedback

    return zoned._replace(pointwise_fwd=pointwise_fwd, pointwise_bwd=pointwise_bwd)


def _blend(masks: PyTree, held: PyTree, moved: PyTree) -> PyTree:
    """Return m `held` + (1 - m) `moved`; `moved` at leaves without a mask."""

    def leaf(m, held, moved):
        if m is None:
            return moved
        if isinstance(m, float):
            return m * held + (1 - m) * moved
        return jnp.where(m, held, moved)

    return jax.tree.map(leaf, masks, held, moved, is_leaf=lambda m: m is None)


def _zeros(tree: PyTree) -> PyTree:
    return jax.tree.map(jnp.zeros_like, tree)
