"""Noise on the weights, for a whole sequence."""

import math
import numbers

import jax
import jax.numpy as jnp
from jax import Array

from jax_bptt.core.checks import prng_key, require, shown
from jax_bptt.core.trees import is_inexact
from jax_bptt.core.types import PyTree


def weight_noise(key: Array, params: PyTree, *, scale: float | Array) -> PyTree:
    """Return parameters with Gaussian noise added, of standard deviation `scale`.

        w' = w + scale n        n ~ N(0, 1), drawn for every number once

    Call it inside the loss and pass the result to `unroll`: the noise then stays the same at every
    step of a sequence, and the gradient of w is that of w'. A scale that is
    learned has a gradient as well.

    Args:
      key: a PRNG key, a new one for each update.
      params: any pytree; leaves that are neither floating nor complex stay as they are.
      scale: standard deviation of the noise, at least zero.

    Returns:
      A pytree like `params`, of the same dtypes.

    Raises:
      ValueError: the scale is a number that is negative or not finite.

    References:
      K.-C. Jim, C. L. Giles and B. G. Horne (1996), "An analysis of noise in recurrent neural
      networks: convergence and generalization", IEEE Transactions on Neural Networks 7(6);
      A. Graves (2011), "Practical variational inference for neural networks", NeurIPS.

    Example:
      >>> import jax, jax.numpy as jnp, jax_bptt as jb
      >>> noisy = jb.weight_noise(jax.random.key(0), {"w": jnp.zeros((1000,))}, scale=0.1)
      >>> print(f"{noisy['w'].std():.1f}")
      0.1
    """
    require(
        not isinstance(scale, numbers.Real) or 0 <= float(scale) < math.inf,
        "weight_noise: scale must be a standard deviation, finite and not negative, got "
        f"{shown(scale)}",
    )
    prng_key("weight_noise", key)
    leaves, structure = jax.tree.flatten(jax.tree.map(jnp.asarray, params))
    keys = jax.random.split(key, max(1, len(leaves)))
    noisy = [
        w + jnp.asarray(scale, w.dtype) * jax.random.normal(k, w.shape, w.dtype)
        if is_inexact(w)
        else w
        for k, w in zip(keys, leaves, strict=False)
    ]
    return jax.tree.unflatten(structure, noisy)
