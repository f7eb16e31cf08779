"""Lengths, resets, masks and direction: every cell and algorithm, against rows run alone."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_bptt as jb
from tests import reference
from tests.core.messages import check
from tests.reference import Options
from tests.registry import (
    ALGORITHMS,
    BATCH,
    CELLS,
    KINDS,
    QUICK,
    STEPS,
    assert_close,
    each_kind_in_time,
    problem,
    slow_unless,
    without_int,
)

EXACT = 1e-11
ROWS = BATCH[0]
RNG = np.random.default_rng(5)

LENGTHS = np.array([STEPS, 3, 0, 1, STEPS - 1, 5])
FULL = np.full(ROWS, STEPS)
NEVER = np.zeros((STEPS, ROWS), bool)
RESETS = RNG.random((STEPS, ROWS)) < 0.3
MASK = RNG.random((STEPS, ROWS)) < 0.6

# One compiled function serves them all: which rows end, restart or hold is data.
OPTIONS = {
    "none": Options(FULL, NEVER, ~NEVER),
    "lengths": Options(LENGTHS, NEVER, ~NEVER),
    "resets": Options(FULL, RESETS, ~NEVER),
    "mask": Options(FULL, NEVER, MASK),
    "all": Options(LENGTHS, RESETS, MASK),
}


# Each kind with one of the options, of which each is there.
ALONE = {("lstm_readout", "lengths"), ("gru_reset_before", "resets"), ("counted", "mask")}


def keywords(options):
    return dict(lengths=options.lengths, resets=options.resets, mask=options.mask)


def poisoned(name, options):
    """Return the inputs with NaN at every step that must not be read."""
    read = options.mask & (np.arange(STEPS)[:, None] < options.lengths)

    def leaf(x):
        where = read.reshape(read.shape + (1,) * (x.ndim - 2))
        return np.where(where, x, np.nan) if reference.is_inexact(x) else x

    return jax.tree.map(leaf, problem(name).xs)


def gradient(name, algorithm, reverse, arguments, cotangents, options):
    def loss(arguments):
        params, xs, state = arguments
        outputs = jb.unroll(
            CELLS[name].cell,
            params,
            xs,
            state,
            algorithm=ALGORITHMS[algorithm],
            reverse=reverse,
            reset_state=state if "resets" in options else None,
            **options,
        )
        return reference.pair(jnp, cotangents, outputs), outputs

    gradients, outputs = jax.grad(loss, has_aux=True, allow_int=True)(arguments)
    return outputs, without_int(gradients)


@functools.cache
def compiled(name, algorithm, reverse):
    return jax.jit(functools.partial(gradient, name, algorithm, reverse))


@functools.cache
def expected(name, option, reverse):
    p = problem(name)
    outputs, gradients = reference.row_gradients(
        CELLS[name].reference,
        p.params,
        p.state,
        p.xs,
        OPTIONS[option]._replace(reverse=reverse),
        p.cotangents,
    )
    return outputs, without_int(gradients)


@pytest.mark.parametrize(
    "name, algorithm, option",
    [
        slow_unless((name, algorithm) in QUICK and option == "all", name, algorithm, option)
        for name, algorithm, option in itertools.product(CELLS, ALGORITHMS, OPTIONS)
    ],
)
def test_every_option(name, algorithm, option):
    p, options = problem(name), OPTIONS[option]
    # Each direction with two of the four algorithms: a direction is one more compilation.
    reverse = algorithm in ("bptt_3", "autodiff")
    arguments = p.params, poisoned(name, options), p.state
    got = compiled(name, algorithm, reverse)(arguments, p.cotangents, keywords(options))
    assert_close(got, expected(name, option, reverse), EXACT)


@pytest.mark.parametrize(
    "name, option",
    [
        slow_unless(row in ALONE, *row)
        for row in itertools.product(KINDS, ("lengths", "resets", "mask"))
    ],
)
def test_an_option_alone(name, option):
    p = problem(name)
    given = {option: getattr(OPTIONS[option], option)}
    arguments = p.params, poisoned(name, OPTIONS[option]), p.state
    got = compiled(name, "bptt_3", False)(arguments, p.cotangents, given)
    assert_close(got, expected(name, option, False), EXACT)


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_bptt_gradients_with_every_option(name):
    p, options = problem(name), keywords(OPTIONS["all"])
    d_last_state, d_ys = p.cotangents
    cell, xs = CELLS[name].cell, poisoned(name, OPTIONS["all"])
    by_hand = functools.partial(jb.bptt_gradients, cell, reverse=True)
    got = jax.jit(by_hand)(p.params, xs, p.state, d_ys, d_last_state, **options)

    def loss(arguments):
        outputs = jb.unroll(cell, *arguments, reverse=True, algorithm=jb.autodiff(), **options)
        return reference.pair(jnp, p.cotangents, outputs)

    gradient = jax.jit(lambda a: without_int(jax.grad(loss, allow_int=True)(a)))
    assert_close(got, gradient((p.params, xs, p.state)), EXACT)


@pytest.mark.slow  # tests/core/test_streaming.py has rows of this in the quick run
@pytest.mark.parametrize("algorithm", ["bptt_3", "autodiff"])
@each_kind_in_time
def test_steps_streamed_one_by_one_equal_the_window(name, algorithm):
    """With resets and a carried state, which a reset forgets for what the cell itself begins from.

    The cell's own start is learned, so that its gradient is seen as well.
    """
    cell = jb.learned_state(CELLS[name].cell)
    p, a = problem(name), ALGORITHMS[algorithm]
    params = jax.tree.map(lambda s: s + 0.1 if reference.is_inexact(s) else s, p.params)
    params = cell.init(jax.random.key(0))._replace(cell=params)

    def streamed(params, xs, state):
        ys = []
        for t in range(STEPS):
            x = jax.tree.map(lambda a, t=t: a[t : t + 1], xs)
            state, y = jb.unroll(cell, params, x, state, resets=RESETS[t : t + 1], algorithm=a)
            ys.append(y)
        return state, jax.tree.map(lambda *ys: jnp.concatenate(ys), *ys)

    def window(params, xs, state):
        return jb.unroll(cell, params, xs, state, resets=RESETS, algorithm=a)

    def gradient(run):
        def loss(arguments):
            outputs = run(*arguments)
            return reference.pair(jnp, p.cotangents, outputs), outputs

        def both(arguments):
            gradients, outputs = jax.grad(loss, has_aux=True, allow_int=True)(arguments)
            return outputs, without_int(gradients)

        return jax.jit(both)((params, p.xs, p.state))

    assert_close(gradient(window), gradient(streamed), 1e-12)


def test_a_reset_with_one_step_starts_again():
    cell = jb.lstm(input_size=2, hidden_size=3)
    params, x = cell.init(jax.random.key(0)), jnp.ones((1, 4, 2))
    state = jax.tree.map(lambda s: s + 1, cell.initial_state(params, (4,)))
    fresh = jb.unroll(cell, params, x)
    assert_close(jb.unroll(cell, params, x, state, resets=jnp.ones((1, 4), bool)), fresh, 0)
    own = jb.unroll(cell, params, x, resets=jnp.ones((1, 4), bool), reset_state=state)
    assert_close(own, jb.unroll(cell, params, x, state), 0)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint32, np.int64])
def test_lengths_of_any_integer_type(dtype):
    """A traced length beyond T is T, of whatever type it comes."""
    cell = jb.elman(input_size=2, hidden_size=3)
    params, xs = cell.init(jax.random.key(0)), jnp.ones((300, 2, 2))
    run = jax.jit(lambda lengths: jb.unroll(cell, params, xs, lengths=lengths)[1])
    lengths = np.array([np.iinfo(dtype).max, 3], dtype)
    steps = min(int(lengths[0]), 300)
    assert (run(lengths) != 0).any(-1).sum(0).tolist() == [steps, 3]


@each_kind_in_time
def test_padding_changes_no_bit(name):
    p, options = problem(name), OPTIONS["all"]
    run = compiled(name, "bptt_3", False)

    def padded_with(value):
        xs = poisoned(name, options)
        return jax.tree.map(
            lambda x: np.where(np.isnan(x), value, x) if reference.is_inexact(x) else x, xs
        )

    results = [
        run((p.params, padded_with(value), p.state), p.cotangents, keywords(options))
        for value in (0.0, np.nan, np.inf, 1e300)
    ]
    for result in results[1:]:
        jax.tree.map(np.testing.assert_array_equal, result, results[0])


@each_kind_in_time
def test_cotangents_on_padding_do_not_count(name):
    p, options = problem(name), OPTIONS["lengths"]
    beyond = np.arange(STEPS)[:, None] >= options.lengths

    def spoil(d):
        if d is None:
            return None
        return np.where(beyond.reshape(beyond.shape + (1,) * (d.ndim - 2)), np.nan, d)

    cotangents = p.cotangents[0], jax.tree.map(spoil, p.cotangents[1], is_leaf=lambda d: d is None)
    d_last_state, d_ys = cotangents
    by_hand = jax.jit(functools.partial(jb.bptt_gradients, CELLS[name].cell))
    got = by_hand(p.params, p.xs, p.state, d_ys, d_last_state, lengths=options.lengths)
    assert_close(got, expected(name, "lengths", False)[1], EXACT)


@pytest.mark.parametrize(
    "name, block_length",
    [
        slow_unless(row == ("lstm_readout", 3), *row)
        for row in itertools.product(("lstm", "gru", "lstm_readout"), (1, 3))
    ],
)
def test_a_ragged_batch_has_the_outputs_of_each_sequence_run_alone(name, block_length):
    """Bit by bit where the products have the same shapes: the same batch, and whole blocks.

    A readout is one product over all steps, so that its rounding depends on their number.
    """
    p, cell = problem(name), CELLS[name].cell
    run = jax.jit(functools.partial(jb.unroll, cell, algorithm=jb.bptt(block_length=block_length)))
    lengths = LENGTHS - LENGTHS % block_length
    together = run(p.params, p.xs, p.state, lengths=lengths)
    for row in np.flatnonzero(lengths):
        n = lengths[row]
        xs = jax.tree.map(lambda a, r=row, n=n: np.stack([a[:n, r]] * ROWS, 1), p.xs)
        state = jax.tree.map(lambda a, r=row: np.stack([a[r]] * ROWS), p.state)
        alone = run(p.params, xs, state)
        want = (
            jax.tree.map(lambda a, r=row: a[r], together[0]),
            jax.tree.map(lambda a, r=row, n=n: a[:n, r], together[1]),
        )
        got = jax.tree.map(lambda a: a[0], alone[0]), jax.tree.map(lambda a: a[:, 0], alone[1])
        jax.tree.map(np.testing.assert_array_equal, got[0], want[0])
        assert_close(got[1], want[1], 1e-15 if name.endswith("readout") else 0)


@each_kind_in_time
def test_reverse_is_a_flip(name):
    p = problem(name)
    run = jax.jit(functools.partial(jb.unroll, CELLS[name].cell), static_argnames="reverse")
    last_state, ys = run(p.params, p.xs, p.state, reverse=True)
    xs = jax.tree.map(lambda a: a[::-1], p.xs)
    want_state, want_ys = run(p.params, xs, p.state)
    assert_close(last_state, want_state, 0)
    assert_close(ys, jax.tree.map(lambda a: a[::-1], want_ys), 0)


def test_options_are_checked():
    cell = jb.lstm(input_size=2, hidden_size=3)
    params, xs = cell.init(jax.random.key(0)), jnp.ones((7, 4, 2))

    def refused(error, piece, **options):
        check(lambda: jb.unroll(cell, params, xs, **options), error, "unroll: ", piece)
        check(lambda: jb.bptt_gradients(cell, params, xs, **options), error, piece)

    refused(ValueError, "lengths.shape=(7,), but xs says [*batch]=(4,)", lengths=np.ones(7, int))
    refused(ValueError, "lengths go from 1 to 9, but xs has T=7", lengths=np.array([1, 2, 3, 9]))
    refused(ValueError, "lengths go from -1 to 3", lengths=np.array([1, 2, 3, -1]))
    refused(TypeError, "lengths must be one array of integer", lengths=np.ones(4))
    refused(
        ValueError,
        "resets.shape=(4, 7), but xs says [T, *batch]=(7, 4)",
        resets=np.zeros((4, 7), bool),
    )
    refused(TypeError, "mask must be one array of boolean", mask=np.ones((7, 4)))
    refused(TypeError, "reverse must be True or False", reverse=1)


def test_a_state_without_a_batch_cannot_be_held():
    cell = jb.from_step(
        lambda w, s, x: (s[0] + x, s[1] + 1),
        init=lambda key: jnp.ones(()),
        initial_state=lambda w, batch: (jnp.zeros((*batch, 2)), jnp.zeros(())),
        input_shape=(2,),
    )
    xs = jnp.ones((5, 3, 2))
    assert jb.unroll(cell, jnp.ones(()), xs)[0][1] == 5
    check(
        lambda: jb.unroll(cell, jnp.ones(()), xs, lengths=np.array([1, 2, 3])),
        ValueError,
        "state[1].shape=() does not lead with *batch=(3,)",
    )
