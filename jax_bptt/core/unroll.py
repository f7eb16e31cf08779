"""Run a cell over a sequence, with the gradient of the chosen algorithm."""

import functools

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from jax_bptt.core import checks, trees
from jax_bptt.core.bptt import bptt
from jax_bptt.core.types import Algorithm, Cell, PyTree


def unroll(
    cell: Cell,
    params: PyTree,
    xs: PyTree,
    state: PyTree | None = None,
    *,
    algorithm: Algorithm | None = None,
) -> tuple[PyTree, PyTree]:
    """Run `cell` over `xs` and return its last state and its outputs.

        s_t = step(s_{t-1}, x_t)        y_t = readout(s_t)        t = 1..T

    `jax.grad` of anything that calls this runs the algorithm's own reverse pass; by default that
    is explicit backpropagation through time, `bptt()`. T = 0 returns the state as it came.

    Args:
      cell: a `Cell`, e.g. `lstm(input_size=I, hidden_size=H)`.
      params: `cell.init(key)`, in any floating dtype (or complex, for cells that are).
      xs: [T, *batch, I], or whatever `cell.input_spec` says behind [T, *batch]; floating inputs
        in the dtype of the weights or of the carry.
      state: s_0 as `cell.initial_state(params, batch_shape)` makes it, which is also the default.
      algorithm: how the gradient is computed; see `bptt` and `autodiff`.

    Returns:
      (last_state, ys), in the order of `lax.scan`: s_T, and the outputs [T, *batch, ...].

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
    if algorithm.backward is None:
        return algorithm.forward(cell, weights, state, xs)[0]
    return _explicit(cell, algorithm, weights, state, xs)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _explicit(cell, algorithm, weights, state, xs):
    return algorithm.forward(cell, weights, state, xs)[0]


def _forward(cell, algorithm, weights, state, xs):
    weights, state, xs = jax.tree.map(lambda p: p.value, (weights, state, xs))
    return algorithm.forward(cell, weights, state, xs)


def _backward(cell, algorithm, residuals, cotangents):
    d_last_state, d_ys = cotangents
    leaves = jax.tree.leaves(d_ys, is_leaf=_is_symbolic_zero)
    if all(_is_symbolic_zero(leaf) for leaf in leaves):
        d_ys = None
    else:
        d_ys = _materialize(d_ys)
    d_last_state = trees.vary_alike(_materialize(d_last_state), residuals)
    return algorithm.backward(cell, residuals, d_last_state, d_ys)


# Symbolic zeros tell a loss on the last state from one on the outputs, which spares the former
# a [T, *batch, O] array of zeros and the reverse pass of the readout.
_explicit.defvjp(_forward, _backward, symbolic_zeros=True)


def _is_symbolic_zero(leaf):
    return isinstance(leaf, SymbolicZero)


def _materialize(tree):
    """Replace symbolic zeros by arrays, and cotangents of what has no gradient by None."""

    def leaf(d):
        if not _is_symbolic_zero(d):
            return None if d.dtype == jax.dtypes.float0 else d
        return jnp.zeros(d.shape, d.dtype) if trees.is_inexact(d) else None

    return jax.tree.map(leaf, tree, is_leaf=_is_symbolic_zero)


def bptt_gradients(
    cell: Cell,
    params: PyTree,
    xs: PyTree,
    state: PyTree | None = None,
    d_ys: PyTree | None = None,
    d_last_state: PyTree | None = None,
    *,
    algorithm: Algorithm | None = None,
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
        algorithm.backward is not None,
        f"{name}: this algorithm has no explicit backward; JAX differentiates it. Take jax.vjp of "
        "unroll, or an algorithm such as jb.bptt().",
    )
    assert algorithm.backward is not None
    learned_start = state is None
    params, weights, xs, state = checks.inputs(name, cell, params, xs, state)
    checks.pair(name, cell)
    (last_state, ys), residuals = algorithm.forward(cell, weights, state, xs)
    if d_ys is not None:
        d_ys = checks.cotangents(name, "d_ys", d_ys, ys)
    if d_last_state is None:
        d_last_state = jax.tree.map(
            lambda s: jnp.zeros_like(s) if trees.is_inexact(s) else None, last_state
        )
    else:
        d_last_state = checks.cotangents(name, "d_last_state", d_last_state, last_state)
    d_weights, d_state, d_xs = algorithm.backward(cell, residuals, d_last_state, d_ys)
    _, pull_prepare = trees.inexact_vjp(cell.prepare, params)
    (d_params,) = pull_prepare(d_weights)
    if learned_start:
        batch_shape = checks.batch_shape(cell, xs)
        _, pull_start = trees.inexact_vjp(lambda p: cell.initial_state(p, batch_shape), params)
        d_params = trees.add(d_params, pull_start(d_state)[0])
    return d_params, d_xs, d_state
