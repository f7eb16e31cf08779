"""Backpropagation through time whose adjoint is clipped at every step.

    lambda_{t-1} = J_t^T clip(lambda_t) + g_{t-1}
    dL/dW        = sum_t (d+ s_t / dW)^T clip(lambda_t)

A gradient that explodes does so on its way back through time. Clipping the gradient of the weights,
when it has arrived, shrinks all of it by the few steps at which it exploded; clipping what is
passed from step to step leaves the others alone. A. Graves (2013), "Generating sequences with
recurrent neural networks", arXiv:1308.0850, clips derivatives within the network by value.
"""

import functools
import numbers
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jax_bptt.algorithms.bptt import block_length_of, bptt, in_blocks
from jax_bptt.core import trees
from jax_bptt.core.checks import batch_shape, describe, leaves, require, shown
from jax_bptt.core.linearize import Linearization
from jax_bptt.core.reverse import Surroundings, reverse_scan
from jax_bptt.core.types import Algorithm, Cell, Gradient, Inputs, PyTree
from jax_bptt.core.values import as_value


class Limit(NamedTuple):
    """How far adjoints are let grow.

    Attributes:
      size: the greatest there may be.
      of_norm: whether that is the length of an adjoint, else the modulus of each entry.
    """

    size: float
    of_norm: bool

    def of(self, lam: PyTree, rank: int) -> PyTree:
        """Return `lam`, clipped.

        Args:
          lam: adjoints, whose leaves lead with `rank` axes of time and batch.
          rank: the number of axes that tell one adjoint from another.
        """
        if not self.of_norm:
            return jax.tree.map(lambda a: _by_value(a, self.size), lam)
        size = norms(lam, rank)
        # Where there is nothing to clip the factor is one exactly; not a number stays none.
        clips = size > self.size
        factor = self.size / jnp.where(clips, size, jnp.full_like(size, self.size))

        def leaf(a):
            return a * factor.reshape(factor.shape + (1,) * (a.ndim - rank)).astype(a.dtype)

        return jax.tree.map(leaf, lam)


@as_value
def clipped(*, norm: float | None = None, value: float | None = None) -> Algorithm:
    """Return backpropagation through time that clips lambda at every step that is taken.

        lambda_{t-1} = J_t^T clip(lambda_t) + g_{t-1}

    By `norm`, the lambda_t of a sequence is scaled down to that length where it is longer, over all
    units of the state. By `value`, each of its entries is brought into [-value, value]; the two
    parts of a complex one each for itself. Not a number stays none.

    Outputs are those of any other algorithm. The gradient is exact where nothing is clipped and
    biased where something is, which `jax_bptt.diagnostics.clipping` tells. It is meant for
    training by first derivatives: forward mode does not clip. Time and memory are those of
    `bptt()`.

    Args:
      norm: the greatest length of lambda_t, in the loss per unit of the state, above 0.
      value: the greatest modulus of an entry, above 0.

    Returns:
      An `Algorithm` for `unroll`.

    Raises:
      ValueError: neither or both are given, or one is no number above 0.

    Example:
      >>> import jax, jax.numpy as jnp, jax_bptt as jb
      >>> cell = jb.indrnn(input_size=1, hidden_size=1, activation=None)
      >>> params = cell.init(jax.random.key(0))._replace(w_s=jnp.array([2.0]))  # it explodes
      >>> last = lambda s, algorithm: jb.unroll(
      ...     cell, params, jnp.zeros((10, 1)), s, algorithm=algorithm)[0].sum()
      >>> [float(jax.grad(last)(jnp.ones(1), a)[0]) for a in (jb.bptt(), jb.clipped(norm=1.0))]
      [1024.0, 2.0]
    """
    require(
        (norm is None) != (value is None),
        f"clipped: give either norm or value, got norm={shown(norm)} and value={shown(value)}",
    )
    for name, given in (("norm", norm), ("value", value)):
        require(
            given is None
            or (isinstance(given, numbers.Real) and not isinstance(given, bool) and 0 < given),
            f"clipped: {name} must be a number above 0, got {shown(given)}",
        )
    limit = limit_of(norm, value)
    exact = bptt()

    def backward(cell, saved, d_last_state, d_ys):
        rank = rank_of("clipped", cell, saved.inputs)

        def gradient(inputs: Inputs, around: Surroundings, lam: PyTree) -> Gradient:
            linear, g, accumulate = around
            clipping = clipped_pull(linear, limit, rank)
            reached, lambdas, emitted = reverse_scan(clipping, lam, g, inputs.controls)
            d_weights, d_xs = accumulate(limit.of(lambdas, rank + 1), emitted)
            return Gradient(d_weights, reached[0], d_xs, reached[1])

        length = block_length_of(cell, saved.inputs.weights, saved.inputs.xs)
        return in_blocks(gradient, cell, saved, d_last_state, d_ys, length)

    def explain(cell: Cell, inputs: Inputs) -> str:
        how = f"the norm of lambda_t to {norm}" if value is None else f"its entries to {value}"
        return (
            f"clipped() limits {how} at every step, and is biased where that clips:\n"
            "jax_bptt.diagnostics.clipping tells where"
        )

    return exact._replace(backward=backward, explain=explain)


def clipped_pull(linear: Linearization, limit: Limit, rank: int) -> Linearization:
    """Return `linear` with a pull of the clipped adjoint.

    Args:
      linear: the linearised steps.
      limit: how far adjoints are let grow.
      rank: the number of batch axes.
    """

    def pull(residual: Any, d_state: PyTree) -> Any:
        return linear.pull(residual, limit.of(d_state, rank))

    return linear._replace(pull=pull)


def rank_of(name: str, cell: Cell, inputs: Inputs) -> int:
    """Return the number of batch axes; raise if a leaf of the state does not lead with them."""
    batch = batch_shape(cell, inputs.xs)
    for path, leaf in leaves(trees.partition(inputs.state)[0]):
        require(
            leaf.shape[: len(batch)] == batch,
            f"{name}: state{path} is {describe(leaf)}, which does not lead with *batch={batch}: "
            "no lambda is that of one sequence. Give the leaf that shape in cell.initial_state.",
        )
    return len(batch)


def norms(lam: PyTree, rank: int) -> Array:
    """Return the Euclidean length of each adjoint over all leaves, whose first axes are `rank`.

    Relative to its greatest entry, since squares overflow where a gradient explodes.
    """

    def over_units(reduce, values):
        return [reduce(a, axis=tuple(range(rank, a.ndim))) for a in values]

    sizes = [jnp.abs(a) for a in jax.tree.leaves(lam)]
    greatest = lax.stop_gradient(functools.reduce(jnp.maximum, over_units(jnp.max, sizes)))
    unit = jnp.where(greatest > 0, greatest, jnp.ones_like(greatest))
    relative = [a / unit.reshape(unit.shape + (1,) * (a.ndim - rank)) for a in sizes]
    squared = sum(over_units(jnp.sum, [a**2 for a in relative]))
    return greatest * jnp.sqrt(jnp.where(squared == 0, jnp.ones_like(squared), squared))


def limit_of(norm: float | None, value: float | None) -> Limit:
    """Return the limit that the arguments of `clipped` name, of which one is None."""
    size = value if norm is None else norm
    assert size is not None
    return Limit(float(size), of_norm=norm is not None)


def _by_value(a: Array, value: float) -> Array:
    if jnp.iscomplexobj(a):
        return lax.complex(_by_value(a.real, value), _by_value(a.imag, value))
    return jnp.clip(a, -value, value)
