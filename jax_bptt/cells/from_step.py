"""A cell from the user's own step function."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jax_bptt.cells.batches import couples_batch
from jax_bptt.core.checks import is_integer, require, shown
from jax_bptt.core.types import Cell, PyTree, identity
from jax_bptt.core.values import as_value


@as_value
def from_step(
    step: Callable[..., PyTree],
    *,
    init: Callable[..., PyTree],
    initial_state: Callable[..., PyTree],
    input_shape: tuple[int, ...] | None = None,
    input_spec: PyTree = None,
    project: Callable[..., PyTree] | None = None,
    readout: Callable[..., PyTree] | None = None,
    prepare: Callable[..., PyTree] = identity,
    any_batch: bool = False,
) -> Cell:
    """Return a cell made of the user's own function.

        s_t = step(weights, s_{t-1}, x_t)        y_t = s_t

    Any function will do, over any pytrees. What the step does with x_t before it meets the state
    can move to `project`, and what it does with s_t to `readout`: both then run batched over time.
    Give a `GatedStep` for the faster reverse pass.

    Args:
      step: `(weights, state, drive) -> state`, for any batch shape the sequences will have.
      init: `key -> params`.
      initial_state: `(params, batch_shape) -> state`, float32 or wider.
      input_shape: shape of one floating-point input without time and batch, `(I,)`.
      input_spec: in place of input_shape, a pytree of `jax.ShapeDtypeStruct` for one input: for
        integer tokens `jax.ShapeDtypeStruct((), jnp.int32)`.
      project: `(weights, x) -> drive`; by default the drive is x itself.
      readout: `(weights, state) -> y`; by default the output is the whole state.
      prepare: `params -> weights`.
      any_batch: whether all these functions take any number of leading batch axes and treat their
        entries alike. Faster if so; see `Cell`.

    Returns:
      A `Cell`.

    Raises:
      ValueError: with any_batch=True, a function couples entries of a batch.
      TypeError: an argument is no function, not exactly one of input_shape and input_spec is
        given, or it is no tuple of sizes or no pytree of `jax.ShapeDtypeStruct`.

    Example:
      >>> import jax, jax.numpy as jnp, jax_bptt as jb
      >>> leaky = jb.from_step(
      ...     lambda w, s, x: w * s + x,
      ...     init=lambda key: jnp.full(3, 0.5),
      ...     initial_state=lambda w, batch_shape: jnp.zeros((*batch_shape, 3)),
      ...     input_shape=(3,),
      ... )
      >>> jb.unroll(leaky, leaky.init(None), jnp.ones((4, 3)))[0]
      Array([1.875, 1.875, 1.875], dtype=float32)

      A network on several clocks, Koutnik et al. (2014): a unit moves where its period divides the
      number of the step, which is part of the state, and reads no unit that is faster.

      >>> periods = jnp.array([1, 1, 2, 2, 4, 4])
      >>> def tick(w, state, drive):
      ...     s, t = state
      ...     moved = jnp.tanh(drive + s @ w["w_s"])
      ...     return jnp.where(t[..., None] % periods == 0, moved, s), t + 1
      >>> clockwork = jb.from_step(
      ...     tick,
      ...     init=lambda k: {"w_x": jax.random.normal(k, (3, 6)), "w_s": jnp.full((6, 6), 0.1)},
      ...     initial_state=lambda p, batch: (jnp.zeros((*batch, 6)), jnp.zeros(batch, jnp.int32)),
      ...     input_shape=(3,),
      ...     project=lambda w, x: x @ w["w_x"],
      ...     readout=lambda w, state: state[0],
      ...     prepare=lambda p: p | {"w_s": jnp.where(periods[:, None] >= periods, p["w_s"], 0)},
      ... )
      >>> xs, params = jnp.sin(jnp.arange(24.0)).reshape(8, 3), clockwork.init(jax.random.key(0))
      >>> (jnp.diff(jb.unroll(clockwork, params, xs)[1], axis=0) != 0).sum(0)
      Array([7, 7, 3, 3, 1, 1], dtype=int32)
    """
    functions = dict(step=step, init=init, initial_state=initial_state, prepare=prepare)
    functions |= {k: f for k, f in dict(project=project, readout=readout).items() if f is not None}
    for name, function in functions.items():
        require(
            callable(function),
            f"from_step: {name} must be a function, got {shown(function)}",
            TypeError,
        )
    require(
        isinstance(any_batch, bool),
        f"from_step: any_batch must be True or False, got {shown(any_batch)}",
        TypeError,
    )
    require(
        (input_shape is None) != (input_spec is None),
        "from_step: give input_shape=(I,) for floating-point inputs, or else input_spec, a pytree "
        "of jax.ShapeDtypeStruct",
        TypeError,
    )
    if input_shape is not None:
        require(
            isinstance(input_shape, tuple | list)
            and all(is_integer(size) and size > 0 for size in input_shape),
            "from_step: input_shape must be a tuple of positive sizes such as (3,), got "
            f"{shown(input_shape)}",
            TypeError,
        )
        input_spec = jax.ShapeDtypeStruct(tuple(map(int, input_shape)), jnp.float32)
    for leaf in jax.tree.leaves(input_spec):
        require(
            hasattr(leaf, "shape") and hasattr(leaf, "dtype"),
            "from_step: input_spec must be a pytree of jax.ShapeDtypeStruct, e.g. "
            f"jax.ShapeDtypeStruct((), jnp.int32), but has a leaf {shown(leaf)}",
            TypeError,
        )
    cell = Cell(
        init=init,
        initial_state=initial_state,
        step=step,
        project=project or (lambda weights, x: x),
        readout=readout or (lambda weights, state: state),
        input_spec=input_spec,
        prepare=prepare,
        any_batch=any_batch,
    )
    coupled = couples_batch(cell) if any_batch else None
    require(
        coupled is None,
        f"from_step: any_batch=True passes time as one more batch axis, but {coupled}. Leave it "
        "out, or work on each entry of the batch by itself.",
    )
    return cell
