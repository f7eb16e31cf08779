"""Messages about common mistakes: the way out, no array, no tree as JAX prints it."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_bptt
from tests.core.messages import check, params

jb: Any = jax_bptt  # the types are broken here on purpose
T, B, I, H, V = 8, 2, 3, 4, 5  # noqa: E741 - the axis letters of the package
SIZES = dict(input_size=I, hidden_size=H)
LSTM = jb.lstm(**SIZES)
TOKENS = jb.embedding(LSTM, vocabulary_size=V)
LAYER = jb.layer(LSTM)
XS = np.ones((T, B, I))
P = params(LSTM)
RESTORE = "jax.eval_shape(cell.init, jax.random.key(0)) as the target"


def refused(call, error, *pieces):
    """Check a message, and that it prints no array and no structure."""
    check(call, error, *pieces)
    with pytest.raises(error) as caught:
        call()
    assert "rray([" not in str(caught.value) and "PyTreeDef" not in str(caught.value)


# Options: (given, error, pieces)
OPTIONS = {
    "float resets": (
        *(dict(resets=np.zeros((T, B))), TypeError, "resets must be one array of booleans"),
        *("got an array float64[8, 2]", "1 begins a new sequence", "resets.astype(bool)"),
    ),
    "integer mask": (
        *(dict(mask=np.zeros((T, B), int)), TypeError, "got an array int64[8, 2]"),
        *("0 is a step that is not taken", "mask.astype(bool)"),
    ),
    "float lengths": (
        *(dict(lengths=np.ones(B)), TypeError, "lengths must be one array of integers"),
        "lengths.astype(int)",
    ),
    "a mask for lengths": (dict(lengths=np.ones((T, B), bool)), TypeError, "is mask="),
    "a list of lengths": (
        *(dict(lengths=[8, 2]), TypeError, "got a list", "Pass jnp.asarray(lengths)"),
    ),
    "a tuple of lengths": (dict(lengths=(8, 2)), TypeError, "got a tuple", "jnp.asarray(lengths)"),
    "a list of resets": (dict(resets=[[True] * B] * T), TypeError, "Pass jnp.asarray(resets)"),
    "a list for a mask": (dict(mask=[[True] * B] * T), TypeError, "Pass jnp.asarray(mask)"),
    "an array for reverse": (
        *(dict(reverse=np.ones(3)), TypeError, "reverse must be True or False"),
        "got an array float64[3]",
    ),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_options(case):
    given, error, *pieces = OPTIONS[case]
    refused(lambda: jb.unroll(LSTM, P, XS, **given), error, "unroll: ", *pieces)


@pytest.mark.parametrize("name", ["unroll", "bptt_gradients"])
def test_a_layer_for_a_cell(name):
    call = lambda: getattr(jb, name)(LAYER, P, XS)  # noqa: E731 - one call
    refused(call, TypeError, f"{name}: cell must be a Cell, got a Layer", "layer.apply(params, xs")


def test_a_layer_for_the_cell_of_a_step():
    call = lambda: jb.step(LAYER, P, None, XS[0])  # noqa: E731 - one call
    refused(call, TypeError, "step: cell must be a Cell, got a Layer", "layer.apply(params, xs")
    refused(lambda: jb.step(LSTM, P, None, "x"), TypeError, "step: x must be an array of numbers")


class Module:
    """A layer of some library."""

    def __call__(self, x):
        return x


class TorchModule(Module):
    def state_dict(self):
        return {}


OWN = jb.from_step(
    lambda w, s, x: s,
    init=lambda key: {"w_x": jnp.ones(I), "w_s": jnp.ones(I)},
    initial_state=lambda w, batch: jnp.zeros((*batch, I)),
    input_shape=(I,),
)
ONE = jb.from_step(
    lambda w, s, x: s,
    init=lambda key: jnp.ones(I),
    initial_state=lambda w, batch: jnp.zeros((*batch, I)),
    input_shape=(I,),
)
WIDE = {f"w_{k}": XS for k in range(9)}

# Parameters: (cell, params, pieces)
PARAMS = {
    "a dict of the fields": (
        *(LSTM, P._asdict(), "params is a dict of w_x, w_s, b, w_y, where what cell.init makes"),
        *("has a Params of w_x, w_s, b, w_y", RESTORE, "Params(**params)"),
    ),
    "a list": (LSTM, list(P), "params is a list of 4", RESTORE),
    "a dict further in": (
        *(TOKENS, params(TOKENS)._replace(cell=P._asdict()), "params.cell is a dict of w_x"),
        RESTORE,
    ),
    "a dict of other names": (LSTM, WIDE, "a dict of w_0, w_1, w_2, w_3, w_4, w_5, ..., where"),
    "None": (LSTM, None, "params is None", "params = cell.init(key)"),
    "a name too many and one missing": (
        *(OWN, {"w_x": XS, "u": XS}, "there is params['u'] and there is no params['w_s']"),
        "unlike what cell.init makes",
    ),
    "a name missing": (OWN, {"w_x": XS}, "there is no params['w_s'], unlike"),
    "a name too many": (OWN, params(OWN) | {"b": XS}, "there is params['b'], unlike"),
    "a tree for an array": (OWN, {"w_x": [XS], "w_s": XS}, "params['w_x'] is a list of 1"),
    "the function uncalled": (LSTM, LSTM.init, "params is the function init"),
    "the cell": (LSTM, LSTM, "params is a Cell"),
    "a module": (LSTM, Module(), "params is a Module, where", "jb.interop"),
    "a module of PyTorch": (LSTM, TorchModule(), "jb.interop.torch.to_params(module.state_dict())"),
    "a module for an array": (ONE, Module(), "params must be an array of numbers, got a Module"),
    "a number beyond all": (ONE, 10**400, "params must be an array of numbers, got an int"),
}


@pytest.mark.parametrize("case", PARAMS)
def test_params(case):
    cell, given, *pieces = PARAMS[case]
    xs = np.ones((T, B), int) if cell is TOKENS else XS
    refused(lambda: jb.unroll(cell, given, xs), TypeError, "unroll: ", *pieces)


def test_a_difference_that_is_in_no_leaf():
    class Tagged:
        def __init__(self, w, tag):
            self.w, self.tag = w, tag

    jax.tree_util.register_dataclass(Tagged, data_fields=["w"], meta_fields=["tag"])
    cell = jb.from_step(
        lambda w, s, x: s,
        init=lambda key: Tagged(jnp.ones(I), "a"),
        initial_state=lambda w, batch: jnp.zeros((*batch, I)),
        input_shape=(I,),
    )
    pieces = "params, a Tagged, differs from what cell.init makes in what it holds besides arrays"
    refused(lambda: jb.unroll(cell, Tagged(jnp.ones(I), "b"), XS), TypeError, pieces)


KEYS = {
    "an integer": (0, TypeError, "got an int", "Pass jax.random.key(0)"),
    "an old key": (
        *(jax.random.PRNGKey(0), TypeError, "got an array uint32[2]"),
        "jax.random.key(0) where this is jax.random.PRNGKey(0)",
    ),
    "None": (None, TypeError, "got None"),
    "several": (jax.random.split(jax.random.key(0), 3), ValueError, "single key", "[3]", "vmap"),
}


@pytest.mark.parametrize("case", KEYS)
@pytest.mark.parametrize("cell", [LSTM, jb.indrnn(**SIZES), jb.stack(LAYER)])
def test_keys(cell, case):
    key, error, *pieces = KEYS[case]
    refused(lambda: cell.init(key), error, ": key must be a ", *pieces)


# Settings of constructors: (made by, error, pieces)
SETTINGS = {
    "NumPy's tanh": (
        *(lambda: jb.elman(**SIZES, activation=np.tanh), TypeError),
        *("elman: activation must be a function of JAX arrays, got numpy.tanh", "Take jnp.tanh."),
    ),
    "math's tanh": (
        *(lambda: jb.indrnn(**SIZES, activation=math.tanh), TypeError),
        *("indrnn: activation", "got math.tanh", "Take jnp.tanh."),
    ),
    "a function that JAX has not": (
        *(lambda: jb.elman(**SIZES, activation=math.erf), TypeError, "got math.erf"),
        "Take jnp.tanh.",
    ),
    "a NaN for a bias": (lambda: jb.lstm(**SIZES, forget_bias=np.nan), TypeError, "got nan"),
    "an array for a bias": (
        *(lambda: jb.lstm(**SIZES, forget_bias=np.ones(3)), TypeError, "got an array float64[3]"),
    ),
    "an array for a size": (
        *(lambda: jb.lstm(input_size=jnp.ones(3), hidden_size=2), ValueError),
        "input_size must be a positive integer below 2**28, got an array float64[3]",
    ),
    "a list of arrays for a size": (
        lambda: jb.lstm(input_size=[np.ones(3)], hidden_size=2),
        *(ValueError, "got a list"),
    ),
    "an array for a dtype": (lambda: jb.lstm(**SIZES, dtype=np.ones(3)), TypeError, "got an array"),
    "an array for a rate": (lambda: jb.dropout(rate=np.ones(3)), ValueError, "got an array"),
    "a cell of another library": (
        *(lambda: jb.mixed_precision(Module()), TypeError, "cell must be a Cell, got a Module"),
    ),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_settings(case):
    make, error, *pieces = SETTINGS[case]
    refused(make, error, *pieces)


@pytest.mark.parametrize("name", ["elman", "lstm", "gru", "indrnn", "lru", "conv_lstm"])
def test_sizes_beyond_any_array(name):
    more = dict(image_shape=(4, 4), kernel_shape=(3, 3)) if name == "conv_lstm" else {}
    for size in (2**28, 10**12, 10**30):
        call = lambda s=size: getattr(jb, name)(input_size=I, hidden_size=s, **more)  # noqa: E731
        pieces = f"{name}: hidden_size must be a positive integer below 2**28", str(size)
        refused(call, ValueError, *pieces)
    refused(lambda: jb.embedding(LSTM, vocabulary_size=10**12), ValueError, "vocabulary_size must")


def test_integers_that_jax_would_wrap():
    """2**32 + 1 is 1 where there are no 64 bits."""
    with jax.enable_x64(False):
        cell = jb.embedding(jb.gru(**SIZES), vocabulary_size=V)
        xs = np.ones((T, B), int)
        pieces = "which do not fit into int32", "jax_enable_x64"
        refused(lambda: jb.unroll(cell, params(cell), xs + 2**32), ValueError, "xs has", *pieces)
        lengths = np.full(B, 2**32 + 1)
        call = lambda: jb.unroll(cell, params(cell), xs, lengths=lengths)  # noqa: E731 - one call
        refused(call, ValueError, "unroll: lengths has numbers from 0 to 4294967297", *pieces)
        jax.eval_shape(lambda: jb.unroll(cell, params(cell), xs, lengths=np.full(B, T)))
