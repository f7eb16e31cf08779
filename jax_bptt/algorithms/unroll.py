"""Run a cell over a sequence, with the gradient of the chosen algorithm."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jax_bptt.algorithms.bptt import bptt
from jax_bptt.core import checks, sequence, sequence_checks, trees
from jax_bptt.core.derivative import differentiable
from jax_bptt.core.types import Algorithm, Cell, Inputs, PyTree


def unroll(
    cell: Cell,
    params: PyTree,
    xs: PyTree,
    state: PyTree | None = None,
    *,
    algorithm: Algorithm | None = None,
    lengths: ArrayLike | None = None,
    resets: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    reverse: bool = False,
) -> tuple[PyTree, PyTree]:
    """Run `cell` over `xs` and return its last state and its outputs.

        s_t = step(s_{t-1}, x_t)        y_t = readout(s_t)        t = 1..T

    `jax.grad` of anything that calls this runs the algorithm's own reverse pass; by default that
    is explicit backpropagation through time, `bptt()`. Forward mode and derivatives of any order
    are exact as well. T = 0 returns the state as it came.

    Args:
      cell: a `Cell`, e.g. `lstm(input_size=I, hidden_size=H)`.
      params: `cell.init(key)`, in any floating dtype (or complex, for cells that are).
      xs: [T, *batch, I], or whatever `cell.input_spec` says behind [T, *batch]; floating inputs
        in the dtype of the weights or of the carry.
      state: s_0 as `cell.initial_state(params, batch_shape)` makes it, which is also the default.
      algorithm: how the gradient is computed; see `bptt` and `autodiff`.
      lengths: integer [*batch], 0 to T: the number of steps of each sequence of a padded batch.
        Beyond it the state is held, outputs are zero, and inputs are not read: they may be NaN.
      resets: bool [T, *batch]: where the state starts again from `state`, before the step is taken.
        No gradient crosses; from the reset on, s_0 gets it.
      mask: bool [T, *batch]: where False, the state is held and the input not read; the output is
        that of the held state.
      reverse: whether time runs backwards, from each sequence's last step to its first. Outputs
        stay where their inputs are.

    Returns:
      (last_state, ys), in the order of `lax.scan`: the state after the last step that was run, each
      sequence's own, and the outputs [T, *batch, ...].

    Raises:
      TypeError: an argument is of the wrong kind, structure or dtype.
      ValueError: a shape does not fit; the message names both shapes and the way out.

    Example:
      >>> import jax, jax.numpy as jnp, jax_bptt as jb
      >>> cell = jb.gru(input_size=3, hidden_size=5)
      >>> params = cell.init(jax.random.key(0))
      >>> last_state, ys = jb.unroll(cell, params, jnp.ones((7, 2, 3)))
      >>> last_state.shape, ys.shape
      ((2, 5), (7, 2, 5))
    """
    algorithm = bptt() if algorithm is None else algorithm
    checks.algorithm("unroll", algorithm)
    _, weights, xs, state = checks.inputs("unroll", cell, params, xs, state)
    checks.pair("unroll", cell)
    options = sequence_checks.options("unroll", cell, xs, state, lengths, resets, mask, reverse)
    xs, controls, valid = sequence.arrange(xs, *options)
    start = None if controls.reset is None else state
    inputs = Inputs(weights, state, xs, start, controls)
    last_state, ys = differentiable(cell, algorithm, inputs)
    return last_state, sequence.restore(ys, valid, reverse)


def bptt_gradients(
    cell: Cell,
    params: PyTree,
    xs: PyTree,
    state: PyTree | None = None,
    d_ys: PyTree | None = None,
    d_last_state: PyTree | None = None,
    *,
    algorithm: Algorithm | None = None,
    lengths: ArrayLike | None = None,
    resets: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    reverse: bool = False,
) -> tuple[PyTree, PyTree, PyTree]:
    """Run the explicit reverse pass by hand, from cotangents to gradients.

        lambda_{t-1} = J_t^T lambda_t + g_{t-1}           t = T..1
        dL/dW        = sum_t (d+ s_t / dW)^T lambda_t

    The same code as behind `jax.grad` of `unroll`, without `jax.grad`.

    Args:
      cell: a `Cell`.
      params: `cell.init(key)`.
      xs: [T, *batch, I].
      state: s_0; by default `cell.initial_state(params, batch_shape)`, whose own dependence on
        the parameters then counts into d_params.
      d_ys: dL/dy_t, like the outputs of `unroll`, with None at leaves without a gradient
        (integers); None for zero.
      d_last_state: dL/ds_T by paths other than the outputs, like the state, with None at leaves
        without a gradient (integers); None for zero.
      algorithm: as in `unroll`; it must have an explicit backward.
      lengths: as in `unroll`; integer [*batch].
      resets: as in `unroll`; bool [T, *batch].
      mask: as in `unroll`; bool [T, *batch].
      reverse: as in `unroll`.

    Returns:
      (d_params, d_xs, d_state), like params, xs and state, with None at leaves without a
      gradient (integer tokens). Inside `jax.shard_map` they are those of this device's data; sum
      d_params over the mesh with `jax.lax.psum`.

    Raises:
      TypeError: an argument is of the wrong kind, structure or dtype.
      ValueError: a shape does not fit, or the algorithm has no explicit backward.

    Example:
      >>> import jax, jax.numpy as jnp, jax_bptt as jb
      >>> cell = jb.elman(input_size=3, hidden_size=5)
      >>> params, xs = cell.init(jax.random.key(0)), jnp.ones((7, 2, 3))
      >>> d_params, d_xs, d_state = jb.bptt_gradients(cell, params, xs, d_ys=jnp.ones((7, 2, 5)))
      >>> d_params.w_s.shape, d_xs.shape, d_state.shape
      ((5, 1, 5), (7, 2, 3), (2, 5))
    """
    name = "bptt_gradients"
    algorithm = bptt() if algorithm is None else algorithm
    checks.algorithm(name, algorithm)
    checks.require(
        algorithm.forward is not None and algorithm.backward is not None,
        f"{name}: this algorithm has no explicit backward; JAX differentiates it. Take jax.vjp of "
        "unroll, or an algorithm such as jb.bptt().",
    )
    assert algorithm.forward is not None and algorithm.backward is not None
    learned_start = state is None
    params, weights, xs, state = checks.inputs(name, cell, params, xs, state)
    checks.pair(name, cell)
    options = sequence_checks.options(name, cell, xs, state, lengths, resets, mask, reverse)
    (run_xs, controls, valid), pull_arrange = trees.inexact_vjp(
        lambda xs: sequence.arrange(xs, *options), xs
    )
    start = None if controls.reset is None else state
    inputs = Inputs(weights, state, run_xs, start, controls)
    (last_state, ys), saved = algorithm.forward(cell, inputs)
    ys, pull_restore = trees.inexact_vjp(lambda ys: sequence.restore(ys, valid, reverse), ys)
    if d_ys is not None:
        (d_ys,) = pull_restore(checks.cotangents(name, "d_ys", d_ys, ys))
    if d_last_state is None:
        d_last_state = jax.tree.map(
            lambda s: jnp.zeros_like(s) if trees.is_inexact(s) else None, last_state
        )
    else:
        d_last_state = checks.cotangents(name, "d_last_state", d_last_state, last_state)
    found = algorithm.backward(cell, saved, d_last_state, d_ys)
    d_state = found.state if start is None else trees.add(found.state, found.start)
    (d_xs,) = pull_arrange((found.xs, sequence.Controls(), None))
    _, pull_prepare = trees.inexact_vjp(cell.prepare, params)
    (d_params,) = pull_prepare(found.weights)
    if learned_start:
        batch_shape = checks.batch_shape(cell, xs)
        _, pull_start = trees.inexact_vjp(lambda p: cell.initial_state(p, batch_shape), params)
        d_params = trees.add(d_params, pull_start(d_state)[0])
    return d_params, d_xs, d_state
