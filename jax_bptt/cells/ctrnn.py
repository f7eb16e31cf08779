"""Continuous-time recurrent network: leaky units, their leak exact or by explicit Euler steps."""

import numbers
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from jax_bptt.cells import parts
from jax_bptt.core.checks import require, shown
from jax_bptt.core.trees import accumulator_dtype
from jax_bptt.core.types import Cell, GatedStep
from jax_bptt.core.values import as_value


class CTRNNParams(NamedTuple):
    """Parameters of a continuous-time network.

    Attributes:
      w_x: input to state, [I, 1, H].
      w_s: state to next state, [H, 1, H].
      b: bias, [1, H].
      log_tau: logarithm of each unit's time constant, [H].
      w_y: state to output, [H, O]; None without a readout.
    """

    w_x: Array
    w_s: Array
    b: Array
    log_tau: Array
    w_y: Array | None = None


class CTRNNWeights(NamedTuple):
    """Weights of a step: `CTRNNParams` with alpha [H] in place of the time constants."""

    w_x: Array
    w_s: Array
    b: Array
    alpha: Array
    w_y: Array | None = None


@as_value
def ctrnn(
    input_size: int,
    hidden_size: int,
    *,
    output_size: int | None = None,
    activation: Callable[[Array], Array] = jnp.tanh,
    time_step: float = 1.0,
    time_constant: Any = 5.0,
    dtype: Any = None,
) -> Cell:
    """Return the continuous-time recurrent network, its leak integrated exactly.

        tau ds/dt = -s + phi(x W_x + s W_s + b)
        s_t = s_{t-1} + alpha (phi(x_t W_x + s_{t-1} W_s + b) - s_{t-1})
        alpha = 1 - exp(-dt / tau)
        y_t = s_t W_y, or s_t without a readout

    The step is the solution of the equation with phi(...) held for its duration. That makes an
    error of first order in dt, but none in the leak, and with 0 < alpha < 1 the leak is stable for
    any dt. For the explicit Euler step see `ctrnn_euler`.

    The time constants are parameters and learned; the logarithm keeps them positive. Leave
    `log_tau` out of the optimiser's update to hold them.

    State: s [*batch, H]. Parameters: `CTRNNParams` of `w_x` [I, 1, H], `w_s` [H, 1, H], `b` [1, H],
    `log_tau` [H], `w_y` [H, O]. Initialisation: Glorot-uniform w_x and w_y, orthogonal w_s, zero b,
    log_tau from time_constant.

    Args:
      input_size: I.
      hidden_size: H.
      output_size: O; None for no readout.
      activation: phi, any differentiable function that acts element by element.
      time_step: dt, between one input and the next.
      time_constant: initial tau in the units of dt, one number or one for each unit, [H].
      dtype: of the parameters; None for JAX's default float.

    Returns:
      A `Cell` with a `GatedStep`.

    Raises:
      ValueError: a size is not a positive integer, or a time not a positive number.
      TypeError: the activation is no function, or the dtype no floating one.

    References:
      H. R. Wilson and J. D. Cowan (1972), "Excitatory and inhibitory interactions in localized
      populations of model neurons", Biophysical Journal 12(1), for the equation; M. Hochbruck and
      A. Ostermann (2010), "Exponential integrators", Acta Numerica 19, for the step.

    Example:
      >>> import jax, jax.numpy as jnp, jax_bptt as jb
      >>> cell = jb.ctrnn(input_size=3, hidden_size=4, time_step=0.1, time_constant=[0.2, 1, 5, 25])
      >>> jb.unroll(cell, cell.init(jax.random.key(0)), jnp.ones((7, 2, 3)))[1].shape
      (7, 2, 4)
    """
    sizes = input_size, hidden_size, output_size
    return _leaky("ctrnn", sizes, activation, (time_step, time_constant), _exact_leak, dtype)


