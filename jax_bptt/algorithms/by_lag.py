"""The gradient taken apart by how many steps it has crossed.

    Lambda^0_t     = g_t
    Lambda^{k+1}_t = J_{t+1}^T Lambda^k_{t+1}       what the loss of step t + k + 1 sends to s_t
    dL/dW          = sum_k sum_t (d+ s_t / dW)^T Lambda^k_t

The sum over all k is backpropagation through time, that of k < h its truncation to a sliding window
of h steps. Each lag takes all steps at once, as one batched product.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jax_bptt.algorithms import argument_checks
from jax_bptt.algorithms.unroll import Arguments, begin, checked, compiled_once
from jax_bptt.core import reverse, trees
from jax_bptt.core.checks import is_integer, require, shown
from jax_bptt.core.forward import forward_scan, over_time
from jax_bptt.core.sequence import Options
from jax_bptt.core.types import Cell, PyTree


def gradient_by_lag(
    cell: Cell, params: PyTree, xs: PyTree, d_ys: PyTree, *, lags: int | None = None
) -> PyTree:
    """Return the gradient of the parameters by how many steps it has crossed.

        d_params[k] = sum_t (d+ s_t / dW)^T Lambda^k_t

        Lambda^k_t = (J_{t+k} .. J_{t+1})^T g_{t+k}

    Entry k is what the loss of each step owes to the parameters k steps before; that of the readout
    is in entry 0. Summed over all lags this is `bptt_gradients`, over the first h it is that of
    `truncated(h, sliding=True)`. The dependence of an initial state on the parameters is left out.

    Time is that of one gradient for each lag, with no sequential loop but over the lags.

    Args:
      cell: a `Cell`.
      params: `cell.init(key)`.
      xs: [T, *batch, I].
      d_ys: dL/dy_t, like the outputs of `unroll`.
      lags: how many, at least 1; by default T, all of them.

    Returns:
      Like params with a leading axis [lags], None at leaves without a gradient.

    Raises:
      TypeError: an argument is of the wrong kind, structure or dtype.
      ValueError: a shape does not fit, or `lags` is no positive integer.

    Example:
      >>> import jax, jax.numpy as jnp, jax_bptt as jb
      >>> cell = jb.elman(input_size=3, hidden_size=4)
      >>> params, xs = cell.init(jax.random.key(0)), jnp.ones((10, 2, 3))
      >>> jb.gradient_by_lag(cell, params, xs, jnp.ones((10, 2, 4)), lags=5).w_s.shape
      (5, 4, 1, 4)
    """
    name = "gradient_by_lag"
    given, lags = prepared(name, cell, (params, xs), lags)
    return compiled_once(_gradients, cell, lags)(given, d_ys)


def prepared(
    name: str, cell: Cell, arguments: tuple[PyTree, PyTree], lags: int | None
) -> tuple[Arguments, int]:
    """Return checked arguments and the number of lags, at most T."""
    given = checked(name, cell, (*arguments, None), Options())
    steps = jax.tree.leaves(given.xs)[0].shape[0]
    require(
        lags is None or (is_integer(lags) and lags > 0),
        f"{name}: lags must be a positive number of steps or None, got {shown(lags)}",
    )
    require(
        is_integer(steps) or lags is not None,
        f"{name}: with a symbolic number of steps {steps}, say how many lags",
    )
    return given, steps if lags is None else lags if not is_integer(steps) else min(lags, steps)


def _gradients(cell: Cell, lags: int, given: Arguments, d_ys: PyTree) -> PyTree:
    return scan_lags("gradient_by_lag", cell, lags, (given, d_ys), lambda part, total: part)


def scan_lags(
    name: str, cell: Cell, lags: int, given: tuple[Arguments, PyTree], record: Callable[..., Any]
) -> Any:
    """Go through the lags from 0 on, and return what `record` makes of each, stacked.

    Args:
      name: the public function.
      cell: the cell.
      lags: how many.
      given: checked arguments, and d_ys.
      record: `(part, total) -> anything`, of the gradient of a lag, and that of all lags so far.
    """
    arguments, d_ys = given
    run = begin(name, cell, arguments, reverse=False)
    own, inputs = run.cell, run.inputs
    states = forward_scan(own, inputs)[1]
    ys = over_time(own, own.readout)(inputs.weights, states)
    d_ys = argument_checks.cotangents(name, "d_ys", d_ys, ys)
    linear, g, accumulate = reverse.surroundings(own, inputs, states, d_ys)
    steps = linear.residuals, inputs.controls
    zeros = jax.tree.map(jnp.zeros_like, trees.partition(states)[0])

    def back(residual, control, lam):
        return reverse.cross(linear, residual, control, lam)

    def pull(lambdas):
        """Return the gradient, and what every step sends to the state before it."""
        before, _, emitted = jax.vmap(back)(*steps, lambdas)
        d_weights, _ = accumulate(lambdas, emitted)
        d_weights = d_weights.own if run.traced.closed else d_weights
        return trees.inexact_vjp(cell.prepare, arguments.params)[1](d_weights)[0], before

    readout, _ = pull(zeros)

    def lag(carry, index):
        lambdas, total = carry
        part, before = pull(lambdas)
        # The readout is no lag's, and counts once.
        part = jax.tree.map(
            lambda p, r: p - jnp.where(index > 0, r, jnp.zeros_like(r)), part, readout
        )
        total = trees.add(total, part)
        shifted = jax.tree.map(lambda a: jnp.concatenate([a[1:], jnp.zeros_like(a[:1])]), before)
        return (shifted, total), record(part, total)

    nothing = jax.tree.map(jnp.zeros_like, readout)
    return lax.scan(lag, (trees.add(zeros, g), nothing), jnp.arange(lags))[1]
