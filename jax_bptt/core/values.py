"""Cells, layers and algorithms as values: what equal calls make is equal.

A value is a tuple of functions that remembers the call that made it. Two closures of one
constructor are different functions to Python and to `jax.jit`; the calls tell that they are the
same. So a value is one static argument of `jit` wherever it was made, pickles as its call, and has
no leaves for `jax.tree`, which makes it a field of any module.
"""

import functools
import importlib
import inspect
import sys
from collections.abc import Callable
from typing import Any, NamedTuple, ParamSpec, TypeVar

import jax
import numpy as np

Arguments = ParamSpec("Arguments")
Made = TypeVar("Made")


class Call(NamedTuple):
    """A call of a public constructor, and its arguments."""

    constructor: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def named(self) -> dict[str, Any]:
        """Return all arguments by name, defaults included."""
        bound = inspect.signature(self.constructor).bind(*self.args, **self.kwargs)
        bound.apply_defaults()
        return bound.arguments


class Value:
    """Base of the NamedTuples of functions that compare, hash, print and pickle as their call.

    NumPy arrays among the arguments are equal where their numbers are, and JAX arrays where they
    are the same object. A value that was put together by hand, or changed by `_replace`, has no
    call: it is equal to another where each of its functions is the same object.
    """

    made_by: Call | None = None

    def __init_subclass__(cls) -> None:
        """Make the class a pytree without leaves."""
        jax.tree_util.register_static(cls)

    @functools.cached_property
    def _key(self) -> tuple[Any, ...]:
        call = self.made_by
        parts = tuple(self) if call is None else call.named()  # pyright: ignore[reportArgumentType]
        kind = type(self) if call is None else call.constructor
        return kind, *_comparable(parts)

    def __eq__(self, other: object) -> bool:
        """Return whether both come from equal calls, or hold the same functions."""
        return type(self) is type(other) and self._key == other._key  # pyright: ignore

    def __ne__(self, other: object) -> bool:
        """Return the opposite of `==`, in which a tuple would compare its entries."""
        return not self == other

    def __hash__(self) -> int:
        """Return the hash of the call, or of the functions."""
        return hash(self._key)

    def __repr__(self) -> str:
        """Return the call, such as `gru(input_size=3, hidden_size=4)`, without defaults."""
        if self.made_by is None:
            return super().__repr__()
        parameters = inspect.signature(self.made_by.constructor).parameters
        shown = []
        for name, value in self.made_by.named().items():
            if parameters[name].kind is inspect.Parameter.VAR_POSITIONAL:
                shown += map(_shown, value)
            elif parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
                shown += (f"{key}={_shown(each)}" for key, each in value.items())
            elif _comparable(value) != _comparable(parameters[name].default):
                shown.append(f"{name}={_shown(value)}")
        return f"{self.made_by.constructor.__name__}({', '.join(shown)})"

    def __reduce__(self) -> Any:
        """Pickle the call, or by hand the functions, which must then be found by their names."""
        parts = tuple(self)  # pyright: ignore[reportArgumentType]
        constructor, *arguments = self.made_by or Call(type(self), parts, {})
        return _call, (constructor, *jax.tree.map(_by_name, arguments))


def as_value(constructor: Callable[Arguments, Made]) -> Callable[Arguments, Made]:
    """Return the constructor such that the values it makes remember their calls."""

    @functools.wraps(constructor)
    def make(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Made:
        made = constructor(*args, **kwargs)
        if not isinstance(made, Value):
            return made
        # A copy, since what a constructor returns may be a value with a call of its own.
        own = type(made)(*made)  # pyright: ignore
        own.made_by = Call(make, *jax.tree.map(_kept, (args, kwargs)))
        return own

    return make


def _kept(leaf: Any) -> Any:
    """Return an argument such that the caller cannot change it any more."""
    return leaf.copy() if isinstance(leaf, np.ndarray) else leaf


def _comparable(tree: Any) -> tuple[Any, ...]:
    """Return what is equal, and hashes alike, for equal arguments."""

    def leaf(leaf):
        if isinstance(leaf, np.ndarray):
            return np.ndarray, leaf.dtype, leaf.shape, leaf.tobytes()
        try:
            hash(leaf)
        except TypeError:  # such as a JAX array: only itself is equal to it
            return id, id(leaf)
        return type(leaf), leaf

    leaves, structure = jax.tree.flatten(tree)
    return structure, tuple(map(leaf, leaves))


class _Name(NamedTuple):
    """Where to find an object that pickle may not know how to name, such as a jitted function."""

    module: str
    name: str


def _by_name(leaf: Any) -> Any:
    """Return the name of a function of a module, and anything else as it is."""
    module, name = (getattr(leaf, of, None) for of in ("__module__", "__qualname__"))
    if not (isinstance(module, str) and isinstance(name, str)) or module not in sys.modules:
        return leaf
    found = sys.modules[module]
    for part in name.split("."):
        found = getattr(found, part, None)
    return _Name(module, name) if found is leaf else leaf


def _call(constructor: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    def leaf(leaf):
        if not isinstance(leaf, _Name):
            return leaf
        return functools.reduce(getattr, leaf.name.split("."), importlib.import_module(leaf.module))

    args, kwargs = jax.tree.map(leaf, (args, kwargs), is_leaf=lambda a: isinstance(a, _Name))
    return constructor(*args, **kwargs)


def _shown(value: Any) -> str:
    if isinstance(value, np.ndarray | jax.Array | jax.ShapeDtypeStruct):
        return f"{value.dtype}{list(value.shape)}"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key!r}: {_shown(each)}' for key, each in value.items())}}}"
    if callable(value) and hasattr(value, "__name__"):
        return value.__name__
    return repr(value)
