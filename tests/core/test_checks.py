"""Every way of holding it wrong: the error names function, argument, both shapes, the way out."""

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
ELMAN = jb.elman(**SIZES)
TOKENS = jb.embedding(LSTM, vocabulary_size=V)
XS = np.ones((T, B, I))
HIDDEN = np.zeros((B, H))
STATE = jb.LSTMState(HIDDEN, HIDDEN)


# xs and state: (cell, xs, state, error, what the message has to contain)
INPUTS = {
    "a single input": (LSTM, np.ones(I), None, ValueError, "xs.shape=(3,)", "[T, *batch, 3]"),
    "a scalar": (LSTM, 1.0, None, ValueError, "xs.shape=()", "time is the first axis"),
    "input size": (
        LSTM,
        np.ones((T, B, 5)),
        None,
        ValueError,
        "(8, 2, 5)",
        "(3,)",
        "Make the cell",
    ),
    "batch-major xs": (
        *(LSTM, np.ones((B, T, I)), STATE, ValueError),
        *("xs.shape=(2, 8, 3)", "state.h.shape=(2, 4)", "jnp.swapaxes(xs, 0, 1)"),
    ),
    "batch-major xs, simple state": (
        *(ELMAN, np.ones((B, T, I)), HIDDEN, ValueError),
        *("xs.shape=(2, 8, 3)", "state.shape=(2, 4)", "jnp.swapaxes(xs, 0, 1)"),
    ),
    "batch-major tokens": (
        *(TOKENS, np.ones((B, T), np.int32), STATE, ValueError),
        *("xs.shape=(2, 8)", "(2, 4)", "jnp.swapaxes(xs, 0, 1)"),
    ),
    "state without its batch": (
        *(ELMAN, XS, np.zeros(H), ValueError),
        *("state.shape=(4,)", "(2, 4)", "xs.shape=(8, 2, 3)", "cell.initial_state(params, (2,))"),
    ),
    "state of another size": (
        *(ELMAN, XS, np.zeros((B, 5)), ValueError, "state.shape=(2, 5)", "(2, 4)"),
    ),
    "state of another cell": (
        *(LSTM, XS, HIDDEN, TypeError, "state is an array float64[2, 4], where this cell's state"),
        *("has a LSTMState of h, c", "cell.initial_state(params, (2,))"),
    ),
    "LSTM state to another cell": (
        *(ELMAN, XS, STATE, TypeError, "state is a LSTMState of h, c", "has an array"),
    ),
    "state as a plain tuple": (
        *(LSTM, XS, tuple(STATE), TypeError, "state is a tuple of 2", "a LSTMState of h, c"),
        "cell.initial_state(params, (2,))",
    ),
    "a string for state": (ELMAN, XS, "zeros", TypeError, "state must be an array", "got a str"),
    "float32 state": (
        *(ELMAN, XS, np.zeros((B, H), np.float32), TypeError, "state has dtype float32"),
        *("carries float64", "state.astype('float64')"),
    ),
    "float32 leaf of a state": (
        *(LSTM, XS, STATE._replace(c=HIDDEN.astype(np.float32)), TypeError),
        *("state.c has dtype float32", "carries float64", "state.c.astype('float64')"),
    ),
    "integer state": (
        *(ELMAN, XS, np.zeros((B, H), int), TypeError, "state has dtype int64", "carries float64"),
    ),
    "float32 xs": (
        *(LSTM, XS.astype(np.float32), None, TypeError, "xs has dtype float32"),
        *("weights have float64", "xs.astype", "dtype="),
    ),
    "integers to a float cell": (
        *(LSTM, np.ones((T, B), int), None, TypeError, "xs has dtype int64"),
        *("floating-point", "jb.embedding(cell, vocabulary_size=...)"),
    ),
    "booleans": (LSTM, XS > 0, None, TypeError, "xs has dtype bool", "xs.astype"),
    "complex xs": (
        *(LSTM, XS + 0j, None, TypeError, "xs has dtype complex128", "floating-point"),
        "jnp.concatenate([xs.real, xs.imag], -1)",
    ),
    "one-hot vectors to an embedding": (
        *(TOKENS, np.ones((T, B, V)), None, TypeError, "xs has dtype float64", "integer inputs"),
        *("integer tokens", "jnp.argmax(xs, -1)"),
    ),
    "a key": (
        *(LSTM, jax.random.key(0), None, TypeError, "xs has dtype key<fry>", "floating-point"),
        "jax.random.normal(key, (T, *batch, 3))",
    ),
    "a string": (LSTM, "xs", None, TypeError, "xs must be an array of numbers", "got a str"),
    "objects": (
        *(LSTM, np.array([[1.0], [1.0, 2.0]], object), None, TypeError),
        *("xs must be an array of numbers", "got dtype object", "unequal length"),
    ),
    "no arrays": (LSTM, (), None, TypeError, "xs is a tuple", "one array"),
    "the algorithm for xs": (LSTM, jb.bptt(), None, TypeError, "xs is an Algorithm", "input_spec"),
    "None for xs": (LSTM, None, None, TypeError, "xs is None", "input_spec"),
    "a list of arrays": (
        *(LSTM, list(XS), None, TypeError, "xs is a list", "one array", "jnp.stack(xs)"),
    ),
    "a dict of arrays": (
        *(LSTM, {"x": XS}, None, TypeError, "xs is a dict of x", "has an array", "input_spec"),
    ),
    "the algorithm for a state": (LSTM, XS, jb.bptt(), TypeError, "state is an Algorithm"),
}


