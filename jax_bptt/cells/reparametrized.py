"""Cells whose recurrent matrices are made of other parameters, once per sequence, in `prepare`.

A gate's matrix is written W_g = w_s[:, g, :]. The wrapped cell has the params of the inner one,
with something else in the place of `w_s`, and the step of the inner one, hand-written pair
included: the reverse pass through time knows nothing of it, and `jax.vjp` of `prepare` does the
rest. The inner one's initial state is handed these params too: like the library's own, it has its
size from its constructor and not from `w_s`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jax_bptt.core.checks import is_integer, kind_of, prng_key, require, shown
from jax_bptt.core.trees import accumulator_dtype
from jax_bptt.core.types import Cell, PyTree
from jax_bptt.core.values import as_value


class LowRank(NamedTuple):
    """In the place of `w_s`: factors u [H, G, R] and v [R, G, H], with W_g = u_g v_g."""

    u: Array
    v: Array


class Rotation(NamedTuple):
    """In the place of `w_s`: a [H, G, H], of which each gate's part a_g - a_g^T counts."""

    a: Array


class WeightNorm(NamedTuple):
    """In the place of `w_s`: directions v [H, G, H] and lengths g [G, H] of their columns."""

    g: Array
    v: Array


@as_value
def low_rank(cell: Cell, *, rank: int) -> Cell:
    """Return `cell` with each gate's recurrent matrix of rank R: W_g = u_g v_g.

    Params: those of `cell` with `w_s` a `LowRank(u, v)`, [H, G, R] and [R, G, H]: 2 R / H times as
    many numbers. Initialisation: the best approximation of that rank to the cell's own, by its
    singular value decomposition, the singular values shared evenly between the factors.

    Args:
      cell: a `Cell` with params that have a field `w_s` [H, G, H].
      rank: R, 1 to H.

    Returns:
      A `Cell` with the step of `cell`.

    Raises:
      TypeError: `cell` is no cell, or its params have no `w_s` of that kind.
      ValueError: the rank is no integer from 1 to H.

    References:
      Z. Lu, V. Sindhwani and T. N. Sainath (2016), "Learning compact recurrent neural networks",
      ICASSP.

    Example:
      >>> import jax, jax.numpy as jnp, jax_bptt as jb
      >>> cell = jb.low_rank(jb.lstm(input_size=3, hidden_size=5), rank=2)
      >>> params = cell.init(jax.random.key(0))
      >>> params.w_s.u.shape, params.w_s.v.shape
      ((5, 4, 2), (2, 4, 5))
    """
    w_s = recurrent_matrices("low_rank", cell)
    largest = min(w_s.shape[0], w_s.shape[-1])
    require(
        is_integer(rank) and 0 < rank <= largest,
        f"low_rank: rank must be an integer from 1 to {largest}, the size of the recurrent "
        f"matrices, got {shown(rank)}",
    )

    def split(w):
        u, s, v = jnp.linalg.svd(_gates_first(w), full_matrices=False)
        root = jnp.sqrt(s[:, None, :rank])
        return LowRank(
            _gates_second(u[:, :, :rank] * root),
            _gates_second(v[:, :rank] * jnp.swapaxes(root, 1, 2)),
        )

    def join(p):
        return jnp.einsum("hgr,rgk->hgk", p.u, p.v)

    return _reparametrized(cell, lambda key, w: split(w), join)


