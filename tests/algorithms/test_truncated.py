"""Truncated gradients against loops that detach, both modes, every option of the sequences."""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_bptt as jb
from tests import reference
from tests.covering import covering
from tests.registry import CELLS, FEW, KINDS, assert_close, problem, slow_unless, without_int

EXACT = 1e-12
T, B = 5, 3
LENGTHS = np.array([5, 3, 4])
RESETS = np.array([[0, 1, 0], [0, 0, 0], [0, 1, 1], [1, 0, 0], [0, 0, 0]], bool)
MASK = np.array([[1, 1, 0], [1, 1, 1], [0, 1, 1], [1, 1, 1], [1, 1, 1]], bool)
OPTIONS: dict[str, dict[str, Any]] = {
    "lengths": dict(lengths=LENGTHS),
    "all": dict(lengths=LENGTHS, resets=RESETS, mask=MASK),
    "all_reverse": dict(lengths=LENGTHS, resets=RESETS, mask=MASK, reverse=True),
}


def rows_of(options):
    """Return for each row its steps in the order of time, (t, whether reset, whether taken)."""
    lengths = options.get("lengths", np.full(B, T))
    resets = options.get("resets", np.zeros((T, B), bool))
    mask = options.get("mask", np.ones((T, B), bool))
    for row in range(B):
        times = range(lengths[row])
        times = reversed(times) if options.get("reverse") else times
        yield [(t, resets[t, row], mask[t, row]) for t in times]


def detaching(name, window, sliding, options):
    """Return (params, xs, state) -> (last_state, ys), every row alone in a loop that detaches."""
    xp: Any = jnp  # a module is hashable, though its type does not say so
    step, readout, prepare = reference.on(xp, CELLS[name].reference)

    def windows(p, start, xs, moves):
        """Detach the state after every `window` steps."""
        state, taken, outputs = start, 0, {}
        for t, reset, takes in moves:
            if takes and taken and taken % window == 0:
                state = detached(state)
            state = start if reset else state
            if takes:
                state, taken = step(p, state, xs[t]), taken + 1
            outputs[t] = state
        return state, outputs

    def reaching(p, start, xs, moves):
        """Run the last `window` steps again for each output, from a state that is detached."""
        # The state before each step that was taken, and what happened from there on.
        pasts, state, outputs = [(start, [])], start, {}
        for t, reset, takes in moves:
            if reset:
                state = start
            for _, events in pasts:
                events.extend(["reset"] if reset else [])
                events.extend([t] if takes else [])
            if takes:
                state = step(p, state, xs[t])
                pasts.append((state, []))
            back = pasts[max(0, len(pasts) - 1 - window)]
            first, events = back
            again = first if back is pasts[0] else detached(first)
            for event in events:
                again = start if event == "reset" else step(p, again, xs[event])
            outputs[t] = again
        return (outputs[moves[-1][0]] if moves else start), outputs

    def run(params, xs, state):
        p = prepare(params)
        starts, inputs = reference._cut(state, xs)
        lasts, rows = [], []
        for row, moves in enumerate(rows_of(options)):
            each = reaching if sliding else windows
            last, states = each(p, starts[row], inputs[row], moves)
            zero = jax.tree.map(lambda y: y * 0, readout(p, starts[row]))
            lasts.append(last)
            rows.append([readout(p, states[t]) if t in states else zero for t in range(T)])
        return reference._join(lasts, rows)

    return run


def detached(state):
    return jax.tree.map(lambda a: jax.lax.stop_gradient(a), state)


def arguments(name):
    p = problem(name, (B,), T)
    return jax.tree.map(jnp.asarray, (p.params, p.xs, p.state)), p.cotangents


def pulled(run, name):
    args, cotangents = arguments(name)

    def loss(*args):
        outputs = run(*args)
        return reference.pair(jnp, cotangents, outputs), outputs

    gradients, outputs = jax.grad(loss, (0, 1, 2), has_aux=True, allow_int=True)(*args)
    return outputs, without_int(gradients)


def truncated(name, window, sliding, options):
    cell, algorithm = CELLS[name].cell, jb.truncated(window, sliding=sliding)

    def run(params, xs, state):
        start = dict(reset_state=state) if "resets" in options else {}
        return jb.unroll(cell, params, xs, state, algorithm=algorithm, **options, **start)

    return run