@pytest.mark.parametrize("case", INPUTS)
def test_inputs(case):
    cell, xs, state, error, *pieces = INPUTS[case]
    check(lambda: jb.unroll(cell, params(cell), xs, state), error, "unroll: ", *pieces)


# params: (made by, error, pieces)
PARAMS = {
    "a key": (lambda: jax.random.key(0), TypeError, "PRNG key", "params = cell.init(key)"),
    "keys in a list": (lambda: [jax.random.key(0)], TypeError, "params = cell.init(key)"),
    "an old key": (
        *(lambda: jax.random.PRNGKey(0), TypeError, "params is a PRNG key"),
        "params = cell.init(key)",
    ),
    "None": (lambda: None, TypeError, "params is None, where", "params = cell.init(key)"),
    "a plain tuple": (
        *(lambda: tuple(params(LSTM)), TypeError, "params is a tuple of 4", "has a Params of w_x"),
        "params = cell.init(key)",
    ),
    "of a GRU": (
        *(lambda: params(jb.gru(**SIZES)), TypeError, "params is a GRUParams", "has a Params of"),
        "params = cell.init(key)",
    ),
    "a string": (
        *(lambda: params(LSTM)._replace(b="b"), TypeError),
        *("params.b must be an array of numbers", "got a str"),
    ),
    "mixed dtypes": (
        *(lambda: params(LSTM)._replace(b=np.zeros((4, H), np.float32)), TypeError),
        *("params.w_x has dtype float64", "params.b has float32", "params.b.astype("),
    ),
    "of a simple cell": (
        *(lambda: params(ELMAN), ValueError, "params.w_x", "(3, 1, 4)", "(3, 4, 4)"),
        "params = cell.init(key)",
    ),
    "of another size": (
        *(lambda: params(jb.lstm(input_size=I, hidden_size=6)), ValueError),
        *("params.w_x", "(3, 4, 6)", "(3, 4, 4)", "params = cell.init(key)"),
    ),
    "with a readout": (
        *(lambda: params(jb.lstm(**SIZES, output_size=2)), TypeError),
        *("params.w_y is an array float64[4, 2], where what cell.init makes has None",),
    ),
    "several sets": (
        *(lambda: jax.tree.map(lambda p: p[None], params(LSTM)), ValueError),
        *("params.w_x", "(1, 3, 4, 4)", "jax.vmap"),
    ),
    "integers": (lambda: params(LSTM, int), TypeError, "params.w_x has dtype int64", "float64"),
    "float32": (
        *(lambda: params(LSTM, jnp.float32), TypeError),
        *("xs has dtype float64", "weights have float32", "xs.astype", "dtype="),
    ),
}


@pytest.mark.parametrize("case", PARAMS)
def test_params(case):
    make, error, *pieces = PARAMS[case]
    check(lambda: jb.unroll(LSTM, make(), XS), error, "unroll: ", *pieces)


@pytest.mark.parametrize("cell", [jb.lstm, None, "lstm", params])
def test_what_is_no_cell(cell):
    check(lambda: jb.unroll(cell, None, XS), TypeError, "unroll: cell must be a Cell", "jb.lstm")


def test_the_constructor_uncalled_is_named():
    check(lambda: jb.unroll(jb.lstm, None, XS), TypeError, "got the function lstm")


