"""Parts that the tests of `interop.nnx.Recurrent` and `interop.linen.Recurrent` share.

One network, run by a module of ours and by Flax's own layer with the same weights, in calls that
have every argument of theirs between them.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jax_bptt as jb
from tests.interop.shared import CELLS, B, H, I, Maps, random_like, random_params
from tests.registry import assert_close

T = 5
CLOSE = 1e-10
LENGTHS = np.array([3, T])
assert len(LENGTHS) == B


class Case(NamedTuple):
    """A call of a layer: a cell, and which arguments it gets."""

    cell: str
    time_major: bool = False
    reverse: bool = False
    keep_order: bool = False
    lengths: bool = False
    carry: bool = False

    def __str__(self) -> str:
        """Name the arguments that are not as by default."""
        return "-".join([self.cell, *(n for n in self._fields[1:] if getattr(self, n))])

    def settings(self) -> dict[str, Any]:
        """Return the arguments that do not depend on the library."""
        found: dict[str, Any] = {name: getattr(self, name) for name in self._fields[1:4]}
        return found | ({"seq_lengths": jnp.asarray(LENGTHS)} if self.lengths else {})


CASES = [
    Case("gru"),
    Case("gru", reverse=True),
    Case("elman", reverse=True, keep_order=True),
    Case("lstm", time_major=True, carry=True),
    Case("lstm", lengths=True, carry=True),
    Case("lstm", reverse=True, lengths=True),
    Case("lstm", time_major=True, reverse=True, keep_order=True, lengths=True, carry=True),
]

QUICK_NNX, QUICK_LINEN = {CASES[6]}, {CASES[1], CASES[5]}
"""The cases that the quick run takes, for each library."""


def standard():
    """Return a context with JAX as it comes, which is how Flax is written."""
    return jax.numpy_dtype_promotion("standard")


def drawn(cell):
    """Draw parameters that Flax can hold: nnx has no bias of a GRU inside the reset."""
    params = random_params(CELLS[cell])
    return params._replace(b_n=np.zeros(H)) if cell == "gru" else params


def swapped(carry):
    """Go from our state of an LSTM to Flax's (c, h); any other is the same."""
    return (carry.c, carry.h) if isinstance(carry, jb.LSTMState) else carry


def restored(carry):
    """Undo `swapped`."""
    return jb.LSTMState(h=carry[1], c=carry[0]) if type(carry) is tuple else carry


def assert_same_layer(case: Case, maps: Maps, ours: Any, theirs: Any) -> None:
    """Compare outputs, carries and all gradients of one network run by two modules.

    Args:
      case: the call.
      maps: of parameters, between the two.
      ours: `(params, xs, carry, **settings) -> (carry, ys)`.
      theirs: the same with their parameters and carry.
    """
    params = drawn(case.cell)
    shape = (T, B) if case.time_major else (B, T)
    xs = random_like(np.empty((*shape, I)), seed=1)
    carry = random_like(CELLS[case.cell].initial_state(params, (B,)), seed=2)
    valid = np.arange(T)[None] < (LENGTHS if case.lengths else np.full(B, T))[:, None]
    valid = (valid.T if case.time_major else valid)[..., None]
    d_ys = random_like(np.empty((*shape, H)), seed=3) * valid

    def gradients(run, own_carry, weights):
        def loss(weights, xs, carry):
            given = {} if not case.carry else {"initial_carry": own_carry(carry)}
            last, ys = run(weights, xs, **given, **case.settings())
            last = restored(last)
            weighted = jax.tree.map(jnp.multiply, last, random_like(last, seed=4))
            total = sum(map(jnp.sum, jax.tree.leaves(weighted)))
            return total + jnp.sum(ys * d_ys), (last, jnp.where(valid, ys, 0.0))

        return jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(weights, xs, carry)

    tree = jax.tree.map(jnp.asarray, maps.from_params(params))
    (d_params, *d_ours), outputs = gradients(ours, lambda carry: carry, params)
    with standard():
        (d_tree, *d_theirs), their_outputs = gradients(theirs, swapped, tree)
    assert_close(outputs, their_outputs, CLOSE)
    assert_close(d_ours, d_theirs, CLOSE)
    assert_close(maps.from_gradients(d_params), d_tree, CLOSE)
