"""Run a cell over a sequence, with the gradient of the chosen algorithm."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jax_bptt.algorithms import argument_checks, option_checks, tree_checks
from jax_bptt.algorithms.bptt import bptt
from jax_bptt.algorithms.default import default
from jax_bptt.core import checks, derivative, devices, sequence, tracing, trees
from jax_bptt.core.sequence import Options
from jax_bptt.core.types import Algorithm, Cell, Inputs, PyTree


def unroll(
    cell: Cell,
    params: PyTree,
    xs: PyTree,
    state: PyTree | None = None,
    *,
    algorithm: Algorithm | None = None,
    lengths: ArrayLike | None = None,
    resets: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    reset_state: PyTree | None = None,
    reverse: bool = False,
) -> tuple[PyTree, PyTree]:
    """Run `cell` over `xs` and return its last state and its outputs.

        s_t = step(s_{t-1}, x_t)        y_t = readout(s_t)        t = 1..T

    `jax.grad` of anything that calls this runs the algorithm's own reverse pass; by default that
    is explicit backpropagation through time, `bptt()`. Forward mode and derivatives of any order
    are exact as well; with a `jax.custom_vjp` in the step there is no forward mode. A cell with
    effects, such as a `jax.debug.print` in its step, runs by `autodiff()`. What a step closes over
    is differentiated as well. T = 0 returns the state as it came.

    Args:
      cell: a `Cell`, e.g. `lstm(input_size=I, hidden_size=H)`.
      params: `cell.init(key)`, in any floating dtype (or complex, for cells that are).
      xs: [T, *batch, I], or whatever `cell.input_spec` says behind [T, *batch]; floating inputs
        in the dtype of the weights or of the carry.
      state: s_0 as `cell.initial_state(params, batch_shape)` makes it, which is also the default.
      algorithm: how the gradient is computed; see `bptt` and `autodiff`.
      lengths: integer [*batch], 0 to T: the number of steps of each sequence of a padded batch.
        Beyond it the state is held, outputs are zero, and inputs are not read: they may be NaN.
      resets: bool [T, *batch]: where the state starts again from `reset_state`, before the step is
        taken. No gradient crosses.
      mask: bool [T, *batch]: where False, the state is held and the input not read; the output is
        that of the held state.
      reset_state: what resets go back to, like `state`; by default what `cell.initial_state` makes,
        wherever this run begins: steps streamed one by one equal a window of them.
      reverse: whether time runs backwards, from each sequence's last step to its first. Outputs
        stay where their inputs are.

    Returns:
      (last_state, ys), in the order of `lax.scan`: the state after the last step that was run, each
      sequence's own, and the outputs [T, *batch, ...].

    Raises:
      TypeError: an argument is of the wrong kind, structure or dtype.
      ValueError: a shape does not fit; the message names both shapes and the way out.

    Example:
      >>> import jax, jax.numpy as jnp, jax_bptt as jb
      >>> cell = jb.gru(input_size=3, hidden_size=5)
      >>> params = cell.init(jax.random.key(0))
      >>> last_state, ys = jb.unroll(cell, params, jnp.ones((7, 2, 3)))
      >>> last_state.shape, ys.shape
      ((2, 5), (7, 2, 5))
    """
    name = "unroll"
    if algorithm is not None:
        argument_checks.algorithm(name, algorithm)
    reverse = option_checks.direction(name, reverse)
    given = checked(name, cell, (params, xs, state), Options(lengths, resets, mask, reset_state))
    return compiled_once(_unroll, cell, algorithm, reverse)(given)


def bptt_gradients(
    cell: Cell,
    params: PyTree,
    xs: PyTree,
    state: PyTree | None = None,
    d_ys: PyTree | None = None,
    d_last_state: PyTree | None = None,
    *,
    algorithm: Algorithm | None = None,
    lengths: ArrayLike | None = None,
    resets: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    reset_state: PyTree | None = None,
    reverse: bool = False,
) -> tuple[PyTree, PyTree, PyTree]:
    """Run the explicit reverse pass by hand, from cotangents to gradients.

        lambda_{t-1} = J_t^T lambda_t + g_{t-1}           t = T..1
        dL/dW        = sum_t (d+ s_t / dW)^T lambda_t

    The same code as behind `jax.grad` of `unroll`, without `jax.grad`.

    Args:
      cell: a `Cell`.
      params: `cell.init(key)`.
      xs: [T, *batch, I].
      state: s_0; by default `cell.initial_state(params, batch_shape)`, whose own dependence on
        the parameters then counts into d_params.
      d_ys: dL/dy_t, like the outputs of `unroll`, with None at leaves without a gradient
        (integers); None for zero.
      d_last_state: dL/ds_T by paths other than the outputs, like the state, with None at leaves
        without a gradient (integers); None for zero.
      algorithm: as in `unroll`; it must have an explicit backward.
      lengths: as in `unroll`; integer [*batch].
      resets: as in `unroll`; bool [T, *batch].
      reset_state: as in `unroll`; like the state.
      mask: as in `unroll`; bool [T, *batch].
      reverse: as in `unroll`.

    Returns:
      (d_params, d_xs, d_state), like params, xs and state, with None at leaves without a
      gradient (integer tokens). What reaches a `reset_state` of one's own is left out. Inside
      `jax.shard_map` they are those of this device's data; sum d_params over the mesh with
      `jax.lax.psum`.

    Raises:
      TypeError: an argument is of the wrong kind, structure or dtype.
      ValueError: a shape does not fit, or the algorithm has no explicit backward.

    Example:
      >>> import jax, jax.numpy as jnp, jax_bptt as jb
      >>> cell = jb.elman(input_size=3, hidden_size=5)
      >>> params, xs = cell.init(jax.random.key(0)), jnp.ones((7, 2, 3))
      >>> d_params, d_xs, d_state = jb.bptt_gradients(cell, params, xs, d_ys=jnp.ones((7, 2, 5)))
      >>> d_params.w_s.shape, d_xs.shape, d_state.shape
      ((5, 1, 5), (7, 2, 3), (2, 5))
    """
    name = "bptt_gradients"
    algorithm = bptt() if algorithm is None else algorithm
    argument_checks.algorithm(name, algorithm)
    checks.require(
        algorithm.forward is not None and algorithm.backward is not None,
        f"{name}: this algorithm has no explicit backward; JAX differentiates it. Take jax.vjp of "
        "unroll, or an algorithm such as jb.bptt().",
    )
    reverse = option_checks.direction(name, reverse)
    given = checked(name, cell, (params, xs, state), Options(lengths, resets, mask, reset_state))
    d_ys = tree_checks.as_arrays(name, "d_ys", d_ys)
    d_last_state = tree_checks.as_arrays(name, "d_last_state", d_last_state)
    gradients = compiled_once(_gradients, cell, algorithm, reverse)
    return gradients(given, d_ys, d_last_state)


class Arguments(NamedTuple):
    """Checked arguments of a run; the state is None for the cell's own."""

    params: PyTree
    xs: PyTree
    state: PyTree
    options: Options