@pytest.mark.parametrize("function", [jb.unroll, jb.bptt_gradients])
@pytest.mark.parametrize("algorithm", [jb.bptt, "bptt", jb.bptt_gradients])
def test_what_is_no_algorithm(function, algorithm):
    check(
        lambda: function(LSTM, params(LSTM), XS, algorithm=algorithm),
        TypeError,
        f"{function.__name__}: algorithm must be an Algorithm",
        "jb.bptt()",
    )


def _own(step, **changed):
    made = dict(
        init=lambda key: jnp.ones(I),
        initial_state=lambda p, batch_shape: jnp.zeros((*batch_shape, I)),
        input_shape=(I,),
    )
    return jb.from_step(step, **(made | changed))


def test_mixed_dtypes_where_the_cell_means_them():
    """The dtypes of init count: one stays one; several may be narrowed together or apart."""
    inner = jb.mixed_precision(LSTM)
    tokens = jb.embedding(inner, vocabulary_size=V)
    for cell, xs in ((inner, XS.astype(np.float32)), (tokens, np.zeros((T, B), np.int32))):
        made = params(cell, jnp.float32)
        jb.unroll(cell, made, xs)
        odd = jax.tree.map(lambda p: p.astype(jnp.bfloat16 if p.ndim == 2 else p.dtype), made)
        pieces = "float32", "bfloat16", "Nothing is cast silently"
        check(lambda c=cell, p=odd, xs=xs: jb.unroll(c, p, xs), TypeError, *pieces)
    two = _own(
        lambda w, s, x: s + w[0].astype(s.dtype) * w[1].astype(s.dtype),
        init=lambda key: (jnp.ones((B, I)), jnp.ones((B, I), jnp.bfloat16)),
    )
    jb.unroll(two, params(two), XS)
    jb.unroll(two, params(two, jnp.float64), XS)


def test_the_default_dtype_is_part_of_what_init_makes():
    cell = _own(
        lambda w, s, x: s + w[0].astype(s.dtype) * w[1].astype(s.dtype),
        init=lambda key: (jnp.ones((B, I)), jnp.ones((B, I), jnp.float32)),
    )
    with jax.enable_x64(False):
        jb.unroll(cell, params(cell), XS.astype(np.float32))
    jb.unroll(cell, params(cell), XS)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("given", [False, True])
def test_a_narrow_initial_state(dtype, given):
    cell = _own(lambda w, s, x: s, initial_state=lambda p, b: {"s": jnp.zeros((*b, I), dtype)})
    state = {"s": np.zeros((B, I), dtype)} if given else None
    pieces = f"state['s'] of dtype {jnp.dtype(dtype).name}", "float32 or wider", "jnp.float32"
    check(lambda: jb.unroll(cell, params(cell), XS, state), TypeError, "unroll: ", *pieces)


@pytest.mark.parametrize("function", [jb.unroll, jb.bptt_gradients])
@pytest.mark.parametrize("missing", ["pointwise_fwd", "pointwise_bwd"])
def test_half_a_pair(function, missing):
    cell = LSTM._replace(step=LSTM.step._replace(**{missing: None}))
    pieces = f"{function.__name__}: cell.step", f"{missing} is missing", "or neither"
    check(lambda: function(cell, params(cell), XS), TypeError, *pieces)


def test_floats_where_the_cell_takes_keys():
    cell = _own(
        lambda w, s, k: s + jax.random.normal(k, (I,)),
        input_shape=None,
        input_spec=jax.ShapeDtypeStruct((), jax.random.key(0).dtype),
    )
    pieces = "PRNG-key inputs", "jax.random.split(key, T)"
    check(lambda: jb.unroll(cell, params(cell), np.ones(T)), TypeError, *pieces)


STEPS = {
    "shape": (lambda w, s, x: s[..., :2], "state from float64[2, 3] to float64[2, 2]"),
    "dtype": (
        lambda w, s, x: s.astype(jnp.float32),
        "state from float64[2, 3] to float32[2, 3]",
    ),
    "structure": (
        lambda w, s, x: (s, s),
        "the state that cell.step returns is a tuple of 2, where",
    ),
    "nothing": (lambda w, s, x: None, "the state that cell.step returns is None, where"),
    "number": (lambda w, s, x: 0.0, "state from float64[2, 3] to float64[]"),
}


