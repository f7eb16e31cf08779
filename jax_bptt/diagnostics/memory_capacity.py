"""How much of its past input a linear readout finds in the state of a network."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jax_bptt.algorithms.jacobians import vectors
from jax_bptt.algorithms.unroll import compiled_once
from jax_bptt.core import trees
from jax_bptt.core.checks import is_integer, require, shown
from jax_bptt.core.types import Cell, Inputs, PyTree
from jax_bptt.diagnostics.trajectory import Trajectory


class MemoryCapacity(NamedTuple):
    """Short-term memory of a run.

    Attributes:
      by_delay: [delays + 1, *I], the squared correlation of x_{t-k} and the best readout of s_t,
        from k = 0 on, for each feature of the input.
      chance: the value that a readout of as many units reaches for noise, [].
    """

    by_delay: Array
    chance: Array

    @property
    def total(self) -> Array:
        """The sum over all delays, [*I]. Jaeger's, from k = 1, is less by `by_delay[0]`."""
        return jnp.sum(self.by_delay, 0)


def memory_capacity(run: Trajectory, *, delays: int, washout: int | None = None) -> MemoryCapacity:
    """Return how well each past input can be read off the state, by a readout of its own.

        capacity k = max over w, b of the squared correlation of x_{t-k} and s_t w + b

    Least squares without a ridge, over all sequences and all steps but the first. The inputs of the
    run should be independent in time, as noise is: then no network has more than D in all, the
    number of units, and a line of D delays has just that.

    The readout is judged on what it was fitted to: also an input that is forgotten has the value
    `chance`, D / rows. Run many more steps than there are units.

    Args:
      run: on inputs [T, *batch, *I] of floating-point numbers, without lengths, mask or resets.
      delays: the largest k, in steps.
      washout: how many steps do not count, at least `delays`, which is the default. More where
        the network remembers its first state for longer.

    Raises:
      TypeError: the input is not a single floating-point array.
      ValueError: a number is out of range, too few steps are left, or some are not taken.

    References:
      H. Jaeger (2001), "Short term memory in echo state networks", GMD Report 152.

    Example:
      >>> import jax, jax.numpy as jnp, jax_bptt as jb
      >>> line = jb.from_step(
      ...     lambda w, s, x: jnp.concatenate([x, s[..., :-1]], -1),
      ...     init=lambda key: (),
      ...     initial_state=lambda w, batch_shape: jnp.zeros((*batch_shape, 5)),
      ...     input_shape=(1,),
      ...     any_batch=True,
      ... )
      >>> run = jb.diagnostics.trajectory(line, (), jax.random.normal(jax.random.key(0), (999, 1)))
      >>> jb.diagnostics.memory_capacity(run, delays=6).by_delay[:, 0].round(1)
      Array([1., 1., 1., 1., 1., 0., 0.], dtype=float32)
    """
    name = "memory_capacity"
    xs = jax.tree.leaves(run.inputs.xs)
    require(
        len(xs) == 1 and jnp.issubdtype(xs[0].dtype, jnp.floating),
        f"{name}: the input of a step must be one array of floating-point numbers, got "
        f"{len(xs)} arrays of {', '.join(str(x.dtype) for x in xs)}",
        TypeError,
    )
    controls = run.inputs.controls
    require(
        controls.advance is None and controls.reset is None,
        f"{name}: the run has lengths, a mask or resets; take one of whole sequences",
    )
    require(
        is_integer(delays) and delays >= 0,
        f"{name}: delays must be a number of steps, got {shown(delays)}",
    )
    washout = delays if washout is None else washout
    *batch, groups, size = run.space.shape
    rows = (run.steps - washout) * math.prod(batch) if is_integer(washout) else 0
    require(
        is_integer(washout) and washout >= delays and rows > groups * size,
        f"{name}: washout must be at least delays={delays} and leave more rows, steps times "
        f"sequences, than the {groups * size} numbers of a state, got {shown(washout)} of "
        f"T={run.steps} steps, which leave {rows}",
    )
    found = compiled_once(_memory_capacity, run.runs, int(delays), int(washout))
    return found(run.inputs, run.states)


def _memory_capacity(
    cell: Cell, delays: int, washout: int, inputs: Inputs, states: PyTree
) -> MemoryCapacity:
    space = vectors(cell, inputs)
    rows = jax.vmap(space.flat)(trees.partition(states)[0])[washout:]
    rows = rows.reshape(-1, math.prod(rows.shape[-2:]))
    basis, sizes, _ = jnp.linalg.svd(rows - rows.mean(0, keepdims=True), full_matrices=False)
    precision = jnp.finfo(sizes.dtype).eps * max(rows.shape)
    basis = jnp.where((sizes > precision * sizes[0])[None], basis, 0)

    (xs,) = jax.tree.leaves(inputs.xs)
    features = xs.shape[len(space.shape) - 1 :]
    steps = xs.shape[0] - washout

    def capacity(delay):
        past = lax.dynamic_slice_in_dim(xs, washout - delay, steps)
        past = past.reshape(rows.shape[0], -1).astype(rows.dtype)
        past = past - past.mean(0, keepdims=True)
        read = jnp.matmul(basis.T, past, precision=lax.Precision.HIGHEST)
        return jnp.sum(read**2, 0) / jnp.sum(past**2, 0)

    by_delay = lax.map(capacity, jnp.arange(delays + 1)).reshape(delays + 1, *features)
    return MemoryCapacity(by_delay, jnp.asarray(rows.shape[1] / rows.shape[0], rows.dtype))
