"""Proximal policy optimisation of a recurrent network, in windows of T steps.

    acting     s_t from (s_{t-1}, o_t), begun anew where the step before ended an episode
    targets    delta_t = r_t + gamma v_{t+1} (1 - d_t) - v_t
               A_t = delta_t + gamma lambda (1 - d_t) A_{t+1},  R_t = A_t + v_t       t = T .. 1
    learning   -min(rho_t A_t, clip(rho_t, 1 - eps, 1 + eps) A_t) + c_v (v_t - R_t)^2 - c_e entropy

d_t says that the action at o_t ended its episode, so that o_{t+1} is the first of another: the
reset of step t is d_{t-1}, in acting and in learning alike. rho_t is the probability of the action
now over that while acting, and one before any parameter has changed. A window's first state is the
one in which acting began it.

References:
  J. Schulman, F. Wolski, P. Dhariwal, A. Radford and O. Klimov (2017), "Proximal policy
  optimization algorithms", arXiv:1707.06347; J. Schulman, P. Moritz, S. Levine, M. Jordan and
  P. Abbeel (2016), "High-dimensional continuous control using generalized advantage estimation",
  ICLR.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array, lax

from recurrent_ppo import memory_task as task
from recurrent_ppo import network

GAMMA, LAMBDA, CLIP = 0.99, 0.95, 0.2
VALUE, ENTROPY = 0.5, 0.01
EPOCHS, MINIBATCHES = 4, 4


class Sizes(NamedTuple):
    """Sizes of a run: environments B, steps of a window T, units H."""

    envs: int
    steps: int
    hidden: int


class Runner(NamedTuple):
    """All that goes from one update to the next; `done` [B] is that of the step before."""

    params: Any
    optimizer: Any
    env: task.State
    done: Array
    carry: Array
    key: Array


class Rollout(NamedTuple):
    """A window of acting, [T, B] each; `carry` [B, H] is the state in which it began."""

    observations: Array
    resets: Array
    actions: Array
    log_probs: Array
    values: Array
    rewards: Array
    done: Array
    carry: Array


class Curve(NamedTuple):
    """Per update: return of the mean episode that ended, loss, and |rho - 1| before learning."""

    returns: Array
    loss: Array
    ratio_error: Array


def optimizer() -> optax.GradientTransformation:
    """Return Adam with a bound on the gradient's norm."""
    return optax.chain(optax.clip_by_global_norm(0.5), optax.adam(2e-3, eps=1e-5))


def start(layer: str, sizes: Sizes, seed: int) -> Runner:
    """Return where a run begins, the same numbers for both layers."""
    of_params, of_envs, key = jax.random.split(jax.random.key(seed), 3)
    params = network.init(layer, of_params, sizes.hidden)
    env = jax.vmap(task.reset)(jax.random.split(of_envs, sizes.envs))
    carry = network.initial_carry(sizes.envs, sizes.hidden)
    return Runner(params, optimizer().init(params), env, jnp.ones(sizes.envs, bool), carry, key)


def look(layer: str, runner: Runner) -> tuple[Array, tuple[Array, Array, Array]]:
    """Return (carry [B, H], (observations [B, K + 1], logits [B, K], values [B])) of a step."""
    observations = jax.vmap(task.observe)(runner.env)
    carry, logits, values = network.run(
        layer, runner.params, runner.carry, (observations[None], runner.done[None])
    )
    return carry, (observations, logits[0], values[0])


def act(layer: str, runner: Runner, greedy: bool = False) -> tuple[Runner, tuple[Array, ...]]:
    """Take one step in every environment; return the runner and a row of a `Rollout`."""
    key, of_action, of_env = jax.random.split(runner.key, 3)
    carry, (observations, logits, values) = look(layer, runner)
    actions = jnp.argmax(logits, -1) if greedy else jax.random.categorical(of_action, logits)
    keys = jax.random.split(of_env, len(actions))
    env, rewards, done = jax.vmap(task.step)(runner.env, actions, keys)
    row = observations, runner.done, actions, log_prob(logits, actions), values, rewards, done
    return runner._replace(env=env, done=done, carry=carry, key=key), row