QUICK = {
    ("lstm_readout", 2, True, "all"),
    ("counted", 3, True, "all_reverse"),
    ("gru_reset_before", 1, False, "lengths"),
}
ROWS = covering(itertools.product(CELLS, (1, 2, 3), (False, True), OPTIONS)) | QUICK


@pytest.mark.parametrize(
    "name, window, sliding, options", [slow_unless(row in QUICK, *row) for row in sorted(ROWS)]
)
def test_the_gradient_is_that_of_a_loop_that_detaches(name, window, sliding, options):
    options = OPTIONS[options]
    got = jax.jit(lambda: pulled(truncated(name, window, sliding, options), name))()
    with jax.numpy_dtype_promotion("standard"):
        want = pulled(detaching(name, window, sliding, options), name)
    assert_close(got, want, EXACT)


@pytest.mark.parametrize("sliding", [False, True])
@pytest.mark.parametrize("name", [slow_unless(name == FEW[0], name) for name in KINDS])
def test_both_modes_are_transposes(name, sliding):
    args, cotangents = arguments(name)
    rng = np.random.default_rng(5)
    inexact = [a for a in jax.tree.leaves(args) if reference.is_inexact(a)]
    directions = [jnp.asarray(rng.normal(size=a.shape), a.dtype) for a in inexact]
    run = truncated(name, 2, sliding, OPTIONS["all"])

    def loss(leaves):
        given = iter(leaves)
        filled = jax.tree.map(lambda a: next(given) if reference.is_inexact(a) else a, args)
        return reference.pair(jnp, cotangents, run(*filled))

    @jax.jit
    def both(leaves, directions):
        return jax.jvp(loss, (leaves,), (directions,))[1], jax.grad(loss)(leaves)

    pushed, gradients = both(inexact, directions)
    terms = [float((g * d).sum().real) for g, d in zip(gradients, directions, strict=True)]
    assert abs(float(pushed) - sum(terms)) <= EXACT * np.abs(terms).sum()


@pytest.mark.parametrize("sliding", [False, True])
@pytest.mark.parametrize("name", [slow_unless(name == FEW[0], name) for name in CELLS])
def test_from_t_steps_on_it_is_exact(name, sliding):
    got = jax.jit(lambda: pulled(truncated(name, T, sliding, {}), name))()
    exact = functools.partial(jb.unroll, CELLS[name].cell, algorithm=jb.bptt())
    assert_close(got, jax.jit(lambda: pulled(exact, name))(), EXACT)


@pytest.mark.parametrize("sliding", [slow_unless(False, False), True])
@pytest.mark.parametrize("name", [slow_unless(False, "embedding"), "counted"])
def test_vmap_over_lengths_and_what_is_no_number(name, sliding):
    (params, xs, state), cotangents = arguments(name)
    cell, algorithm = CELLS[name].cell, jb.truncated(2, sliding=sliding)

    def one(length, xs, state, cotangents):
        def loss(params):
            outputs = jb.unroll(cell, params, xs, state, algorithm=algorithm, lengths=length)
            return reference.pair(jnp, cotangents, outputs)

        return jax.grad(loss)(params), jax.jvp(loss, (params,), (params,))[1]

    rows = jnp.asarray(LENGTHS), xs, state, cotangents
    gradients, pushed = jax.jit(jax.vmap(one, (0, 1, 0, (0, 1))))(*rows)
    for row in range(B):
        ends = at(0, row, (rows[0], state, cotangents[0]))
        steps = at(1, row, (xs, cotangents[1]))
        want = jax.jit(one)(ends[0], steps[0], ends[1], (ends[2], steps[1]))
        assert_close(at(0, row, (gradients, pushed)), want, 1e-11)


def at(axis, row, tree):
    return jax.tree.map(lambda a: jnp.take(jnp.asarray(a), row, axis), tree)


@pytest.mark.parametrize("window", [0, -1, 1.5, True, None])
def test_a_window_is_a_positive_number_of_steps(window):
    with pytest.raises((ValueError, TypeError), match="truncated: window must be a positive"):
        jb.truncated(window)


def test_sliding_is_a_bool():
    with pytest.raises(TypeError, match="truncated: sliding must be True or False, got 3"):
        jb.truncated(2, sliding=3)  # pyright: ignore[reportArgumentType]
