"""The values of the gates of any cell, read off the equations of its step.

A gate is a tanh or logistic function of a pre-activation. Which function is whose is found by
derivatives: with all such functions held, its argument depends on the drive of that gate alone, and
the new state depends on its value.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.extend.core import Literal

from jax_bptt.core import jaxprs, trees
from jax_bptt.core.types import Cell, PyTree

RANGES = {"tanh": (-1.0, 1.0), "logistic": (0.0, 1.0)}
"""Bounded functions, by the name of their operation."""


class Activation(NamedTuple):
    """Where to find a gate.

    Attributes:
      name: of the gate; of the function, where the cell names no gates.
      number: how many functions are computed before it in a step.
      slot: its place on the axis before the units, None if the value has no such axis.
    """

    name: str
    number: int
    slot: int | None


def find(cell: Cell, weights: PyTree, state: PyTree, drive: PyTree) -> tuple[Activation, ...]:
    """Return the bounded functions in a step of `cell`, in the order of its gates.

    Args:
      cell: the cell.
      weights: its prepared parameters, or their shapes, as what follows.
      state: of one step.
      drive: of one step.
    """
    with jax.ensure_compile_time_eval():
        weights, state, drive = _numbers((weights, state, drive))
        alive = _alive(cell, weights, state, drive)
        leaves = jax.tree.leaves(drive)
        gates = cell.gates
        if len(leaves) != 1 or leaves[0].ndim < 2 or leaves[0].shape[-2] != len(gates):
            gates = ()
        if gates:
            masks = _masks_of_gates(cell, weights, state, leaves[0], gates)
        else:
            masks = [_depends(cell, weights, state, drive)]
    found: list[Activation] = []
    for number, masks_of_gate in enumerate(masks):
        for index, (operation, mask) in enumerate(masks_of_gate):
            for slot in _slots(mask & alive[index], like=leaves[0] if gates else None):
                name = gates[number] if gates else operation
                same = sum(name == other.name.partition(" ")[0] for other in found)
                name = f"{name} {same + 1}" if same else name
                found.append(Activation(name, index, slot))
    return tuple(found)


def values(
    cell: Cell, found: tuple[Activation, ...], weights: PyTree, state: PyTree, drive: PyTree
) -> dict[str, Array]:
    """Return the values of gates in a step, as shares of their range, [*batch, ..., H]."""
    seen: list[Array] = []

    def look(operation, argument, value):
        low, high = RANGES[operation]
        seen.append((value - low) / (high - low))
        return value

    _evaluate(cell.step, look, weights, state, drive)

    def one(activation):
        value = seen[activation.number]
        return value if activation.slot is None else value[..., activation.slot, :]

    return {activation.name: one(activation) for activation in found}


def _masks_of_gates(
    cell: Cell, weights: PyTree, state: PyTree, drive: Array, gates: tuple[str, ...]
) -> list[list[tuple[str, np.ndarray]]]:
    """Return for each gate which arguments depend on its drive, and on that of no other gate."""
    by_gate = []
    for gate in range(len(gates)):
        tangent = jnp.zeros_like(drive)
        tangent = tangent.at[..., gate, :].set(_draw(drive.shape, drive.dtype)[..., gate, :])
        by_gate.append(_moved(lambda d: _arguments(cell, weights, state, d), drive, tangent))
    masks = []
    for gate, moved in enumerate(by_gate):
        others = [other for k, other in enumerate(by_gate) if k != gate]
        alone = [
            (operation, mask & ~np.any([o[index][1] for o in others], axis=0))
            for index, (operation, mask) in enumerate(moved)
        ]
        masks.append(alone)
    return masks


def _depends(
    cell: Cell, weights: PyTree, state: PyTree, drive: PyTree
) -> list[tuple[str, np.ndarray]]:
    """Return which arguments depend on the state or the drive."""
    inexact, rest = trees.partition((state, drive))
    tangent = jax.tree.map(lambda a: _draw(a.shape, a.dtype), inexact)

    def arguments(inexact):
        return _arguments(cell, weights, *trees.combine(inexact, rest))

    return _moved(arguments, inexact, tangent)


def _moved(
    arguments: Callable[..., list[tuple[str, Array]]], at: PyTree, tangent: PyTree
) -> list[tuple[str, np.ndarray]]:
    operations = [operation for operation, _ in arguments(at)]
    _, moved = jax.jvp(lambda at: [a for _, a in arguments(at)], (at,), (tangent,))
    return [(o, np.asarray(m) != 0) for o, m in zip(operations, moved, strict=True)]


def _arguments(
    cell: Cell, weights: PyTree, state: PyTree, drive: PyTree
) -> list[tuple[str, Array]]:
    """Return what each bounded function is applied to, the values of the others held."""
    seen: list[tuple[str, Array]] = []

    def hold(operation, argument, value):
        seen.append((operation, argument))
        return lax.stop_gradient(value)

    _evaluate(cell.step, hold, weights, state, drive)
    return seen


def _alive(cell: Cell, weights: PyTree, state: PyTree, drive: PyTree) -> list[np.ndarray]:
    """Return which values the new state depends on."""

    def run(changes):
        left = iter(changes)

        def change(operation, argument, value):
            return value + next(left)

        new = _evaluate(cell.step, change, weights, state, drive)
        return trees.partition(new)[0]

    zeros = [jnp.zeros_like(argument) for _, argument in _arguments(cell, weights, state, drive)]
    new, pull = jax.vjp(run, zeros)
    (found,) = pull(jax.tree.map(lambda a: _draw(a.shape, a.dtype), new))
    return [np.asarray(mask) != 0 for mask in found]


def _slots(mask: np.ndarray, like: Array | None) -> list[int | None]:
    """Return the places on the axis before the units that are marked throughout."""
    if mask.size and mask.all() and (like is None or mask.ndim < like.ndim):
        return [None]
    if like is None or mask.ndim < like.ndim:
        return []
    return [slot for slot in range(mask.shape[-2]) if mask[..., slot, :].all()]


def _numbers(tree: PyTree) -> PyTree:
    """Return positive numbers in the place of all that can be differentiated, zeros elsewhere.

    Matrices are scaled down by the number of their rows: no function is saturated by its argument.
    """

    def leaf(a):
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            return jnp.broadcast_to(jax.random.key(0, impl=jax.random.key_impl(a)), a.shape)
        if not trees.is_inexact(a):
            return jnp.zeros(a.shape, a.dtype)
        return _draw(a.shape, a.dtype) / (a.shape[0] if a.ndim > 1 else 1)

    return jax.tree.map(leaf, tree)


def _draw(shape: tuple[int, ...], dtype: Any) -> Array:
    return jnp.asarray(np.random.default_rng(0).uniform(0.2, 0.8, shape), dtype)


def _evaluate(fun: Callable[..., PyTree], hook: Callable[..., Array], *args: PyTree) -> PyTree:
    """Return `fun(*args)` in which `hook(operation, argument, value)` stands for bounded functions.

    Loops and branches inside `fun` are left as they are.
    """
    jaxpr, shape = jax.make_jaxpr(fun, return_shape=True)(*args)
    results = _run(jaxpr.jaxpr, jaxpr.consts, jax.tree.leaves(args), hook)
    return jax.tree.unflatten(jax.tree.structure(shape), results)


def _run(jaxpr: Any, consts: Any, arguments: Any, hook: Callable[..., Array]) -> list[Any]:
    known = dict(zip(jaxpr.constvars, consts, strict=True))
    known |= dict(zip(jaxpr.invars, arguments, strict=True))

    def read(atom):
        return atom.val if isinstance(atom, Literal) else known[atom]

    for eqn in jaxpr.eqns:
        operands = list(map(read, eqn.invars))
        inner = jaxprs.called(eqn)
        if inner is not None:
            results = _run(*inner, operands, hook)
        else:
            found = eqn.primitive.bind(*operands, **eqn.params)
            results = list(found) if eqn.primitive.multiple_results else [found]
        if eqn.primitive.name in RANGES:
            results = [hook(eqn.primitive.name, operands[0], results[0])]
        known |= dict(zip(eqn.outvars, results, strict=True))
    return list(map(read, jaxpr.outvars))
