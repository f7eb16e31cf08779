"""Checks of the arguments of a run, at trace time, against each other and against the cell."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jax_bptt.algorithms.tree_checks import BATCH_MAJOR, as_arrays, same_structure
from jax_bptt.core import trees
from jax_bptt.core.checks import batch_shape, describe, kind_of, leaves, require, word
from jax_bptt.core.types import Algorithm, Cell, PyTree, Tokens
from jax_bptt.core.values import Value

_OWN_INIT = "Make them with this cell's own init: params = cell.init(key)."


def restored(init: str) -> str:
    """Say how what `init` makes comes back from a checkpoint as what it was."""
    target = f"jax.eval_shape({init}, jax.random.key(0))"
    return f"Out of a checkpoint, restore it with {target} as the target, which keeps the types"


def inputs(
    function: str, cell: Cell, params: PyTree, xs: PyTree, state: PyTree | None
) -> tuple[PyTree, PyTree, PyTree | None]:
    """Check the arguments of an unroll against each other and against the cell.

    Args:
      function: the public function on whose behalf the errors are raised.
      cell: the cell.
      params: as `cell.init` makes them; any inexact dtype.
      xs: [T, *batch, ...] as `cell.input_spec` says.
      state: as `cell.initial_state` makes it, or None for that very state.

    Returns:
      (params, xs, state) as JAX arrays; the state None if it was.

    Raises:
      TypeError: an argument is no cell, no parameters, or of the wrong kind or dtype.
      ValueError: a structure or a shape does not fit.
    """
    a_cell(function, cell)
    params = _check_params(function, cell, params)
    xs = _check_xs(function, cell, xs)
    expected = state_spec(cell, params, xs)
    for path, want in leaves(expected):
        require(
            not trees.is_inexact(want) or trees.accumulator_dtype(want.dtype) == want.dtype,
            f"{function}: cell.initial_state makes state{path} of dtype {want.dtype}, but a "
            "recurrence is carried in float32 or wider. Make it float32 whatever the dtype of "
            "params, e.g. jnp.zeros(shape, jnp.float32).",
            TypeError,
        )
    return params, xs, given_state(function, "state", cell, xs, state, expected)


def a_cell(function: str, cell: Any) -> None:
    """Raise unless `cell` is a Cell."""
    way_out = (
        "Make one with jb.elman, jb.lstm, jb.gru, jb.gru_reset_before or, from your own function, "
        "jb.from_step."
    )
    if isinstance(cell, Value) and hasattr(cell, "apply"):
        way_out = "A layer runs itself: last_state, ys = layer.apply(params, xs, state)."
    require(
        isinstance(cell, Cell),
        f"{function}: cell must be a Cell, got {kind_of(cell)}. {way_out}",
        TypeError,
    )


def state_spec(cell: Cell, params: PyTree, xs: PyTree) -> PyTree:
    """Describe the state of `cell` for a batch of sequences `xs` [T, *batch, ...]."""
    return jax.eval_shape(lambda p: cell.initial_state(p, batch_shape(cell, xs)), params)


def weights(function: str, cell: Cell, params: PyTree, xs: PyTree) -> PyTree:
    """Return the prepared parameters, checked against the inputs."""
    weights = cell.prepare(params)
    _check_dtype(function, weights, xs)
    return weights


def algorithm(function: str, algorithm: Any) -> None:
    """Raise unless `algorithm` is an Algorithm."""
    require(
        isinstance(algorithm, Algorithm),
        f"{function}: algorithm must be an Algorithm, got {kind_of(algorithm)}. Call the "
        "constructor: algorithm=jb.bptt(), not jb.bptt.",
        TypeError,
    )


def pair(function: str, cell: Cell) -> None:
    """Raise if the step of `cell` has half of a `GatedStep`'s optional pair."""
    given = getattr(cell.step, "pointwise_fwd", None), getattr(cell.step, "pointwise_bwd", None)
    missing = "pointwise_fwd" if given[0] is None else "pointwise_bwd"
    require(
        (given[0] is None) == (given[1] is None),
        f"{function}: cell.step has half of a pair, {missing} is missing. Give both pointwise_fwd "
        "and pointwise_bwd, or neither.",
        TypeError,
    )


