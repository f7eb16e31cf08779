"""How much of the time the gates of a cell are at either end of their range."""

import numbers
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jax_bptt.algorithms.unroll import compiled_once
from jax_bptt.core.checks import batch_shape, require, shown
from jax_bptt.core.forward import entering, over_time
from jax_bptt.core.types import Cell, Inputs, PyTree
from jax_bptt.diagnostics import activations
from jax_bptt.diagnostics.trajectory import Trajectory


class Saturation(NamedTuple):
    """Share of the steps, of all sequences, in which a gate is saturated, by gate and unit.

    Attributes:
      low: name of the gate to shares [..., H] at the lower end: closed, or near -1 for a tanh.
      high: the same at the upper end: open, or near 1.
    """

    low: dict[str, Array]
    high: dict[str, Array]


def saturation(run: Trajectory, *, margin: float = 0.1) -> Saturation:
    """Return how often each gate of each unit is saturated.

    A gate is a tanh or logistic function in the step of a cell, called by the name of the
    pre-activation that it is a function of (`Cell.gates`); where a cell names no gates, by that of
    the function, "tanh", "tanh 2", "logistic". Within `margin` of an end its slope is at most
    4 margin (1 - margin) of the largest, and so is what a gradient keeps that passes through it:
    0.36 by default. Gates of another kind, such as relu or exp, have no ends and are left out.

    Steps that `lengths` or `mask` leave out do not count. It works inside `jax.jit`.

    Args:
      run: of T steps.
      margin: the share of the range at either end that counts as saturated, between 0 and 0.5.

    Raises:
      ValueError: the margin is out of range, or the step of the cell has no such gate.

    References:
      A. Karpathy, J. Johnson and L. Fei-Fei (2016), "Visualizing and understanding recurrent
      networks", ICLR workshop, who count gates below 0.1 and above 0.9.

    Example:
      >>> import jax, jax.numpy as jnp, jax_bptt as jb
      >>> cell = jb.lstm(input_size=3, hidden_size=4, forget_bias=5.0)
      >>> params, xs = cell.init(jax.random.key(0)), jnp.ones((20, 2, 3))
      >>> found = jb.diagnostics.saturation(jb.diagnostics.trajectory(cell, params, xs))
      >>> list(found.high), found.high["f"]
      (['i', 'f', 'g', 'o'], Array([1., 1., 1., 1.], dtype=float32))
    """
    name = "saturation"
    require(
        isinstance(margin, numbers.Real) and 0 < margin < 0.5,
        f"{name}: margin must be a share of the range between 0 and 0.5, got {shown(margin)}",
    )
    inputs = run.inputs
    one = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), inputs.xs)
    drive = jax.eval_shape(run.runs.project, inputs.weights, one)
    found = activations.find(run.runs, inputs.weights, inputs.state, drive)
    gates = f" of the gates {run.cell.gates}" if run.cell.gates else ""
    require(
        bool(found),
        f"{name}: the step of this cell has no tanh or logistic function{gates} that its state "
        "depends on, and others have no ends. Look at run.states, or at a cell with such gates.",
    )
    shares = compiled_once(_saturation, run.runs, found, float(margin))(inputs, run.states)
    # A compiled function returns dicts in the order of the alphabet.
    low, high = ({each.name: part[each.name] for each in found} for part in shares)
    return Saturation(low, high)


def _saturation(
    cell: Cell,
    found: tuple[activations.Activation, ...],
    margin: float,
    inputs: Inputs,
    states: PyTree,
) -> tuple[dict[str, Array], dict[str, Array]]:
    weights, state, xs, start, controls = inputs
    drives = over_time(cell, cell.project)(weights, xs)
    prevs = entering(start, state, states, controls)
    values = jax.vmap(lambda s, d: activations.values(cell, found, weights, s, d))(prevs, drives)
    axes = tuple(range(1 + len(batch_shape(cell, xs))))

    def share(flags):
        taken = None
        if controls.advance is not None:
            taken = controls.advance.reshape(
                controls.advance.shape + (1,) * (flags.ndim - len(axes))
            )
        return jnp.mean(flags, axes, where=taken)

    low = jax.tree.map(lambda v: share((v < margin).astype(v.dtype)), values)
    return low, jax.tree.map(lambda v: share((v > 1 - margin).astype(v.dtype)), values)
