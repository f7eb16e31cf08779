"""A task that needs memory: one of K cues is shown once and is to be named after a delay.

    step      1         2 .. d        d + 1
    sees      the cue   nothing       the question
    reward    0         0             1 if the action is the cue, else 0; the episode ends

The delay d is drawn anew for every episode, uniformly from `DELAYS`, so that episodes of a batch
end at different times. Who remembers the cue has a return of 1 an episode, and nobody can have
more. The question says nothing of the cue, and cues are uniform: who forgets has 1 / K at best.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

CUES = 4
DELAYS = (4, 20)
"""The least and the largest d, in steps."""

OBSERVED = CUES + 1
OPTIMUM = 1.0
WITHOUT_MEMORY = 1 / CUES


class State(NamedTuple):
    """An episode under way: its cue, whether it has just begun, and steps until the question."""

    cue: Array
    first: Array
    left: Array


def reset(key: Array) -> State:
    """Begin an episode."""
    of_cue, of_delay = jax.random.split(key)
    cue = jax.random.randint(of_cue, (), 0, CUES, "int32")
    delay = jax.random.randint(of_delay, (), DELAYS[0], DELAYS[1] + 1, "int32")
    return State(cue, jnp.array(True), delay)


def observe(state: State) -> Array:
    """Return what is seen, [K + 1]: the cue at the first step, and a one where the question is."""
    shown = jax.nn.one_hot(state.cue, CUES) * state.first
    return jnp.append(shown, state.left == 0).astype(jnp.float32)


def step(state: State, action: Array, key: Array) -> tuple[State, Array, Array]:
    """Act at what `state` shows; return (the next state, reward, whether the episode ended).

    An episode that ended is followed by the first state of the next one, drawn from `key`.
    """
    done = state.left == 0
    reward = jnp.where(done & (action == state.cue), 1.0, 0.0).astype(jnp.float32)
    later = State(state.cue, jnp.array(False), state.left - 1)
    return jax.tree.map(lambda new, old: jnp.where(done, new, old), reset(key), later), reward, done
