"""States that a step maps to themselves, and whether a network stays near them."""

import math
import numbers
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.core import Tracer

from jax_bptt.algorithms.argument_checks import state_spec
from jax_bptt.algorithms.jacobians import matrix, times, vectors
from jax_bptt.algorithms.tree_checks import as_arrays, same_structure
from jax_bptt.algorithms.unroll import Arguments, begin, checked, compiled_once
from jax_bptt.core import sequence, trees
from jax_bptt.core.checks import batch_shape, leaves, require, shown
from jax_bptt.core.forward import Stretch, over_time
from jax_bptt.core.linearize import linearize
from jax_bptt.core.sequence import Options
from jax_bptt.core.types import Cell, GatedStep, PyTree

MAX_STEPS = 200
"""Steps of the search after which a candidate is left where it is."""

OUTLIER = 10.0
"""Mean distances of a candidate from the centroid beyond which a point is an outlier."""


class FixedPoints(NamedTuple):
    """M points, unlike one another: those found first, of these the most stable, most sought ones.

    All are NumPy arrays. A point that is not `converged` is one at which the search could not make
    the step much shorter: near a slow point, if its speed is small.

    Attributes:
      states: [M, ...], as the cell has them.
      speeds: q = |step(s, x) - s|^2 / 2, [M].
      converged: whether it is a fixed point in the precision of its dtype, bool [M].
      jacobians: d step(s, x) / ds, [M, D, D], of a state as a vector: all its inexact leaves one
        after the other, the real and the imaginary parts of complex ones apart.
      eigenvalues: of the Jacobians, complex [M, D], of each point the largest modulus first.
      unstable: the number of directions in which a perturbation does not shrink, of eigenvalues
        with a modulus of at least 1; integer [M].
      stable: whether there is none, bool [M].
      counts: how many candidates came to it, integer [M].
      origins: of each candidate, the index of its point, like the leading axes of the candidates;
        -1 where that was left out by `where`.
      outliers: whether it is far from all candidates, bool [M]: farther from their centroid than 10
        times their own mean distance.
    """

    states: PyTree
    speeds: np.ndarray
    converged: np.ndarray
    jacobians: np.ndarray
    eigenvalues: np.ndarray
    unstable: np.ndarray
    stable: np.ndarray
    counts: np.ndarray
    origins: np.ndarray
    outliers: np.ndarray

    def where(self, chosen: np.ndarray) -> "FixedPoints":
        """Return the points at which `chosen`, bool [M], is True."""
        chosen = np.asarray(chosen)
        require(
            chosen.shape == self.speeds.shape and chosen.dtype == bool,
            f"FixedPoints.where: chosen must be bool{list(self.speeds.shape)}, one for each point, "
            f"got {chosen.dtype}{list(chosen.shape)}",
        )
        kept = jax.tree.map(lambda a: a[chosen], self._replace(origins=self.counts))
        places = np.append(np.where(chosen, np.cumsum(chosen) - 1, -1), -1)
        return kept._replace(origins=places[self.origins])


