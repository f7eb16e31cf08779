"""The training loop: Adam under a cosine schedule, one jitted and donated step at a time."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jax_bptt.core.types import PyTree
from jax_bptt.training.losses import Loss

WARM_UP = 0.02
"""Share of a run over which the learning rate rises from zero."""


class Settings(NamedTuple):
    """How to optimise.

    Attributes:
      learning_rate: the highest, at the end of the warm-up.
      clip: largest global norm of the gradient; a longer one is scaled down to it. `inf` for none.
      steps: the run ends after so many, unless None.
      seconds: the run ends after so many, unless None. They count from the end of the first
        step, which compiles. Whichever limit comes first ends the run; one must be given.
    """

    learning_rate: float
    clip: float
    steps: int | None = None
    seconds: float | None = None


class Learner(NamedTuple):
    """What a step changes: parameters, the optimiser's memory, the network's carried state."""

    params: PyTree
    memory: PyTree
    state: PyTree


class Progress(NamedTuple):
    """Where a run stands after a step.

    Attributes:
      step: the number of steps done, from 1.
      seconds: since the end of the first step.
      loss: of the batch of this step, before its update.
      learner: what has been learned; the next step consumes its buffers.
    """

    step: int
    seconds: float
    loss: float
    learner: Learner


def start(params: PyTree, state: PyTree, settings: Settings) -> Learner:
    """Return a learner at the beginning; it owns copies, since steps donate their buffers.

    Arrays that are split over devices or replicated stay so, here and in every step.
    """
    params, state = jax.tree.map(jnp.array, (params, state))
    memory = _optimizer(settings).init(params)
    where = jax.tree.leaves(params)[0].sharding
    if isinstance(where, NamedSharding):
        # The moments are where the parameters are; the count of steps is still on one device.
        everywhere = NamedSharding(where.mesh, P())
        memory = jax.tree.map(
            lambda a: a if isinstance(a.sharding, NamedSharding) else jax.device_put(a, everywhere),
            memory,
        )
    return Learner(params, memory, state)


def _optimizer(settings: Settings) -> optax.GradientTransformation:
    return optax.chain(optax.clip_by_global_norm(settings.clip), optax.scale_by_adam())


def rate(fraction: float) -> float:
    """Return the share of the learning rate in force when `fraction` of a run is done.

    A linear warm-up, then half a cosine down to zero (Loshchilov and Hutter 2017, "SGDR:
    stochastic gradient descent with warm restarts", ICLR).
    """
    return min(1.0, fraction / WARM_UP) * (1 + math.cos(math.pi * min(fraction, 1.0))) / 2


def fit(
    loss: Loss,
    learner: Learner,
    batches: Iterable[Any],
    settings: Settings,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[Progress]:
    """Train until the settings' steps or seconds are over; yield after every step.

    Args:
      loss: what to minimise.
      learner: from `start`; the first step consumes it.
      batches: pytrees of arrays of equal shapes, without end.
      settings: how to optimise.
      stop: asked before each step; True ends the run there.

    Raises:
      FloatingPointError: the loss is not finite any more. Nothing is repaired.
    """
    optimizer = _optimizer(settings)

    def step(learner, batch, learning_rate):
        gradient = jax.value_and_grad(loss, has_aux=True)
        (value, state), d_params = gradient(learner.params, learner.state, batch)
        updates, memory = optimizer.update(d_params, learner.memory)
        updates = jax.tree.map(lambda u: -learning_rate * u, updates)
        return Learner(optax.apply_updates(learner.params, updates), memory, state), value

    step = jax.jit(step, donate_argnums=0, out_shardings=(_shardings(learner), None))
    began = math.inf
    for number, batch in enumerate(batches, start=1):
        seconds = max(0.0, time.perf_counter() - began)
        done = _fraction(settings, number, seconds)
        if done > 1 or stop():
            return
        learner, value = step(learner, batch, settings.learning_rate * rate(done))
        value = float(value)
        began = min(began, time.perf_counter())
        if not math.isfinite(value):
            raise FloatingPointError(
                f"the loss became {value} at step {number}; try a smaller learning rate or clip"
            )
        yield Progress(number, time.perf_counter() - began, value, learner)


def _shardings(learner: Learner) -> Learner | None:
    """Return where the arrays of a learner are, None if JAX may put them where it likes.

    A step that left them elsewhere would be compiled again for the next one.
    """
    found = jax.tree.map(lambda a: a.sharding, learner)
    named = [isinstance(sharding, NamedSharding) for sharding in jax.tree.leaves(found)]
    return found if all(named) else None


def _fraction(settings: Settings, number: int, seconds: float) -> float:
    """Return the fraction of a run that is over once step `number`, about to begin, is done."""
    by_steps = number / settings.steps if settings.steps else 0.0
    by_time = seconds / settings.seconds if settings.seconds else 0.0
    return max(by_steps, by_time)
