"""The one table of cells and algorithms that every property test runs over: one line adds a row."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_bptt as jb
from tests import reference, user_cells
from tests.reference import Reference, is_inexact

I, H, O, V = 2, 3, 2, 5  # noqa: E741 - the axis letters of the package
BATCH, STEPS = (6,), 7


class Row(NamedTuple):
    """A cell and the independent reference that it must agree with."""

    cell: jb.Cell
    reference: Reference


def _tanh(xp, a):
    return xp.tanh(a)


def _softplus(xp, a):
    return xp.logaddexp(xp.zeros_like(a), a)


def _with_readout(step: Callable) -> Reference:
    return Reference(step, reference.linear_readout)


def _lstm(xp, p, s):
    return s.h


def _embedded(xp, p, s, k):
    return reference.lstm(xp, p.cell, s, p.embedding[k])


_SIZES: Any = dict(input_size=I, hidden_size=H)

CELLS = {
    "elman": Row(jb.elman(**_SIZES), Reference(reference.elman(_tanh))),
    "elman_readout": Row(
        jb.elman(**_SIZES, output_size=O, activation=jax.nn.softplus),
        _with_readout(reference.elman(_softplus)),
    ),
    "lstm": Row(jb.lstm(**_SIZES), Reference(reference.lstm, _lstm)),
    "lstm_readout": Row(
        jb.lstm(**_SIZES, output_size=O, forget_bias=0.5),
        Reference(reference.lstm, lambda xp, p, s: s.h @ p.w_y),
    ),
    "gru": Row(jb.gru(**_SIZES), Reference(reference.gru)),
    "gru_readout": Row(jb.gru(**_SIZES, output_size=O), _with_readout(reference.gru)),
    "gru_reset_before": Row(
        jb.gru_reset_before(**_SIZES, output_size=O), _with_readout(reference.gru_reset_before)
    ),
    "embedding": Row(
        jb.embedding(jb.lstm(**_SIZES), vocabulary_size=V), Reference(_embedded, _lstm)
    ),
    "switched": Row(*user_cells.switched()),
    "minimal_gated": Row(*user_cells.minimal_gated()),
    "peephole": Row(*user_cells.peephole()),
    "complex_diagonal": Row(*user_cells.complex_diagonal()),
    "weight_norm": Row(*user_cells.weight_norm()),
    "counted": Row(*user_cells.counted(gated=False)),
    "counted_gated": Row(*user_cells.counted(gated=True)),
}

ALGORITHMS = {
    "bptt": jb.bptt(),
    "bptt_1": jb.bptt(block_length=1),
    "bptt_3": jb.bptt(block_length=3),
    "autodiff": jb.autodiff(),
}

# One of each kind, for properties that rest with the algorithm: a gated step with a hand-written
# pair, a plain step, a gated step that reads weights unit by unit, integers in the state.
KINDS = ["lstm_readout", "gru_reset_before", "peephole", "counted"]

each_cell = pytest.mark.parametrize("name", CELLS)
each_kind = pytest.mark.parametrize("name", KINDS)
each_algorithm = pytest.mark.parametrize("algorithm", ALGORITHMS)


class Problem(NamedTuple):
    """Arguments of an unroll in NumPy, with cotangents for (last_state, ys)."""

    params: Any
    xs: Any
    state: Any
    cotangents: Any


@functools.cache
def problem(name: str, batch_shape: tuple[int, ...] = BATCH, steps: int = STEPS) -> Problem:
    """Draw every number at random, so that no bias, start or cotangent hides behind a zero."""
    rng = np.random.default_rng(0)
    cell = CELLS[name].cell

    def noise(leaf):
        if np.issubdtype(leaf.dtype, np.complexfloating):
            return rng.normal(size=leaf.shape) + 1j * rng.normal(size=leaf.shape)
        return rng.normal(size=leaf.shape)

    def perturbed(leaf):
        leaf = np.asarray(leaf)
        return leaf + 0.3 * noise(leaf) if is_inexact(leaf) else leaf

    def draw(spec):
        if jnp.issubdtype(spec.dtype, jnp.integer):
            return rng.integers(0, V, size=(steps, *batch_shape), dtype=np.int32)
        return rng.normal(size=(steps, *batch_shape, *spec.shape))

    params = jax.tree.map(perturbed, cell.init(jax.random.key(0)))
    state = jax.tree.map(perturbed, cell.initial_state(params, batch_shape))
    xs = jax.tree.map(draw, cell.input_spec)
    weights = cell.prepare(jax.tree.map(jnp.asarray, params))
    y = cell.readout(weights, state)
    ys = jax.tree.map(lambda a: np.zeros((steps, *a.shape), a.dtype), y)
    cotangents = jax.tree.map(lambda a: noise(a) if is_inexact(a) else None, (state, ys))
    return Problem(params, xs, state, cotangents)


def run(name: str, algorithm: jb.Algorithm | None, params, xs, state):
    return jb.unroll(CELLS[name].cell, params, xs, state, algorithm=algorithm)


def gradient(name: str, algorithm: jb.Algorithm | None, p: Problem) -> tuple[Any, Any]:
    """Return (outputs, d(params, xs, state)) by `jax.grad` of a loss with p's cotangents."""

    def loss(arguments):
        outputs = run(name, algorithm, *arguments)
        return reference.pair(jnp, p.cotangents, outputs), outputs

    arguments = p.params, p.xs, p.state
    gradients, outputs = jax.grad(loss, has_aux=True, allow_int=True)(arguments)
    return outputs, without_int(gradients)


@functools.cache
def compiled(name: str, algorithm: str) -> Callable[[Problem], tuple[Any, Any]]:
    """Return the jitted `gradient`, compiled once per shape for all tests."""
    return jax.jit(functools.partial(gradient, name, ALGORITHMS[algorithm]))


@functools.cache
def expected(name: str, batch_shape: tuple[int, ...] = BATCH, steps: int = STEPS) -> Any:
    """Return (outputs, gradients) of the naive loops, for T >= 1."""
    p, naive = problem(name, batch_shape, steps), CELLS[name].reference
    outputs = reference.unroll(np, naive, p.params, p.state, p.xs, batch_shape)
    gradients = reference.gradients(naive, p.params, p.state, p.xs, batch_shape, p.cotangents)
    return outputs, without_int(gradients)


def without_int(gradients: Any) -> Any:
    """Put None where `jax.grad(allow_int=True)` has arrays of the dtype float0."""
    return jax.tree.map(lambda g: None if g.dtype == jax.dtypes.float0 else g, gradients)


def assert_close(got: Any, want: Any, tolerance: float) -> None:
    """Compare trees leaf by leaf, in the largest norm relative to the leaf's own scale."""
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for (path, a), b in zip(jax.tree.leaves_with_path(got), jax.tree.leaves(want), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert a.shape == b.shape, (jax.tree_util.keystr(path), a.shape, b.shape)
        wide = np.promote_types(a.dtype, np.float64)
        a, b = a.astype(wide), b.astype(wide)
        scale = np.abs(b).max(initial=0)
        error = np.abs(a - b).max(initial=0)
        assert error <= tolerance * scale, (
            f"{jax.tree_util.keystr(path)}: off by {error:.3g} at a scale of {scale:.3g}, "
            f"{error / scale if scale else np.inf:.3g} relative, {tolerance:.3g} allowed"
        )