@as_value
def orthogonal(cell: Cell) -> Cell:
    """Return `cell` with each gate's recurrent matrix orthogonal, by the Cayley transform.

        A_g = a_g - a_g^T        W_g = (1 + A_g)^{-1} (1 - A_g)

    Every skew-symmetric A gives a rotation, and every rotation without the eigenvalue -1 comes
    from one, so that any gradient step stays among them. Exact to rounding; O(G H^3) per sequence.

    Params: those of `cell` with `w_s` a `Rotation(a)`, [H, G, H]. Initialisation: rotations by
    angles uniform in [0, pi/2] in the planes of successive pairs of units.

    Args:
      cell: a `Cell` with params that have a field `w_s` [H, G, H].

    Returns:
      A `Cell` with the step of `cell`.

    Raises:
      TypeError: `cell` is no cell, or its params have no `w_s` of that kind.
      ValueError: its recurrent matrices are not square.

    References:
      K. Helfrich, D. Willmott and Q. Ye (2018), "Orthogonal recurrent neural networks with scaled
      Cayley transform", ICML, whose initialisation this is.

    Example:
      >>> import jax, jax.numpy as jnp, jax_bptt as jb
      >>> cell = jb.orthogonal(jb.elman(input_size=3, hidden_size=5))
      >>> w = cell.prepare(cell.init(jax.random.key(0))).w_s[:, 0]
      >>> bool(jnp.allclose(w.T @ w, jnp.eye(5), atol=1e-6))
      True
    """
    w_s = recurrent_matrices("orthogonal", cell)
    require(
        w_s.shape[0] == w_s.shape[-1],
        f"orthogonal: the recurrent matrices must be square, but w_s has shape {w_s.shape}",
    )

    def draw(key, w):
        size, gates, _ = w.shape
        first = jnp.arange(size // 2) * 2
        angles = jax.random.uniform(key, (len(first), gates), w.dtype, maxval=jnp.pi / 2)
        # The rotation by t in a plane is the transform of [[0, tan(t/2)], [-tan(t/2), 0]].
        return Rotation(jnp.zeros_like(w).at[first, :, first + 1].set(jnp.tan(angles / 2)))

    def join(p):
        a = _gates_first(p.a)
        a = a - jnp.swapaxes(a, 1, 2)
        one = jnp.broadcast_to(jnp.eye(a.shape[-1], dtype=a.dtype), a.shape)
        return _gates_second(jnp.linalg.solve(one + a, one - a))

    return _reparametrized(cell, draw, join)


@as_value
def weight_norm(cell: Cell) -> Cell:
    """Return `cell` with the length and the direction of its recurrent weights apart.

        w_s[:, g, k] = g[g, k] v[:, g, k] / |v[:, g, k]|

    Params: those of `cell` with `w_s` a `WeightNorm(g, v)`, [G, H] and [H, G, H]. Initialisation:
    v is the cell's own w_s and g the length of its columns, so that w_s is the cell's own.

    Args:
      cell: a `Cell` with params that have a field `w_s` [H, G, H].

    Returns:
      A `Cell` with the step of `cell`.

    Raises:
      TypeError: `cell` is no cell, or its params have no `w_s` of that kind.

    References:
      T. Salimans and D. P. Kingma (2016), "Weight normalization: a simple reparameterization to
      accelerate training of deep neural networks", NeurIPS.

    Example:
      >>> import jax, jax.numpy as jnp, jax_bptt as jb
      >>> cell = jb.weight_norm(jb.gru(input_size=3, hidden_size=5))
      >>> params = cell.init(jax.random.key(0))
      >>> params.w_s.g.shape, params.w_s.v.shape
      ((3, 5), (5, 3, 5))
    """
    recurrent_matrices("weight_norm", cell)

    def norm(v):
        return jnp.sqrt(jnp.sum(v * v, axis=0))

    def join(p):
        return p.v * (p.g / norm(p.v))[None]

    return _reparametrized(cell, lambda key, w: WeightNorm(norm(w), w), join)


@as_value
def spectral_norm(cell: Cell) -> Cell:
    """Return `cell` with each gate's recurrent matrix divided by its largest singular value.

        W_g = V_g / sigma_max(V_g)

    Computed by a singular value decomposition rather than by the power iteration of the paper, so
    that it is exact, has no state of its own, and its gradient is exact as well, of any order
    where the largest singular value is a simple one. O(G H^3) per sequence.

    Params: those of `cell`, V in the place of `w_s` [H, G, H]. Initialisation: the cell's own.

    Args:
      cell: a `Cell` with params that have a field `w_s` [H, G, H].

    Returns:
      A `Cell` with the step of `cell`.

    Raises:
      TypeError: `cell` is no cell, or its params have no `w_s` of that kind.

    References:
      T. Miyato, T. Kataoka, M. Koyama and Y. Yoshida (2018), "Spectral normalization for generative
      adversarial networks", ICLR.

    Example:
      >>> import jax, jax.numpy as jnp, jax_bptt as jb
      >>> cell = jb.spectral_norm(jb.gru(input_size=3, hidden_size=5))
      >>> params = cell.init(jax.random.key(0))
      >>> w = cell.prepare(params._replace(w_s=3 * params.w_s)).w_s[:, 0]
      >>> float(jnp.linalg.norm(w, 2).round(4))
      1.0
    """
    recurrent_matrices("spectral_norm", cell)

    def join(v):
        largest = jnp.linalg.svd(_gates_first(v), compute_uv=False)[:, 0]
        return v / largest[None, :, None]

    return _reparametrized(cell, lambda key, w: w, join)


def recurrent_matrices(function: str, cell: Any) -> jax.ShapeDtypeStruct:
    """Return the shape and dtype of `w_s` [H, G, H] in the params of `cell`, or raise."""
    require(
        isinstance(cell, Cell), f"{function}: cell must be a Cell, got {kind_of(cell)}", TypeError
    )
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0)))
    w_s = getattr(params, "w_s", None) if hasattr(params, "_replace") else None
    require(
        getattr(w_s, "ndim", None) == 3,
        f"{function}: the cell's params, a {type(params).__name__}, must have a field w_s "
        f"[H, G, H]{'' if w_s is None else f', not {w_s}'}. Wrap the inner cell first, as in "
        f"jb.embedding(jb.{function}(...), ...).",
        TypeError,
    )
    assert w_s is not None
    return w_s


def _reparametrized(
    cell: Cell, split: Callable[[Array, Array], PyTree], join: Callable[[PyTree], Array]
) -> Cell:
    """Return `cell` with `split(key, w_s)` in the params in the place of w_s = join(...)."""

    def init(key):
        prng_key("cell.init", key)
        key_cell, key_split = jax.random.split(key)
        params = cell.init(key_cell)
        return params._replace(w_s=_widened(lambda w: split(key_split, w), params.w_s))

    def prepare(params):
        return cell.prepare(params._replace(w_s=_widened(join, params.w_s)))

    return cell._replace(init=init, prepare=prepare)


def _widened(fun: Callable[[PyTree], PyTree], tree: PyTree) -> PyTree:
    """Return `fun(tree)` in the dtype of `tree`, computed in at least single precision."""
    dtype = jax.tree.leaves(tree)[0].dtype
    wide = jax.tree.map(lambda a: a.astype(accumulator_dtype(dtype)), tree)
    return jax.tree.map(lambda a: a.astype(dtype), fun(wide))


def _gates_first(w: Array) -> Array:
    """Return w [H, G, H] as [G, H, H], for functions of stacked matrices."""
    return jnp.swapaxes(w, 0, 1)


def _gates_second(w: Array) -> Array:
    return jnp.swapaxes(w, 0, 1)
