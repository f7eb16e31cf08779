"""Memory of past inputs: of a delay line, and against least squares in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np

import jax_bptt as jb
from tests.core.messages import check

memory_capacity = jb.diagnostics.memory_capacity
UNITS = 6


def line(any_batch=True):
    return jb.from_step(
        lambda w, s, x: jnp.concatenate([x, s[..., :-1]], -1),
        init=lambda key: (),
        initial_state=lambda w, batch: jnp.zeros((*batch, UNITS), jnp.float64),
        input_shape=(1,),
        any_batch=any_batch,
    )


def test_a_delay_line_has_as_much_as_units():
    xs = jax.random.normal(jax.random.key(0), (2000, 2, 1))
    found = memory_capacity(jb.diagnostics.trajectory(line(), (), xs), delays=UNITS + 2)
    np.testing.assert_allclose(found.by_delay[:UNITS], 1, rtol=1e-12)
    assert (found.by_delay[UNITS:] < 5 * found.chance).all() and found.chance < 2e-3
    np.testing.assert_allclose(found.total, UNITS, rtol=5e-3)
    exact = memory_capacity(jb.diagnostics.trajectory(line(), (), xs), delays=UNITS - 1)
    np.testing.assert_allclose(exact.total, UNITS, rtol=1e-12)
    # The batch as a whole remembers each sequence of its own.
    run = jb.diagnostics.trajectory(line(any_batch=False), (), xs)
    np.testing.assert_allclose(memory_capacity(run, delays=2).by_delay, np.ones((3, 2, 1)))


def test_against_least_squares():
    """Two features; a unit that never moves adds nothing."""
    cell = jb.elman(2, UNITS, dtype=jnp.float64)
    params = cell.init(jax.random.key(0))
    params = params._replace(w_x=params.w_x.at[..., 0].set(0), w_s=params.w_s.at[..., 0].set(0))
    xs = jax.random.normal(jax.random.key(1), (300, 3, 2))
    run = jb.diagnostics.trajectory(cell, params, xs)
    found = memory_capacity(run, delays=4, washout=10)
    rows = np.asarray(run.states)[10:].reshape(-1, UNITS)
    rows = np.concatenate([rows, np.ones_like(rows[:, :1])], 1)
    for delay in range(5):
        past = np.asarray(xs)[10 - delay : 300 - delay].reshape(-1, 2)
        fit = rows @ np.linalg.lstsq(rows, past, rcond=None)[0]
        want = [np.corrcoef(fit[:, k], past[:, k])[0, 1] ** 2 for k in range(2)]
        np.testing.assert_allclose(found.by_delay[delay], want, rtol=1e-9)


def test_messages():
    run = jb.diagnostics.trajectory(line(), (), jnp.ones((20, 1)))
    check(lambda: memory_capacity(run, delays=-1), ValueError, "delays must be", "got -1")
    check(lambda: memory_capacity(run, delays=15), ValueError, "more rows", "leave 5")
    check(lambda: memory_capacity(run, delays=5, washout=4), ValueError, "at least delays=5")
    held = jb.diagnostics.trajectory(line(), (), jnp.ones((20, 2, 1)), lengths=jnp.array([20, 9]))
    check(lambda: memory_capacity(held, delays=1), ValueError, "lengths, a mask or resets")
    cell = jb.embedding(jb.elman(2, 3), vocabulary_size=4)
    tokens = jnp.zeros((20,), jnp.int32)
    run = jb.diagnostics.trajectory(cell, cell.init(jax.random.key(0)), tokens)
    check(lambda: memory_capacity(run, delays=1), TypeError, "memory_capacity: the input", "int32")
