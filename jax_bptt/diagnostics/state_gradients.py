"""The gradient with respect to every state, lambda_t."""

from jax.typing import ArrayLike

from jax_bptt.algorithms import option_checks, tree_checks
from jax_bptt.algorithms.unroll import Arguments, begin, checked, compiled_once, cotangents
from jax_bptt.core import devices, sequence
from jax_bptt.core.forward import forward_scan, over_time
from jax_bptt.core.reverse import reverse_scan, surroundings
from jax_bptt.core.sequence import Options
from jax_bptt.core.types import Cell, PyTree


def state_gradients(
    cell: Cell,
    params: PyTree,
    xs: PyTree,
    state: PyTree | None = None,
    d_ys: PyTree | None = None,
    d_last_state: PyTree | None = None,
    *,
    lengths: ArrayLike | None = None,
    resets: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    reset_state: PyTree | None = None,
    reverse: bool = False,
) -> PyTree:
    """Return dL/ds_t for every t: what the reverse scan carries.

        lambda_{t-1} = J_t^T lambda_t + g_{t-1}           t = T..1

    All paths count, through y_t and through every later state. Where it vanishes or explodes with
    the distance to the loss, so does the gradient of the weights.

    Args:
      cell: a `Cell`.
      params: `cell.init(key)`.
      xs: [T, *batch, I].
      state: s_0; by default `cell.initial_state(params, batch_shape)`.
      d_ys: dL/dy_t, like the outputs of `unroll`, with None at leaves without a gradient
        (integers); None for zero.
      d_last_state: dL/ds_T by paths other than the outputs, like the state; None for zero.
      lengths: as in `unroll`; integer [*batch].
      resets: as in `unroll`; bool [T, *batch].
      mask: as in `unroll`; bool [T, *batch].
      reset_state: as in `unroll`; like the state.
      reverse: as in `unroll`.

    Returns:
      lambda_1..lambda_T, like the state with a leading axis of T, in the order of xs; None at
      leaves without a gradient, zero beyond `lengths`. dL/ds_0 is the d_state of `bptt_gradients`.

    Raises:
      TypeError: an argument is of the wrong kind, structure or dtype.
      ValueError: a shape does not fit.

    Example:
      >>> import jax, jax.numpy as jnp, jax_bptt as jb
      >>> cell = jb.elman(3, 5)
      >>> params, xs = cell.init(jax.random.key(0)), jnp.ones((7, 2, 3))
      >>> lambdas = jb.state_gradients(cell, params, xs, d_last_state=jnp.ones((2, 5)))
      >>> lambdas.shape, lambdas[-1].sum()
      ((7, 2, 5), Array(10., dtype=float32))
    """
    name = "state_gradients"
    reverse = option_checks.direction(name, reverse)
    given = checked(name, cell, (params, xs, state), Options(lengths, resets, mask, reset_state))
    d_ys = tree_checks.as_arrays(name, "d_ys", d_ys)
    d_last_state = tree_checks.as_arrays(name, "d_last_state", d_last_state)
    return compiled_once(_state_gradients, cell, reverse)(given, d_ys, d_last_state)


def _state_gradients(
    cell: Cell, reverse: bool, given: Arguments, d_ys: PyTree, d_last_state: PyTree
) -> PyTree:
    name = "state_gradients"
    with devices.mesh_of(given):
        run = begin(name, cell, devices.vary_alike(given, given), reverse)
        cell, inputs = run.cell, run.inputs
        last_state, states, _ = forward_scan(cell, inputs)
        ys = over_time(cell, cell.readout)(inputs.weights, states)
        d_last_state, d_ys = cotangents(name, run, (last_state, ys), (d_last_state, d_ys), reverse)
        linear, g, _ = surroundings(cell, inputs, states, d_ys)
        _, lambdas, _ = reverse_scan(linear, d_last_state, g, inputs.controls)
        return sequence.restore(lambdas, run.valid, reverse)