class Run(NamedTuple):
    """A run as an algorithm takes it.

    Attributes:
      cell: the cell; with what its functions closed over hoisted into its weights.
      inputs: of the run.
      valid: bool [T, *batch], False beyond the lengths, or None without any.
      traced: facts about the cell.
    """

    cell: Cell
    inputs: Inputs
    valid: Array | None
    traced: tracing.Traced


def checked(name: str, cell: Cell, arguments: tuple, options: Options) -> Arguments:
    """Return (params, xs, state) and the options of a run, checked on behalf of `name`."""
    params, xs, state = argument_checks.inputs(name, cell, *arguments)
    argument_checks.pair(name, cell)
    options = option_checks.options(name, cell, xs, options)
    if options.reset_state is not None:
        expected = argument_checks.state_spec(cell, params, xs)
        given = argument_checks.given_state(
            name, "reset_state", cell, xs, options.reset_state, expected
        )
        options = options._replace(reset_state=given)
    return Arguments(params, xs, state, options)


def compiled_once(function: Any, *static: Any) -> Any:
    """Return `function(*static, ...)`, compiled at the first of calls with equal `static`."""
    try:
        hash(static)
    except TypeError:  # such as a method of an object that holds arrays
        return functools.partial(function, *static)
    return functools.partial(_jitted(function, len(static)), *static)


@functools.cache
def _jitted(function: Any, count: int) -> Any:
    return jax.jit(function, static_argnums=tuple(range(count)), inline=True)


