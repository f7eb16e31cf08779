"""The contract of an adapter, and how its layers become points at which they are examined."""

from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jax_bptt as jb
from jax_bptt import Params
from jax_bptt.testing import Subject, from_jax

CELLS: dict[str, Callable[..., jb.Cell]] = {
    "lstm": jb.lstm,
    "gru": jb.gru,
    "gru_reset_before": jb.gru_reset_before,
    "elman": jb.elman,
}
"""Cells of this library that others have as well."""

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
    """A layer of a library under JAX, as pure functions of the library's own parameters.

    Attributes:
      from_params: parameters of this library's cell, the one it computes -> its own, as JAX arrays.
      to_gradients: a gradient like its own parameters -> one like this library's; None for what it
        has no parameter for.
      start: `(params, batch) -> state` of zeros, every leaf [B, H].
      run: `(params, xs [T, B, I], state, **options) -> (last_state, ys)`.
      step: `(params, state, x [B, I]) -> (state, y)`, the library's single step.
      equations: the cell of this library that it computes.
      note: what a reader of its figures has to know.
    """

    from_params: Callable[[Any], Any]
    to_gradients: Callable[[Any], Any]
    start: Callable[[Any, int], Any]
    run: Callable[..., Any]
    step: Callable[..., Any]
    equations: str
    note: str = ""


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
      layer: `(cell, input size, hidden size) -> Layer`, or None where it has no such cell; of more
        cells than those that are examined. None for a library without JAX.
    """

    package: str
    module: str
    cells: Collection[str]
    cases: Callable[[Collection[str], Sizes], list[Case]]
    layer: Callable[[str, int, int], Layer | None] | None = None


def jax_adapter(
    package: str,
    module: str,
    cells: Collection[str],
    layer: Callable[[str, int, int], Layer | None],
    *,
    supports: Collection[str] = (),
    disclaims: Mapping[str, str] = MappingProxyType({}),
) -> Adapter:
    """Return the adapter of a JAX library, whose layers `layer` makes as in `Adapter`."""

    def cases(names, sizes):
        return [case(name, sizes) for name in names]

    def case(name, sizes):
        cell, inputs = name, (sizes.I,)
        if name == STACK:
            cell, inputs = list(cells)[-1], (sizes.I, sizes.H, sizes.H)
        layers = [made for size in inputs if (made := layer(cell, size, sizes.H)) is not None]
        params = [
            one.from_params(drawn(one.equations, size, sizes.H))
            for one, size in zip(layers, inputs, strict=True)
        ]
        state = [one.start(p, sizes.B) for one, p in zip(layers, params, strict=True)]
        if name == STACK:
            run, step = stacked(layers)
        else:
            run, step, params, state = layers[0].run, layers[0].step, params[0], state[0]
        rng = np.random.default_rng(0)
        fields = dict(name=name, step=step, supports=supports, disclaims=disclaims)
        params, state = perturbed(rng, params), perturbed(rng, state)
        xs = rng.normal(size=(sizes.T, sizes.B, sizes.I))
        left_out = ELSEWHERE if name == STACK else ()
        return Case(name, from_jax(run, **fields), params, xs, state, left_out)

    return Adapter(package, module, (*cells, STACK), cases, layer)


def drawn(cell: str, inputs: int, units: int) -> Any:
    """Draw parameters of a cell of this library."""
    return CELLS[cell](input_size=inputs, hidden_size=units).init(jax.random.key(0))


def perturbed(rng: np.random.Generator, tree: Any) -> Any:
    """Add noise to floating-point leaves, so that no error hides behind a zero; in float64."""

    def move(leaf):
        leaf = np.asarray(leaf)
        if not np.issubdtype(leaf.dtype, np.floating):
            return leaf
        return leaf.astype(np.float64) + 0.3 * rng.normal(size=leaf.shape)

    return jax.tree.map(move, tree)


def stacked(layers: list[Layer]) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Return `run` and `step` of layers one upon the other, for lists of parameters and states.

    Each has its own reset_state, other options are for all.
    """

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

    return run, step


def arrays(tree: Any) -> Any:
    """Return a tree of arrays as JAX arrays."""
    return jax.tree.map(jnp.asarray, tree)


def zeros(cell: str, units: int) -> Callable[[Any, int], Any]:
    """Return what makes a state of zeros, [B, H], and a pair of them for an LSTM."""

    def start(params, batch):
        h = jnp.zeros((batch, units), jax.tree.leaves(params)[0].dtype)
        return (h, h) if cell == "lstm" else h

    return start


def without_b_n(params: Any) -> Params:
    """Return parameters, or a gradient, of a GRU without the bias inside its reset."""
    return Params(params.w_x, params.w_s, params.b)


def zero_beyond(ys: Any, lengths: Any) -> Any:
    """Put zeros in place of the outputs [T, B, H] beyond each sequence's length."""
    beyond = jnp.arange(ys.shape[0])[:, None] >= lengths
    return jnp.where(beyond[..., None], jnp.zeros_like(ys), ys)
