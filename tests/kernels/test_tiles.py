"""Arithmetic on tiles is `pointwise` and its derivative, and the reverse kernel reads no more."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_bptt as jb
from jax_bptt.core import jaxprs
from jax_bptt.core.types import Cell, GatedStep
from jax_bptt.kernels.operations import COSTLY
from jax_bptt.kernels.tiles import TiledStep, tiled_step
from tests.registry import CELLS, assert_close, slow_unless

ROWS = 4

_WIDE: Any = dict(input_size=2, hidden_size=3)
MORE = {
    f"elman_{activation.__name__}": jb.elman(**_WIDE, activation=activation)
    for activation in (jax.nn.relu, jax.nn.gelu, jax.nn.silu, jax.nn.sigmoid, jax.nn.elu, jnp.sin)
} | {
    "ctrnn_euler": jb.ctrnn_euler(**_WIDE, time_step=0.5, output_size=2),
    "mixed_precision": jb.mixed_precision(jb.lstm(**_WIDE)),
    "weight_noise": jb.weight_norm(jb.mgu(**_WIDE)),
}
WITHOUT = {
    "clockwork": "a leaf of int32",
    "counted_gated": "a leaf of int32",
    "complex_diagonal": "a leaf of complex",
    "conv_lstm": "not [H] each",
}
GATED: dict[str, Cell] = {
    name: row.cell for name, row in CELLS.items() if isinstance(row.cell.step, GatedStep)
} | MORE


class Case(NamedTuple):
    """A step on tiles beside what it stands for, in float32, with ROWS sequences."""

    step: TiledStep | str
    pointwise: Any
    arguments: tuple
    d_state: Any


def in_single(tree):
    def leaf(a):
        if jnp.issubdtype(a.dtype, jnp.floating):
            return a.astype(jnp.float32)
        return a.astype(jnp.complex64) if jnp.issubdtype(a.dtype, jnp.complexfloating) else a

    return jax.tree.map(leaf, tree)


def case(cell: Cell) -> Case:
    assert isinstance(cell.step, GatedStep)
    key = jax.random.key(0)
    params = in_single(cell.init(key))
    weights = cell.prepare(params)
    state = in_single(cell.initial_state(params, ()))
    x = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), cell.input_spec)
    drive = jax.eval_shape(cell.project, weights, x)
    feedback = jax.eval_shape(cell.step.mix, weights, state)
    step = tiled_step(cell.step, weights, state, drive)
    rng = np.random.default_rng(1)

    def draw(leaf):
        return jnp.asarray(rng.normal(size=(ROWS, *leaf.shape)), leaf.dtype)

    pairs = [jax.tree.map(draw, tree) for tree in (state, drive, feedback, state)]
    return Case(step, cell.step.pointwise, (weights, *pairs[:3]), pairs[3])


def tiles_of(tree):
    """Return tiles [ROWS, H] of arrays [ROWS, ..., H]."""
    rows = [a.reshape(a.shape[0], -1, a.shape[-1]) for a in jax.tree.leaves(tree)]
    return tuple(a[:, k] for a in rows for k in range(a.shape[1]))


def units_of(c: Case):
    """Return the weights that `pointwise` reads, each broadcast to a tile."""
    read = jaxprs.used_leaves(c.pointwise, *c.arguments)[0]
    chosen = [
        w for w, r in zip(jax.tree.leaves(c.arguments[0]), jax.tree.leaves(read), strict=True) if r
    ]
    rows = [w.reshape(-1, w.shape[-1]) for w in chosen]
    return tuple(
        jnp.broadcast_to(w[k].astype(jnp.float32), (ROWS, w.shape[-1]))
        for w in rows
        for k in range(w.shape[0])
    )


@functools.cache
def known(name: str) -> Case:
    return case(GATED[name])


QUICK = "elman", "gru", "lstm", "peephole", "slstm", "elman_gelu", "mixed_precision"
each = pytest.mark.parametrize(
    "name", [slow_unless(n in QUICK, n) for n in GATED if n not in WITHOUT]
)


def run(c: Case):
    """Return (new states, d_prevs, d_drives, d_feedbacks) from tiles alone."""
    assert isinstance(c.step, TiledStep)
    _, state, drive, feedback = c.arguments
    states, units, d_states = tiles_of(state), units_of(c), tiles_of(c.d_state)
    news, saved = c.step.forward(states, tiles_of(drive), tiles_of(feedback), units)
    assert len(saved) == c.step.saved
    prevs = [s if r else None for s, r in zip(states, c.step.reads_prev, strict=True)]
    read = [s if r else None for s, r in zip(news, c.step.reads_new, strict=True)]
    d_prevs, emitted = c.step.backward(prevs, read, saved, units, d_states)
    assert len(emitted) == c.step.emitted
    zero = jnp.zeros_like(states[0])
    d_drives, d_feedbacks = (
        tuple(zero if k is None else emitted[k] for k in which)
        for which in (c.step.d_drive, c.step.d_feedback)
    )
    return news, d_prevs, d_drives, d_feedbacks


def wanted(c: Case):
    weights, state, drive, feedback = c.arguments
    wide = jax.tree.map(lambda a: a.astype(jnp.float64), (weights, state, drive, feedback))

    def one(args, d):
        new, pull = jax.vjp(lambda *args: c.pointwise(wide[0], *args), *args)
        return new, *pull(d)

    d_state = jax.tree.map(lambda a: a.astype(jnp.float64), c.d_state)
    new, d_prev, d_drive, d_feedback = jax.vmap(one)(wide[1:], d_state)
    return tuple(map(tiles_of, (new, d_prev, d_drive, d_feedback)))


@pytest.mark.parametrize("name", [slow_unless(n == "lstm", n) for n in GATED if n not in WITHOUT])
def test_against_pointwise_and_its_derivative(name):
    assert_close(run(known(name)), wanted(known(name)), 2e-6)


@pytest.mark.parametrize("name", WITHOUT)
def test_says_what_stands_in_the_way(name):
    reason = known(name).step
    assert isinstance(reason, str) and WITHOUT[name] in reason


def test_a_step_that_depends_on_nothing_is_refused():
    reason = case(jb.elman(**_WIDE, activation=jnp.zeros_like)).step
    assert reason == "pointwise depends on neither drive nor feedback"


@each
def test_backward_does_nothing_costly(name):
    c = known(name)
    assert isinstance(c.step, TiledStep)
    tile = jax.ShapeDtypeStruct((ROWS, 3), jnp.float32)
    tiles = [(tile,) * n for n in (c.step.saved, c.step.units, c.step.states)]
    read = [[tile if r else None for r in reads] for reads in (c.step.reads_prev, c.step.reads_new)]
    jaxpr = jax.make_jaxpr(c.step.backward)(*read, *tiles)
    primitives = {eqn.primitive.name for eqn in jaxpr.eqns}
    assert not primitives & ({*COSTLY, "div"} - {"reciprocal"})


@pytest.mark.parametrize(
    "name, saved, emitted, prev, new",
    [
        ("elman", 0, 1, (False,), (True,)),
        ("lstm", 5, 4, (False, True), (False, False)),
        ("gru", 4, 4, (True,), (False,)),
        ("mgu", 3, 3, (True,), (False,)),
        ("ugrnn", 2, 2, (True,), (False,)),
        ("lstm_peephole", 5, 4, (False, True), (False, False)),
        ("elman_relu", 0, 1, (False,), (True,)),
    ],
)
def test_what_is_kept(name, saved, emitted, prev, new):
    step = known(name).step
    assert isinstance(step, TiledStep)
    assert (step.saved, step.emitted, step.reads_prev, step.reads_new) == (
        saved,
        emitted,
        prev,
        new,
    )


def test_gru_differs_in_the_candidate_alone():
    step = known("gru").step
    assert isinstance(step, TiledStep)
    assert step.d_feedback[:2] == step.d_drive[:2]
    assert step.d_feedback[2] != step.d_drive[2]


EXPONENTS = [-2.5, -1.3, -1.0, -0.5, -0.2, 0.3, 0.5, 0.7, 1.5, 3.0, 5.1]


@pytest.mark.slow
def test_what_is_not_read_makes_the_graph_no_larger():
    made = [case(jb.lstm(input_size=2, hidden_size=size)).step for size in (1, 9)]
    few, many = (len(s.program.graph) for s in made if isinstance(s, TiledStep))
    assert few == many


@pytest.mark.parametrize("exponent", [slow_unless(e in (-1.3, -0.5, 3.0), e) for e in EXPONENTS])
def test_constant_exponents_take_no_pow(exponent):
    cell = jb.elman(**_WIDE, activation=lambda a: (1.0 + a * a) ** exponent)
    c = case(cell)
    assert isinstance(c.step, TiledStep)
    assert "pow" not in c.step.operations
    assert_close(run(c), wanted(c), 2e-6)


@pytest.mark.parametrize("exponent", [-1.3, -0.2, 0.3, 0.7, 2.7])
def test_powers_at_the_ends_of_single_precision(exponent):
    c = case(jb.elman(**_WIDE, activation=lambda a: a**exponent))
    assert isinstance(c.step, TiledStep)
    x = np.asarray([0, 1e-12, 0.3, 1, 7, 1e12, np.inf, -1, np.nan], np.float32)
    zero = (jnp.zeros_like(x),)
    ((found,), _) = c.step.forward(zero, (jnp.asarray(x),), zero)
    with np.errstate(all="ignore"):
        wanted = np.power(x.astype(np.float64), np.float64(np.float32(exponent)))
    np.testing.assert_allclose(np.asarray(found, np.float64), wanted, rtol=3e-6)


def test_other_exponents_are_pow():
    c = case(jb.elman(**_WIDE, activation=lambda a: (1.0 + a * a) ** jnp.tanh(a)))
    assert isinstance(c.step, TiledStep)
    assert "pow" in c.step.operations
    assert_close(run(c), wanted(c), 2e-6)


def test_log1p_loses_no_digits():
    xs = np.concatenate([np.logspace(-12, 30, 400), -np.logspace(-12, -0.01, 400), [0.0, np.inf]])
    xs = xs.astype(np.float32)
    found = np.asarray(COSTLY["log1p"](jnp.asarray(xs)), np.float64)
    np.testing.assert_allclose(found, np.log1p(xs.astype(np.float64)), rtol=4e-7)
