"""The gradient taken apart by how many steps it has crossed.

    Lambda^0_t     = g_t
    Lambda^{k+1}_t = J_{t+1}^T Lambda^k_{t+1}       what the loss of step t + k + 1 sends to s_t
    dL/dW          = sum_k sum_t (d+ s_t / dW)^T Lambda^k_t

The sum over all k is backpropagation through time, that of k < h its truncation to a sliding window
of h steps. Each lag takes all steps at once, as one batched product.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jax_bptt.algorithms import argument_checks
from jax_bptt.algorithms.unroll import Arguments, begin, checked, compiled_once
from jax_bptt.core import reverse, trees
from jax_bptt.core.checks import is_integer, require, shown
from jax_bptt.core.forward import forward_scan, over_time
from jax_bptt.core.sequence import Options
from jax_bptt.core.types import Cell, Inputs, PyTree

STRETCHES = 4
"""Parts of the lags: from one to the next the steps are left out that no loss reaches any more."""

LEAST_LAGS = 64
"""Lags of a part, at least: each is compiled by itself."""


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
    return given, number_of_lags(name, lags, jax.tree.leaves(given.xs)[0].shape[0])


def number_of_lags(name: str, lags: int | None, steps: int) -> int:
    """Return the number of lags, checked on behalf of `name`: at most T, which is the default."""
    require(
        lags is None or (is_integer(lags) and lags > 0),
        f"{name}: lags must be a positive number of steps or None, got {shown(lags)}",
    )
    require(
        is_integer(steps) or lags is not None,
        f"{name}: with a symbolic number of steps {steps}, say how many lags",
    )
    return steps if lags is None else lags if not is_integer(steps) else min(lags, steps)


class Past(NamedTuple):
    """A run, as a walk back through its lags takes it.

    Attributes:
      cell: that was run.
      inputs: of the run.
      states: s_1..s_T.
      user: the cell as the user gave it, and its parameters.
    """

    cell: Cell
    inputs: Inputs
    states: PyTree
    user: tuple[Cell, PyTree]

    def pull_prepare(self) -> Callable[[PyTree], PyTree]:
        """Return the map from a gradient of the weights to one of the parameters."""
        cell, params = self.user
        _, pull = trees.inexact_vjp(cell.prepare, params)
        hoisted = self.cell is not cell
        return lambda d_weights: pull(d_weights.own if hoisted else d_weights)[0]

    def begin(self, d_ys: PyTree) -> tuple[PyTree, PyTree]:
        """Return (d_weights of the readout, Lambda^0_1..Lambda^0_T)."""
        d_readout, g = reverse.readout_gradient(self.cell, self.inputs.weights, self.states, d_ys)
        zeros = jax.tree.map(jnp.zeros_like, trees.partition(self.states)[0])
        return d_readout, trees.add(zeros, g)

    def until(self, steps: int) -> "Past":
        """Return the first steps of the run."""
        weights, state, xs, start, controls = self.inputs
        xs, controls, states = first(steps, (xs, controls, self.states))
        inputs = Inputs(weights, state, xs, start, controls)
        return self._replace(inputs=inputs, states=states)

    def crossing(self) -> "Crossing":
        """Linearise all steps, to take a lag after the other through them."""
        linear, _, accumulate = reverse.surroundings(self.cell, self.inputs, self.states, None)

        def step(residual, control, lam):
            return reverse.cross(linear, residual, control, lam)

        def back(lambdas):
            before, _, emitted = jax.vmap(step)(linear.residuals, self.inputs.controls, lambdas)
            later = jax.tree.map(lambda a: jnp.concatenate([a[1:], jnp.zeros_like(a[:1])]), before)
            return later, emitted

        return Crossing(back, lambda lambdas, emitted: accumulate(lambdas, emitted)[0])


class Crossing(NamedTuple):
    """The steps of a run, all of which are crossed at once.

    Attributes:
      back: `Lambda^k -> (Lambda^{k+1}, emitted)`.
      accumulate: `(Lambda^k, emitted) -> d_weights`, without those of the readout.
    """

    back: Callable[[PyTree], tuple[PyTree, PyTree]]
    accumulate: Callable[[PyTree, PyTree], PyTree]


def first(steps: int, tree: PyTree) -> PyTree:
    """Return the first entries of every leaf."""
    return jax.tree.map(lambda a: a[:steps], tree)


def norm(tree: PyTree) -> Array:
    """Return the Euclidean norm of all leaves together."""
    return jnp.sqrt(sum(jnp.sum(jnp.abs(leaf) ** 2) for leaf in jax.tree.leaves(tree)))


def stretches(steps: int, lags: int) -> Iterator[tuple[int, int, int]]:
    """Yield parts of the lags, (first, end, steps that a loss still reaches at the first)."""
    if not is_integer(steps):
        yield 0, lags, steps
        return
    length = max(-(-lags // STRETCHES), LEAST_LAGS)
    for begun in range(0, lags, length):
        yield begun, min(begun + length, lags), steps - begun


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
    states = forward_scan(run.cell, run.inputs)[1]
    ys = over_time(run.cell, run.cell.readout)(run.inputs.weights, states)
    d_ys = argument_checks.cotangents(name, "d_ys", d_ys, ys)
    own = run.cell if run.traced.closed else cell
    past = Past(own, run.inputs, states, (cell, arguments.params))
    pull_prepare = past.pull_prepare()
    d_readout, lambdas = past.begin(d_ys)
    weights, _ = trees.partition(run.inputs.weights)
    readout = trees.add(jax.tree.map(jnp.zeros_like, weights), d_readout)
    total = trees.zero_gradient(arguments.params)
    steps = jax.tree.leaves(run.inputs.xs)[0].shape[0]

    def through(past, indices, carry):
        crossing = past.crossing()

        def lag(carry, index):
            lambdas, total = carry
            later, emitted = crossing.back(lambdas)
            # The readout is no lag's, and counts once.
            once = jax.tree.map(lambda r: jnp.where(index == 0, r, jnp.zeros_like(r)), readout)
            part = pull_prepare(trees.add(crossing.accumulate(lambdas, emitted), once))
            total = trees.accumulate(total, part)
            return (later, total), record(part, total)

        return lax.scan(lag, carry, indices)

    records = []
    for begun, end, left in stretches(steps, lags):
        carry = first(left, lambdas), total
        (lambdas, total), found = through(past.until(left), jnp.arange(begun, end), carry)
        records.append(found)
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), *records)
