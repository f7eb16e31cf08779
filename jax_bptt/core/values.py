"""Cells, layers and algorithms as values: what equal calls make is equal.

A value is a tuple of functions that remembers the call that made it. Two closures of one
constructor are different functions to Python and to `jax.jit`; the calls tell that they are the
same. So a value is one static argument of `jit` wherever it was made, pickles as its call, and has
no leaves for `jax.tree`, which makes it a field of any module.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple, ParamSpec, TypeVar

import jax

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

    One that was put together by hand, or changed by `_replace`, has no call: it is equal to another
    where each of its functions is the same object.
    """

    made_by: Call | None = None

    def __init_subclass__(cls) -> None:
        """Make the class a pytree without leaves."""
        jax.tree_util.register_static(cls)

    @functools.cached_property
    def _key(self) -> tuple[Any, ...]:
        call = self.made_by
        parts = tuple(self) if call is None else call.named()  # pyright: ignore[reportArgumentType]
        leaves, structure = jax.tree.flatten(parts)
        kind = type(self) if call is None else call.constructor
        return kind, structure, tuple(map(_comparable, leaves))

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
            elif value is not parameters[name].default:
                shown.append(f"{name}={_shown(value)}")
        return f"{self.made_by.constructor.__name__}({', '.join(shown)})"

    def __reduce__(self) -> Any:
        """Pickle the call, or by hand the functions, which must then be found by their names."""
        if self.made_by is None:
            return type(self), tuple(self)  # pyright: ignore[reportArgumentType]
        return _call, tuple(self.made_by)


def as_value(constructor: Callable[Arguments, Made]) -> Callable[Arguments, Made]:
    """Return the constructor such that the values it makes remember their calls."""

    @functools.wraps(constructor)
    def make(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Made:
        made = constructor(*args, **kwargs)
        if not isinstance(made, Value):
            return made
        # A copy, since what a constructor returns may be a value with a call of its own.
        own = type(made)(*made)  # pyright: ignore
        own.made_by = Call(make, args, kwargs)
        return own

    return make


def _call(constructor: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return constructor(*args, **kwargs)


class _Same(NamedTuple):
    """A leaf that cannot be hashed, such as an array: only itself is equal to it."""

    identity: int


def _comparable(leaf: Any) -> Any:
    try:
        hash(leaf)
    except TypeError:
        return _Same(id(leaf))
    return type(leaf), leaf


def _shown(value: Any) -> str:
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{value.dtype}{list(value.shape)}"
    if callable(value) and hasattr(value, "__name__"):
        return value.__name__
    return repr(value)