@as_value
def ctrnn_euler(
    input_size: int,
    hidden_size: int,
    *,
    output_size: int | None = None,
    activation: Callable[[Array], Array] = jnp.tanh,
    time_step: float = 1.0,
    time_constant: Any = 5.0,
    dtype: Any = None,
) -> Cell:
    """Return the continuous-time recurrent network by explicit Euler steps.

        tau ds/dt = -s + phi(x W_x + s W_s + b)
        s_t = s_{t-1} + alpha (phi(x_t W_x + s_{t-1} W_s + b) - s_{t-1})
        alpha = dt / tau
        y_t = s_t W_y, or s_t without a readout

    The leak is unstable where dt > 2 tau; `ctrnn` is stable throughout and costs the same. At
    dt = tau it is the simple recurrent network, `elman`.

    State, parameters and initialisation are those of `ctrnn`.

    Args:
      input_size: I.
      hidden_size: H.
      output_size: O; None for no readout.
      activation: phi, any differentiable function that acts element by element.
      time_step: dt, between one input and the next.
      time_constant: initial tau in the units of dt, one number or one for each unit, [H].
      dtype: of the parameters; None for JAX's default float.

    Returns:
      A `Cell` with a `GatedStep`.

    Raises:
      ValueError: a size is not a positive integer, or a time not a positive number.
      TypeError: the activation is no function, or the dtype no floating one.

    References:
      H. R. Wilson and J. D. Cowan (1972), "Excitatory and inhibitory interactions in localized
      populations of model neurons", Biophysical Journal 12(1).

    Example:
      >>> import jax, jax.numpy as jnp, jax_bptt as jb
      >>> cell = jb.ctrnn_euler(input_size=3, hidden_size=4, time_step=0.1, time_constant=1.0)
      >>> jb.unroll(cell, cell.init(jax.random.key(0)), jnp.ones((7, 2, 3)))[1].shape
      (7, 2, 4)
    """
    sizes = input_size, hidden_size, output_size
    return _leaky("ctrnn_euler", sizes, activation, (time_step, time_constant), _euler_leak, dtype)


def _exact_leak(ratio: Array) -> Array:
    return -jnp.expm1(-ratio)


def _euler_leak(ratio: Array) -> Array:
    return ratio


def _leaky(
    name: str,
    sizes: tuple[int, int, int | None],
    activation: Callable[[Array], Array],
    times: tuple[float, Any],
    leak: Callable[[Array], Array],
    dtype: Any,
) -> Cell:
    """Return the cell of sizes I, H, O and times dt, tau, with alpha = leak(dt / tau)."""
    input_size, hidden_size, output_size = sizes
    time_step, time_constant = times
    parts.check_sizes(name, input_size, hidden_size, output_size, dtype)
    parts.check_function(name, "activation", activation, "jnp.tanh")
    require(
        isinstance(time_step, numbers.Real) and not isinstance(time_step, bool) and time_step > 0,
        f"{name}: time_step must be a positive number, got {shown(time_step)}",
    )
    tau = np.asarray(time_constant)
    require(
        tau.dtype.kind in "iuf" and tau.shape in ((), (hidden_size,)) and bool((tau > 0).all()),
        f"{name}: time_constant must be a positive number, or {hidden_size} of them, one for each "
        f"unit, got {shown(time_constant)}",
    )

    def init(key):
        p = parts.init_params(key, input_size, 1, hidden_size, output_size, dtype)
        log_tau = jnp.broadcast_to(jnp.asarray(np.log(tau), p.b.dtype), (hidden_size,))
        return CTRNNParams(p.w_x, p.w_s, p.b, log_tau, p.w_y)

    def prepare(params):
        log_tau = params.log_tau.astype(accumulator_dtype(params.log_tau.dtype))
        ratio = float(time_step) * jnp.exp(-log_tau)
        return CTRNNWeights(params.w_x, params.w_s, params.b, leak(ratio), params.w_y)

    def pointwise(weights, state, drive, feedback):
        target = activation((drive + feedback)[..., 0, :])
        return state + parts.spread(weights.alpha, state) * (target - state)

    return Cell(
        init=init,
        initial_state=parts.zero_hidden(hidden_size),
        step=GatedStep(_mix, pointwise),
        project=parts.project,
        readout=parts.output,
        input_spec=parts.features(input_size),
        prepare=prepare,
        any_batch=True,
        gates=("a",),
    )


def _mix(weights, state):
    return parts.product(state, weights.w_s)
