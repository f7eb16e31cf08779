"""The training loop: Adam under a cosine schedule, one jitted and donated step at a time."""

import itertools
import math
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jax_bptt.cells.watched import Seen, telemetry
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
      seconds: the run ends after so many, unless None; the first step of each call of `fit`, which
        compiles, is not counted. Whichever limit comes first ends the run; one must be given.
    """

    learning_rate: float
    clip: float
    steps: int | None = None
    seconds: float | None = None


class Learner(NamedTuple):
    """Parameters, the optimiser's memory and the network's carried state, which steps change."""

    params: PyTree
    memory: PyTree
    state: PyTree


class Telemetry(NamedTuple):
    """Sizes in the gradient of a training step, where a cell is `watched`.

    Attributes:
      gradient_norm: [], of all parameters, before it is clipped.
      seen: the adjoints of each watched cell, by the path of its parameters.
    """

    gradient_norm: jax.Array
    seen: dict[str, Seen]


class Progress(NamedTuple):
    """The place where a run stands: saved and restored, `fit` goes on from it.

    Attributes:
      step: the number of steps done, which is also the place in the data.
      seconds: spent on training, without the first step of each call of `fit`, which compiles.
      loss: of the batch of this step, before its update; nan where there was none.
      learner: the parameters and all else that steps change; the next step consumes its buffers.
      telemetry: of this step; None if no cell of the loss is `watched`.
    """

    step: int
    seconds: float
    loss: float
    learner: Learner
    telemetry: Telemetry | None = None


def start(params: PyTree, state: PyTree, settings: Settings) -> Progress:
    """Return the beginning of a run, which owns copies, since steps donate their buffers.

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
    return Progress(0, 0.0, math.nan, Learner(params, memory, state))


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
    progress: Progress,
    batches: Callable[[int], Any],
    settings: Settings,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[Progress]:
    """Train until the settings' steps or seconds are over; yield after every step.

    A run that goes on from a `Progress` takes the same steps as one that was never stopped: with
    `steps`, to the last bit. With `seconds` the learning rate follows the clock.

    Args:
      loss: to be minimised.
      progress: from `start`, or from an earlier run; the first step consumes its learner.
      batches: from the number of steps done to the batch of the next one, a pytree of arrays whose
        shapes are the same at every step.
      settings: how to optimise.
      stop: asked before each step; True ends the run there.

    Raises:
      FloatingPointError: the loss is not finite any more. Nothing is repaired.

    Example:
      >>> import jax, jax.numpy as jnp, jax_bptt as jb
      >>> from jax_bptt.training import loop, losses, tasks
      >>> net = jb.layer(jb.elman(2, 8, output_size=1))
      >>> settings = loop.Settings(learning_rate=1e-2, clip=1.0, steps=3)
      >>> batches = tasks.drawn(lambda rng: tasks.adding(rng, length=6, batch=4), 0)
      >>> begun = loop.start(net.init(jax.random.key(0)), (), settings)
      >>> loss = losses.fresh(net, losses.last_squared_error)
      >>> [progress.step for progress in loop.fit(loss, begun, batches, settings)]
      [1, 2, 3]
    """
    optimizer = _optimizer(settings)

    def step(learner, batch, learning_rate):
        gradient = jax.value_and_grad(loss, has_aux=True)
        (value, state), d_params = gradient(learner.params, learner.state, batch)
        d_params, seen = telemetry(d_params)
        shown = Telemetry(optax.tree.norm(d_params), seen) if seen else None
        updates, memory = optimizer.update(d_params, learner.memory)
        updates = jax.tree.map(lambda u: -learning_rate * u, updates)
        params = optax.apply_updates(learner.params, updates)
        return Learner(params, memory, state), (value, shown)

    learner, began = progress.learner, math.inf
    step = jax.jit(step, donate_argnums=0, out_shardings=(_shardings(learner), None))
    for number in itertools.count(progress.step + 1):
        seconds = progress.seconds + max(0.0, time.perf_counter() - began)
        done = _fraction(settings, number, seconds)
        if done > 1 or stop():
            return
        batch = batches(number - 1)
        learner, (value, shown) = step(learner, batch, settings.learning_rate * rate(done))
        value = float(value)
        began = min(began, time.perf_counter())
        if not math.isfinite(value):
            raise FloatingPointError(
                f"the loss became {value} at step {number}; try a smaller learning rate or clip"
            )
        seconds = progress.seconds + time.perf_counter() - began
        yield Progress(number, seconds, value, learner, shown)


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
