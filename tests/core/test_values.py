"""Cells, layers and algorithms as values: equal calls make equal ones, to JAX and to Python."""

import copy
import functools
import io
import itertools
import pickle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.nn.initializers import ones, zeros

import jax_bptt as jb
from tests.registry import ALGORITHMS, CELLS

SIZES: Any = dict(input_size=3, hidden_size=3)
NAMES = {**vars(jnp), **vars(jax.nn), **vars(jax.nn.initializers), **vars(jb)}
"""Names that a printed call may use."""


def layers():
    """Return one of every constructor of layers."""
    cell, other = jb.gru(**SIZES), jb.lstm(**SIZES)
    return {
        "layer": jb.layer(cell),
        "layer_reverse": jb.layer(cell, reverse=True),
        "bidirectional": jb.bidirectional(cell, other),
        "stack": jb.stack(jb.layer(cell), jb.dropout(rate=0.2), jb.layer(other)),
        "residual": jb.residual(jb.layer(cell)),
        "batch_major": jb.batch_major(jb.layer(cell)),
        "dropout": jb.dropout(rate=0.2),
        "variational_dropout": jb.variational_dropout(rate=0.2),
        "recurrent_dropout": jb.recurrent_dropout(cell, rate=0.2),
        "recurrent_dropout_per_step": jb.recurrent_dropout_per_step(cell, rate=0.2),
        "zoneout": jb.zoneout(cell, rate=0.2),
    }


def algorithms():
    """Return the algorithms with every option."""
    return ALGORITHMS | {
        "associative": jb.associative(),
        "checkpointed_bytes": jb.checkpointed(memory_budget="64MB"),
        "newton": jb.newton(jacobian="diagonal", damping=0.1),
        "truncated": jb.truncated(3),
        "sliding": jb.truncated(3, sliding=True),
        "fused_approximate": jb.fused(approximate=True),
        "fused_gpu": jb.fused(interpret=True, device="gpu"),
    }


# Put together by hand, or of functions that are defined within another: these have no name by which
# pickle would find them, and print as no call that could be read.
BY_HAND = {"slstm", "clockwork", "switched", "minimal_gated", "peephole", "complex_diagonal"}
BY_HAND |= {"weight_norm", "counted", "counted_gated"}

# The constructors that the registry of cells has no row of.
CALLED = {name: row.cell for name, row in CELLS.items() if name not in BY_HAND}
CALLED |= {
    "slstm_called": jb.slstm(**SIZES),
    "ctrnn_euler": jb.ctrnn_euler(**SIZES),
    "relu": jb.elman(**SIZES, activation=jax.nn.relu),
    "with_states": jb.with_states(jb.gru(**SIZES)),
    "initialized": jb.initialized(jb.gru(**SIZES), w_x=zeros, b={"r": ones}),
    "mixed_precision": jb.mixed_precision(jb.gru(**SIZES), dtype=jnp.bfloat16),
}
VALUES = CALLED | layers() | algorithms()

each_value = pytest.mark.parametrize("name", VALUES)
each_by_hand = pytest.mark.parametrize("name", sorted(BY_HAND))


def again(value):
    """Make the same value by the call that it prints."""
    return eval(repr(value), dict(NAMES))  # noqa: S307 - what the library printed


def same(a, b):
    return a == b and not a != b and hash(a) == hash(b) and len({a, b}) == 1


@each_value
def test_a_value_prints_as_the_call_that_makes_an_equal_one(name):
    value = VALUES[name]
    assert again(value) is not value
    assert same(again(value), value)


def test_every_constructor_is_among_them():
    calls = [value.made_by for value in VALUES.values()]
    made = {call.constructor.__name__ for call in calls if call is not None}
    returns = {"Cell", "Layer", "Algorithm", jb.Cell, jb.Layer, jb.Algorithm}
    constructors = {
        name
        for name in jb.__all__
        if getattr(getattr(jb, name), "__annotations__", {}).get("return") in returns
    }
    assert constructors | {"batch_major"} == made | {"from_step", "artbp"}  # which holds a key