def cotangents(function: str, name: str, given: PyTree, primal: PyTree) -> PyTree:
    """Check cotangents `given` under `name` against the outputs they belong to."""
    expected = jax.tree.map(lambda p: p if trees.is_inexact(p) else None, primal)
    way_out = "Give it that structure, with None at leaves that have no gradient (integers)."
    same_structure(function, name, given, expected, "the output it belongs to", way_out)
    given = as_arrays(function, name, given)
    wanted = dict(leaves(expected))
    for path, got in leaves(given):
        want = wanted[path]
        require(
            got.shape == want.shape and got.dtype == want.dtype,
            f"{function}: {name}{path} is {describe(got)}, but the output it belongs to is "
            f"{describe(want)}.",
        )
    return given


def _params_spec(cell: Cell) -> PyTree:
    """Describe what `cell.init` makes, in JAX's default float as it is at present.

    Once for equal cells, whose `init` is another function each.
    """
    try:
        hash(cell.init)
        return _cached_spec(cell, jnp.result_type(float))
    except TypeError:  # what cannot be hashed, such as a method of an object that holds arrays
        return _cached_spec.__wrapped__(cell, None)


@functools.lru_cache(maxsize=256)
def _cached_spec(cell: Cell, default_dtype: Any) -> PyTree:
    # The key is made inside, where it is no part of a program that is being traced.
    return jax.eval_shape(lambda: cell.init(jax.random.key(0)))


def _check_params(function: str, cell: Cell, params: PyTree) -> PyTree:
    require(
        not _is_old_key(params) and not any(map(_is_key, jax.tree.leaves(params))),
        f"{function}: params is a PRNG key. Pass params = cell.init(key).",
        TypeError,
    )
    expected = _params_spec(cell)
    fits = jax.tree.structure(params) == jax.tree.structure(expected)
    way_out = "" if fits else _way_to_params(params, expected)
    same_structure(function, "params", params, expected, "what cell.init makes", way_out)
    params = as_arrays(function, "params", params)
    wanted = dict(leaves(expected))
    # Leaves that init makes in one dtype stay in one: a product would cast the odd one silently.
    firsts = {}
    for path, leaf in leaves(params):
        want = wanted[path]
        require(
            leaf.shape == want.shape,
            f"{function}: params{path} has shape {leaf.shape}, but this cell's has {want.shape}. "
            f"{_OWN_INIT} To run several sets of parameters, jax.vmap over them.",
        )
        require(
            trees.is_inexact(leaf) == trees.is_inexact(want),
            f"{function}: params{path} has dtype {leaf.dtype}, but this cell's has {want.dtype}. "
            f"{_OWN_INIT}",
            TypeError,
        )
        if trees.is_inexact(leaf):
            first, other = firsts.setdefault(_real(want.dtype), (path, leaf))
            require(
                _real(leaf.dtype) == _real(other.dtype),
                f"{function}: params{first} has dtype {other.dtype}, but params{path} has "
                f"{leaf.dtype}; cell.init makes them alike. Nothing is cast silently: convert one "
                f"of them, e.g. params{path}.astype(...).",
                TypeError,
            )
    return params


def _way_to_params(params: Any, expected: PyTree) -> str:
    """Say how parameters with the structure of `expected` come about, given these."""
    if hasattr(params, "state_dict"):
        theirs = "jb.interop.torch.to_params(module.state_dict())"
        return f"{_OWN_INIT} Those of a module of PyTorch are {theirs}."
    fields = getattr(expected, "_fields", ())
    if isinstance(params, dict) and params and set(params) <= set(fields):
        rebuilt = f"{type(expected).__name__}(**params)"
        return f"{_OWN_INIT} {restored('cell.init')}, or rebuild it: {rebuilt}."
    if _has_plain(params) and not _has_plain(expected):
        return f"{_OWN_INIT} {restored('cell.init')}."
    ours = tuple | list | dict | Value | jax.Array | np.ndarray
    if params is None or isinstance(params, ours) or hasattr(params, "__name__"):
        return _OWN_INIT
    return f"{_OWN_INIT} For the parameters of other libraries see jb.interop."


