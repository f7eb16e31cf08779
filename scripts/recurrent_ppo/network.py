"""Actor and critic over one recurrent layer: this library's, or the one usually written in Flax."""

# Flax is an extra, so that it may be absent where types are checked.
# pyright: reportMissingImports=false

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

import jax_bptt as jb
from recurrent_ppo import memory_task as task

LAYERS = ("ours", "flax")


class FlaxRNN(nn.Module):
    """A cell of Flax under `nn.scan`, begun anew from zero before every step that is a reset.

    Attributes:
      cell: the cell's class, `nn.GRUCell` or one with the same arguments.
    """

    cell: Any = nn.GRUCell

    @nn.compact
    def __call__(self, carry: Any, x: tuple[Array, Array]) -> tuple[Any, Array]:
        """Run over (ins [T, B, F], resets [T, B]) from carry [B, H]; return (carry, ys)."""

        def step(cell, carry, x):
            ins, reset = x
            kept = jax.tree.map(lambda a: jnp.where(reset[:, None], jnp.zeros_like(a), a), carry)
            return cell(kept, ins)

        cell = self.cell(jax.tree.leaves(carry)[0].shape[-1], name="cell")
        over_time = nn.scan(step, variable_broadcast="params", split_rngs={"params": False})
        return over_time(cell, carry, x)


class ActorCritic(nn.Module):
    """Logits of the actions and the value of every step, from a layer of the name `layer`."""

    layer: str

    @nn.compact
    def __call__(self, carry: Array, x: tuple[Array, Array]) -> tuple[Array, Array, Array]:
        """Run over (observations [T, B, K + 1], resets [T, B]) from carry [B, H].

        `resets[t]` says that `observations[t]` is the first of an episode.

        Returns:
          (carry [B, H], logits [T, B, K], values [T, B]).
        """
        observations, resets = x
        ins = nn.relu(nn.Dense(carry.shape[-1])(observations))
        rnn = jb.interop.linen.ScannedRNN if self.layer == "ours" else FlaxRNN
        carry, ys = rnn(name="rnn")(carry, (ins, resets))
        logits = nn.Dense(task.CUES, kernel_init=nn.initializers.orthogonal(0.01))(ys)
        return carry, logits, nn.Dense(1)(ys)[..., 0]


def run(
    layer: str, params: Any, carry: Array, x: tuple[Array, Array]
) -> tuple[Array, Array, Array]:
    """Run the network with `layer` under its parameters; return as `ActorCritic` does."""
    apply: Any = ActorCritic(layer).apply
    return apply(params, carry, x)


def initial_carry(batch: int, hidden: int) -> Array:
    """Return the state of a rollout's beginning, [B, H], the same for both layers."""
    return jb.interop.linen.ScannedRNN.initialize_carry(batch, hidden)


def init(layer: str, key: Array, hidden: int) -> Any:
    """Draw parameters as Flax does; return them as `layer` has them, the same numbers for both."""
    x = jnp.zeros((1, 1, task.OBSERVED)), jnp.zeros((1, 1), bool)
    params: Any = ActorCritic("flax").init(key, initial_carry(1, hidden), x)["params"]
    if layer == "ours":
        gru = jb.interop.linen.Recurrent(jb.gru(hidden, hidden))
        own = jb.interop.flax.to_params(params["rnn"]["cell"])
        variables = gru.from_params(jax.tree.map(jnp.asarray, own))
        params = params | {"rnn": variables["params"]}
    return {"params": params}
