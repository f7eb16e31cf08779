"""Input checks at trace time: what is wrong, both shapes, and what to do instead."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from jax_bptt.core import trees
from jax_bptt.core.types import Algorithm, Cell, PyTree

_BATCH_MAJOR = "If xs is batch-major, pass jnp.swapaxes(xs, 0, 1)."


def require(condition: bool, message: str, error: type[Exception] = ValueError) -> None:
    """Raise `error(message)` unless `condition` holds."""
    if not condition:
        raise error(message)


def positive_size(function: str, **sizes: Any) -> None:
    """Raise unless every named size is a positive integer."""
    for name, size in sizes.items():
        require(
            isinstance(size, int) and not isinstance(size, bool) and size > 0,
            f"{function}: {name} must be a positive integer, got {size!r}",
        )


def inputs(
    function: str, cell: Cell, params: PyTree, xs: PyTree, state: PyTree | None
) -> tuple[PyTree, PyTree, PyTree, PyTree]:
    """Check the arguments of an unroll against each other and against the cell.

    Args:
      function: the public function on whose behalf the errors are raised.
      cell: the cell.
      params: as `cell.init` makes them; any inexact dtype.
      xs: [T, *batch, ...] as `cell.input_spec` says.
      state: as `cell.initial_state` makes it, or None for that very state.

    Returns:
      (params, weights, xs, state) as JAX arrays.

    Raises:
      TypeError: an argument is no cell, no parameters, or of the wrong kind or dtype.
      ValueError: a structure or a shape does not fit.
    """
    require(
        isinstance(cell, Cell),
        f"{function}: cell must be a Cell, got {_kind(cell)}. Make one with jb.elman, jb.lstm, "
        "jb.gru, jb.gru_reset_before or, from your own function, jb.from_step.",
        TypeError,
    )
    params = _check_params(function, cell, params)
    xs, batch_shape = _check_xs(function, cell, xs)
    state = _check_state(function, cell, params, xs, batch_shape, state)
    arguments = params, xs, state
    params, xs, state = trees.vary_alike(arguments, arguments)
    weights = trees.vary_alike(cell.prepare(params), xs)
    _check_dtype(function, weights, xs)
    _check_step(function, cell, weights, xs, state)
    return params, weights, xs, state


def algorithm(function: str, algorithm: Any) -> None:
    """Raise unless `algorithm` is an Algorithm."""
    require(
        isinstance(algorithm, Algorithm),
        f"{function}: algorithm must be an Algorithm, got {_kind(algorithm)}. Call the "
        "constructor: algorithm=jb.bptt(), not jb.bptt.",
        TypeError,
    )


def cotangents(function: str, name: str, given: PyTree, primal: PyTree) -> PyTree:
    """Check cotangents `given` under `name` against the outputs they belong to."""
    given = jax.tree.map(jnp.asarray, given)
    expected = jax.tree.map(lambda p: p if trees.is_inexact(p) else None, primal)
    _same_structure(function, name, given, expected, "the output it belongs to")
    for path, got in _leaves(given):
        want = dict(_leaves(expected))[path]
        require(
            got.shape == want.shape and got.dtype == want.dtype,
            f"{function}: {name}{path} is {_describe(got)}, but the output it belongs to is "
            f"{_describe(want)}.",
        )
    return given


def batch_shape(cell: Cell, xs: PyTree) -> tuple[int, ...]:
    """Return *batch of checked inputs `xs` [T, *batch, ...]."""
    leaf, spec = jax.tree.leaves(xs)[0], jax.tree.leaves(cell.input_spec)[0]
    return leaf.shape[1 : leaf.ndim - len(spec.shape)]


@functools.lru_cache(maxsize=256)
def _params_spec(init: Any) -> PyTree:
    return jax.eval_shape(init, jax.random.key(0))


def _check_params(function: str, cell: Cell, params: PyTree) -> PyTree:
    require(
        not any(_is_key(leaf) for leaf in jax.tree.leaves(params)),
        f"{function}: params is a PRNG key. Pass params = cell.init(key).",
        TypeError,
    )
    expected = _params_spec(cell.init)
    _same_structure(function, "params", params, expected, "cell.init's")
    params = jax.tree.map(jnp.asarray, params)
    wanted = dict(_leaves(expected))
    for path, leaf in _leaves(params):
        want = wanted[path]
        require(
            leaf.shape == want.shape,
            f"{function}: params{path} has shape {leaf.shape}, but this cell's has {want.shape}. "
            "Make them with this cell's own init: params = cell.init(key). To run several sets "
            "of parameters, jax.vmap over them.",
        )
        require(
            trees.is_inexact(leaf) == trees.is_inexact(want),
            f"{function}: params{path} has dtype {leaf.dtype}, but this cell's has {want.dtype}.",
            TypeError,
        )
    return params


def _check_xs(function: str, cell: Cell, xs: PyTree) -> tuple[PyTree, tuple[int, ...]]:
    _same_structure(function, "xs", xs, cell.input_spec, "the cell's input_spec")
    xs = jax.tree.map(jnp.asarray, xs)
    specs = dict(_leaves(cell.input_spec))
    first = None
    for path, x in _leaves(xs):
        spec = specs[path]
        require(
            _same_kind(x.dtype, spec.dtype),
            f"{function}: xs{path} has dtype {x.dtype}, but this cell takes {_word(spec.dtype)} "
            "inputs. "
            + (
                "For integer tokens, wrap it: jb.embedding(cell, vocabulary_size=...)."
                if jnp.issubdtype(x.dtype, jnp.integer)
                else f"Convert them, e.g. xs.astype({jnp.dtype(spec.dtype).name!r})."
            ),
            TypeError,
        )
        rank = len(spec.shape)
        axes = ", ".join(["T", "*batch", *map(str, spec.shape)])
        require(
            x.ndim >= 1 + rank,
            f"{function}: xs{path}.shape={x.shape} has too few axes to be read as [{axes}]; time "
            "is the first axis. For a single step, pass xs[None].",
        )
        require(
            x.shape[x.ndim - rank :] == tuple(spec.shape),
            f"{function}: xs{path}.shape={x.shape} read as [{axes}] does not end in "
            f"{tuple(spec.shape)}, the cell's input size. Make the cell with the size of the "
            "inputs, or project them to it.",
        )
        leading = x.shape[: x.ndim - rank]
        if first is None:
            first = path, leading
        require(
            leading == first[1],
            f"{function}: the leaves of xs disagree on [T, *batch]: xs{first[0]} has {first[1]}, "
            f"xs{path} has {leading}.",
        )
    require(first is not None, f"{function}: xs has no arrays, so there is no number of steps.")
    assert first is not None
    return xs, first[1][1:]


def _check_dtype(function: str, weights: PyTree, xs: PyTree) -> None:
    """Inputs come in the dtype of the weights or of the carry; a product casts nothing else."""
    own = {_real(w.dtype) for w in jax.tree.leaves(weights) if trees.is_inexact(w)}
    allowed = own | {trees.accumulator_dtype(d) for d in own}
    for path, x in _leaves(xs):
        require(
            not trees.is_inexact(x) or not allowed or _real(x.dtype) in allowed,
            f"{function}: xs{path} has dtype {x.dtype}, but the weights have "
            f"{', '.join(sorted(d.name for d in own))}. Nothing is cast silently: convert one of "
            "them, e.g. xs.astype(...), or make the cell with dtype=.",
            TypeError,
        )


def _check_state(
    function: str, cell: Cell, params: PyTree, xs: PyTree, batch_shape: tuple, state: PyTree | None
) -> PyTree:
    if state is None:
        return jax.tree.map(jnp.asarray, cell.initial_state(params, batch_shape))
    expected = jax.eval_shape(lambda p: cell.initial_state(p, batch_shape), params)
    _same_structure(function, "state", state, expected, "this cell's state")
    state = jax.tree.map(jnp.asarray, state)
    wanted = dict(_leaves(expected))
    shape = jax.tree.leaves(xs)[0].shape
    for path, leaf in _leaves(state):
        want = wanted[path]
        batch = len(batch_shape)
        same_units = leaf.ndim == want.ndim and leaf.shape[batch:] == want.shape[batch:]
        require(
            leaf.shape == want.shape or not same_units,
            f"{function}: xs and state disagree on the batch shape: xs.shape={shape} read as "
            f"[T, *batch, ...] has *batch={batch_shape}, state{path}.shape={leaf.shape} has "
            f"{leaf.shape[:batch]}. {_BATCH_MAJOR}",
        )
        require(
            leaf.shape == want.shape,
            f"{function}: state{path}.shape={leaf.shape}, but this cell's state for "
            f"xs.shape={shape} has {want.shape}. Start from cell.initial_state(params, "
            f"{batch_shape}). {_BATCH_MAJOR}",
        )
        require(
            leaf.dtype == want.dtype,
            f"{function}: state{path} has dtype {leaf.dtype}, but this cell carries {want.dtype}. "
            f"Convert it: state.astype({want.dtype.name!r}).",
            TypeError,
        )
    return state


def _check_step(function: str, cell: Cell, weights: PyTree, xs: PyTree, state: PyTree) -> None:
    x = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), xs)
    new = jax.eval_shape(lambda w, s, x: cell.step(w, s, cell.project(w, x)), weights, state, x)
    _same_structure(function, "the state that cell.step returns", new, state, "the state it took")
    wanted = dict(_leaves(state))
    for path, leaf in _leaves(new):
        want = wanted[path]
        require(
            leaf.shape == want.shape and leaf.dtype == want.dtype,
            f"{function}: cell.step changes state{path} from {_describe(want)} to "
            f"{_describe(leaf)}. A step returns a state of the shapes and dtypes it took; check "
            "the dtypes of params, xs and state, and the batch shape of xs.",
            TypeError,
        )


def _same_structure(function: str, name: str, got: PyTree, want: PyTree, whose: str) -> None:
    got, want = jax.tree.structure(got), jax.tree.structure(want)
    require(
        got == want,
        f"{function}: {name} has the structure {got}, but {whose} is {want}.",
        TypeError,
    )


def _leaves(tree: PyTree) -> list[tuple[str, Any]]:
    return [(jax.tree_util.keystr(k), v) for k, v in jax.tree_util.tree_leaves_with_path(tree)]


def _is_key(leaf: Any) -> bool:
    dtype = getattr(leaf, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)


def _real(dtype: Any) -> Any:
    return jnp.dtype(jnp.finfo(dtype).dtype)


def _same_kind(a: Any, b: Any) -> bool:
    kinds = (jnp.bool_, jnp.integer, jnp.floating, jnp.complexfloating, jax.dtypes.prng_key)
    return any(jnp.issubdtype(a, k) and jnp.issubdtype(b, k) for k in kinds)


def _word(dtype: Any) -> str:
    for kind, word in (
        (jnp.bool_, "boolean"),
        (jnp.integer, "integer"),
        (jnp.floating, "floating-point"),
        (jnp.complexfloating, "complex"),
    ):
        if jnp.issubdtype(dtype, kind):
            return word
    return "PRNG-key"


def _describe(leaf: Any) -> str:
    return f"{leaf.dtype}{list(leaf.shape)}"


def _kind(value: Any) -> str:
    return (
        f"the function {value.__name__}"
        if callable(value) and hasattr(value, "__name__")
        else f"a {type(value).__name__}"
    )