def _has_plain(tree: PyTree) -> bool:
    """Return whether a dict, list or tuple without a type of its own is part of `tree`."""

    def is_plain(node):
        return type(node) in (dict, list, tuple)

    return any(map(is_plain, jax.tree.leaves(tree, is_leaf=is_plain)))


def _check_xs(function: str, cell: Cell, xs: PyTree) -> PyTree:
    require(
        type(xs) not in (list, tuple) or not hasattr(cell.input_spec, "dtype"),
        f"{function}: xs is a {type(xs).__name__}, but this cell takes one array. Pass "
        "jnp.stack(xs), or jnp.asarray(xs) for nested lists of numbers.",
        TypeError,
    )
    way_out = "Give it that structure, each leaf an array with time as its first axis."
    same_structure(function, "xs", xs, cell.input_spec, "the cell's input_spec", way_out)
    xs = as_arrays(function, "xs", xs)
    specs = dict(leaves(cell.input_spec))
    first = None
    for path, x in leaves(xs):
        spec = specs[path]
        shape = tuple(map(int, spec.shape))
        rank = len(shape)
        axes = ", ".join(["T", "*batch", *map(str, shape)])
        require(
            _same_kind(x.dtype, spec.dtype),
            f"{function}: xs{path} has dtype {x.dtype}, but this cell takes {word(spec.dtype)} "
            f"inputs. {_conversion(f'xs{path}', x, spec, axes)}",
            TypeError,
        )
        require(
            x.ndim >= 1 + rank,
            f"{function}: xs{path}.shape={x.shape} has too few axes to be read as [{axes}]; time "
            "is the first axis. For a single step, pass xs[None].",
        )
        require(
            x.shape[x.ndim - rank :] == shape,
            f"{function}: xs{path}.shape={x.shape} read as [{axes}] does not end in {shape}, the "
            "cell's input size. Make the cell with the size of the inputs, or project them to it.",
        )
        known = not isinstance(x, Tracer) and getattr(x, "is_fully_addressable", True)
        if isinstance(spec, Tokens) and known and x.size:
            # By NumPy: under `jit` an operation of JAX is traced even on an array that is known.
            values = np.asarray(x)
            low, high = int(values.min()), int(values.max())
            require(
                0 <= low and high < spec.vocabulary_size,
                f"{function}: xs{path} has tokens from {low} to {high}, but there are 0 to "
                f"{spec.vocabulary_size - 1}. For padding take any, and `lengths`.",
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
    return xs


def _conversion(name: str, x: Any, spec: Any, axes: str) -> str:
    """Say how inputs `x`, called `name`, become [axes] of the kind that `spec` describes."""
    kind = functools.partial(jnp.issubdtype, x.dtype)
    if kind(jax.dtypes.prng_key):
        return f"Draw the inputs from the key: jax.random.normal(key, ({axes}))."
    if jnp.issubdtype(spec.dtype, jax.dtypes.prng_key):
        return "Pass one typed key per step, e.g. jax.random.split(key, T)."
    if jnp.issubdtype(spec.dtype, jnp.integer) and kind(jnp.inexact):
        return f"Pass integer tokens; if these are one-hot vectors, jnp.argmax({name}, -1)."
    if jnp.issubdtype(spec.dtype, jnp.floating) and kind(jnp.integer):
        return "For integer tokens, wrap it: jb.embedding(cell, vocabulary_size=...)."
    if jnp.issubdtype(spec.dtype, jnp.floating) and kind(jnp.complexfloating):
        return f"Pass both parts as features: jnp.concatenate([{name}.real, {name}.imag], -1)."
    return f"Convert them, e.g. {name}.astype({jnp.dtype(spec.dtype).name!r})."


def _check_dtype(function: str, weights: PyTree, xs: PyTree) -> None:
    """Inputs come in the dtype of the weights or of the carry; a product casts nothing else."""
    own = {_real(w.dtype) for w in jax.tree.leaves(weights) if trees.is_inexact(w)}
    allowed = own | {trees.accumulator_dtype(d) for d in own}
    for path, x in leaves(xs):
        require(
            not trees.is_inexact(x) or not allowed or _real(x.dtype) in allowed,
            f"{function}: xs{path} has dtype {x.dtype}, but the weights have "
            f"{', '.join(sorted(d.name for d in own))}. Nothing is cast silently: convert one of "
            "them, e.g. xs.astype(...), or make the cell with dtype=.",
            TypeError,
        )


def given_state(
    function: str, name: str, cell: Cell, xs: PyTree, state: PyTree | None, expected: PyTree
) -> PyTree | None:
    """Check a state, given under `name`, against `expected`, from `state_spec`; None is let be."""
    if state is None:
        return None
    batch = batch_shape(cell, xs)
    own = f"Start from cell.initial_state(params, {batch})."
    same_structure(function, name, state, expected, "this cell's state", own)
    state = as_arrays(function, name, state)
    wanted = dict(leaves(expected))
    shape = jax.tree.leaves(xs)[0].shape
    for path, leaf in leaves(state):
        want = wanted[path]
        rank = len(batch)
        same_units = leaf.ndim == want.ndim and leaf.shape[rank:] == want.shape[rank:]
        require(
            leaf.shape == want.shape or not same_units,
            f"{function}: xs and {name} disagree on the batch shape: xs.shape={shape} read as "
            f"[T, *batch, ...] has *batch={batch}, {name}{path}.shape={leaf.shape} has "
            f"{leaf.shape[:rank]}. {BATCH_MAJOR}",
        )
        require(
            leaf.shape == want.shape,
            f"{function}: {name}{path}.shape={leaf.shape}, but this cell's state for "
            f"xs.shape={shape} has {want.shape}. {own} {BATCH_MAJOR}",
        )
        require(
            leaf.dtype == want.dtype,
            f"{function}: {name}{path} has dtype {leaf.dtype}, but this cell carries {want.dtype}. "
            f"Convert it: {name}{path}.astype({want.dtype.name!r}).",
            TypeError,
        )
    return state


def step(function: str, state: PyTree, new: PyTree) -> None:
    """Raise unless `new`, from a step, has the structure, shapes and dtypes of `state`."""
    way_out = "A step returns a state of the structure it took."
    name = "the state that cell.step returns"
    same_structure(function, name, new, state, "the state it took", way_out)
    wanted = dict(leaves(state))
    for path, leaf in leaves(new):
        want = wanted[path]
        require(
            leaf.shape == want.shape and leaf.dtype == want.dtype,
            f"{function}: cell.step changes state{path} from {describe(want)} to "
            f"{describe(leaf)}. A step returns a state of the shapes and dtypes it took; check "
            "the dtypes of params, xs and state, and the batch shape of xs.",
            TypeError,
        )


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _is_old_key(params: Any) -> bool:
    """Return whether `params` is what `jax.random.PRNGKey` makes."""
    is_array = isinstance(params, jax.Array | np.ndarray)
    return is_array and params.dtype == jnp.uint32 and params.shape == (2,)


def _real(dtype: Any) -> Any:
    return jnp.dtype(jnp.finfo(dtype).dtype)


def _same_kind(a: Any, b: Any) -> bool:
    kinds = (jnp.bool_, jnp.integer, jnp.floating, jnp.complexfloating, jax.dtypes.prng_key)
    return any(jnp.issubdtype(a, k) and jnp.issubdtype(b, k) for k in kinds)
