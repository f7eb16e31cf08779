"""Growth of a perturbation from step to step, and its mean: the largest Lyapunov exponent.

G. Benettin, L. Galgani, A. Giorgilli and J.-M. Strelcyn (1980), "Lyapunov characteristic exponents
for smooth dynamical systems and for Hamiltonian systems", Meccanica 15.
"""

import jax
import jax.numpy as jnp
from jax import Array, lax

from jax_bptt.algorithms.jacobians import Vectors, vectors
from jax_bptt.core import trees
from jax_bptt.core.forward import over_time
from jax_bptt.core.types import Cell, Inputs, PyTree

TRANSIENT = 10
"""One step in so many at the beginning does not count: the direction is not yet that of growth."""


def estimate(cell: Cell, inputs: Inputs) -> Array:
    """Return the mean growth of all steps but the first ones, [*batch]."""
    growth = exponents(cell, inputs)
    return growth[growth.shape[0] // TRANSIENT :].mean(0)


def exponent_in_words(cell: Cell, inputs: Inputs) -> str:
    """Return what the exponent is on the data at hand; where only shapes are known, what to ask."""
    try:
        value = float(jnp.mean(estimate(cell, inputs)))
    except jax.errors.ConcretizationTypeError:
        return "what decides is largest_exponent, which needs arrays"
    return f"the largest Lyapunov exponent on these data is {value:.3f} a step"


def exponents(cell: Cell, inputs: Inputs) -> Array:
    """Return log |J_t v_{t-1}| for each step, [T, *batch]."""
    weights, state, xs, _, _ = inputs
    space = vectors(cell, inputs)
    drives = over_time(cell, cell.project)(weights, xs)
    units = -2, -1

    def step(carry, drive):
        state, v = carry
        inexact, rest = trees.partition(state)

        def moved(inexact):
            return trees.partition(cell.step(weights, trees.combine(inexact, rest), drive))

        new, d_new, new_rest = jax.jvp(moved, (inexact,), (space.tree(v),), has_aux=True)
        v = space.flat(d_new)
        size = jnp.sqrt(jnp.sum(v**2, axis=units, keepdims=True))
        v = v / jnp.where(size == 0, 1, size)
        return (trees.combine(new, new_rest), v), jnp.log(size[..., 0, 0])

    first = directions(space, state, 1)[..., 0]
    return lax.scan(step, (state, first), drives)[1]


def directions(space: Vectors, state: PyTree, count: int) -> Array:
    """Return directions in which to perturb a state, [*batch, N, D, count].

    Of random numbers, so that no matrix of a network is likely to know nothing of them; the same
    every time and for every sequence, whose exponents are then those that it has alone.
    """
    drawn = jax.random.normal(jax.random.key(0), (*space.shape[-2:], count), space.dtype)
    zeros = space.flat(trees.partition(state)[0])[..., None] * 0
    return lax.expand_dims(drawn, range(zeros.ndim - drawn.ndim)) + zeros
