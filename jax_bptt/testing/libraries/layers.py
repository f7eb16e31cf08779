"""The contract of an adapter, and how its layers become points at which they are examined."""

from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jax_bptt.testing import Subject, from_jax

STACK = "stack"
"""The name of the case that is a stack of three layers of an adapter's last cell."""

ELSEWHERE = ("zero_cotangents", "second_derivatives", "third_derivatives", "error_growth")
"""Properties that are left to the single layers, since they take minutes to compile for stacks."""


class Sizes(NamedTuple):
    """T, B, I, H."""

    T: int = 5
    B: int = 3
    I: int = 2  # noqa: E741 - the axis letter of the whole package
    H: int = 3


class Layer(NamedTuple):
    """A layer of a library under JAX.

    Attributes:
      params: the library's own initial parameters, or a tree like them.
      state: an initial state, every leaf [B, H].
      run: `(params, xs [T, B, I], state, **options) -> (last_state, ys)`.
      step: `(params, state, x [B, I]) -> (state, y)`, the library's single step.
    """

    params: Any
    state: Any
    run: Callable[..., Any]
    step: Callable[..., Any]


class Case(NamedTuple):
    """A subject and the point at which it is examined; and what it is not examined for."""

    cell: str
    subject: Subject
    params: Any
    xs: np.ndarray
    state: Any
    left_out: Collection[str] = ()


class Adapter(NamedTuple):
    """How a library is examined.

    Attributes:
      package: the distribution that it is installed from.
      module: what is imported.
      cells: names of its cells.
      cases: `(names of cells, sizes) -> cases`.
    """

    package: str
    module: str
    cells: Collection[str]
    cases: Callable[[Collection[str], Sizes], list[Case]]


def jax_adapter(
    package: str,
    module: str,
    cells: Collection[str],
    build: Callable[[str, int, Sizes], Layer],
    *,
    supports: Collection[str] = (),
    disclaims: Mapping[str, str] = MappingProxyType({}),
) -> Adapter:
    """Return the adapter of a JAX library; `build(cell, input size, sizes)` makes one layer."""

    def cases(names, sizes):
        return [case(name, sizes) for name in names]

    def case(name, sizes):
        if name == STACK:
            last = list(cells)[-1]
            inputs = (sizes.I, sizes.H, sizes.H)
            layer = stacked([build(last, size, sizes) for size in inputs])
        else:
            layer = build(name, sizes.I, sizes)
        rng = np.random.default_rng(0)
        fields = dict(name=name, step=layer.step, supports=supports, disclaims=disclaims)
        params, state = (perturbed(rng, tree) for tree in (layer.params, layer.state))
        xs = rng.normal(size=(sizes.T, sizes.B, sizes.I))
        left_out = ELSEWHERE if name == STACK else ()
        return Case(name, from_jax(layer.run, **fields), params, xs, state, left_out)

    return Adapter(package, module, (*cells, STACK), cases)


def perturbed(rng: np.random.Generator, tree: Any) -> Any:
    """Add noise to floating-point leaves, so that no error hides behind a zero; in float64."""

    def move(leaf):
        leaf = np.asarray(leaf)
        if not np.issubdtype(leaf.dtype, np.floating):
            return leaf
        return leaf.astype(np.float64) + 0.3 * rng.normal(size=leaf.shape)

    return jax.tree.map(move, tree)


def stacked(layers: list[Layer]) -> Layer:
    """Return layers one upon the other; each has its own reset_state, other options are for all."""

    def run(params, xs, state, *, reset_state=None, **options):
        last = []
        starts = [{}] * len(layers)
        if reset_state is not None:
            starts = [{"reset_state": start} for start in reset_state]
        for layer, p, s, start in zip(layers, params, state, starts, strict=True):
            after, xs = layer.run(p, xs, s, **start, **options)
            last.append(after)
        return last, xs

    def step(params, state, x):
        new = []
        for layer, p, s in zip(layers, params, state, strict=True):
            after, x = layer.step(p, s, x)
            new.append(after)
        return new, x

    return Layer([la.params for la in layers], [la.state for la in layers], run, step)


def zero_beyond(ys: Any, lengths: Any) -> Any:
    """Put zeros in place of the outputs [T, B, H] beyond each sequence's length."""
    beyond = jnp.arange(ys.shape[0])[:, None] >= lengths
    return jnp.where(beyond[..., None], jnp.zeros_like(ys), ys)
