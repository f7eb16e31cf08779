"""Truncation at random, reweighted: a gradient that is cut, and right in the mean.

C. Tallec and Y. Ollivier (2017), "Unbiasing truncated backpropagation through time",
arXiv:1705.08209.
"""

import numbers
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jax_bptt.algorithms.exponents import exponent_in_words
from jax_bptt.algorithms.truncated import detached
from jax_bptt.core.checks import batch_shape, prng_key, require, shown
from jax_bptt.core.types import Algorithm, Cell, Inputs
from jax_bptt.core.values import as_value


class PowerLaw(NamedTuple):
    """The cuts of Tallec and Ollivier: many stretches are short, and a few are very long.

        c(n) = (alpha - 1) / ((alpha - 2) length + n)        n steps after the last cut

    The probability that a stretch has more than n steps falls as n^(1 - alpha).

    Attributes:
      length: of a stretch in the mean, in steps; at least 1.
      alpha: above 2; above 3 for a finite variance of the length.
    """

    length: float
    alpha: float = 6.0

    def __call__(self, age: Array) -> Array:
        """Return the probability of a cut `age` steps after the last one."""
        return (self.alpha - 1) / ((self.alpha - 2) * self.length + age)


class Drawn(Algorithm):
    """An algorithm that holds a key: in no cache, where every key would be one more entry."""

    __hash__ = None  # pyright: ignore[reportAssignmentType]


@as_value
def artbp(rate: float | Callable[[Array], Array], key: Array) -> Algorithm:
    """Return backpropagation through time with random cuts that do not bias it.

        lambda_{t-1} = gamma_t J_t^T lambda_t + g_{t-1}

        gamma_t = 0 with probability c_t, 1 / (1 - c_t) otherwise

    Whatever crosses n steps has come through with probability (1 - c)^n and is multiplied by
    1 / (1 - c)^n: the mean over all cuts is the exact gradient. Its variance grows with the length
    that the gradient needs, and falls with the rate. The cuts of a call are drawn from `key`, for
    each sequence its own, so that both modes see the same ones. Draw a key for every update and
    pass it as an argument of the compiled function: each key outside of one is another program.

    Time and memory are those of `bptt()`. A cut spares nothing where the whole sequence is at hand;
    over a stream it is where one may stop. Nothing is cut before the first step.

    Args:
      rate: c, from 0 to below 1, or a function of the number of steps since the last cut, [*batch],
        that returns probabilities, such as `PowerLaw(length)`. It is called under `jit`.
      key: a PRNG key.

    Returns:
      An `Algorithm` for `unroll`.

    Raises:
      ValueError: the rate is a number that is not in [0, 1), or a `PowerLaw` is no probability.
      TypeError: the rate is neither a number nor a function, or the key is no PRNG key.

    Example:
      >>> import jax, jax.numpy as jnp, jax_bptt as jb
      >>> cell = jb.elman(input_size=3, hidden_size=4)
      >>> params, xs = cell.init(jax.random.key(0)), jnp.ones((10, 3))
      >>> def loss(params, key):
      ...     cuts = jb.artbp(0.1, key)
      ...     return jnp.sum(jb.unroll(cell, params, xs, algorithm=cuts)[1] ** 2)
      >>> jax.jit(jax.grad(loss))(params, jax.random.key(1)).w_s.shape
      (4, 1, 4)
    """
    prng_key("artbp", key)
    if not callable(rate):
        require(
            isinstance(rate, numbers.Real) and not isinstance(rate, bool),
            f"artbp: rate must be a probability or a function of steps, got {shown(rate)}",
            TypeError,
        )
        require(0 <= rate < 1, f"artbp: rate must be at least 0 and below 1, got {shown(rate)}")
    if isinstance(rate, PowerLaw):
        require(
            rate.alpha > 2 and rate.length >= 1,
            "artbp: a PowerLaw must have a length of at least 1 step and alpha above 2, or it is "
            f"no probability; got {shown(rate)}",
        )
    probability = rate if callable(rate) else lambda age: jnp.full_like(age, rate)

    def factors(cell: Cell, inputs: Inputs) -> Array:
        steps = jax.tree.leaves(inputs.xs)[0].shape[0]
        uniform = jax.random.uniform(key, (steps, *batch_shape(cell, inputs.xs)))
        return reweighted(probability, uniform, inputs.controls.advance)

    def explain(cell: Cell, inputs: Inputs) -> str:
        return (
            "artbp() cuts at random and is exact in the mean; with the largest exponent above zero "
            f"its variance explodes\n{exponent_in_words(cell, inputs)}"
        )

    return Drawn(*detached(factors)._replace(explain=explain))


def reweighted(probability: Callable[[Array], Array], uniform: Array, taken: Array | None) -> Array:
    """Return gamma_t for draws that are uniform in [0, 1): a draw below c_t cuts.

    Args:
      probability: c of the number of steps since the last cut.
      uniform: [T, *batch].
      taken: bool [T, *batch], where a step is taken; None for everywhere.
    """

    def step(age, inputs):
        draw, taken = inputs
        chance = jnp.asarray(probability(age), draw.dtype)
        # Before the first step there is nothing to cut off.
        cut = (draw < chance) & (age > 0)
        gamma = jnp.where(age > 0, jnp.where(cut, 0, 1 / (1 - chance)), 1)
        older = jnp.where(cut, 0, age) + 1
        if taken is None:
            return older, gamma
        return jnp.where(taken, older, age), jnp.where(taken, gamma, 1)

    return lax.scan(step, jnp.zeros_like(uniform[0]), (uniform, taken))[1]
