"""From which state to which loss the gradient flows: the lecture's sum for every step at once."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from jax_bptt.algorithms.by_lag import first, number_of_lags, stretches
from jax_bptt.algorithms.unroll import compiled_once
from jax_bptt.core import trees
from jax_bptt.core.forward import entering
from jax_bptt.core.types import PyTree
from jax_bptt.diagnostics.trajectory import Trajectory, cotangents_of, past_of

TERM_BYTES = 2**24
"""Bytes of the gradients that are measured at one time."""


def contribution_map(
    run: Trajectory,
    d_ys: PyTree,
    *,
    lags: int | None = None,
    measure: Callable[[PyTree], PyTree] | None = None,
) -> PyTree:
    """Return the size of what each state contributes to the gradient of the loss of each step.

        c_{t,i} = (d+ s_i / dW)^T J_{i+1}^T .. J_t^T g_t        i <= t

    where g_t = dL_t/ds_t and d+ is the direct dependence of s_i on W, with s_{i-1} held fixed.
    Summed over i, c_{t,i} is the gradient of the loss of step t, as `contributions` takes it apart;
    summed over both, that of the whole loss. The readout's own part stands at i = t. What an
    initial state, or one that resets go back to, owes to the parameters is left out.

    The gradient is that of the whole batch, whose parts may cancel; take `jax.vmap` over sequences
    for each one's own.

    Exact. Time is that of the gradient of one step for every pair, O(lags T) of them, and a
    sequential loop over the lags; memory a few states per step, the result, and 16 MiB.

    Args:
      run: a `trajectory`.
      d_ys: dL/dy_t, like the outputs of `unroll`, None at leaves without a gradient.
      lags: how many steps to look back, the step itself counted; by default T, all of them.
      measure: `gradient like the parameters -> pytree of arrays`, applied to every c_{t,i}. By
        default the Euclidean norm of each leaf; the identity keeps the gradients themselves.

    Returns:
      What `measure` returns, with leading axes [T, T]: entry [t - 1, i - 1] is of c_{t,i}, zero for
      i > t and for t - i >= lags.

    Raises:
      TypeError: an argument is of the wrong kind, structure or dtype.
      ValueError: a shape does not fit, or `lags` is no positive integer.

    Example:
      >>> import jax, jax.numpy as jnp, jax_bptt as jb
      >>> cell = jb.gru(input_size=3, hidden_size=4)
      >>> params, xs = cell.init(jax.random.key(0)), jnp.ones((10, 2, 3))
      >>> run = jb.diagnostics.trajectory(cell, params, xs)
      >>> found = jb.diagnostics.contribution_map(run, jnp.ones_like(run.ys))
      >>> found.w_s.shape, bool(found.w_s[9, 8] > found.w_s[9, 2] > 0), float(found.w_s[2, 9])
      ((10, 10), True, 0.0)
    """
    name = "contribution_map"
    lags = number_of_lags(name, lags, run.steps)
    d_ys, _ = cotangents_of(name, run, d_ys, None)
    return compiled_once(_map, lags, _norms if measure is None else measure)(run, d_ys)


def _norms(gradient: PyTree) -> PyTree:
    return jax.tree.map(lambda d: jnp.sqrt(jnp.sum(jnp.abs(d) ** 2)), gradient)


def _map(lags: int, measure: Callable, run: Trajectory, d_ys: PyTree) -> PyTree:
    past, cell = past_of(run), run.runs
    weights, state, xs, start, controls = run.inputs
    pull_prepare = past.pull_prepare()
    prevs = entering(start, state, run.states, controls)
    lambdas = past.begin(d_ys)[1]

    def term(step):
        """Return what is measured of (d+ s_i / dW)^T lambda_i, and of the readout's own part."""
        prev, x, control, lam, out = step
        _, pull = trees.inexact_vjp(lambda w: cell.step(w, prev, cell.project(w, x)), weights)
        d_weights = pull(control.taken(lam))[0]
        if out is not None:
            state, d_y = out
            _, pull = trees.inexact_vjp(lambda w: cell.readout(w, state), weights)
            d_weights = trees.add(d_weights, pull(d_y)[0])
        return measure(pull_prepare(d_weights))

    def measured(lambdas, out=None):
        left = jax.tree.leaves(lambdas)[0].shape[0]
        together = min(left, _terms_together(run.params))
        found = lax.map(
            term, (*first(left, (prevs, xs, controls)), lambdas, out), batch_size=together
        )
        return jax.tree.map(lambda a: _of_length(a, run.steps), found)

    out = None if d_ys is None else (run.states, d_ys)
    rows = [jax.tree.map(lambda a: a[None], measured(lambdas, out))]
    for begun, end, left in stretches(run.steps, lags):
        back, lambdas = past.until(left).crossing().back, first(left, lambdas)
        if begun == 0:  # the lag that is done
            lambdas, begun = back(lambdas)[0], 1
        lag = functools.partial(_lag, back, measured)
        lambdas, found = lax.scan(lag, lambdas, None, length=end - begun)
        rows.append(found)
    by_lag = jax.tree.map(lambda *parts: jnp.concatenate(parts), *rows)
    return jax.tree.map(_by_step, by_lag)


def _lag(back: Callable, measured: Callable, lambdas: PyTree, _: None) -> tuple[PyTree, PyTree]:
    return back(lambdas)[0], measured(lambdas)


def _terms_together(params: PyTree) -> int:
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params))
    return max(TERM_BYTES // max(size, 1), 1)


def _of_length(a: jax.Array, steps: int) -> jax.Array:
    return jnp.pad(a, [(0, steps - a.shape[0])] + [(0, 0)] * (a.ndim - 1))


def _by_step(by_lag: jax.Array) -> jax.Array:
    """Return [t, i] of what is given as [t - i, i]."""
    lags, steps = by_lag.shape[:2]
    times = jnp.arange(steps)
    lag = times[:, None] - times[None]
    found = by_lag[jnp.clip(lag, 0, lags - 1), times[None]]
    within = ((lag >= 0) & (lag < lags)).reshape(steps, steps, *[1] * (found.ndim - 2))
    return jnp.where(within, found, jnp.zeros_like(found))