def fixed_points(
    cell: Cell,
    params: PyTree,
    x: PyTree,
    candidates: PyTree,
    *,
    tolerance: float | None = None,
    merge: float = 1e-3,
) -> FixedPoints:
    """Return the fixed points of `cell` under a constant input, sought from many states at once.

        minimise q(s) = |F(s)|^2 / 2        F(s) = step(s, x) - s

    Near a fixed point the network is linear, and what it does is read off the eigenvalues of its
    Jacobian J: a memory where all moduli are below 1, a saddle, on the way from one memory to
    another, where some are not. Sussillo and Barak descend along the gradient of q; here each
    candidate takes the steps of Levenberg and Marquardt,

        d = argmin |(J - I) d + F|^2 + damping^2 |d|^2

    damped less after a step that makes q smaller and more after one that does not. That takes tens
    of steps where a descent takes thousands, ends at the precision of the dtype, and goes to
    saddles as it does to stable points. What is found depends on the candidates: states of a run,
    with and without noise, are those that matter.

    The search is compiled, for all candidates at once: N D^3 operations a step and a few arrays
    of N Jacobians [D, D]. Points are merged in NumPy, on the host, because how many there are
    depends on the data; so the function itself cannot be part of a compiled one.

    Args:
      cell: a `Cell`.
      params: `cell.init(key)`.
      x: one input, without batch axes, the same at every step.
      candidates: [N, ...], states from which to search, such as `trajectory(...).states`; any
        number of leading axes. Integers in a state stay as they are and count for nothing.
      tolerance: the largest |F(s)| / (1 + |s|) of a fixed point; None for 16 sqrt(D) times the
        relative precision of the state's dtype.
      merge: the distance, in units of the state, up to which two points are one.

    Returns:
      `FixedPoints`.

    Raises:
      TypeError: an argument is of the wrong kind, structure or dtype, or traced.
      ValueError: a shape does not fit, there is no candidate, or one is not finite.

    References:
      D. Sussillo and O. Barak (2013), "Opening the black box: low-dimensional dynamics in
      high-dimensional recurrent neural networks", Neural Computation 25(3). M. D. Golub and
      D. Sussillo (2018), "FixedPointFinder", Journal of Open Source Software 3(31).

    Example:
      >>> import jax, jax.numpy as jnp, jax_bptt as jb
      >>> cell = jb.elman(input_size=1, hidden_size=1)
      >>> params = cell.init(jax.random.key(0))._replace(w_s=jnp.array([[[2.0]]]))
      >>> candidates = jnp.linspace(-1, 1, 20)[:, None]
      >>> found = jb.diagnostics.fixed_points(cell, params, jnp.zeros(1), candidates)
      >>> sorted(found.states[:, 0].round(3).tolist()), found.unstable.tolist()
      ([-0.9580000042915344, 0.0, 0.9580000042915344], [0, 0, 1])
    """
    name = "fixed_points"
    traced = any(isinstance(a, Tracer) for a in jax.tree.leaves((params, x, candidates)))
    require(
        not traced,
        f"{name}: the number of points depends on the data, so that it is no part of a compiled "
        "function. Call it outside jax.jit, jax.vmap and jax.grad; its search is compiled anyway.",
        TypeError,
    )
    for option, value in (("tolerance", tolerance), ("merge", merge)):
        fits = value is None and option == "tolerance"
        fits |= isinstance(value, numbers.Real) and not isinstance(value, bool) and value >= 0
        require(fits, f"{name}: {option} must be a number, not negative, got {shown(value)}")
    xs = jax.tree.map(lambda a: a[None], as_arrays(name, "x", x))
    given = checked(name, cell, (params, xs, None), Options())
    require(
        batch_shape(cell, xs) == (),
        f"{name}: x has the batch axes {batch_shape(cell, xs)}, but is one input for all "
        "candidates. Call it once for each input.",
    )
    candidates, leading = _checked(name, candidates, state_spec(cell, given.params, xs))
    found = compiled_once(_search, cell, tolerance)(given, candidates)
    return _merged(jax.tree.map(np.asarray, found), merge, leading)


def _checked(name: str, candidates: PyTree, spec: PyTree) -> tuple[PyTree, tuple[int, ...]]:
    """Return the candidates [N, ...], and the leading axes that they came with."""
    way_out = "Take states of a run: trajectory(cell, params, xs).states."
    same_structure(name, "candidates", candidates, spec, "this cell's state", way_out)
    candidates = as_arrays(name, "candidates", candidates)
    wanted, leading = dict(leaves(spec)), None
    for path, leaf in leaves(candidates):
        want = wanted[path]
        rank = leaf.ndim - len(want.shape)
        leading = leaf.shape[: max(rank, 0)] if leading is None else leading
        require(
            leaf.shape == (*leading, *want.shape) and rank > 0,
            f"{name}: candidates{path}.shape={leaf.shape}, but a state of this cell has "
            f"{want.shape}, behind one or more axes of candidates, the same for all leaves. "
            f"{way_out}",
        )
        require(
            leaf.dtype == want.dtype,
            f"{name}: candidates{path} has dtype {leaf.dtype}, but this cell carries {want.dtype}. "
            f"Convert it: candidates{path}.astype({want.dtype.name!r}).",
            TypeError,
        )
        require(leaf.size > 0, f"{name}: there are no candidates, shape {leaf.shape}. {way_out}")
        require(
            not trees.is_inexact(leaf) or bool(jnp.isfinite(leaf).all()),
            f"{name}: candidates{path} has numbers that are not finite; leave those states out.",
        )
    assert leading is not None
    rank = len(leading)
    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[rank:]), candidates), leading


class _Place(NamedTuple):
    """Candidates on their way: a state [N, D], F [N, D], J [N, D, D], the damping [N]."""

    vector: Array
    miss: Array
    jacobian: Array
    damping: Array


class _Search(NamedTuple):
    """Where N candidates came to, and the vectors they began as."""

    states: PyTree
    vectors: Any
    begun: Any
    speeds: Any
    converged: Any
    jacobians: Any