def test_how_a_value_prints():
    gru = jb.gru(3, 4, output_size=None)
    assert repr(gru) == "gru(input_size=3, hidden_size=4)"
    deep = jb.stack(jb.layer(gru, reverse=True), jb.dropout(rate=0.5))
    assert repr(deep) == f"stack(layer(cell={gru!r}, reverse=True), dropout(rate=0.5))"
    assert repr(jb.bptt(block_length=3)) == "bptt(block_length=3)"
    lstm = jb.lstm(3, 4, forget_bias=float("1"), dtype=np.float32)
    assert repr(lstm) == "lstm(input_size=3, hidden_size=4, dtype=float32)"
    slow = jb.ctrnn(3, 2, time_constant=np.array([1.0, 2.0]))
    assert repr(slow) == "ctrnn(input_size=3, hidden_size=2, time_constant=float64[2])"
    begun = jb.initialized(gru, b={"r": ones}, w_s=zeros)
    assert repr(begun) == f"initialized(cell={gru!r}, b={{'r': ones}}, w_s=zeros)"
    assert repr(gru._replace(any_batch=False)).startswith("Cell(init=")


@each_value
def test_copies_are_equal(name):
    value = VALUES[name]
    for other in (copy.copy(value), copy.deepcopy(value), pickle.loads(pickle.dumps(value))):
        assert other is not value and same(other, value)
        assert repr(other) == repr(value)
        assert type(other) is type(value) and other.made_by is not None
    assert same(copy.deepcopy({"a": [value]})["a"][0], value)


@each_by_hand
def test_copies_of_what_is_made_by_hand(name):
    value = CELLS[name].cell
    assert same(copy.copy(value), value) and same(copy.deepcopy(value), value)
    with pytest.raises((AttributeError, pickle.PicklingError), match=r"[Cc]an't (get|pickle)"):
        pickle.dumps(value)


def test_functions_of_a_module_pickle_in_what_is_made_by_hand():
    value = jb.autodiff()
    by_hand = jb.Algorithm(value.run, None, None)
    assert by_hand.made_by is None and by_hand != value
    assert same(pickle.loads(pickle.dumps(by_hand)), by_hand)


def test_a_pickled_cell_computes_the_same():
    cell = jb.learned_state(jb.elman(**SIZES, activation=jax.nn.relu))
    read = pickle.loads(pickle.dumps(cell))
    params, xs = cell.init(jax.random.key(0)), jnp.ones((2, 3))
    np.testing.assert_array_equal(read.init(jax.random.key(0)).cell.w_s, params.cell.w_s)
    ys = [jb.unroll(c, params, xs)[1] for c in (cell, read)]
    np.testing.assert_array_equal(*ys)


def test_other_arguments_make_other_values():
    cell = jb.lstm(**SIZES)
    others = [
        jb.lstm(input_size=3, hidden_size=4),
        jb.lstm(**SIZES, output_size=3),
        jb.lstm(**SIZES, forget_bias=0.25),
        jb.lstm(**SIZES, dtype=jnp.float32),
        jb.lstm(**SIZES, dtype=jnp.bfloat16),
        jb.lstm_peephole(**SIZES),
        jb.learned_state(cell),
        jb.embedding(cell, vocabulary_size=3),
        jb.embedding(cell, vocabulary_size=4),
        jb.elman(**SIZES, activation=jnp.sin),
        jb.layer(cell),
        jb.bidirectional(cell, jb.gru(**SIZES)),
        jb.stack(jb.layer(cell)),
        jb.stack(jb.layer(cell), jb.layer(cell)),
        jb.zoneout(cell, rate=0.1),
        jb.zoneout(cell, rate=0.3),
        jb.zoneout(cell, rate=0.1, reverse=True),
        jb.dropout(rate=0.1),
        jb.bptt(block_length=2),
        jb.bptt(recompute=True),
        jb.bptt(block_length=1, recompute=True),
    ]
    values = [*VALUES.values(), *(CELLS[name].cell for name in BY_HAND), *others]
    for a, b in itertools.combinations(values, 2):
        assert a != b and not a == b
    assert len(set(values)) == len(values)
    assert cell != tuple(cell) and tuple(cell) != cell and cell is not None


def test_positions_names_and_defaults_make_no_difference():
    assert same(jb.lstm(3, 4), jb.lstm(hidden_size=4, input_size=3, output_size=None))
    assert same(jb.bptt(), jb.bptt(block_length=None))


def test_what_is_replaced_has_no_call():
    cell = jb.gru(**SIZES)
    for changed in (cell._replace(), cell._replace(any_batch=False), jb.Cell(*cell)):
        assert changed.made_by is None and cell.made_by is not None
        assert changed != cell and cell != changed
        assert same(type(changed)(*changed), changed)
    assert cell._replace(any_batch=False) != cell._replace()
    assert cell._replace() != jb.gru(**SIZES)._replace()


