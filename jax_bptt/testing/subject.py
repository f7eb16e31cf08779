"""The subject of the conformance suite: a recurrent layer as functions of NumPy arrays."""

import functools
import re
from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jax_bptt.core import trees
from jax_bptt.core.types import PyTree

ARGUMENTS = ("params", "xs", "state")


class Arguments(NamedTuple):
    """Arguments of a recurrent layer, or their gradient: params, xs [T, B, ...], state [B, ...]."""

    params: PyTree
    xs: PyTree
    state: PyTree


class Outputs(NamedTuple):
    """Outputs of a recurrent layer, or their cotangents: last_state [B, ...], ys [T, B, ...]."""

    last_state: PyTree
    ys: PyTree


def top_level_entry(path: str) -> str | None:
    """Return the index of a parameter's layer, for params that are a list of layers' own trees."""
    found = re.match(r"\[(\d+)\].", path)
    return found[1] if found else None


def named_like_a_bias(path: str) -> bool:
    """Return whether the last name of a path is that of a bias: b, b_n, bias, bias_hh_l0."""
    words = re.findall(r"\w+", path)
    return bool(words and re.fullmatch(r"b(ias(es)?)?(_\w+)?", words[-1]))


class Subject(NamedTuple):
    """A recurrent layer to be examined, of any library; see `from_jax` for those in JAX.

    All functions take and return pytrees of NumPy arrays and compute in the dtype of what they
    are given. xs is [T, B, ...], every leaf of a state [B, ...], of the outputs [T, B, ...]; T
    varies from call to call.

    Attributes:
      name: for the report.
      forward: `(params, xs, state, **options) -> (last_state, ys)`.
      gradient: `(params, xs, state, cotangents, wrt=("params", "xs", "state"), **options) ->
        (d_params, d_xs, d_state)`, the gradient of <cotangents, forward(...)>. A cotangent of None
        says that the loss does not read that output. Arguments not named in `wrt` are constants.
        A gradient may be None where there is none, for integers and for constants.
      pushforward: `(params, xs, state, tangents) -> d(last_state, ys)` by forward mode, the
        tangents in the form of the gradient; None, or a result of None, where there is none.
      higher: `(params, xs, state, cotangents, directions) -> (d_params, d_xs, d_state)`, the
        gradient of the derivative of <cotangents, forward(...)> along each of the directions in
        turn, each in the form of the gradient; or None.
      step: `(params, state, x) -> (state, y)` in JAX, one step, for the naive loop; or None.
      supports: which of the options `lengths` [B], `resets` [T, B], `mask` [T, B] and
        `reset_state` it takes, with their meaning for `jax_bptt.unroll`. Without a `reset_state`
        resets go back to the initial state.
      disclaims: names of properties that the layer does not promise, with the reason.
      layer_of: path of a parameter -> name of its layer in a stack, or None.
      is_bias: path of a parameter -> whether it is a bias.
    """

    name: str
    forward: Callable[..., tuple[PyTree, PyTree]]
    gradient: Callable[..., tuple[PyTree, PyTree, PyTree]]
    pushforward: Callable[..., tuple[PyTree, PyTree] | None] | None = None
    higher: Callable[..., tuple[PyTree, PyTree, PyTree]] | None = None
    step: Callable[..., tuple[PyTree, PyTree]] | None = None
    supports: Collection[str] = ()
    disclaims: Mapping[str, str] = MappingProxyType({})
    layer_of: Callable[[str], str | None] = top_level_entry
    is_bias: Callable[[str], bool] = named_like_a_bias