@pytest.mark.parametrize("case", STEPS)
def test_a_step_that_changes_the_state(case):
    step, piece = STEPS[case]
    cell = _own(step)
    check(lambda: jb.unroll(cell, params(cell), XS), TypeError, "unroll: ", piece)


def test_an_initial_state_without_the_batch():
    cell = _own(lambda w, s, x: s + x, initial_state=lambda p, batch_shape: jnp.zeros(I))
    pieces = "unroll: cell.step changes state from float64[3] to float64[2, 3]", "batch shape of xs"
    with jax.numpy_rank_promotion("allow"):
        check(lambda: jb.unroll(cell, params(cell), XS), TypeError, *pieces)


def test_leaves_of_xs_that_disagree():
    spec = {k: jax.ShapeDtypeStruct((I,), jnp.float32) for k in "ab"}
    cell = _own(lambda w, s, x: s + x["a"] * x["b"], input_shape=None, input_spec=spec)
    xs = {"a": XS, "b": XS[:3]}
    pieces = "unroll: the leaves of xs disagree", "xs['a'] has (8, 2)", "xs['b'] has (3, 2)"
    check(lambda: jb.unroll(cell, params(cell), xs), ValueError, *pieces)


def test_xs_without_a_single_array():
    cell = _own(lambda w, s, x: s, input_shape=None, input_spec=())
    check(lambda: jb.unroll(cell, params(cell), ()), ValueError, "unroll: xs has no arrays")


COTANGENTS = {
    "shape of d_ys": (
        *(dict(d_ys=np.ones((T, B, 5))), ValueError, "d_ys is float64[8, 2, 5]"),
        "float64[8, 2, 4]",
    ),
    "one step of d_ys": (dict(d_ys=HIDDEN), ValueError, "d_ys is float64[2, 4]", "[8, 2, 4]"),
    "dtype of d_ys": (
        *(dict(d_ys=np.ones((T, B, H), np.float32)), ValueError, "d_ys is float32", "float64"),
    ),
    "structure of d_ys": (dict(d_ys=(np.ones((T, B, H)),)), TypeError, "d_ys is a tuple of 1"),
    "a string for d_ys": (dict(d_ys="ones"), TypeError, "d_ys must be an array", "got a str"),
    "structure of d_last_state": (
        *(dict(d_last_state=HIDDEN), TypeError, "d_last_state is an array", "LSTMState"),
        "None at leaves that have no gradient",
    ),
    "shape of d_last_state": (
        *(dict(d_last_state=jb.LSTMState(HIDDEN, np.ones((3, H)))), ValueError),
        *("d_last_state.c is float64[3, 4]", "float64[2, 4]"),
    ),
    "no explicit backward": (dict(algorithm=jb.autodiff()), ValueError, "jax.vjp", "jb.bptt()"),
}


@pytest.mark.parametrize("case", COTANGENTS)
def test_bptt_gradients(case):
    given, error, *pieces = COTANGENTS[case]
    call = lambda: jb.bptt_gradients(LSTM, params(LSTM), XS, **given)  # noqa: E731 - one call
    check(call, error, "bptt_gradients: ", *pieces)


def test_bptt_gradients_checks_its_inputs_under_its_own_name():
    call = lambda: jb.bptt_gradients(LSTM, params(LSTM), XS, HIDDEN)  # noqa: E731 - one call
    check(call, TypeError, "bptt_gradients: state is an array")


def test_errors_come_at_trace_time():
    check(
        lambda: jax.jit(lambda p, xs: jb.unroll(LSTM, p, xs))(params(LSTM), np.ones(I)), ValueError
    )
    check(lambda: jax.eval_shape(lambda p: jb.unroll(LSTM, p, XS)[1], params(ELMAN)), ValueError)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_no_number_is_not_repaired(bad):
    """It spreads to all later outputs and gradients, and to no earlier output."""
    xs = XS.copy()
    xs[3, 0, 1] = bad
    cell = jb.elman(**SIZES, activation=jnp.sin)
    run = jax.jit(lambda p: jb.unroll(cell, p, xs)[1])
    ys = run(params(cell))
    assert np.isfinite(ys[:3]).all() and np.isfinite(ys[:, 1]).all()
    assert np.isnan(ys[3:, 0]).all()
    assert all(
        np.isnan(d).any() for d in jax.tree.leaves(jax.grad(lambda p: run(p).sum())(params(cell)))
    )
