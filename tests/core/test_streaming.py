"""A sequence in windows, the state carried from one to the next, is the sequence in one piece.

With resets, with a state to begin with, and with the state that resets go back to the cell's own or
given. Lengths are those of whole sequences, which windows do not have. What runs backwards in time,
a layer in reverse and the half of `bidirectional`, reads the future first and cannot be streamed.
"""

import collections
import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_bptt as jb
from tests import reference
from tests.registry import (
    ALGORITHMS,
    CELLS,
    KINDS,
    assert_close,
    problem,
    slow_unless,
    without_int,
)

T, B = 4, 3
RESETS = np.array([[0, 1, 0], [0, 1, 0], [1, 0, 0], [0, 1, 0]], bool)
EXACT = 1e-12
RATE = 0.3
STREAMED = ALGORITHMS | {"associative": jb.associative()}


class Window(NamedTuple):
    """A layer for arrays that lead with time, and the key it is applied with in every window."""

    layer: jb.Layer
    keyed: bool = False
    batch_major: bool = False

    def apply(self, params, xs, state, **options):
        """Return (last_state, ys)."""
        key = jax.random.key(3) if self.keyed else None
        if not self.batch_major:
            return self.layer.apply(params, xs, state, key=key, **options)
        options = {k: v.T if k == "resets" else v for k, v in options.items()}
        last_state, ys = self.layer.apply(params, swapped(xs), state, key=key, **options)
        return last_state, swapped(ys)


def swapped(tree):
    return jax.tree.map(lambda a: jnp.swapaxes(a, 0, 1), tree)


def output_spec(cell: jb.Cell) -> Any:
    """Describe one output, as `cell.input_spec` does one input."""

    def output(key):
        params = cell.init(key)
        return cell.readout(cell.prepare(params), cell.initial_state(params, ()))

    return jax.eval_shape(output, jax.random.key(0))


def collector(cell: jb.Cell) -> jb.Cell:
    """Return a cell on the outputs of `cell`, whatever these are: a decaying sum of all of them."""
    output = output_spec(cell)

    def project(w, ys):
        leaves = zip(jax.tree.leaves(ys), jax.tree.leaves(output), strict=True)
        return sum(jnp.sum(y.real, tuple(range(-one.ndim, 0))) for y, one in leaves)

    step = jb.DiagonalStep(lambda w, drive: (w * jnp.ones_like(drive), drive))
    return jb.from_step(
        step,
        init=lambda key: jnp.asarray(0.5),
        initial_state=lambda w, batch_shape: jnp.zeros(batch_shape),
        input_spec=output,
        project=project,
        any_batch=True,
    )


LAYERS: dict[str, Callable[[jb.Cell], Window]] = {
    "layer": lambda cell: Window(jb.layer(cell)),
    "stack": lambda cell: Window(jb.stack(jb.layer(cell), jb.layer(collector(cell)))),
    "residual": lambda cell: Window(jb.residual(jb.layer(cell))),
    "batch_major": lambda cell: Window(jb.batch_major(jb.layer(cell)), batch_major=True),
    # Without a key at their expectation; the two with a key keep their mask in all windows.
    "dropout": lambda cell: Window(jb.stack(jb.dropout(rate=RATE), jb.layer(cell))),
    "variational_dropout": lambda cell: Window(
        jb.stack(jb.variational_dropout(rate=RATE), jb.layer(cell)), keyed=True
    ),
    "recurrent_dropout": lambda cell: Window(jb.recurrent_dropout(cell, rate=RATE), keyed=True),
    "recurrent_dropout_per_step": lambda cell: Window(
        jb.recurrent_dropout_per_step(cell, rate=RATE)
    ),
    "zoneout": lambda cell: Window(jb.zoneout(cell, rate=RATE)),
}


@functools.cache
def fits(name: str, layer: str, algorithm: str) -> bool:
    """Return whether there is such a layer of the cell, and the algorithm runs it."""
    cell = CELLS[name].cell
    if algorithm == "associative" and not isinstance(cell.step, jb.DiagonalStep):
        return False
    if layer.startswith("recurrent_dropout"):
        return isinstance(cell.step, jb.GatedStep) and name != "complex_diagonal"  # has no product
    if layer == "residual":
        return shapes(cell.input_spec) == shapes(output_spec(cell))
    return True


def shapes(tree: Any) -> Any:
    return jax.tree.map(lambda a: (a.shape, reference.is_inexact(a)), tree)


def turns() -> list[tuple[str, str, str]]:
    """Choose an algorithm for every layer of every cell, one that either has met least."""
    met: collections.Counter[tuple[str, str]] = collections.Counter()
    rows = []
    for name, layer in itertools.product(CELLS, LAYERS):
        fitting = [algorithm for algorithm in STREAMED if fits(name, layer, algorithm)]
        fitting.sort(key=lambda a: (met[name, a] > 0, met[name, a] + met[layer, a]))  # noqa: B023
        if fitting:
            rows.append((name, layer, fitting[0]))
            met.update([(name, fitting[0]), (layer, fitting[0])])
    return rows


QUICK = {
    ("lstm_readout", "layer", "bptt"),
    ("counted", "variational_dropout", "bptt_kept"),
    ("elman_readout", "zoneout", "checkpointed"),
}
ROWS = sorted({*turns(), *QUICK})


