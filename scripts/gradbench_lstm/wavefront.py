"""The objective of GradBench's `lstm` as one cell of this library, all layers at once.

A stack of layers j = 0..l-1 over b channels, each with weights of its own, none across channels:

    x_t^0 = w_in x_t              x_t^j = h_t^{j-1}
    f, o  = sigmoid(w x_t^j + b)            forget and output gate
    i     = sigmoid(w h_{t-1}^j + b)        input gate
    g     = tanh(w h_{t-1}^j + b)           candidate
    c_t   = f c_{t-1} + i g                 h_t = o tanh(c_t)
    y_t   = w_out h_t^{l-1} + b_out
    L     = -1 / (b (c - 1)) sum_t x_{t+1} . (y_t - log(2 + sum exp y_t))      t = 0..c-2

Step s of the wavefront takes layer j to time s - j, so that what a layer reads from the one below
is one step old, as its own state is: c + l - 2 steps of all l b units in place of l (c - 1) steps
of b units. A unit of layer j holds its state for the first j steps. What the lower layers compute
after their last character is read by nothing, and has no gradient.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

import jax_bptt as jb

FORWARD_BLOCK = 1024
"""Steps of a block of the loss alone."""

REVERSE_BLOCK = 256
"""Steps of a block of the gradient, whose twenty or so arrays [steps, l b] then stay in a cache of
a few MiB. A sequence of no more than `FORWARD_BLOCK` has the library's own choice."""


class Gates(NamedTuple):
    """One array for each gate, of the units of all layers, a layer after the other: [l b]."""

    f: Array
    i: Array
    o: Array
    g: Array


class Weights(NamedTuple):
    """Factors w and biases b of the gates; w_in, w_out and b_out are [b]."""

    w: Gates
    b: Gates
    w_in: Array
    w_out: Array
    b_out: Array


def _activations(a):
    f, i, o = map(_sigmoid, a[:3])
    return f, i, o, jnp.tanh(a.g)


def _added(drive, feedback):
    return jax.tree.map(jnp.add, drive, feedback)


def _units(a, c):
    """Return the state that pre-activations and the cell states before it make."""
    f, i, o, g = _activations(a)
    c = f * c + i * g
    return jb.LSTMState(o * jnp.tanh(c), c)


def _pointwise(weights, state, drive, feedback):
    return _units(_added(drive, feedback), state.c)


# With a the pre-activations and d for the derivative of the loss with respect to what follows,
#
#     dc_total = dc + dh o (1 - tanh(c)^2)
#     da       = [dc_total c_{t-1} f(1-f), dc_total g i(1-i), dh tanh(c) o(1-o), dc_total i(1-g^2)]
#     dc_{t-1} = dc_total f
#
# The factors depend on the states alone: they are computed for all steps of a block at once.


def _pointwise_fwd(weights, state, drive, feedback, new_state):
    f, i, o, g = _activations(_added(drive, feedback))
    tanh_c = jnp.tanh(new_state.c)
    to_gates = Gates(state.c * f * (1 - f), g * i * (1 - i), tanh_c * o * (1 - o), i * (1 - g * g))
    return to_gates, f, o * (1 - tanh_c * tanh_c)


def _pointwise_bwd(residuals, d_state):
    to, f, to_c = residuals
    d_c = d_state.c + d_state.h * to_c
    d_gates = Gates(d_c * to.f, d_c * to.i, d_state.h * to.o, d_c * to.g)
    return jb.LSTMState(jnp.zeros_like(d_c), d_c * f), d_gates, d_gates


def _sigmoid(a):
    return 0.5 * jnp.tanh(0.5 * a) + 0.5


