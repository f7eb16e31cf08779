"""The gradient as the lecture writes it: a sum with one term for every earlier state."""

import jax
import jax.numpy as jnp

from jax_bptt.algorithms import argument_checks
from jax_bptt.core import checks, trees
from jax_bptt.core.forward import Stretch, entering, forward_scan, over_time
from jax_bptt.core.linearize import linearize
from jax_bptt.core.reverse import reverse_scan
from jax_bptt.core.sequence import Controls
from jax_bptt.core.types import Cell, Inputs, PyTree


def contributions(
    cell: Cell,
    params: PyTree,
    xs: PyTree,
    state: PyTree | None,
    d_y: PyTree,
    *,
    step: int,
) -> PyTree:
    """Return the terms of dE_N/dparams that flow through each of the states s_1..s_N.

        dE_N/dW = sum_{i=1..N} dE_N/dy_N  dy_N/ds_N  ds_N/ds_i  d+ s_i/dW

    where d+ is the direct dependence of s_i on W, with s_{i-1} held fixed. Term i is entry i - 1
    of the leading axis. Summed over that axis, the terms are the gradient. What does not flow
    through the step has its place at the ends of the sum: the readout's own parameters in term N,
    and parameters on which s_0 depends in term 1.

    Any cell, any loss: for a loss over several steps, add the results for its parts.

    Time and memory are N copies of the parameters; it is a tool for looking, not for training.

    Args:
      cell: a `Cell`.
      params: `cell.init(key)`.
      xs: [T, *batch, I], T >= N. Inputs after step N play no part.
      state: s_0, or None for `cell.initial_state(params, batch_shape)`.
      d_y: dE_N/dy_N, like one step of the outputs: [*batch, O].
      step: N, from 1 to T.

    Returns:
      A pytree like params with a leading axis of N.

    Raises:
      TypeError: an argument is of the wrong kind, structure or dtype.
      ValueError: a shape does not fit, or N is out of range.

    Example:
      >>> import jax, jax.numpy as jnp, jax_bptt as jb
      >>> cell = jb.elman(input_size=1, hidden_size=2, output_size=1)
      >>> params, xs = cell.init(jax.random.key(0)), jnp.ones((5, 1))
      >>> jb.contributions(cell, params, xs, None, jnp.ones(1), step=3).w_s.shape
      (3, 2, 1, 2)
    """
    name = "contributions"
    learned_start = state is None
    params, xs, state = argument_checks.inputs(name, cell, params, xs, state)
    argument_checks.pair(name, cell)
    weights = argument_checks.weights(name, cell, params, xs)
    if state is None:
        state = cell.initial_state(params, checks.batch_shape(cell, xs))
    steps = jax.tree.leaves(xs)[0].shape[0]
    checks.require(
        checks.is_integer(step) and 1 <= step <= steps,
        f"{name}: step must be an integer from 1 to T={steps}, the number of steps of xs, "
        f"got {checks.shown(step)}",
    )
    xs = jax.tree.map(lambda a: a[:step], xs)
    inputs = Inputs(weights, state, xs, None, Controls())
    last_state, states, _ = forward_scan(cell, inputs)
    y, pull_readout = trees.inexact_vjp(cell.readout, weights, last_state)
    d_readout, d_last_state = pull_readout(argument_checks.cotangents(name, "d_y", d_y, y))
    prevs = entering(None, state, states, Controls())
    drives = over_time(cell, cell.project)(weights, xs)
    linear = linearize(cell, weights, Stretch(prevs, drives, states))
    no_output = jax.tree.map(lambda s: None, states)
    (d_state, _), lambdas, _ = reverse_scan(linear, d_last_state, no_output, Controls())

    def term(prev, x, lam):
        """Return (d+ s_t / dW)^T lambda_t."""
        _, pull = trees.inexact_vjp(lambda w: cell.step(w, prev, cell.project(w, x)), weights)
        return pull(lam)[0]

    terms = jax.vmap(term)(prevs, xs, lambdas)
    terms = _add_at(terms, -1, d_readout)

    _, pull_prepare = trees.inexact_vjp(cell.prepare, params)
    (terms,) = jax.vmap(pull_prepare)(terms)
    if learned_start:
        batch_shape = checks.batch_shape(cell, xs)
        _, pull_start = trees.inexact_vjp(lambda p: cell.initial_state(p, batch_shape), params)
        terms = _add_at(terms, 0, pull_start(d_state)[0])
    return terms


def _add_at(terms: PyTree, index: int, extra: PyTree) -> PyTree:
    return jax.tree.map(lambda t, e: jnp.asarray(t).at[index].add(e), terms, extra)
