"""Scalar arithmetic as a graph: what a function of JAX does to the elements of its arguments.

A function whose arrays are small, say [G, 1] for G gates of one unit, is traced by JAX, and every
element of every array becomes the number of a node. Slices, reshapes and the like then move
numbers; elementwise operations make nodes. Equal nodes are one, and what is known is folded, so
that what is left is the arithmetic alone.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.extend.core import Literal

from jax_bptt.core.jaxprs import called
from jax_bptt.core.types import PyTree
from jax_bptt.kernels.operations import CHEAP, COSTLY


class Node(NamedTuple):
    """One value: an input, a constant, or an operation on earlier nodes.

    Attributes:
      operation: a name in `CHEAP` or `COSTLY`, or "input", "constant", "affine".
      arguments: numbers of nodes.
      value: of an input its name, of a constant its value, of an affine node (scale, offset).
    """

    operation: str
    arguments: tuple[int, ...] = ()
    value: Any = None


Graph = dict[Node, int]
"""Every node and its number; numbers count from zero, arguments before what is made of them."""


class Unsupported(ValueError):
    """A function does what no kernel can, said in its message."""


COMMUTATIVE = {"add", "mul", "max", "min", "eq", "ne", "and", "or"}

_STRUCTURE = {
    "broadcast_in_dim",
    "concatenate",
    "dynamic_slice",
    "dynamic_update_slice",
    "gather",
    "pad",
    "reshape",
    "rev",
    "slice",
    "split",
    "squeeze",
    "transpose",
}
_INDICES_FROM = {"gather": 1, "dynamic_slice": 1, "dynamic_update_slice": 2}
_IDENTITY = {"copy", "copy_p", "optimization_barrier"}
_REDUCTIONS = {"reduce_sum": "add", "reduce_max": "max", "reduce_min": "min"}


def nodes(graph: Graph) -> list[Node]:
    """Return the nodes in the order of their numbers."""
    return list(graph)


def new(graph: Graph, operation: str, arguments: tuple[int, ...] = (), value: Any = None) -> int:
    """Return the number of a node, which is made unless there is one like it."""
    if operation in COMMUTATIVE:
        arguments = tuple(sorted(arguments))
    return graph.setdefault(Node(operation, arguments, value), len(graph))


def constant(graph: Graph, value: Any) -> int:
    """Return the number of a constant; its type counts, since True == 1.0 == 1."""
    value = np.asarray(value).item()
    return new(graph, "constant", (), (type(value).__name__, repr(value), value))


def build(graph: Graph, operation: str, arguments: tuple[int, ...], value: Any = None) -> int:
    """Return the number of what `operation` makes of `arguments`, in its simplest form."""
    known = [_constant_value(graph, a) for a in arguments]
    a, b = (*arguments, -1, -1)[:2]
    if operation == "affine":
        return _affine(graph, value[0], value[1], a)
    if operation in ("add", "mul", "sub") and known[0] is not None:
        scale, offset = {"add": (1, known[0]), "mul": (known[0], 0), "sub": (-1, known[0])}[
            operation
        ]
        return _affine(graph, scale, offset, b)
    if operation in ("add", "mul", "sub") and known[1] is not None:
        scale, offset = {"add": (1, known[1]), "mul": (known[1], 0), "sub": (1, -known[1])}[
            operation
        ]
        return _affine(graph, scale, offset, a)
    if operation == "select_n":
        if arguments[1] == arguments[2]:
            return arguments[1]
        if known[0] is not None:
            return arguments[2 if known[0] else 1]
    if operation == "gt" and known[1] == 0:
        # What a rectifier lets through is positive: its slope follows from its result.
        rectified = Node("max", tuple(sorted(arguments)))
        return new(graph, "gt", (graph.get(rectified, a), b))
    return new(graph, operation, arguments, value)


def _constant_value(graph: Graph, number: int) -> Any:
    node = nodes(graph)[number]
    return node.value[-1] if node.operation == "constant" else None


def _affine(graph: Graph, scale: float, offset: float, x: int) -> int:
    """Return scale x + offset, of which another such thing is made one."""
    node = nodes(graph)[x]
    if node.operation == "constant":
        return constant(graph, float(scale * node.value[-1] + offset))
    if node.operation == "affine":
        inner, (x,) = node.value, node.arguments
        scale, offset = scale * inner[0], scale * inner[1] + offset
    if scale == 0:
        return constant(graph, float(offset))
    if (scale, offset) == (1, 0):
        return x
    return new(graph, "affine", (x,), (float(scale), float(offset)))


def _divide(graph: Graph, a: int, b: int) -> int:
    known = _constant_value(graph, b)
    if known is not None:
        return _affine(graph, 1 / known, 0, a)
    return build(graph, "mul", (a, build(graph, "reciprocal", (b,))))


def _power(graph: Graph, x: int, exponent: int) -> int:
    if exponent < 0:
        return build(graph, "reciprocal", (_power(graph, x, -exponent),))
    if exponent == 0:
        return constant(graph, 1.0)
    half = _power(graph, x, exponent // 2)
    square = build(graph, "mul", (half, half))
    return build(graph, "mul", (square, x)) if exponent % 2 else square


def _half_power(graph: Graph, x: int, halves: int) -> int:
    """Return x^(halves / 2), by a square root where `halves` is odd."""
    if halves < 0:
        return build(graph, "reciprocal", (_half_power(graph, x, -halves),))
    whole = _power(graph, x, halves // 2)
    return build(graph, "mul", (whole, build(graph, "sqrt", (x,)))) if halves % 2 else whole


def _constant_power(graph: Graph, x: int, exponent: float) -> int:
    """Return x^exponent, by products and a root as far as they go.

    What is left is x^rest with |rest| < 1/2, as exp(rest log(x)): its argument is 44 at the most,
    so that the error is 3e-6 at the ends of single precision and 1e-7 for x near one. The rest has
    the exponent's sign: of two powers of zero or infinity neither undoes the other.
    """
    halves = math.trunc(2 * exponent)
    power, rest = _half_power(graph, x, halves), exponent - halves / 2
    if rest == 0:
        return power
    scaled = _affine(graph, rest, 0, build(graph, "log", (x,)))
    return build(graph, "mul", (power, build(graph, "exp", (scaled,))))


def _element(graph: Graph, primitive: str, params: dict, arguments: tuple[int, ...]) -> int:
    """Return the node of an elementwise primitive of JAX."""
    match primitive:
        case "add_any":
            return build(graph, "add", arguments)
        case "neg":
            return _affine(graph, -1, 0, arguments[0])
        case "div":
            return _divide(graph, arguments[0], arguments[1])
        case "square":
            return _power(graph, arguments[0], 2)
        case "one_minus_square":
            # As a product, since the square of what is nearly one has lost the difference.
            (x,) = arguments
            return build(graph, "mul", (_affine(graph, -1, 1, x), _affine(graph, 1, 1, x)))
        case "integer_pow":
            return _power(graph, arguments[0], params["y"])
        case "pow":
            exponent = _constant_value(graph, arguments[1])
            if exponent is not None and math.isfinite(exponent):
                return _constant_power(graph, arguments[0], exponent)
        case "erfc":
            return _affine(graph, -1, 1, build(graph, "erf", arguments))
        case "clamp":
            low, x, high = arguments
            return build(graph, "min", (build(graph, "max", (low, x)), high))
    return build(graph, primitive, arguments)


def _convert(graph: Graph, eqn: Any, x: int) -> int:
    old, wanted = eqn.invars[0].aval.dtype, eqn.outvars[0].aval.dtype
    if jnp.issubdtype(wanted, jnp.floating):
        if jnp.issubdtype(old, jnp.floating):
            return x  # all of a kernel's arithmetic is in single precision
        if old == jnp.bool_:
            return new(graph, "number", (x,))
    raise Unsupported(f"it converts {old} to {wanted}")


def _per_element(graph: Graph, eqn: Any, inputs: list[np.ndarray]) -> np.ndarray:
    name = eqn.primitive.name
    shape = eqn.outvars[0].aval.shape
    rows = [np.broadcast_to(a, shape).ravel().tolist() for a in inputs]
    if name == "convert_element_type":
        made = [_convert(graph, eqn, x) for (x,) in zip(*rows, strict=True)]
    else:
        made = [_element(graph, name, eqn.params, each) for each in zip(*rows, strict=True)]
    return np.asarray(made, np.int32).reshape(shape)


_ELEMENTWISE = {
    *CHEAP,
    *COSTLY,
    *("add_any", "neg", "div", "square", "integer_pow", "one_minus_square", "erfc", "clamp"),
    "convert_element_type",
} - {"number", "reciprocal"}


def _reduced(graph: Graph, eqn: Any, x: np.ndarray) -> np.ndarray:
    operation = _REDUCTIONS[eqn.primitive.name]
    shape = eqn.outvars[0].aval.shape
    rows = np.moveaxis(x, eqn.params["axes"], range(len(eqn.params["axes"])))
    columns = rows.reshape(-1, int(np.prod(shape, dtype=int))).T.tolist()

    def join(a: int, b: int) -> int:
        return build(graph, operation, (a, b))

    made = [functools.reduce(join, column) for column in columns]
    return np.asarray(made, np.int32).reshape(shape)


def _values(graph: Graph, numbers: np.ndarray, dtype: Any) -> np.ndarray | None:
    """Return the values of an array of nodes, or None if one of them is no constant."""
    every = nodes(graph)
    found = [every[k] for k in numbers.ravel().tolist()]
    if any(node.operation != "constant" for node in found):
        return None
    return np.asarray([node.value[-1] for node in found], dtype).reshape(numbers.shape)


def _bind(eqn: Any, arguments: list[Any]) -> list[np.ndarray]:
    """Run an equation on given values, whatever is being traced around it."""
    with jax.ensure_compile_time_eval():
        made = eqn.primitive.bind(*map(jnp.asarray, arguments), **eqn.params)
        return [np.asarray(a) for a in (made if eqn.primitive.multiple_results else [made])]


def _constants(graph: Graph, values: Any) -> np.ndarray:
    if isinstance(values, Tracer):
        raise Unsupported("it closes over a value that is being traced")
    values = np.asarray(values)
    made = [constant(graph, v) for v in values.ravel().tolist()]
    return np.asarray(made, np.int32).reshape(values.shape)


def _run(graph: Graph, jaxpr: Any, consts: Any, inputs: list[np.ndarray]) -> list[np.ndarray]:
    """Return the nodes of a jaxpr's results, from those of its arguments."""
    found = dict(zip(jaxpr.constvars, (_constants(graph, c) for c in consts), strict=True))
    found |= dict(zip(jaxpr.invars, inputs, strict=True))

    def read(v):
        return _constants(graph, v.val) if isinstance(v, Literal) else found[v]

    for eqn in jaxpr.eqns:
        arguments = [read(v) for v in eqn.invars]
        found |= dict(zip(eqn.outvars, _results(graph, eqn, arguments), strict=True))
    return [read(v) for v in jaxpr.outvars]