@functools.cache
def wavefront(layers: int, bits: int) -> jb.Cell:
    """Return one step of the wavefront as a cell with a `GatedStep`.

    State: `LSTMState(h, c)`, [l b] each. Parameters: (main_params [2 l, 4 b], extra_params [3, b])
    as GradBench has them, of row 2 j the factors and of row 2 j + 1 the biases of layer j, for the
    gates f, i, o, g.
    """
    units = layers * bits

    def init(key):
        main, extra = jax.random.split(key)
        sizes = (2 * layers, 4 * bits), (3, bits)
        return jax.random.uniform(main, sizes[0]), jax.random.uniform(extra, sizes[1])

    def prepare(params):
        main, extra = params
        w, b = main.reshape(layers, 2, 4, bits).transpose(1, 2, 0, 3).reshape(2, 4, units)
        return Weights(Gates(*w), Gates(*b), *extra)

    def initial_state(params, batch_shape):
        zeros = jnp.zeros((*batch_shape, units), params[0].dtype)
        return jb.LSTMState(zeros, zeros)

    def project(weights, x):
        # Layer 0 alone reads it. The biases of i and g are here too, so that all four
        # pre-activations are drive + feedback, and have one cotangent each.
        w, b = weights.w, weights.b
        below = jnp.concatenate([x * weights.w_in, jnp.zeros(units - bits, x.dtype)])
        return Gates(below * w.f + b.f, b.i, below * w.o + b.o, b.g)

    def mix(weights, state):
        w, h = weights.w, state.h
        below = jnp.concatenate([jnp.zeros_like(h[:bits]), h[: units - bits]])
        return Gates(below * w.f, h * w.i, below * w.o, h * w.g)

    return jb.from_step(
        jb.GatedStep(mix, _pointwise, _pointwise_fwd, _pointwise_bwd),
        init=init,
        initial_state=initial_state,
        input_shape=(bits,),
        project=project,
        readout=lambda weights, state: state.h[units - bits :] * weights.w_out + weights.b_out,
        prepare=prepare,
    )


def forward_only(cell: jb.Cell) -> jb.Cell:
    """Return a cell of `wavefront` with a plain step, whose drive is b numbers and not 4 l b.

    It takes a quarter less time forward. It has no derivatives to compute ahead, which makes its
    reverse pass the slower one.
    """

    def step(weights, state, x):
        w, b, h = weights.w, weights.b, state.h
        below = jnp.concatenate([x, h[: len(h) - len(x)]])
        a = Gates(below * w.f + b.f, h * w.i + b.i, below * w.o + b.o, h * w.g + b.g)
        return _units(a, state.c)

    return cell._replace(step=step, project=lambda weights, x: x * weights.w_in)


@jax.jit
def objective(main: Array, extra: Array, state: Array, sequence: Array) -> Array:
    """Return the loss L, by `jb.unroll`.

    Args:
      main: parameters of the layers, [2 l, 4 b].
      extra: w_in, w_out and b_out, [3, b].
      state: h in row 2 j and c in row 2 j + 1 of layer j, [2 l, b].
      sequence: x_0..x_{c-1}, [c, b].
    """
    cell, algorithm = forward_only(wavefront(*_sizes(main))), jb.bptt(block_length=FORWARD_BLOCK)
    return loss((main, extra), state, sequence, cell, algorithm)


@jax.jit
def jacobian(main: Array, extra: Array, state: Array, sequence: Array) -> Array:
    """Return dL/d(main, extra) in one row, [8 l b + 3 b], by explicit BPTT; arguments as above."""
    algorithm = jb.bptt(block_length=REVERSE_BLOCK if len(sequence) > FORWARD_BLOCK else None)

    def of_parameters(main, extra):
        return loss((main, extra), state, sequence, wavefront(*_sizes(main)), algorithm)

    d_main, d_extra = jax.grad(of_parameters, argnums=(0, 1))(main, extra)
    return jnp.concatenate([d_main.ravel(), d_extra.ravel()])


def loss(
    params: tuple[Array, Array],
    state: Array,
    sequence: Array,
    cell: jb.Cell,
    algorithm: jb.Algorithm,
) -> Array:
    """Return L for params (main, extra), with a cell of `wavefront`, or `forward_only`.

    In the first l - 1 steps layers hold their state; `algorithm` is for the c - 1 others.
    """
    layers, bits = _sizes(params[0])
    late = layers - 1
    front = jb.LSTMState(state[0::2].reshape(-1), state[1::2].reshape(-1))
    xs = jnp.concatenate([sequence[:-1], jnp.zeros((late, bits), sequence.dtype)])
    weights, layer = cell.prepare(params), jnp.arange(layers * bits) // bits
    for k in range(late):
        new, moves = cell.step(weights, front, cell.project(weights, xs[k])), layer <= k
        front = jax.tree.map(lambda new, old, moves=moves: jnp.where(moves, new, old), new, front)
    _, ys = jb.unroll(cell, params, xs[late:], front, algorithm=algorithm)
    normalised = ys - jnp.log(2 + jnp.exp(ys).sum(-1, keepdims=True))
    return -(sequence[1:] * normalised).mean()


def _sizes(main: Array) -> tuple[int, int]:
    """Return l and b of main parameters [2 l, 4 b]."""
    return main.shape[0] // 2, main.shape[1] // 4
