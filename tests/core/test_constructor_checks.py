"""Every wrong argument of a constructor is named where it is given, not where it is first used."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_bptt
from tests.core.messages import check, params
from tests.registry import slow_unless

jb: Any = jax_bptt  # the types are broken here on purpose
T, B, I, H, V = 8, 2, 3, 4, 5  # noqa: E741 - the axis letters of the package
SIZES = dict(input_size=I, hidden_size=H)
LSTM = jb.lstm(**SIZES)
TOKENS = jb.embedding(LSTM, vocabulary_size=V)


@pytest.mark.parametrize("block_length", [0, -1, 2.5, "3", True])
def test_block_length(block_length):
    pieces = "bptt: block_length must be a positive number of steps", repr(block_length)
    check(lambda: jb.bptt(block_length=block_length), ValueError, *pieces)


@pytest.mark.parametrize("name", ["recompute"])
@pytest.mark.parametrize("value", [0, 1.0, "no"])
def test_flags_of_bptt(name, value):
    pieces = f"bptt: {name} must be True, False or None", repr(value)
    check(lambda: jb.bptt(**{name: value}), TypeError, *pieces)


CONSTRUCTORS = [jb.elman, jb.lstm, jb.gru, jb.gru_reset_before, jb.lstm_peephole, jb.mgu, jb.ugrnn]
CONSTRUCTORS += [jb.indrnn, jb.slstm, jb.ctrnn, jb.ctrnn_euler]


@pytest.mark.parametrize("constructor", CONSTRUCTORS)
@pytest.mark.parametrize("argument", ["input_size", "hidden_size", "output_size"])
@pytest.mark.parametrize("size", [0, -1, 2.0, True, "3"])
def test_sizes(constructor, argument, size):
    pieces = f"{constructor.__name__}: {argument} must be a positive integer", repr(size)
    check(lambda: constructor(**(SIZES | {argument: size})), ValueError, *pieces)


@pytest.mark.parametrize("constructor", CONSTRUCTORS)
@pytest.mark.parametrize("dtype", [jnp.int32, jnp.complex64, "flaot", 3])
def test_dtypes(constructor, dtype):
    pieces = f"{constructor.__name__}: dtype must be a floating dtype such as jnp.float32", "got"
    check(lambda: constructor(**SIZES, dtype=dtype), TypeError, *pieces)


@pytest.mark.parametrize("constructor", [slow_unless(c is jb.gru, c) for c in CONSTRUCTORS])
def test_numpy_integers_are_sizes(constructor):
    sizes = dict(input_size=np.int64(I), hidden_size=np.int32(H), output_size=np.int64(2))
    cell = jb.embedding(constructor(**sizes, dtype=jnp.float32), vocabulary_size=np.int64(V))
    algorithm = jb.bptt(block_length=np.int64(3))
    xs = np.ones((T, B), np.int32)
    got = jb.bptt_gradients(
        cell, params(cell), xs, d_ys=np.ones((T, B, 2), np.float32), algorithm=algorithm
    )
    assert {d.dtype for d in jax.tree.leaves(got)} == {jnp.dtype(jnp.float32)}
    check(
        lambda: jb.unroll(constructor(**sizes), params(constructor(**sizes)), np.ones((T, B, 5))),
        ValueError,
        "does not end in (3,)",
    )


@pytest.mark.parametrize("forget_bias", [None, "1", True, 1j])
def test_forget_bias(forget_bias):
    pieces = "lstm: forget_bias must be a real number", repr(forget_bias)
    check(lambda: jb.lstm(**SIZES, forget_bias=forget_bias), TypeError, *pieces)


@pytest.mark.parametrize("dtype", [None, jnp.bfloat16])
def test_forget_bias_of_any_real_type(dtype):
    for forget_bias in (2, np.float32(2), np.float64(2)):
        made = params(jb.lstm(**SIZES, forget_bias=forget_bias, dtype=dtype))
        assert (made.b[1] == 2).all()


def test_from_step():
    good = dict(init=lambda key: 0, initial_state=lambda p, b: 0)
    for name in ("step", "init", "initial_state", "project", "readout", "prepare"):
        arguments = good | {"step": len, "input_shape": (I,), name: 3}
        pieces = f"from_step: {name} must be a function", "got 3"
        check(lambda a=arguments: jb.from_step(**a), TypeError, *pieces)
    both = dict(input_shape=(I,), input_spec=jax.ShapeDtypeStruct((I,), jnp.float32))
    for spec in ({}, both):
        check(lambda s=spec: jb.from_step(len, **good, **s), TypeError, "input_shape=(I,)")
    for shape in (3, "3", (2.0,), (0,), (True,)):
        pieces = "input_shape must be a tuple of positive sizes such as (3,)", repr(shape)
        check(lambda s=shape: jb.from_step(len, **good, input_shape=s), TypeError, *pieces)
    pieces = "input_spec must be a pytree of jax.ShapeDtypeStruct", "a leaf 3"
    check(lambda: jb.from_step(len, **good, input_spec=(3,)), TypeError, *pieces)
    assert jb.from_step(len, **good, input_shape=(np.int64(I),)).input_spec.shape == (I,)


def test_wrappers():
    check(lambda: jb.embedding(jb.lstm, vocabulary_size=V), TypeError, "embedding: cell must be")
    check(lambda: jb.embedding(TOKENS, vocabulary_size=V), ValueError, "must take vectors")
    check(lambda: jb.embedding(LSTM, vocabulary_size=0), ValueError, "vocabulary_size must be")
    check(lambda: jb.mixed_precision(jb.gru), TypeError, "mixed_precision: cell must be a Cell")
    for dtype in (jnp.int8, "flaot", None):
        pieces = "mixed_precision: dtype must be a floating dtype such as jnp.bfloat16", repr(dtype)
        check(lambda d=dtype: jb.mixed_precision(LSTM, dtype=d), TypeError, *pieces)


def test_activation():
    check(lambda: jb.elman(**SIZES, activation="tanh"), TypeError, "elman: activation", "jnp.tanh")