def begin(name: str, cell: Cell, given: Arguments, reverse: bool) -> Run:
    """Return the run of `cell` on checked arguments, every default filled in."""
    params, xs, state, options = given
    batch = checks.batch_shape(cell, xs)
    params, xs, state, reset_state = devices.vary_alike(
        (params, xs, state, options.reset_state), given
    )
    initial = state is None or (options.resets is not None and reset_state is None)
    own = devices.vary_alike(cell.initial_state(params, batch), xs) if initial else None
    own = jax.tree.map(jnp.asarray, own)
    state = own if state is None else state
    start = None
    if options.resets is not None:
        start = own if reset_state is None else reset_state
    state, start = devices.shard_alike((state, start), xs, len(batch))
    lengths = devices.shard_alike(options.lengths, xs, len(batch))
    flags = devices.shard_alike((options.resets, options.mask), xs, len(batch), time=1)
    options = Options(lengths, *flags)
    weights = devices.vary_alike(argument_checks.weights(name, cell, params, xs), xs)

    traced = tracing.trace(cell, weights, state, xs)
    argument_checks.step(name, state, traced.new_state)
    if any(option is not None for option in options):
        option_checks.holdable(name, cell, params, xs)
    if traced.closed:
        cell, weights = tracing.hoist(cell, weights, state, xs, traced.drive)
    xs, controls, valid = sequence.arrange(xs, options, reverse)
    return Run(cell, Inputs(weights, state, xs, start, controls), valid, traced)


def controlled(run: Run, algorithm: Algorithm) -> Run:
    """Return the run with the controls that the algorithm sets."""
    if algorithm.controls is None:
        return run
    controls = algorithm.controls(run.cell, run.inputs)
    return run._replace(inputs=run.inputs._replace(controls=controls))


def _unroll(
    cell: Cell, algorithm: Algorithm | None, reverse: bool, given: Arguments
) -> tuple[PyTree, PyTree]:
    run = begin("unroll", cell, given, reverse)
    algorithm = default(run.traced) if algorithm is None else algorithm
    run = controlled(run, algorithm)
    register = derivative.reverse_only if run.traced.reverse_only else derivative.differentiable
    last_state, ys = register(run.cell, algorithm, run.inputs)
    return last_state, sequence.restore(ys, run.valid, reverse)


def cotangents(
    name: str, run: Run, outputs: tuple, given: tuple, reverse: bool
) -> tuple[PyTree, PyTree]:
    """Return (d_last_state, d_ys), checked, in the order in which time is run.

    Args:
      name: the public function on whose behalf errors are raised.
      run: the run.
      outputs: its (last_state, ys).
      given: (d_last_state, d_ys) of the user, None for zero.
      reverse: whether time runs backwards.
    """
    (last_state, ys), (d_last_state, d_ys) = outputs, given
    ys, pull_restore = trees.inexact_vjp(lambda ys: sequence.restore(ys, run.valid, reverse), ys)
    if d_ys is not None:
        (d_ys,) = pull_restore(argument_checks.cotangents(name, "d_ys", d_ys, ys))
    if d_last_state is not None:
        return argument_checks.cotangents(name, "d_last_state", d_last_state, last_state), d_ys
    zeros = jax.tree.map(lambda s: jnp.zeros_like(s) if trees.is_inexact(s) else None, last_state)
    return zeros, d_ys


def _gradients(
    cell: Cell,
    algorithm: Algorithm,
    reverse: bool,
    given: Arguments,
    d_ys: PyTree | None,
    d_last_state: PyTree | None,
) -> tuple[PyTree, PyTree, PyTree]:
    name = "bptt_gradients"
    forward, backward = algorithm.forward, algorithm.backward
    assert forward is not None and backward is not None
    with devices.mesh_of(given):
        given = devices.vary_alike(given, given)
        params, xs, state, options = given
        run = controlled(begin(name, cell, given, reverse), algorithm)
        (last_state, ys), saved = forward(run.cell, run.inputs)
        d_last_state, d_ys = cotangents(name, run, (last_state, ys), (d_last_state, d_ys), reverse)
        found = backward(run.cell, saved, d_last_state, d_ys)

        def start(params):
            return cell.initial_state(params, checks.batch_shape(cell, xs))

        def pull(function, at, cotangent):
            return trees.inexact_vjp(function, at)[1](cotangent)[0]

        d_weights = found.weights.own if run.traced.closed else found.weights
        d_params = pull(cell.prepare, params, d_weights)
        if state is None:
            d_params = trees.add(d_params, pull(start, params, found.state))
        if found.start is not None and options.reset_state is None:
            d_params = trees.add(d_params, pull(start, params, found.start))
        d_xs = pull(lambda xs: sequence.arrange(xs, options, reverse)[0], xs, found.xs)
        return d_params, d_xs, found.state
