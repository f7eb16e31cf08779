"""A gated step as arithmetic on tiles, forward and backward, for a kernel to run in its loop.

`pointwise` of a `GatedStep` acts unit by unit, so that tracing it for one unit says all there is
to know: its gate axes unroll, and what is left is scalar arithmetic, which holds as well for tiles
of any one shape. The derivative is that of JAX, traced with it.

What the forward kernel has to store for the reverse one is a choice: the smallest set of values
from which the derivative follows without doing a transcendental function again. That is a minimum
cut of the graph between what would have to be done again (those functions, drives and feedbacks)
and what the derivative reads, where a new state is to be had for half the price, since it is
stored anyway. Cuts and flows: L. R. Ford and D. R. Fulkerson (1956), "Maximal flow through a
network", Canadian Journal of Mathematics 8.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jax_bptt.core import jaxprs
from jax_bptt.core.types import GatedStep, PyTree
from jax_bptt.kernels import graph as graphs
from jax_bptt.kernels.graph import Graph, Node, Unsupported
from jax_bptt.kernels.operations import CHEAP, COSTLY, LOGICAL

Tile = Any
"""A floating-point array of whatever shape a kernel works on, the same for all tiles of a step."""


STORED = 2
"""The price of a tile that is stored and loaded; that of a state, which is stored anyway, is 1."""


class TiledStep(NamedTuple):
    """A gated step whose gates, states and weights are one tile each.

    Attributes:
      states: how many tiles the state has: its leaves.
      drives: how many the drive has: its leaves' gates, in the order of the leaves.
      feedbacks: how many the feedback has, in the same way.
      units: how many weights [H] `pointwise` reads, such as peepholes; a leaf [3, H] is three.
      saved: how many tiles `forward` stores for `backward`.
      emitted: how many different tiles the derivatives of drives and feedbacks are.
      reads_prev: for each state, whether `backward` reads what entered the step.
      reads_new: for each state, whether `backward` reads what left it.
      d_feedback: for each feedback, which emitted tile is its derivative, or None for zero.
      d_drive: for each drive, likewise.
      operations: names of all operations on tiles, of `jax_bptt.kernels.graph`.
      program: the graph and the nodes that `forward` and `backward` compute.
    """

    states: int
    drives: int
    feedbacks: int
    units: int
    saved: int
    emitted: int
    reads_prev: tuple[bool, ...]
    reads_new: tuple[bool, ...]
    d_feedback: tuple[int | None, ...]
    d_drive: tuple[int | None, ...]
    operations: frozenset[str]
    program: "_Program"

    def forward(
        self,
        states: Sequence[Tile],
        drives: Sequence[Tile],
        feedbacks: Sequence[Tile],
        units: Sequence[Tile] = (),
        functions: Mapping[str, Callable[..., Tile]] | None = None,
    ) -> tuple[tuple[Tile, ...], tuple[Tile, ...]]:
        """Take one step; return the new states and what to keep for `backward`.

        Args:
          states: what enters the step.
          drives: a tile each,
          feedbacks: likewise.
          units: weights of the units, as tiles.
          functions: what a device computes for operations of these names, in place of those of
            `operations.COSTLY`.
        """
        p = self.program
        given = (p.units, units), (p.prevs, states), (p.drives, drives), (p.feedbacks, feedbacks)
        made = _evaluate(p.graph, given, [*p.news, *p.saved], states[0], functions)
        return tuple(made[: self.states]), tuple(made[self.states :])

    def backward(
        self,
        prevs: Sequence[Tile | None],
        news: Sequence[Tile | None],
        saved: Sequence[Tile],
        units: Sequence[Tile],
        d_states: Sequence[Tile],
    ) -> tuple[tuple[Tile, ...], tuple[Tile, ...]]:
        """Pull d_states back through one step.

        Args:
          prevs: what entered the step; None where `reads_prev` is False.
          news: what left it; None where `reads_new` is False.
          saved: as `forward` returned them.
          units: as given to `forward`.
          d_states: dL/ds_t.

        Returns:
          (d_prevs, emitted): the direct dependence of each state on what entered, without the
          path through the product, and the tiles that `d_feedback` and `d_drive` point to.
        """
        p = self.program
        # A state that passes unchanged is both; what entered is then as good as what left.
        given = (
            (p.news, [t if r else None for t, r in zip(news, self.reads_new, strict=True)]),
            (p.prevs, [t if r else None for t, r in zip(prevs, self.reads_prev, strict=True)]),
            (p.saved, saved),
            (p.units, units),
            (p.d_states, d_states),
        )
        made = _evaluate(p.graph, given, [*p.d_prevs, *p.emitted], d_states[0])
        return tuple(made[: self.states]), tuple(made[self.states :])


class _Program(NamedTuple):
    """Numbers of nodes in one graph, each a tuple of tiles."""

    graph: tuple[Node, ...]
    units: tuple[int, ...]
    prevs: tuple[int, ...]
    drives: tuple[int, ...]
    feedbacks: tuple[int, ...]
    d_states: tuple[int, ...]
    news: tuple[int, ...]
    saved: tuple[int, ...]
    d_prevs: tuple[int, ...]
    emitted: tuple[int, ...]


def tiled_step(step: GatedStep, weights: PyTree, state: PyTree, drive: PyTree) -> TiledStep | str:
    """Return `step` as arithmetic on tiles, or what about it does not allow that.

    Args:
      step: its `pointwise` is what counts; a hand-written pair is not used.
      weights: prepared parameters, arrays or their shapes.
      state: without batch axes, arrays [H] or their shapes.
      drive: without batch axes, [..., H].
    """
    leaves = jax.tree.leaves(state)
    wrong = [s for s in leaves if s.dtype != jnp.float32]
    if wrong:
        return f"the state has a leaf of {wrong[0].dtype}, and kernels carry float32 alone"
    if not leaves or any(s.shape != leaves[0].shape or s.ndim != 1 for s in leaves):
        return f"the leaves of the state are not [H] each: {[s.shape for s in leaves]}"
    size = leaves[0].shape[0]
    weights, state, drive = _shapes((weights, state, drive))
    feedback = jax.eval_shape(step.mix, weights, state)
    read = reads_weights(step, weights, state, drive)
    for leaf in [*jax.tree.leaves((drive, feedback)), *_chosen(weights, read)]:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return f"the step has a value of {leaf.dtype}"
        if leaf.ndim == 0 or leaf.shape[-1] != size:
            return f"pointwise reads an array {leaf.shape} whose last axis is not that of the units"
    one = jax.tree.map(lambda w, r: _one_unit(w) if r else w, weights, read)
    unit = jax.tree.map(_one_unit, (state, drive, feedback))

    def both(weights, state, drive, feedback, d_state):
        new, pull = jax.vjp(lambda *args: step.pointwise(weights, *args), state, drive, feedback)
        return new, pull(d_state)

    try:
        graph, inputs, outputs = graphs.trace(both, one, *unit, unit[0])
    except Unsupported as reason:
        return f"of pointwise: {reason}"
    except (TypeError, ValueError) as error:
        # Such as a constant array of H units in the closure, which does not meet one unit.
        return f"pointwise cannot be traced for a single unit: {str(error).splitlines()[0]}"
    inputs = (_chosen(inputs[0], read), *inputs[1:])
    return _assemble(graph, inputs, outputs)


def reads_weights(step: GatedStep, weights: PyTree, state: PyTree, drive: PyTree) -> PyTree:
    """Return, in the structure of `weights`, which of them `pointwise` reads."""
    feedback = jax.eval_shape(step.mix, weights, state)
    return jaxprs.used_leaves(step.pointwise, weights, state, drive, feedback)[0]


def _shapes(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), tree)


def _one_unit(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((*leaf.shape[:-1], 1), leaf.dtype)


def _chosen(tree: PyTree, chosen: PyTree) -> list[Any]:
    """Return the leaves of `tree` at which `chosen` is True."""
    return [a for a, c in zip(jax.tree.leaves(tree), jax.tree.leaves(chosen), strict=True) if c]


def _assemble(graph: Graph, inputs: PyTree, outputs: PyTree) -> TiledStep | str:
    new, derivatives = outputs
    groups = *inputs, new, *derivatives
    sizes = [sum(a.size for a in jax.tree.leaves(group)) for group in groups]
    flat = [k for group in groups for a in jax.tree.leaves(group) for k in a.ravel().tolist()]
    graph, flat = graphs.with_logistic(graph, flat)
    units, prevs, drives, feedbacks, d_states, news, d_prevs, d_drives, d_feedbacks = (
        tuple(flat[sum(sizes[:k]) : sum(sizes[: k + 1])]) for k in range(len(sizes))
    )
    every = graphs.nodes(graph)
    if len(news) != len(prevs):
        return f"pointwise makes {len(news)} values of a unit's {len(prevs)}"
    zero = {k for k, node in enumerate(every) if node.operation == "constant" and not node.value[2]}
    emitted = tuple(dict.fromkeys(k for k in d_feedbacks + d_drives if k not in zero))

    if not emitted:
        return "pointwise depends on neither drive nor feedback"

    on_d = _depending(every, d_states)
    results = _ancestors(every, (*d_prevs, *emitted))
    frontier = {a for k in results & on_d for a in every[k].arguments if a not in on_d}
    price: dict[Any, int] = {
        k: len(every) for k, node in enumerate(every) if node.operation in LOGICAL
    }
    price |= {k: 1 for k in (*prevs, *news)}
    again = {k for k, node in enumerate(every) if node.operation in COSTLY} - on_d
    sources = again | set(prevs + drives + feedbacks)
    kept = _minimum_cut(every, sources, frontier, price)
    reads_prev = tuple(k in kept for k in prevs)
    reads_new = tuple(k in kept and k not in prevs for k in news)
    saved = tuple(sorted(k for k in kept if k not in (*prevs, *news)))
    used = _ancestors(every, (*news, *d_prevs, *emitted))
    return TiledStep(
        states=len(prevs),
        drives=len(drives),
        feedbacks=len(feedbacks),
        units=len(units),
        saved=len(saved),
        emitted=len(emitted),
        reads_prev=reads_prev,
        reads_new=reads_new,
        d_feedback=tuple(None if k in zero else emitted.index(k) for k in d_feedbacks),
        d_drive=tuple(None if k in zero else emitted.index(k) for k in d_drives),
        operations=frozenset(every[k].operation for k in used) - {"input", "constant"},
        program=_Program(
            tuple(every),
            units,
            prevs,
            drives,
            feedbacks,
            d_states,
            news,
            saved,
            d_prevs,
            emitted,
        ),
    )


def _evaluate(
    every: Sequence[Node],
    given: Iterable[tuple[Sequence[int], Sequence[Tile]]],
    wanted: Sequence[int],
    like: Tile,
    functions: Mapping[str, Callable[..., Tile]] | None = None,
) -> list[Tile]:
    """Return the tiles of the nodes `wanted`, from those that are given; constants in full."""
    found: dict[int, Any] = {}
    known = {**CHEAP, **COSTLY, **(functions or {})}
    for numbers, tiles in given:
        found |= {k: t for k, t in zip(numbers, tiles, strict=True) if t is not None}

    def value(k):
        if k not in found:
            found[k] = compute(every[k])
        return found[k]

    def compute(node):
        if node.operation == "constant":
            return node.value[2]
        assert node.operation != "input", f"input {node.value} was not given"
        arguments = [value(a) for a in node.arguments]
        if node.operation == "affine":
            (x,), (scale, offset) = arguments, node.value
            x = x if scale == 1 else -x if scale == -1 else x * scale
            return x + offset if offset else x
        return known[node.operation](*arguments)

    tiles = [value(k) for k in wanted]
    # An operation of JAX, so that a tile stays in the layout in which a kernel holds it.
    return [jnp.full_like(like, t) if isinstance(t, float) else t for t in tiles]


def _ancestors(every: Sequence[Node], numbers: Iterable[int]) -> set[int]:
    """Return `numbers` and all that they are made of."""
    found: set[int] = set()
    todo = list(numbers)
    while todo:
        k = todo.pop()
        if k not in found:
            found.add(k)
            todo += every[k].arguments
    return found


def _depending(every: Sequence[Node], numbers: Iterable[int]) -> set[int]:
    """Return `numbers` and all that is made of them."""
    found = set(numbers)
    for k, node in enumerate(every):
        if any(a in found for a in node.arguments):
            found.add(k)
    return found


def _minimum_cut(
    every: Sequence[Node], sources: set[int], sinks: set[int], price: dict[Any, int]
) -> set[int]:
    """Return the cheapest nodes through which all paths from `sources` to `sinks` lead.

    A node costs `price`, or `STORED`. Of several such sets it is the one nearest to the sinks,
    which leaves the least arithmetic behind it.
    """
    # Every node is an edge from (k, 0) to (k, 1), as wide as its price; the others are of any
    # width. A path that still has room carries one more unit of flow, back along flow if need be.
    relevant = _ancestors(every, sinks) & _depending(every, sources)
    flow: dict[Any, int] = {}
    forth: dict[Any, set] = {"source": {(k, 0) for k in sources & relevant}}
    for k in relevant:
        forth.setdefault((k, 0), set()).add((k, 1))
        for a in every[k].arguments:
            forth.setdefault((a, 1), set()).add((k, 0))
        if k in sinks:
            forth.setdefault((k, 1), set()).add("sink")
    back: dict[Any, set] = {}
    for a, ends in forth.items():
        for b in ends:
            back.setdefault(b, set()).add(a)

    def has_room(a: Any, b: Any) -> bool:
        if b not in forth.get(a, ()):
            return flow.get((b, a), 0) > 0
        inside = a != "source" and b != "sink" and a[0] == b[0]
        return not inside or flow.get((a, b), 0) < price.get(a[0], STORED)

    def reaching_sink():
        """Return, for what can still reach the sink, the next stop on the way."""
        onward: dict[Any, Any] = {"sink": None}
        todo: list[Any] = ["sink"]
        for b in todo:
            for a in back.get(b, set()) | forth.get(b, set()):
                if a not in onward and has_room(a, b):
                    onward[a] = b
                    todo.append(a)
        return onward

    while "source" in (onward := reaching_sink()):
        a: Any = "source"
        while a != "sink":
            b = onward[a]
            if flow.get((b, a), 0) > 0:
                flow[b, a] -= 1
            else:
                flow[a, b] = flow.get((a, b), 0) + 1
            a = b
    return {k for k in relevant if (k, 1) in onward and (k, 0) not in onward}