def _results(graph: Graph, eqn: Any, arguments: list[np.ndarray]) -> list[np.ndarray]:
    name = eqn.primitive.name
    inner = called(eqn)
    if inner is not None:
        return _run(graph, *inner, arguments)
    if name in _IDENTITY:
        return arguments
    values = [_values(graph, a, v.aval.dtype) for a, v in zip(arguments, eqn.invars, strict=True)]
    if all(v is not None for v in values):
        return [_constants(graph, made) for made in _bind(eqn, values)]
    if name in _STRUCTURE:
        first = _INDICES_FROM.get(name, len(arguments))
        if any(v is None for v in values[first:]):
            raise Unsupported(f"it indexes by a computed value ({name})")
        return _bind(eqn, [*arguments[:first], *values[first:]])
    if name in _REDUCTIONS:
        return [_reduced(graph, eqn, *arguments)]
    if name in _ELEMENTWISE:
        return [_per_element(graph, eqn, arguments)]
    raise Unsupported(f"it uses the operation {name}, which no kernel has")


def trace(fun: Callable[..., PyTree], *args: PyTree) -> tuple[Graph, PyTree, PyTree]:
    """Trace `fun` on abstract arguments.

    Args:
      fun: any function of arrays.
      *args: pytrees of `jax.ShapeDtypeStruct`.

    Returns:
      (graph, inputs, outputs): pytrees like the arguments and the result, with an array of node
      numbers in place of every array; the same number throughout for one that is not read.

    Raises:
      Unsupported: `fun` does something that is not arithmetic on single elements.
    """
    closed, shapes = jax.make_jaxpr(fun, return_shape=True)(*args)
    graph: Graph = {}

    read = {id(v) for eqn in closed.jaxpr.eqns for v in eqn.invars}
    read |= {id(v) for v in closed.jaxpr.outvars}

    def fresh(position, leaf):
        # Of an argument that is not read, such as a matrix, one node is enough.
        count = leaf.size if id(closed.jaxpr.invars[position]) in read else 1
        made = np.asarray([new(graph, "input", (), (position, k)) for k in range(count)], np.int32)
        return np.broadcast_to(made.reshape(leaf.shape if count == leaf.size else ()), leaf.shape)

    leaves, structure = jax.tree.flatten(args)
    inputs = [fresh(position, leaf) for position, leaf in enumerate(leaves)]
    outputs = _run(graph, closed.jaxpr, closed.consts, inputs)
    outputs = jax.tree.unflatten(jax.tree.structure(shapes), outputs)
    return graph, jax.tree.unflatten(structure, inputs), outputs


def with_logistic(graph: Graph, wanted: list[int]) -> tuple[Graph, list[int]]:
    """Return the graph with 0.5 tanh(a) + 0.5 as logistic(2 a), and the numbers in it of `wanted`.

    As tanh(a) it would be stored near minus one where the gate is near zero, and in bfloat16 have
    no digits left there.
    """
    gates = {n.arguments[0] for n in graph if n.operation == "affine" and n.value == (0.5, 0.5)}
    made: Graph = {}
    numbers: list[int] = []
    for old, node in enumerate(nodes(graph)):
        arguments = tuple(numbers[a] for a in node.arguments)
        if old in gates and node.operation == "tanh":
            gate = build(made, "logistic", (_affine(made, 2, 0, arguments[0]),))
            numbers.append(_affine(made, 2, -1, gate))
        elif node.arguments:
            numbers.append(build(made, node.operation, arguments, node.value))
        else:
            numbers.append(new(made, *node))
    return made, [numbers[k] for k in wanted]
