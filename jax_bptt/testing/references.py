"""Two independent ways to the right outputs and gradients: a Python loop, and step by step."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_bptt.core import trees
from jax_bptt.core.types import PyTree
from jax_bptt.testing import numerics
from jax_bptt.testing.numerics import Leaves
from jax_bptt.testing.problem import Problem
from jax_bptt.testing.subject import Arguments, Outputs, Subject


def naive_loop(step: Any, problem: Problem) -> tuple[Leaves, Leaves]:
    """Run `step(params, state, x) -> (state, y)` in a Python loop; differentiate it by `jax.grad`.

    Returns:
      The leaves of the outputs and of the gradient.
    """
    inexact, rest = trees.partition(problem.arguments)
    weights = numerics.leaves(problem.cotangents)

    def loss(inexact):
        params, xs, state = trees.combine(inexact, rest)
        ys = []
        for t in range(problem.steps):
            state, y = step(params, state, jax.tree.map(lambda a, t=t: a[t], xs))
            ys.append(y)
        result = Outputs(state, jax.tree.map(lambda *a: jnp.stack(a), *ys))
        named = jax.tree_util.tree_leaves_with_path(result)
        values = {jax.tree_util.keystr(path): leaf for path, leaf in named}
        return sum(jnp.sum(values[k] * w).real for k, w in weights.items()), result

    gradient, result = jax.grad(loss, has_aux=True)(inexact)
    return numerics.leaves(result), numerics.leaves(gradient)


def by_steps(
    subject: Subject,
    problem: Problem,
    lengths: np.ndarray | None = None,
    resets: np.ndarray | None = None,
    mask: np.ndarray | None = None,
    constant_start: bool = False,
) -> tuple[Leaves, Leaves]:
    """Put the outputs and gradients of a sequence together from those of single steps.

        lambda_{t-1} = J_t^T lambda_t + g_{t-1}         t = T..1

    Each J_t^T is the subject's own gradient of a sequence of one step, without options; what the
    options mean is spelled out here between the steps. A sequence beyond its length or under its
    mask holds its state, and its outputs are zero.

    Args:
      subject: the layer.
      problem: arguments, with finite numbers beyond the lengths, and cotangents.
      lengths: [B].
      resets: [T, B].
      mask: [T, B].
      constant_start: whether what resets go back to is a constant equal to the initial state,
        rather than that state itself, which then gets a gradient by them.

    Returns:
      The leaves of the outputs and of the gradient.
    """
    steps, shape = problem.steps, (problem.steps, problem.batch)
    live = np.ones(shape, bool) if mask is None else mask
    if lengths is not None:
        live = live & (np.arange(steps)[:, None] < lengths)
    anew = np.zeros(shape, bool) if resets is None else resets

    params, xs, first = problem.arguments
    state, starts, ys = first, [], []
    for t in range(steps):
        x = jax.tree.map(lambda a, t=t: a[t : t + 1], xs)
        start = _choose(anew[t], first, state)
        after, y = subject.forward(params, x, start)
        starts.append(Arguments(params, x, start))
        state = _choose(live[t], after, start)
        ys.append(jax.tree.map(lambda a, t=t: _kept(live[t : t + 1], a), y))
    joined = jax.tree.map(lambda *a: np.concatenate(a), *ys)
    outputs = numerics.leaves(Outputs(state, joined))

    d_state = numerics.leaves(problem.cotangents.last_state)
    d_first = {}
    totals, d_xs = {}, []
    for t in reversed(range(steps)):
        reaching = {k: _kept(live[t], d) for k, d in d_state.items()}
        d_y = jax.tree.map(
            lambda a, t=t: _kept(live[t : t + 1], a[t : t + 1]), problem.cotangents.ys
        )
        cotangents = Outputs(numerics.filled(first, reaching), d_y)
        d_params, d_x, d_start = map(numerics.leaves, subject.gradient(*starts[t], cotangents))
        totals = numerics.added(totals, d_params)
        d_xs.append(d_x)
        held = {k: _kept(~live[t], d) for k, d in d_state.items()}
        d_state = numerics.added(held, d_start)
        d_first = numerics.added(d_first, {k: _kept(anew[t], d) for k, d in d_state.items()})
        d_state = {k: _kept(~anew[t], d) for k, d in d_state.items()}
    gradient = {f".params{k}": d for k, d in totals.items()}
    gradient |= {f".xs{k}": np.concatenate([d[k] for d in d_xs[::-1]]) for k in d_xs[0]}
    if not constant_start:
        d_state = numerics.added(d_first, d_state)
    return outputs, gradient | {f".state{k}": d for k, d in d_state.items()}


def _select(condition: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Take a where the condition holds, on the leading axes that the condition has."""
    return np.where(condition.reshape(condition.shape + (1,) * (a.ndim - condition.ndim)), a, b)


def _kept(condition: np.ndarray, a: np.ndarray) -> np.ndarray:
    """Put zeros where the condition does not hold."""
    return _select(condition, a, np.zeros_like(a))


def _choose(condition: np.ndarray, a: PyTree, b: PyTree) -> PyTree:
    return jax.tree.map(lambda a, b: _select(condition, a, b), a, b)
