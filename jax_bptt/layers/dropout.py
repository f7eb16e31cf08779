"""Dropout between layers: a fresh mask at every step, or one for the whole sequence."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jax_bptt.algorithms import argument_checks, option_checks
from jax_bptt.algorithms.tree_checks import as_arrays
from jax_bptt.core import sequence
from jax_bptt.core.checks import kind_of, require
from jax_bptt.core.types import PyTree
from jax_bptt.core.values import as_value
from jax_bptt.layers.layer import Layer
from jax_bptt.layers.masks import MISSING, check_key, check_rate, draw, drop, inexact


@as_value
def dropout(*, rate: float) -> Layer:
    """Return dropout on a sequence, with a fresh mask at every step.

        y_t = m_t x_t / (1 - rate)        m_t in {0, 1}, zero with probability `rate`

    Place it in a `stack`. `apply` needs a key; with `key=None` it is the identity. Params and state
    are (). The output is zero beyond `lengths` and where the mask is False, whatever the input.

    Args:
      rate: the part of the features that is dropped, in [0, 1).

    Returns:
      A `Layer`.

    Raises:
      TypeError: in `apply`, the key is left out.
      ValueError: the rate is no number in [0, 1).

    References:
      N. Srivastava et al. (2014), "Dropout: a simple way to prevent neural networks from
      overfitting", JMLR 15; W. Zaremba, I. Sutskever and O. Vinyals (2014), "Recurrent neural
      network regularization".

    Example:
      >>> import jax, jax.numpy as jnp, jax_bptt as jb
      >>> drop = jb.dropout(rate=0.5)
      >>> drop.apply((), jnp.ones((2, 4)), key=jax.random.key(0))[1].shape
      (2, 4)
      >>> drop.apply((), jnp.ones((2, 2)), key=None)[1].tolist()
      [[1.0, 1.0], [1.0, 1.0]]
    """
    rate = check_rate("dropout", rate)
    return _stateless("dropout", rate, lambda key, xs: draw(key, 1 - rate, xs))


@as_value
def variational_dropout(*, rate: float) -> Layer:
    """Return dropout on a sequence, with one mask for all steps of each sequence.

        y_t = m x_t / (1 - rate)        m in {0, 1}, zero with probability `rate`

    Place it in a `stack`; for the same on the recurrent connections see `recurrent_dropout`.
    `apply` needs a key; with `key=None` it is the identity. Params and state are (). A sequence run
    in several windows keeps its mask if all get the same key. The output is zero beyond `lengths`
    and where the mask is False.

    Args:
      rate: the part of the features that is dropped, in [0, 1).

    Returns:
      A `Layer`.

    Raises:
      TypeError: in `apply`, the key is left out.
      ValueError: the rate is no number in [0, 1).

    References:
      Y. Gal and Z. Ghahramani (2016), "A theoretically grounded application of dropout in recurrent
      neural networks", NeurIPS.

    Example:
      >>> import jax, jax.numpy as jnp, jax_bptt as jb
      >>> drop = jb.variational_dropout(rate=0.5)
      >>> ys = drop.apply((), jnp.ones((9, 2, 4)), key=jax.random.key(0))[1]
      >>> bool((ys == ys[0]).all())
      True
    """
    rate = check_rate("variational_dropout", rate)

    def one_for_all(key, xs):
        examples = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), xs)
        masks = draw(key, 1 - rate, examples)
        return jax.tree.map(lambda m, x: jnp.broadcast_to(m, x.shape), masks, xs)

    return _stateless("variational_dropout", rate, one_for_all)


def _stateless(name: str, rate: float, masks: Callable[..., PyTree]) -> Layer:
    """Return the layer without params and state that applies `masks(key, xs)`."""

    def apply(params, xs, state=None, *, key=MISSING, algorithm=None, **options):
        option_checks.named(name, options)
        given = sequence.Options(**options)
        own = {"params": params, "state": state, "reset_state": given.reset_state}
        for argument, value in own.items():
            require(
                not jax.tree.leaves(value),
                f"{name}: {argument} must be (), what its init makes, got {kind_of(value)}.",
                TypeError,
            )
        if algorithm is not None:
            argument_checks.algorithm(name, algorithm)
        xs = as_arrays(name, "xs", xs)
        given = option_checks.stateless(name, xs, given)
        key = check_key(name, key)
        # What is not read, such as padding, may hold NaN, and as an output of a layer it is zero.
        xs, _, _ = sequence.arrange(xs, given)
        if key is not None:
            xs = drop(xs, masks(key, inexact(xs)), rate)
        return (), xs

    return Layer(lambda key: (), lambda params, batch_shape: (), apply)
