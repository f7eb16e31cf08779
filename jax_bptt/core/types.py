"""The seams of the library: a cell is data, an algorithm is three pure functions.

Axis letters, used in every docstring of the package:

    T  time          B  batch (any number of batch axes, none included; written *batch)
    I  input size    G  gates     H  hidden size     O  output size     K  steps of a block

Time comes first, units last and gates second to last. A plural name (`xs`, `states`) leads with T.

Three words are the library's own, beside those of the field:

    drive      the input's part of the pre-activation, x_t W_x + b
    mix        the recurrent product, of the state with W_s
    feedback   its result, the state's part of the pre-activation
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jax_bptt.core.values import Value

PyTree = Any
"""Any nesting of tuples, lists, dicts and registered classes whose leaves are arrays."""


def identity(params: PyTree) -> PyTree:
    """Return `params` unchanged: the `prepare` of a cell whose weights are its parameters."""
    return params


class _Cell(NamedTuple):
    init: Callable[..., PyTree]
    initial_state: Callable[..., PyTree]
    step: Callable[..., PyTree]
    project: Callable[..., PyTree]
    readout: Callable[..., PyTree]
    input_spec: PyTree
    prepare: Callable[..., PyTree] = identity
    any_batch: bool = False
    gates: tuple[str, ...] = ()


class Cell(Value, _Cell):
    """A recurrent cell: the equations of one time step as pure functions.

        weights = prepare(params)
        s_t     = step(weights, s_{t-1}, project(weights, x_t))        t = 1..T
        y_t     = readout(weights, s_t)

    Only `step` is sequential. `project` sees no state and `readout` sees only the state, so that
    both run batched over time. A cell knows no algorithm.

    Attributes:
      init: `key -> params`, any pytree of arrays.
      initial_state: `(params, batch_shape) -> state`, any pytree; its inexact leaves are float32
        or wider, so that the recurrence is carried in at least single precision.
      step: `(weights, state, drive) -> state`, with the structure, shapes and dtypes of `state`.
        A `GatedStep` is a step with a seam inside, which is what earns speed; a `DiagonalStep` is
        one without a product.
      project: `(weights, x) -> drive`, the contribution of one input.
      readout: `(weights, state) -> y`, the output of one state.
      input_spec: a pytree of `jax.ShapeDtypeStruct` that describes one input `x` without its time
        and batch axes. Of the dtype only the kind counts (floating, integer, ...).
      prepare: `params -> weights`, run once per sequence: casting, weight norm, low rank, ...
      any_batch: whether every function takes arguments of any batch shape, as all of the library's
        own cells do. Time is then passed as one more batch axis, which makes for faster products;
        otherwise functions are mapped over time by `jax.vmap`, whatever they do with the batch.
      gates: names of the gates, in their order on the axis [..., G, H] of parameters; () for a cell
        without such an axis.
    """


class Tokens(jax.ShapeDtypeStruct):
    """An integer input below a known number, for `Cell.input_spec`.

    Attributes:
      vocabulary_size: V, the number of distinct tokens.
    """

    vocabulary_size: int

    def __init__(self, vocabulary_size: int):
        """Describe tokens 0 to V - 1."""
        super().__init__((), jnp.int32)
        object.__setattr__(self, "vocabulary_size", vocabulary_size)  # its base is immutable

    def __eq__(self, other: object) -> bool:
        """Return whether both are tokens of as many kinds."""
        return isinstance(other, Tokens) and self.vocabulary_size == other.vocabulary_size

    def __hash__(self) -> int:
        """Return the hash of the number of kinds."""
        return hash((Tokens, self.vocabulary_size))


class GatedStep(NamedTuple):
    """A step split into the product across units and the arithmetic within each unit.

        feedback_t = mix(weights, s_{t-1})
        s_t        = pointwise(weights, s_{t-1}, drive_t, feedback_t)

    Because `pointwise` acts unit by unit, its Jacobian is a handful of arrays of the state's
    shape. They are computed for many steps at once; the reverse scan that remains does one
    product with the transpose of `mix` per step and a few multiplications.

    The optional pair says how; without it the library takes `jax.vjp` of `pointwise`. Write one
    where the derivative has a form with fewer residuals. It differs from `jax.custom_vjp` in that
    the new state, which is kept anyway, is given: where the derivative follows from the states
    alone, as tanh' = 1 - s_t^2, drive and feedback go unread and their products are not done again.

    Attributes:
      mix: `(weights, state) -> feedback`, the recurrent product: the only operation across units,
        a function of weights and state alone. The reverse scan transposes it at s_{t-1}, which it
        need not read where `mix` is affine; relu(s) W_s, as in networks of firing rates, is as
        good. `fused` takes an affine one.
      pointwise: `(weights, state, drive, feedback) -> state`, unit by unit on the last axis.
      pointwise_fwd: `(weights, state, drive, feedback, new_state) -> residuals`, what of the
        Jacobian `pointwise_bwd` needs; `new_state` is what `pointwise` made of the rest.
      pointwise_bwd: `(residuals, d_state) -> (d_state_prev, d_drive, d_feedback)`; d_state_prev
        is the direct dependence alone, without the path through `mix`.
      heads: N where the units are N groups of H / N in a row and `mix` crosses none of them, the
        feedback of a group depending on its own units alone. What knows of it skips the zeros
        between the groups; nothing else comes of it.
    """

    mix: Callable[..., PyTree]
    pointwise: Callable[..., PyTree]
    pointwise_fwd: Callable[..., PyTree] | None = None
    pointwise_bwd: Callable[..., PyTree] | None = None
    heads: int = 1

    def __call__(self, weights: PyTree, state: PyTree, drive: PyTree) -> PyTree:
        """Advance the state by one step."""
        return self.pointwise(weights, state, drive, self.mix(weights, state))


class DiagonalStep(NamedTuple):
    """A step that is linear in the state, each unit on its own.

        a_t, b_t = coefficients(weights, drive_t)
        s_t      = a_t s_{t-1} + b_t

    The coefficients know no state, so that they are computed for all steps at once, and what is
    left is a linear recurrence, which an associative scan runs in O(log T) sequential steps.

    Attributes:
      coefficients: `(weights, drive) -> (a, b)`, two pytrees with the structure, shapes and dtypes
        of the state.
    """

    coefficients: Callable[..., tuple[PyTree, PyTree]]

    def __call__(self, weights: PyTree, state: PyTree, drive: PyTree) -> PyTree:
        """Advance the state by one step."""
        a, b = self.coefficients(weights, drive)
        return jax.tree.map(lambda a, s, b: a * s + b, a, state, b)


class Inputs(NamedTuple):
    """All that one run over a sequence depends on, in the order in which time is run.

    Attributes:
      weights: the cell's prepared parameters.
      state: s_0.
      xs: [T, *batch, ...].
      start: the state that a reset goes back to; None without resets.
      controls: a `jax_bptt.core.sequence.Controls`.
    """

    weights: PyTree
    state: PyTree
    xs: PyTree
    start: PyTree
    controls: Any


class Gradient(NamedTuple):
    """The gradient of a run, None at leaves that cannot be differentiated (integers, keys).

    Attributes:
      weights: dL/dW, like the weights.
      state: dL/ds_0.
      xs: dL/dx_t, like xs.
      start: what reaches the state that resets go back to; None without resets.
    """

    weights: PyTree
    state: PyTree
    xs: PyTree
    start: PyTree


class _Algorithm(NamedTuple):
    run: Callable[..., tuple[PyTree, PyTree]]
    forward: Callable[..., tuple[tuple[PyTree, PyTree], Any]] | None = None
    backward: Callable[..., Gradient] | None = None
    controls: Callable[..., Any] | None = None
    explain: Callable[..., str] | None = None


class Algorithm(Value, _Algorithm):
    """How a sequence is run and differentiated. An algorithm knows no cell.

    Attributes:
      run: `(cell, inputs) -> (last_state, ys)`, of `Inputs`. Its derivative by JAX is the forward
        mode of the algorithm.
      forward: `(cell, inputs) -> ((last_state, ys), saved)`, the same and what `backward` reads, a
        NamedTuple of the algorithm's own. None if JAX differentiates `run`.
      backward: `(cell, saved, d_last_state, d_ys) -> Gradient`, the transpose of the forward mode
        by an explicit reverse pass; `d_ys` is None where no output has a cotangent. None if JAX
        differentiates `run`.
      controls: `(cell, inputs) -> controls` to run with in place of those of `inputs`, such as with
        a factor on what crosses a step; it may close over traced values. None to leave them.
      explain: `(cell, inputs) -> str`, in words what it would do, for `jax_bptt.explain`; None for
        nothing to say.
    """
