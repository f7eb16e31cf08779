"""Linear recurrent unit: a diagonal recurrence with complex eigenvalues."""

import math
import numbers
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jax_bptt.cells import parts
from jax_bptt.core.checks import prng_key, require, shown
from jax_bptt.core.trees import accumulator_dtype
from jax_bptt.core.types import Cell, DiagonalStep
from jax_bptt.core.values import as_value


class LRUParams(NamedTuple):
    """Parameters of a linear recurrent unit, all of them real.

    Attributes:
      nu: logarithm of the rate of decay, [H]; |lambda| = exp(-exp(nu)).
      theta: logarithm of the phase, [H]; arg lambda = exp(theta).
      log_gamma: logarithm of the scale of the input, [H].
      w_x: input to state, real and imaginary part, [I, 2, H].
      w_y: state to output, real and imaginary part, [2, H, O]; None without a readout.
    """

    nu: Array
    theta: Array
    log_gamma: Array
    w_x: Array
    w_y: Array | None = None


class _Weights(NamedTuple):
    eigenvalues: Array
    w_x: Array
    w_y: Array | None


@as_value
def lru(
    input_size: int,
    hidden_size: int,
    *,
    output_size: int | None = None,
    min_radius: float = 0.0,
    max_radius: float = 1.0,
    max_phase: float = 2 * math.pi,
    dtype: Any = None,
) -> Cell:
    """Return the linear recurrent unit of Orvieto and others.

        lambda = exp(-exp(nu) + i exp(theta))                   |lambda| < 1 whatever nu is
        s_t    = lambda s_{t-1} + exp(log_gamma) (x_t W_x)      complex, unit by unit
        y_t    = Re(s_t W_y), or Re(s_t) without a readout

    The complex matrices W_x and W_y are held as their real and imaginary parts, so that every
    parameter is real: any optimiser and any precision will do. The paper's skip term x_t D is not
    here, since a readout sees the state alone; add `xs @ d` to the outputs.

    State: s [*batch, H], complex. Parameters: `LRUParams`, `nu`, `theta`, `log_gamma` [H], `w_x`
    [I, 2, H], `w_y` [2, H, O]. Initialisation: lambda uniform on the ring between the two radii up
    to the largest phase, exp(log_gamma)^2 = 1 - |lambda|^2, which keeps a state driven by white
    noise at the size of its input; w_x normal of variance 1/(2 I), w_y of variance 1/H per part.

    Args:
      input_size: I.
      hidden_size: H, the number of complex units.
      output_size: O; None for no readout.
      min_radius: smallest initial |lambda|, at least 0.
      max_radius: largest initial |lambda|, at most 1; near 1 for long memories.
      max_phase: largest initial phase, in radians; small for long sequences.
      dtype: of the parameters; None for JAX's default float.

    Returns:
      A `Cell` with a `DiagonalStep`, which `associative` can run in parallel over time.

    Raises:
      ValueError: a size is not a positive integer, the radii are not in order between 0 and 1, or
        the largest phase is not positive.
      TypeError: the dtype is no floating one.

    References:
      A. Orvieto, S. L. Smith, A. Gu, A. Fernando, C. Gulcehre, R. Pascanu and S. De (2023),
      "Resurrecting recurrent neural networks for long sequences", ICML.

    Example:
      >>> import jax, jax.numpy as jnp, jax_bptt as jb
      >>> cell = jb.lru(input_size=3, hidden_size=5, output_size=2, min_radius=0.9)
      >>> last_state, ys = jb.unroll(cell, cell.init(jax.random.key(0)), jnp.ones((7, 3)))
      >>> last_state.dtype, ys.dtype, ys.shape
      (dtype('complex64'), dtype('float32'), (7, 2))
    """
    parts.check_sizes("lru", input_size, hidden_size, output_size, dtype)
    radii = min_radius, max_radius
    require(
        all(isinstance(r, numbers.Real) for r in radii) and 0 <= min_radius < max_radius <= 1,
        f"lru: radii must have 0 <= min_radius < max_radius <= 1, got {shown(min_radius)} and "
        f"{shown(max_radius)}",
    )
    require(
        isinstance(max_phase, numbers.Real) and 0 < max_phase < math.inf,
        f"lru: max_phase must be a positive number of radians, got {shown(max_phase)}",
    )

    def init(key):
        prng_key("cell.init", key)
        key_radius, key_phase, key_x, key_y = jax.random.split(key, 4)
        narrow = parts.parameter_dtype(dtype)
        wide = accumulator_dtype(narrow)
        eps = float(jnp.finfo(wide).eps)
        # 1 - |lambda|^2, away from both ends: at 0 and at 1 a logarithm below has no value.
        area = jax.random.uniform(key_radius, (hidden_size,), wide)
        gap = 1 - max_radius**2 + area * (max_radius**2 - min_radius**2)
        gap = jnp.clip(gap, eps, 1 - eps)
        phase = max_phase * jax.random.uniform(key_phase, (hidden_size,), wide, minval=eps)

        def normal(key, shape, variance):
            return parts.draw(jax.nn.initializers.normal(variance**0.5), key, shape, dtype)

        return LRUParams(
            nu=jnp.log(-0.5 * jnp.log1p(-gap)).astype(narrow),
            theta=jnp.log(phase).astype(narrow),
            log_gamma=(0.5 * jnp.log(gap)).astype(narrow),
            w_x=normal(key_x, (input_size, 2, hidden_size), 0.5 / input_size),
            w_y=None
            if output_size is None
            else normal(key_y, (2, hidden_size, output_size), 1 / hidden_size),
        )

    def initial_state(params, batch_shape):
        zeros = jnp.zeros((*batch_shape, hidden_size), accumulator_dtype(params.nu.dtype))
        return lax.complex(zeros, zeros)

    return Cell(
        init=init,
        initial_state=initial_state,
        step=DiagonalStep(_coefficients),
        project=lambda weights, x: parts.product(x, weights.w_x),
        readout=_readout,
        input_spec=parts.features(input_size),
        prepare=_prepare,
        any_batch=True,
    )


def _prepare(params):
    wide = accumulator_dtype(params.nu.dtype)
    nu, theta, log_gamma, w_x = (a.astype(wide) for a in params[:4])
    w_x = w_x * parts.spread(jnp.exp(log_gamma), w_x)
    eigenvalues = jnp.exp(lax.complex(-jnp.exp(nu), jnp.exp(theta)))
    return _Weights(eigenvalues, w_x.astype(params.w_x.dtype), params.w_y)


def _coefficients(weights, drive):
    b = lax.complex(drive[..., 0, :], drive[..., 1, :])
    return parts.spread_over(weights.eigenvalues, b), b


def _readout(weights, state):
    if weights.w_y is None:
        return state.real
    real, imaginary = weights.w_y
    return parts.product(state.real, real) - parts.product(state.imag, imaginary)
