"""Parameters by name: how they are drawn, and which of them are biases."""

import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jax_bptt.cells import parts
from jax_bptt.core.checks import kind_of, require
from jax_bptt.core.types import Cell, PyTree
from jax_bptt.core.values import as_value

UNGATED = "w_y", "w_p", "embedding"
"""Parameters whose second to last axis is none of gates, whatever its length."""


@as_value
def initialized(cell: Cell, **initializers: Any) -> Cell:
    """Return `cell` with other initial parameters, chosen by name and drawn gate by gate.

    A parameter of G gates, [I, G, H], is G matrices [I, H], and an initialiser that looks at a
    shape, such as `glorot_uniform` or `orthogonal`, must see one of them at a time. Here each gate
    is drawn by itself, with a key of its own. Parameters that are not named are those of `cell`.

    Args:
      cell: any cell.
      initializers: by the name of a parameter, such as `w_s`, a function `(key, shape, dtype) ->
        array` as in `jax.nn.initializers`; or a dict of these by gate, such as `b={"f": ones}`, to
        leave the other gates as they are.

    Returns:
      A `Cell` with the equations of `cell`.

    Raises:
      TypeError: `cell` is no cell, or an initialiser no function; in `init`, it returns another
        shape.
      ValueError: in `init`, there is no parameter or no gate of that name.

    References:
      X. Glorot and Y. Bengio (2010), "Understanding the difficulty of training deep feedforward
      neural networks", AISTATS; A. M. Saxe, J. L. McClelland and S. Ganguli (2014), "Exact
      solutions to the nonlinear dynamics of learning in deep linear neural networks", ICLR.

    Example:
      >>> import jax, jax.numpy as jnp, jax_bptt as jb
      >>> from jax.nn.initializers import he_normal, ones
      >>> cell = jb.initialized(jb.lstm(3, 5), w_x=he_normal(), b={"f": ones})
      >>> cell.init(jax.random.key(0)).b.sum(-1)
      Array([0., 5., 0., 0.], dtype=float32)
    """
    name = "initialized"
    require(isinstance(cell, Cell), f"{name}: cell must be a Cell, got {kind_of(cell)}", TypeError)
    for parameter, given in initializers.items():
        for each in given.values() if isinstance(given, Mapping) else (given,):
            parts.check_function(name, parameter, each, "jax.nn.initializers.orthogonal()")

    def init(key):
        params = cell.init(key)
        names = {_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)}
        for parameter in initializers:
            require(
                parameter in names,
                f"{name}: there is no parameter {parameter!r}; the cell has "
                f"{', '.join(sorted(names))}.",
            )

        def leaf(path, old):
            parameter = _name(path)
            if parameter not in initializers:
                return old
            own = jax.random.fold_in(key, zlib.crc32(jax.tree_util.keystr(path).encode()))
            return _redrawn(cell.gates, parameter, initializers[parameter], own, old)

        return jax.tree_util.tree_map_with_path(leaf, params)

    return cell._replace(init=init)


def is_bias(params: PyTree) -> PyTree:
    """Return which parameters are biases: a tree of booleans, such as an optimiser's mask takes.

    A bias has as many axes as a matrix, [G, H] for G gates, so that its shape does not tell.

    Args:
      params: of cells or layers, in any nesting.

    Returns:
      A pytree like `params`, True at the leaves called b or b_*.

    Example:
      >>> import operator, jax, optax, jax_bptt as jb
      >>> params = jb.lstm(3, 5).init(jax.random.key(0))
      >>> jb.is_bias(params)
      Params(w_x=False, w_s=False, b=True, w_y=None)
      >>> decayed = jax.tree.map(operator.not_, jb.is_bias(params))
      >>> optimiser = optax.adamw(1e-3, weight_decay=1e-2, mask=decayed)
    """

    def leaf(path, _):
        return _name(path) == "b" or _name(path).startswith("b_")

    return jax.tree_util.tree_map_with_path(leaf, params)


def _name(path: tuple[Any, ...]) -> str:
    """Return the last name on the way to a leaf, that of a field or a key of a dict."""
    entry = path[-1] if path else ""
    return str(getattr(entry, "name", getattr(entry, "key", entry)))


def _redrawn(
    gates: tuple[str, ...], parameter: str, initializer: Any, key: Array, old: Array
) -> Array:
    """Return what `initializer`, one or a dict of some by gate, makes in place of `old`."""
    gated = (
        parameter not in UNGATED and old.ndim >= 2 and old.shape[-2] == len(gates) and len(gates)
    )
    if not isinstance(initializer, Mapping):
        if not gated:
            return _drawn(parameter, initializer, key, old.shape, old.dtype)
        initializer = dict.fromkeys(gates, initializer)
    for gate in initializer:
        require(
            bool(gated) and gate in gates,
            f"initialized: {parameter} has no gate {gate!r}; "
            + (f"its gates are {', '.join(gates)}." if gated else "it is one array for all."),
        )
    shape = *old.shape[:-2], old.shape[-1]
    for k, (gate, own) in enumerate(zip(gates, jax.random.split(key, len(gates)), strict=True)):
        if gate in initializer:
            new = _drawn(parameter, initializer[gate], own, shape, old.dtype)
            old = old.at[..., k, :].set(new)
    return old


def _drawn(
    parameter: str, initializer: Callable, key: Array, shape: tuple[int, ...], dtype: Any
) -> Array:
    new = jnp.asarray(parts.draw(initializer, key, shape, dtype))
    require(
        new.shape == shape,
        f"initialized: the initialiser of {parameter} returned the shape {new.shape} where "
        f"{shape} was asked for.",
        TypeError,
    )
    return new