def _search(cell: Cell, tolerance: float | None, given: Arguments, candidates: PyTree) -> _Search:
    run = begin("fixed_points", cell, given, reverse=False)
    cell, weights = run.cell, run.inputs.weights
    if isinstance(cell.step, GatedStep):
        cell = cell._replace(step=cell.step._replace(heads=1))  # one matrix, whatever it mixes
    space = vectors(cell, run.inputs)
    like = trees.partition(run.inputs.state)[0]
    inexact, rest = trees.partition(candidates)
    first = _flat(space, inexact)
    drives = jax.tree.map(
        lambda d: jnp.broadcast_to(d, (len(first), *d.shape[1:])),
        over_time(cell, cell.project)(weights, run.inputs.xs),
    )

    def states_of(vector):
        return trees.combine(jax.vmap(space.tree)(vector[:, None]), rest)

    def at(vector, damping):
        """Linearise the step at all candidates, as if they were the states of a run."""
        prevs = states_of(vector)
        states = over_time(cell, cell.step)(weights, prevs, drives)
        linear = linearize(cell, weights, Stretch(prevs, drives, states))

        def jacobian(residual):
            return matrix(lambda v: linear.push(residual, v), space, like)[0]

        miss = _flat(space, trees.partition(states)[0]) - vector
        return _Place(vector, miss, jax.vmap(jacobian)(linear.residuals), damping)

    epsilon = float(jnp.finfo(space.dtype).eps)
    limit = 16 * math.sqrt(space.shape[-1]) * epsilon if tolerance is None else tolerance

    def converged(place):
        return _norm(place.miss) <= limit * (1 + _norm(place.vector))

    def searching(carry):
        steps, place = carry
        over = converged(place) | (place.damping > 1 / epsilon)
        return (steps < MAX_STEPS) & ~over.all()

    def improve(carry):
        steps, old = carry
        less, more = jnp.maximum(old.damping / 4, epsilon), old.damping * 4
        new = at(old.vector + _direction(old), less)
        better = (_norm(new.miss) < _norm(old.miss)) & ~converged(old)
        return steps + 1, sequence.select(better, new, old._replace(damping=more))

    begun = at(first, jnp.full(len(first), 0.1, space.dtype))
    _, place = lax.while_loop(searching, improve, (0, begun))
    speeds = _norm(place.miss) ** 2 / 2
    states = states_of(place.vector)
    return _Search(states, place.vector, first, speeds, converged(place), place.jacobian)


def _flat(space: Any, inexact: PyTree) -> Array:
    return jax.vmap(space.flat)(inexact)[:, 0]


def _norm(vectors: Array) -> Array:
    return jnp.linalg.norm(vectors, axis=-1)


def _direction(place: _Place) -> Array:
    """Return the damped step, by QR: the product (J - I)^T (J - I) would lose half the digits."""
    size = place.miss.shape[-1]
    unit = jnp.broadcast_to(jnp.eye(size, dtype=place.miss.dtype), place.jacobian.shape)
    rows = jnp.concatenate([place.jacobian - unit, place.damping[:, None, None] * unit], 1)
    q, r = jnp.linalg.qr(rows)
    right = times(jnp.swapaxes(q[:, :size], -1, -2), place.miss[..., None])
    return -lax.linalg.triangular_solve(r, right, left_side=True)[..., 0]


def _merged(search: _Search, merge: float, leading: tuple[int, ...]) -> FixedPoints:
    """Make one point of a slow one and all within `merge` of it, and look at each."""
    states, vectors, begun, speeds, converged, jacobians = search
    origins = np.full(len(speeds), -1)
    kept = []
    for index in np.argsort(speeds, kind="stable"):
        if origins[index] < 0:
            near = np.linalg.norm(vectors - vectors[index], axis=-1) <= merge
            origins[near & (origins < 0)] = len(kept)
            kept.append(index)
    eigenvalues = np.linalg.eigvals(jacobians[kept]).astype(np.result_type(jacobians, 1j))
    order = np.argsort(-np.abs(eigenvalues), axis=-1, kind="stable")
    eigenvalues = np.take_along_axis(eigenvalues, order, -1)
    unstable = np.sum(np.abs(eigenvalues) >= 1, axis=-1)
    counts = np.bincount(origins)
    centre = begun.mean(axis=0)
    near = OUTLIER * np.linalg.norm(begun - centre, axis=-1).mean()
    far = np.linalg.norm(vectors[kept] - centre, axis=-1) > near if near > 0 else unstable < 0

    first = np.lexsort([-counts, unstable, ~converged[kept]])
    index = np.array(kept)[first]
    return FixedPoints(
        jax.tree.map(lambda a: a[index], states),
        speeds[index],
        converged[index],
        jacobians[index],
        eigenvalues[first],
        unstable[first],
        (unstable == 0)[first],
        counts[first],
        np.argsort(first)[origins].reshape(leading),
        far[first],
    )