def from_jax(run: Callable[..., tuple[PyTree, PyTree]], **fields: Any) -> Subject:
    """Return a JAX function `run(params, xs, state, **options) -> (last_state, ys)` as a subject.

    Its gradient is `jax.grad`, with whatever custom rule the function has; forward mode is tried
    and done without where a `jax.custom_vjp` refuses it; higher derivatives are reverse mode over
    reverse mode. All is jitted. Constants of the gradient are closed over, and a cotangent that is
    not contiguous reaches the function through the transposition that would make it so.

    Args:
      run: xs [T, B, ...], every leaf of state [B, ...], both with integer leaves if need be.
      **fields: of `Subject`: `name`, `step`, `supports`, `disclaims`, `layer_of`, `is_bias`, or a
        function to be used in place of the derived one; `higher=None` for a function of which
        JAX knows no second derivative.

    Returns:
      A `Subject`.

    Example:
      >>> import jax, jax.numpy as jnp, numpy as np
      >>> from jax_bptt.testing import from_jax
      >>> def run(w, xs, s):
      ...     return jax.lax.scan(lambda s, x: (jnp.tanh(w * s + x),) * 2, s, xs)
      >>> subject = from_jax(run, supports=())
      >>> last_state, ys = subject.forward(np.ones(2), np.ones((5, 3, 2)), np.zeros((3, 2)))
      >>> last_state.shape, ys.shape
      ((3, 2), (5, 3, 2))
    """
    forward = jax.jit(lambda arguments, options: run(*arguments, **options))

    @functools.partial(jax.jit, static_argnums=(0, 1))
    def gradient(wrt, orders, arguments, cotangents, options):
        inexact, rest = trees.partition(arguments)
        chosen = {name: getattr(inexact, name) for name in wrt}

        def loss(chosen):
            outputs = run(*trees.combine(inexact._replace(**chosen), rest), **options)
            return _paired(outputs, cotangents, dict(orders))

        return inexact._replace(**dict.fromkeys(ARGUMENTS) | jax.grad(loss)(chosen))

    @jax.jit
    def pushforward(arguments, tangents):
        inexact, rest = trees.partition(arguments)

        def moving(inexact):
            return trees.partition(run(*trees.combine(inexact, rest)))[0]

        return jax.jvp(moving, (inexact,), (tangents,))[1]

    @jax.jit
    def higher(arguments, cotangents, directions):
        inexact, rest = trees.partition(arguments)

        def value(point):
            return _paired(run(*trees.combine(point, rest)), cotangents, {})

        for direction in directions:
            value = functools.partial(_slope, value, direction)
        return jax.grad(value)(inexact)

    def numpy_forward(params, xs, state, **options):
        return _host(forward(Arguments(params, xs, state), options))

    def numpy_gradient(params, xs, state, cotangents, wrt=ARGUMENTS, **options):
        orders, cotangents = _in_memory_order(Outputs(*cotangents))
        arguments = Arguments(params, xs, state)
        return _host(gradient(tuple(wrt), orders, arguments, cotangents, options))

    def numpy_pushforward(params, xs, state, tangents):
        try:
            return _host(pushforward(Arguments(params, xs, state), Arguments(*tangents)))
        except TypeError as error:
            if "forward-mode" in str(error):  # how JAX refuses it to a custom_vjp
                return None
            raise

    def numpy_higher(params, xs, state, cotangents, directions):
        directions = [Arguments(*direction) for direction in directions]
        return _host(higher(Arguments(params, xs, state), Outputs(*cotangents), directions))

    name = getattr(run, "__name__", "subject")
    subject = Subject(name, numpy_forward, numpy_gradient, numpy_pushforward, numpy_higher)
    return subject._replace(**fields)


def _host(tree: PyTree) -> PyTree:
    return jax.tree.map(np.asarray, tree)


def _slope(function: Callable, direction: PyTree, point: PyTree) -> jax.Array:
    return _paired(jax.grad(function)(point), direction, {})


def _paired(values: PyTree, weights: PyTree, orders: Mapping[str, tuple[int, ...]]) -> jax.Array:
    """Return the real part of sum values weights, over the leaves that have a weight.

    `orders` says how the axes of a value are to be arranged to meet those of its weight.
    """
    named = _by_path(tuple(values))
    total = jnp.zeros((), jnp.result_type(float))
    for name, weight in _by_path(tuple(weights)).items():
        value = named[name]
        product = jnp.transpose(value, orders.get(name, range(value.ndim))) * weight
        total = total + jnp.sum(product).real.astype(total.dtype)
    return total


def _by_path(tree: PyTree) -> dict[str, Any]:
    named = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): leaf for path, leaf in named}


def _in_memory_order(cotangents: Outputs) -> tuple[tuple, Outputs]:
    """Arrange the axes of each cotangent as they lie in memory, and say how."""
    orders = {}

    def arranged(path, leaf):
        order = tuple(np.argsort([-stride for stride in leaf.strides], kind="stable").tolist())
        orders[jax.tree_util.keystr(path)] = order
        return np.transpose(leaf, order)

    plain = jax.tree_util.tree_map_with_path(arranged, tuple(cotangents))
    return tuple(orders.items()), Outputs(*plain)
