"""Checks for cells of one's own: is a `GatedStep` what the library takes it for?"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_bptt.algorithms import argument_checks
from jax_bptt.core import checks, trees
from jax_bptt.core.types import Cell, GatedStep, PyTree


def check_gated_step(
    cell: Cell, params: PyTree, x: PyTree, state: PyTree | None = None, *, seed: int = 0
) -> None:
    r"""Check the two promises of a `GatedStep` at random points near the given ones.

        pointwise acts unit by unit:    d new[..., j] / d input[..., k] = 0 for j != k, whether the
                                        input is the state, the drive or the feedback
        the pair is its derivative:     pointwise_bwd(residuals, .) is jax.vjp of pointwise

    The first lets the reverse pass compute the Jacobians of all steps ahead of the scan, the second
    is what makes its result the gradient. Neither can be seen from the outside: a cell that breaks
    one runs, and runs wrong. Of `mix` nothing is asked but that it reads weights and state alone.

    Leaves whose last axis does not have the length of the state's may be shared by all units and
    are left alone. Call it from your own tests; under x64 it is the strictest.

    Args:
      cell: a `Cell` whose step is a `GatedStep`.
      params: `cell.init(key)`.
      x: one input [*batch, I] without a time axis, or whatever `cell.input_spec` says.
      state: [*batch, H]; by default `cell.initial_state(params, batch_shape)`.
      seed: of the random displacements.

    Raises:
      AssertionError: a promise is broken; the message says which, where and by how much.
      TypeError: the cell's step is no `GatedStep`, or an argument is of the wrong kind or dtype.
      ValueError: a shape does not fit.

    Example:
      >>> import jax, jax.numpy as jnp, jax_bptt as jb
      >>> from jax_bptt.testing import check_gated_step
      >>> cell = jb.lstm(input_size=3, hidden_size=4)
      >>> check_gated_step(cell, cell.init(jax.random.key(0)), jnp.ones((2, 3)))
    """
    name = "check_gated_step"
    step = cell.step
    checks.require(
        isinstance(step, GatedStep),
        f"{name}: cell.step must be a jb.GatedStep, got {step!r}; a plain step promises nothing.",
        TypeError,
    )
    assert isinstance(step, GatedStep)
    xs = jax.tree.map(lambda a: jnp.asarray(a)[None], x)
    params, xs, state = argument_checks.inputs(name, cell, params, xs, state)
    weights = argument_checks.weights(name, cell, params, xs)
    state = cell.initial_state(params, checks.batch_shape(cell, xs)) if state is None else state
    drive = cell.project(weights, jax.tree.map(lambda a: a[0], xs))
    narrowest = max(
        jnp.finfo(leaf.dtype).eps
        for leaf in jax.tree.leaves((weights, state, drive))
        if trees.is_inexact(leaf)
    )
    # Three quarters of the digits: rounding stays below, a broken promise far above.
    tolerance = float(narrowest) ** 0.75
    mix, pointwise = jax.jit(step.mix), jax.jit(step.pointwise)
    rng = np.random.default_rng(seed)
    for _ in range(3):
        first, second = (_sum(state, _noise(rng, state)) for _ in range(2))
        inputs = first, _sum(drive, _noise(rng, drive)), mix(weights, second)
        noise = _noise(rng, inputs)
        _check_units(functools.partial(pointwise, weights), inputs, noise, tolerance)
        _check_pair(step, weights, inputs, _noise(rng, state), tolerance)


def _noise(rng: np.random.Generator, tree: PyTree) -> PyTree:
    """Return standard normal leaves in place of the inexact ones, and None for the others."""

    def draw(leaf):
        return rng.normal(size=leaf.shape).astype(leaf.dtype) if trees.is_inexact(leaf) else None

    return jax.tree.map(draw, tree)


def _sum(tree: PyTree, displacement: PyTree) -> PyTree:
    """Add, leaving the leaves alone at which the displacement is None."""
    return jax.tree.map(
        lambda d, a: a if d is None else np.asarray(a) + d,
        displacement,
        tree,
        is_leaf=lambda d: d is None,
    )


def _check_units(pointwise, inputs, noise, tolerance):
    sizes = {
        f"{part}{path}": leaf.shape[-1:]
        for part, tree in zip(("state", "drive", "feedback"), noise, strict=True)
        for path, leaf in _leaves(tree)
    }
    units = next(size for name, size in sizes.items() if name.startswith("state"))
    for name, size in sizes.items():
        assert size == units != (), (
            f"pointwise is not unit by unit: {name} has a last axis of {size}, but that of the "
            f"state is {units}. The unit axis is the last one of every floating-point leaf."
        )
    before = trees.partition(pointwise(*inputs))[0]
    for unit in range(*units):
        others = np.arange(*units) != unit
        at_one = jax.tree.map(lambda n, others=others: np.where(others, 0, n), noise)
        after = trees.partition(pointwise(*_sum(inputs, at_one)))[0]
        got, want = (
            jax.tree.map(lambda a, others=others: np.asarray(a)[..., others], tree)
            for tree in (after, before)
        )
        for path, error in _errors(got, want, scale=before):
            assert error <= tolerance, (
                f"pointwise is not unit by unit on the last axis: perturbing unit {unit} of its "
                f"inputs changes other units of state{path} by {error:.1e} of its scale. Move "
                "what crosses units into mix, or make it a plain step."
            )


def _check_pair(step, weights, inputs, d_new, tolerance):
    given = step.pointwise_fwd, step.pointwise_bwd
    assert (given[0] is None) == (given[1] is None), (
        "pointwise_fwd and pointwise_bwd come as a pair: give both or neither."
    )
    if given[0] is None:
        return

    @jax.jit
    def derived(inputs, d_new):
        _, pull = trees.inexact_vjp(lambda *args: step.pointwise(weights, *args), *inputs)
        return pull(d_new)

    @jax.jit
    def written(inputs, d_new):
        new = step.pointwise(weights, *inputs)
        return step.pointwise_bwd(step.pointwise_fwd(weights, *inputs, new), d_new)

    parts = ("d_state_prev", "d_drive", "d_feedback")
    got, want = written(inputs, d_new), derived(inputs, d_new)
    for part, g, w in zip(parts, got, want, strict=True):
        assert jax.tree.structure(g) == jax.tree.structure(w), (
            f"pointwise_bwd returns {part} of the structure {jax.tree.structure(g)}, but pointwise "
            f"has {jax.tree.structure(w)}."
        )
        for path, error in _errors(g, w, scale=w):
            assert error <= tolerance, (
                f"pointwise_bwd disagrees with pointwise on {part}{path}, by {error:.1e} of its "
                "scale (the derivative is that of jax.vjp)."
            )


def _leaves(tree: PyTree) -> list[tuple[str, Any]]:
    return [
        (jax.tree_util.keystr(p), leaf) for p, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ]


def _errors(got: PyTree, want: PyTree, scale: PyTree) -> list[tuple[str, float]]:
    """Return per leaf the largest difference relative to the largest entry of `scale`."""

    def relative(g, w, s):
        assert g.shape == w.shape, f"a shape of {g.shape} where {w.shape} is right"
        g, w, s = (np.asarray(a).astype(np.promote_types(a.dtype, np.float64)) for a in (g, w, s))
        return float(np.abs(g - w).max(initial=0) / (np.abs(s).max(initial=0) or 1.0))

    return _leaves(jax.tree.map(relative, got, want, scale))