def log_prob(logits: Array, actions: Array) -> Array:
    """Return the logarithm of the probability of each action."""
    return jnp.take_along_axis(jax.nn.log_softmax(logits), actions[..., None], -1)[..., 0]


def roll_out(layer: str, runner: Runner, steps: int) -> tuple[Runner, Rollout]:
    """Act for a window."""
    begin = runner.carry
    runner, rows = lax.scan(lambda runner, _: act(layer, runner), runner, length=steps)
    return runner, Rollout._make((*rows, begin))


def advantages(rollout: Rollout, last_value: Array) -> Array:
    """Return A_t [T, B]; `last_value` [B] is v_{T+1}."""

    def back(carry, row):
        after, value_after = carry
        reward, value, done = row
        alive = GAMMA * (1 - done.astype(value.dtype))
        after = reward + alive * value_after - value + LAMBDA * alive * after
        return (after, value), after

    rows = rollout.rewards, rollout.values, rollout.done
    return lax.scan(back, (jnp.zeros_like(last_value), last_value), rows, reverse=True)[1]


def evaluate(layer: str, params: Any, rollout: Rollout) -> tuple[Array, Array, Array]:
    """Return (rho, values, entropy), [T, B] each, of a window under parameters."""
    inputs = rollout.observations, rollout.resets
    _, logits, values = network.run(layer, params, rollout.carry, inputs)
    log_probs = jax.nn.log_softmax(logits)
    entropy = -jnp.sum(jnp.exp(log_probs) * log_probs, -1)
    return jnp.exp(log_prob(logits, rollout.actions) - rollout.log_probs), values, entropy


def loss(params: Any, layer: str, rollout: Rollout, advantage: Array) -> Array:
    """Return the loss of a minibatch of sequences."""
    rho, values, entropy = evaluate(layer, params, rollout)
    targets = advantage + rollout.values
    scaled = (advantage - jnp.mean(advantage)) / (jnp.std(advantage) + 1e-8)
    policy = jnp.minimum(rho * scaled, jnp.clip(rho, 1 - CLIP, 1 + CLIP) * scaled)
    return jnp.mean(VALUE * (values - targets) ** 2 - policy - ENTROPY * entropy)


def update(layer: str, runner: Runner, steps: int) -> tuple[Runner, Curve]:
    """Act for a window and learn from it, in minibatches of whole sequences."""
    runner, rollout = roll_out(layer, runner, steps)
    advantage = advantages(rollout, look(layer, runner)[1][2])
    ratio_error = jnp.max(jnp.abs(evaluate(layer, runner.params, rollout)[0] - 1))
    key, of_order = jax.random.split(runner.key)

    def learn(state, chosen):
        params, moments = state
        rows = jax.tree.map(lambda a: a[:, chosen], rollout._replace(carry=None))
        picked = rows._replace(carry=rollout.carry[chosen])
        value, grads = jax.value_and_grad(loss)(params, layer, picked, advantage[:, chosen])
        changes, moments = optimizer().update(grads, moments)
        return (optax.apply_updates(params, changes), moments), value

    envs = advantage.shape[1]
    orders = jax.vmap(lambda key: jax.random.permutation(key, envs))(
        jax.random.split(of_order, EPOCHS)
    )
    batches = orders.reshape(EPOCHS * MINIBATCHES, -1)
    (params, moments), losses = lax.scan(learn, (runner.params, runner.optimizer), batches)
    ended = jnp.sum(rollout.done)
    returns = jnp.sum(rollout.rewards) / jnp.maximum(1, ended)
    curve = Curve(returns, jnp.mean(losses), ratio_error)
    return runner._replace(params=params, optimizer=moments, key=key), curve


def final_return(layer: str, runner: Runner, steps: int) -> Array:
    """Return the mean return of episodes under the likeliest actions, over a fresh `steps`."""

    def one(runner, _):
        runner, (*_, rewards, done) = act(layer, runner, greedy=True)
        return runner, (rewards, done)

    _, (rewards, done) = lax.scan(one, runner, length=steps)
    begun = jnp.cumsum(done, axis=0) - done > 0  # what acting had begun is not counted
    return jnp.sum(rewards * begun) / jnp.sum(done & begun)
