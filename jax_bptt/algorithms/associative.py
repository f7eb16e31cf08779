"""A diagonal linear recurrence by associative scan, forward and reverse: parallel over time."""

import jax
import jax.numpy as jnp
from jax import lax

from jax_bptt.algorithms.diagonal import diagonal_algorithm
from jax_bptt.core import trees
from jax_bptt.core.checks import require
from jax_bptt.core.types import Algorithm, Cell, DiagonalStep, PyTree
from jax_bptt.core.values import as_value


@as_value
def associative() -> Algorithm:
    """Return backpropagation through time of a diagonal linear cell by associative scans.

        s_t          = a_t s_{t-1} + b_t                        t = 1..T
        lambda_{t-1} = a_t lambda_t + g_{t-1}                   t = T..1
        da_t, db_t   = lambda_t s_{t-1}, lambda_t

    Two steps in a row are one of the same kind: (a, b) and then (a', b') make (a' a, a' b + b'),
    and it does not matter which neighbours are joined first. All T states then take O(log T)
    dependent operations in place of T, for about twice the arithmetic (Blelloch). The reverse
    recurrence is of the same kind, and runs in the same way (Martin and Cundy). All else is batched
    over time as in `bptt`.

    Only for cells with a `DiagonalStep`: `lru`, `min_gru`, `min_lstm`, `indrnn` without activation,
    or one's own. Time is O(log T) given enough processors, work O(T B H), memory a few arrays of
    [T, B, H] where `bptt` keeps one. Exact.

    When to take it: not on a CPU, whose few cores the batch and the units keep busy. On two of them
    (jax 0.10, loaded machine, `bench.py associative`) a gradient took as long as with `bptt`
    to within a quarter at T = 64, and mostly 1.2 to 8 times as long for T from 512 to 8192, B from
    1 to 32 and H from 64 to 512, in 1.1 to 5 times the memory. It is made for accelerators, where
    each step of a sequential scan waits for a kernel to start; Martin and Cundy report up to nine
    times the speed there, which has not been measured here.

    Returns:
      An `Algorithm` for `unroll`, which raises a TypeError for a cell of another kind.

    References:
      G. E. Blelloch (1990), "Prefix sums and their applications", CMU-CS-90-190.
      E. Martin and C. Cundy (2018), "Parallelizing linear recurrent neural nets over sequence
      length", ICLR.

    Example:
      >>> import jax, jax.numpy as jnp, jax_bptt as jb
      >>> cell = jb.min_gru(input_size=3, hidden_size=4)
      >>> params, xs = cell.init(jax.random.key(0)), jnp.ones((10, 2, 3))
      >>> jb.unroll(cell, params, xs, algorithm=jb.associative())[1].shape
      (10, 2, 4)
    """
    shared = diagonal_algorithm(_recurrence)
    assert shared.forward is not None
    shared_forward = shared.forward

    def run(cell, inputs):
        _check(cell, inputs.state)
        return shared.run(cell, inputs)

    def forward(cell, inputs):
        _check(cell, inputs.state)
        return shared_forward(cell, inputs)

    def explain(cell, inputs):
        _check(cell, inputs.state)
        return "associative() joins all steps pairwise, in O(log T) dependent operations: exact"

    return Algorithm(run, forward, shared.backward, explain=explain)


def _recurrence(
    first: PyTree, a: PyTree, b: PyTree, constant: PyTree, reverse: bool
) -> tuple[PyTree, PyTree]:
    """Run the recurrence as `diagonal_algorithm` wants it."""
    if not reverse:
        reached = _scan(first, a, b)
        return jax.tree.map(lambda s: s[1:], reached), jax.tree.map(lambda s: s[-1], reached)
    # With m_t = lambda_t - g_t, what reaches s_t from later steps: m_{t-1} = a_t m_t + a_t g_t.
    offsets = jax.tree.map(lambda a, g: jnp.zeros_like(a) if g is None else a * g, a, b)
    reached = _scan(first, a, offsets, reverse=True)
    lambdas = trees.add(jax.tree.map(lambda m: m[1:], reached), b)
    return lambdas, jax.tree.map(lambda m: m[0], reached)


def _scan(first: PyTree, a: PyTree, b: PyTree, reverse: bool = False) -> PyTree:
    """Return v_0..v_T of v_t = a_t v_{t-1} + b_t, or in reverse of v_{t-1} = a_t v_t + b_t.

    Args:
      first: v_0, or in reverse v_T.
      a: a_1..a_T.
      b: b_1..b_T.
      reverse: whether to go from v_T to v_0.

    Returns:
      A pytree with a leading axis of T + 1.
    """

    def begin_with(value, steps):
        return jnp.concatenate([steps, value[None]] if reverse else [value[None], steps])

    def join(earlier, later):
        (a, b), (a_next, b_next) = earlier, later
        offset = jax.tree.map(lambda a, b, c: a * b + c, a_next, b, b_next)
        return jax.tree.map(jnp.multiply, a_next, a), offset

    # `first` is the offset of one step more, whose factor meets nothing.
    a = jax.tree.map(lambda v, a: begin_with(jnp.ones_like(v), a), first, a)
    b = jax.tree.map(begin_with, first, b)
    return lax.associative_scan(join, (a, b), reverse=reverse)[1]


def _check(cell: Cell, state: PyTree) -> None:
    """Raise unless the recurrence of `cell` is one that the algorithm runs."""
    step = cell.step
    kind = type(step).__name__ if isinstance(step, tuple) else "plain function"
    require(
        isinstance(step, DiagonalStep),
        f"associative: cell.step must be a jb.DiagonalStep, s_t = a_t s_(t-1) + b_t, but is a "
        f"{kind}. jb.lru, jb.min_gru, jb.min_lstm and jb.indrnn(activation=None) have one; for any "
        "other cell take jb.bptt().",
        TypeError,
    )
    require(
        all(map(trees.is_inexact, jax.tree.leaves(state))),
        "associative: every leaf of the state must be floating-point or complex; with integers in "
        "the state take jb.bptt().",
        TypeError,
    )