def test_arrays_among_the_arguments():
    """NumPy arrays and lists by their numbers, at the time of the call; JAX arrays by identity."""
    make = functools.partial(jb.ctrnn, **SIZES)
    a, b = np.array([1.0, 2.0, 3.0]), [1.0, 2.0, 3.0]
    first, listed = make(time_constant=a), make(time_constant=b)
    assert same(make(time_constant=a.copy()), first) and same(make(time_constant=[*b]), listed)
    assert same(copy.deepcopy(first), first) and same(pickle.loads(pickle.dumps(first)), first)
    a[0] = b[0] = 9.0
    assert make(time_constant=a) != first and make(time_constant=b) != listed
    assert same(copy.copy(first), make(time_constant=np.array([1.0, 2.0, 3.0])))
    assert make(time_constant=a) != make(time_constant=a.astype(np.float32))
    c = jnp.asarray(a)
    assert same(make(time_constant=c), make(time_constant=c))
    assert make(time_constant=c) != make(time_constant=jnp.asarray(a))


@each_value
def test_equal_values_are_one_static_argument(name):
    traced = []

    @functools.partial(jax.jit, static_argnums=0)
    def function(value, x):
        traced.append(value)
        return x

    value = VALUES[name]
    for each in (value, again(value), pickle.loads(pickle.dumps(value))):
        function(each, 1.0)
    assert len(traced) == 1


def test_equal_calls_of_unroll_trace_the_step_once():
    """Without `jax.jit` around it, with a cell and an algorithm made anew."""
    traced = []

    def step(w, s, x):
        traced.append(s)
        return w * s + x

    def init(key):
        return jnp.ones(3)

    def initial_state(w, batch_shape):
        return jnp.zeros((*batch_shape, 3))

    def run():
        cell = jb.from_step(step, init=init, initial_state=initial_state, input_shape=(3,))
        return jb.unroll(cell, cell.init(None), np.ones((4, 3)), algorithm=jb.bptt(block_length=2))

    run()
    count = len(traced)
    run()
    assert 0 < count == len(traced)


@each_value
def test_a_value_has_no_leaves(name):
    value = VALUES[name]
    assert jax.tree.leaves(value) == []
    assert jax.tree.structure(value) == jax.tree.structure(again(value))
    assert jax.tree.map(lambda leaf: leaf + 1, (value, 1)) == (value, 2)


def test_a_value_in_the_arguments_of_transformations():
    model = {"cell": jb.gru(**SIZES), "params": jb.gru(**SIZES).init(jax.random.key(0))}
    traced = []

    @jax.jit
    def loss(model, xs):
        traced.append(model)
        return jnp.sum(jb.unroll(model["cell"], model["params"], xs)[1])

    d_model = jax.grad(loss)(model, np.ones((2, 3)))
    assert d_model["cell"] == model["cell"] and d_model["params"].w_s.shape == (3, 3, 3)
    loss(model, np.ones((2, 3)))
    count = len(traced)
    loss(model | {"cell": jb.gru(**SIZES)}, np.ones((2, 3)))
    assert len(traced) == count


def test_a_value_in_a_module_of_equinox():
    eqx = pytest.importorskip("equinox")

    class Model(eqx.Module):
        layer: Any
        algorithm: Any
        params: Any

        def __init__(self, key):
            self.layer, self.algorithm = jb.layer(jb.lstm(**SIZES)), jb.bptt(block_length=2)
            self.params = self.layer.init(key)

        def __call__(self, xs):
            return self.layer.apply(self.params, xs, algorithm=self.algorithm)[1]

    model, file = Model(jax.random.key(0)), io.BytesIO()
    eqx.tree_serialise_leaves(file, model)
    file.seek(0)
    other = Model(jax.random.key(1))
    assert not eqx.tree_equal(model, other)
    assert eqx.tree_equal(eqx.tree_deserialise_leaves(file, other), model)
    assert eqx.tree_equal(jax.tree.map(jnp.asarray, model), model)
    d_model = eqx.filter_grad(lambda model: jnp.sum(model(np.ones((2, 3)))))(model)
    assert d_model.layer == model.layer and d_model.params.w_s.shape == model.params.w_s.shape