class Given(NamedTuple):
    """Arguments of a run; `start` is what resets go back to, None for the cell's own."""

    params: Any
    xs: Any
    state: Any
    start: Any


def random_like(rng: np.random.Generator, a: Any) -> np.ndarray:
    drawn = rng.normal(size=a.shape)
    if jnp.issubdtype(a.dtype, jnp.complexfloating):
        return drawn + 1j * rng.normal(size=a.shape)
    return drawn


def draw(layer: jb.Layer, xs: Any, own_start: bool) -> Given:
    """Draw params and states at random around the layer's own, so that none is zero."""
    rng = np.random.default_rng(1)

    def noisy(a):
        a = np.asarray(a)
        return a + 0.3 * random_like(rng, a) if reference.is_inexact(a) else a

    params = jax.tree.map(noisy, layer.init(jax.random.key(0)))
    state = layer.initial_state(params, (B,))
    start = None if own_start else jax.tree.map(noisy, state)
    return Given(params, xs, jax.tree.map(noisy, state), start)


def pulled(apply: Callable, given: Given, resets: Any, cotangents: Any) -> tuple[Any, Any]:
    """Return (last_state, ys), and the gradient of `given` for cotangents of these."""

    def loss(given):
        options = {} if resets is None else dict(resets=resets, reset_state=given.start)
        outputs = apply(given.params, given.xs, given.state, **options)
        return reference.pair(jnp, cotangents, outputs), outputs

    gradients, outputs = jax.grad(loss, has_aux=True, allow_int=True)(given)
    return outputs, without_int(gradients)


def in_windows(run: Callable, given: Given, resets: Any, cotangents: Any, length: int) -> Any:
    """Return what `run` returns for the whole, by the chain rule from window to window."""
    starts = range(0, T, length)

    def cut(tree):
        return [jax.tree.map(lambda a, t=t: a[t : t + length], tree) for t in starts]

    def joined(trees):
        return jax.tree.map(lambda *a: jnp.concatenate(a), *trees)

    d_state, d_ys = cotangents
    windows = list(zip(cut(given.xs), cut(resets), cut(d_ys), strict=True))
    states, ys = [given.state], []
    for xs, resets, d_y in windows:
        (last_state, y), _ = run(given._replace(xs=xs, state=states[-1]), resets, (d_state, d_y))
        states.append(last_state)
        ys.append(y)
    total, d_xs = None, []
    for state, (xs, resets, d_y) in reversed(list(zip(states, windows, strict=False))):
        _, d = run(given._replace(xs=xs, state=state), resets, (d_state, d_y))
        d_state = d.state
        d_xs.insert(0, d.xs)
        own = d.params, d.start
        total = own if total is None else jax.tree.map(jnp.add, total, own)
    assert total is not None
    return (states[-1], joined(ys)), Given(total[0], joined(d_xs), d_state, total[1])


def some_cotangents(apply: Callable, given: Given) -> Any:
    rng = np.random.default_rng(2)
    outputs = jax.eval_shape(apply, given.params, given.xs, given.state)
    return jax.tree.map(lambda a: random_like(rng, a) if reference.is_inexact(a) else None, outputs)


@pytest.mark.parametrize(
    "name, layer, algorithm", [slow_unless(row in QUICK, *row) for row in ROWS]
)
def test_windows_are_the_sequence(name, layer, algorithm):
    # Half of the rows in single steps, and half with a start of their own, in all combinations.
    number = ROWS.index((name, layer, algorithm))
    length, own_start = 1 + number % 2, number // 2 % 2 == 0
    cell = CELLS[name].cell
    window = LAYERS[layer](jb.learned_state(cell) if own_start else cell)
    given = draw(window.layer, problem(name, (B,), T).xs, own_start)
    apply = functools.partial(window.apply, algorithm=STREAMED[algorithm])
    cotangents = some_cotangents(apply, given)
    run = jax.jit(functools.partial(pulled, apply))
    assert_close(
        in_windows(run, given, RESETS, cotangents, length),
        run(given, RESETS, cotangents),
        EXACT,
    )


@pytest.mark.parametrize("name", [slow_unless(name == KINDS[0], name) for name in CELLS])
def test_steps_are_the_sequence(name):
    """By `jb.step`, which has no resets, from the state of the step before."""
    cell = CELLS[name].cell
    given = draw(jb.layer(cell), problem(name, (B,), T).xs, own_start=True)

    def one(params, xs, state):
        state, y = jb.step(cell, params, state, jax.tree.map(lambda a: a[0], xs))
        return state, jax.tree.map(lambda y: y[None], y)

    unroll = functools.partial(jb.unroll, cell)
    cotangents = some_cotangents(unroll, given)
    runs = [jax.jit(functools.partial(pulled, apply)) for apply in (one, unroll)]
    streamed = in_windows(runs[0], given, None, cotangents, 1)
    assert_close(streamed, runs[1](given, None, cotangents), EXACT)


def test_every_layer_meets_every_algorithm():
    met = {row[1:] for row in ROWS}
    assert {*itertools.product(LAYERS, ALGORITHMS)} <= met
    assert ("layer", "associative") in met
