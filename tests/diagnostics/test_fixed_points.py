"""`fixed_points`: points, eigenvalues and saddles that are known, on cells that have them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_bptt as jb
from jax_bptt.diagnostics import fixed_points
from tests.core.messages import check
from tests.registry import CELLS, is_inexact, problem, slow_unless

GAIN = 1.5


def root(gain=GAIN):
    """Return the s > 0 with s = tanh(gain s), by iteration."""
    s = 1.0
    for _ in range(500):
        s = np.tanh(gain * s)
    return s


def product(cell):
    """Two units that do not meet, each s = tanh(1.5 s): 3 x 3 points."""
    params = cell.init(jax.random.key(0))
    return params._replace(w_s=GAIN * jnp.eye(2)[:, None], b=jnp.zeros((1, 2)))


@functools.cache
def nine():
    cell = jb.elman(1, 2)
    line = jnp.linspace(-1.0, 1.0, 9)
    candidates = jnp.stack(jnp.meshgrid(line, line), axis=-1)  # [9, 9, 2]
    return candidates, fixed_points(cell, product(cell), jnp.zeros(1), candidates)


def test_the_points_of_two_units_are_the_product_of_those_of_one():
    s = root()
    _, found = nine()
    want = np.array([(a, b) for a in (-s, 0, s) for b in (-s, 0, s)])
    distances = np.linalg.norm(found.states[:, None] - want, axis=-1)
    assert found.states.shape == (9, 2) and sorted(distances.argmin(1)) == list(range(9))
    assert distances.min(axis=1).max() < 1e-12 and found.converged.all()
    assert found.speeds.max() < 1e-24


def test_stable_points_saddles_and_the_centre():
    s = root()
    _, found = nine()
    assert found.unstable.tolist() == [0] * 4 + [1] * 4 + [2] and found.stable.sum() == 4
    slopes = GAIN * (1 - found.states**2)
    want = np.sort(slopes, axis=-1)[:, ::-1]
    np.testing.assert_allclose(found.eigenvalues, want.astype(complex), rtol=1e-12)
    np.testing.assert_allclose(np.diagonal(found.jacobians, axis1=1, axis2=2), slopes, rtol=1e-12)
    assert found.eigenvalues[0][0].real == pytest.approx(GAIN * (1 - s**2), rel=1e-12)


def test_every_candidate_is_counted_once_and_knows_its_point():
    candidates, found = nine()
    assert found.origins.shape == (9, 9) and found.counts.sum() == 81
    np.testing.assert_array_equal(np.bincount(found.origins.ravel()), found.counts)
    assert found.unstable[found.origins[4, 4]] == 2  # the candidate 0 is the centre itself
    corners = found.states[found.origins[[0, 0, 8, 8], [0, 8, 0, 8]]]
    np.testing.assert_array_equal(np.sign(corners), candidates[[0, 0, 8, 8], [0, 8, 0, 8]])


def test_where_keeps_some_of_the_points():
    _, found = nine()
    saddles = found.where(found.unstable == 1)
    assert saddles.states.shape == (4, 2) and saddles.unstable.tolist() == [1] * 4
    chosen = found.unstable[found.origins] == 1
    assert ((saddles.origins >= 0) == chosen).all()
    np.testing.assert_array_equal(
        saddles.states[saddles.origins[chosen]], found.states[found.origins[chosen]]
    )
    check(lambda: found.where(np.ones(3, bool)), ValueError, "FixedPoints.where: chosen", "bool[9]")


def test_a_linear_network_has_one():
    cell = jb.elman(2, 3, activation=lambda a: a)
    params = cell.init(jax.random.key(1))
    rng = np.random.default_rng(0)
    w_s, b = rng.normal(size=(3, 3)), rng.normal(size=3)  # some of its moduli are above 1
    params = params._replace(w_s=jnp.asarray(w_s)[:, None], b=jnp.asarray(b)[None])
    x = jnp.array([0.3, -2.0])
    found = fixed_points(cell, params, x, jnp.asarray(rng.normal(size=(20, 3))))
    drive = np.asarray(x) @ np.asarray(params.w_x)[:, 0] + b
    np.testing.assert_allclose(found.states[0], drive @ np.linalg.inv(np.eye(3) - w_s), rtol=1e-11)
    moduli = np.sort(np.abs(np.linalg.eigvals(w_s)))[::-1]
    np.testing.assert_allclose(np.abs(found.eigenvalues[0]), moduli, rtol=1e-12)
    assert len(found.speeds) == 1 and found.unstable[0] == np.sum(moduli >= 1)


EACH = [slow_unless(name == "counted", name) for name in CELLS]


@pytest.mark.parametrize("name", EACH)
def test_any_cell(name):
    """Where the search says that it converged, a step goes nowhere, and the Jacobian is JAX's."""
    p, cell = problem(name, (), 1), CELLS[name].cell
    rng = np.random.default_rng(0)

    def scattered(leaf):
        copies = np.broadcast_to(leaf, (6, *np.shape(leaf)))
        noise = rng.normal(size=copies.shape)
        return jnp.asarray(
            (copies + 0.3 * noise).astype(leaf.dtype) if is_inexact(leaf) else copies
        )

    candidates = jax.tree.map(scattered, p.state)
    x = jax.tree.map(lambda a: jnp.asarray(a[0]), p.xs)
    params = jax.tree.map(jnp.asarray, p.params)
    found = fixed_points(cell, params, x, candidates)
    assert found.counts.sum() == 6 and found.converged[0]
    state = jax.tree.map(lambda a: jnp.asarray(a[0]), found.states)
    new, _ = jb.step(cell, params, state, x)
    for old, after in zip(jax.tree.leaves(state), jax.tree.leaves(new), strict=True):
        if is_inexact(old):
            np.testing.assert_allclose(after, old, rtol=1e-12, atol=1e-12)

    run = jb.diagnostics.trajectory(cell, params, jax.tree.map(lambda a: a[None], x), state)
    matrices = np.asarray(run.jacobians()[0])
    want = np.concatenate(
        [np.linalg.eigvals(m) for m in matrices.reshape(-1, *matrices.shape[-2:])]
    )
    near = np.abs(want[:, None] - found.eigenvalues[0]).min(axis=0)
    assert near.max() < 1e-6  # eigenvalues of a defective matrix have half the digits


def test_single_precision():
    cell = jb.elman(1, 2, dtype=jnp.float32)
    params = jax.tree.map(lambda a: a.astype(jnp.float32), product(cell))
    candidates = jax.random.uniform(jax.random.key(0), (50, 2), jnp.float32, -1.0, 1.0)
    found = fixed_points(cell, params, jnp.zeros(1, jnp.float32), candidates)
    assert found.converged.all() and found.states.dtype == np.float32
    s = root()
    assert np.abs(np.abs(found.where(found.stable).states) - s).max() < 1e-5


def test_what_is_far_from_the_candidates_is_marked():
    """With s' = s + (s - 1) (s - 1000) / 500 there is a point at 1 and one at 1000."""
    cell = jb.from_step(
        lambda w, s, x: s + w * (s - 1.0) * (s - 1000.0) / 500.0,
        init=lambda key: jnp.ones(()),
        initial_state=lambda w, batch_shape: jnp.zeros((*batch_shape, 1)),
        input_shape=(1,),
    )
    params, x = jnp.ones(()), jnp.zeros(1)
    candidates = jnp.append(jnp.linspace(0.5, 1.5, 40), 900.0)[:, None]
    found = fixed_points(cell, params, x, candidates)
    np.testing.assert_allclose(found.states[:, 0], [1.0, 1000.0], rtol=1e-12)
    assert found.outliers.tolist() == [False, True] and found.unstable.tolist() == [0, 1]
    assert found.counts.tolist() == [40, 1]
    alone = fixed_points(cell, params, x, candidates[:1])
    assert alone.outliers.tolist() == [False]


def test_a_slow_point_is_not_converged():
    """s' = s + s^2 + 0.01 has no fixed point and is slowest at 0."""
    cell = jb.from_step(
        lambda w, s, x: s + w * s**2 + 0.01,
        init=lambda key: jnp.ones(()),
        initial_state=lambda w, batch_shape: jnp.zeros((*batch_shape, 1)),
        input_shape=(1,),
    )
    found = fixed_points(cell, jnp.ones(()), jnp.zeros(1), jnp.linspace(-1, 1, 7)[:, None])
    assert not found.converged.any() and abs(found.states).max() < 1e-2
    np.testing.assert_allclose(found.speeds, 0.01**2 / 2, rtol=1e-2)
    easy = fixed_points(cell, jnp.ones(()), jnp.zeros(1), jnp.zeros((1, 1)), tolerance=0.02)
    assert easy.converged.all()


def test_points_apart_by_less_than_merge_are_one():
    candidates, found = nine()
    cell = jb.elman(1, 2)
    merged = fixed_points(cell, product(cell), jnp.zeros(1), candidates, merge=0.9)
    assert 1 <= len(merged.speeds) < len(found.speeds)
    # Without any, the candidates that come to a point within rounding are points of their own.
    apart = fixed_points(cell, product(cell), jnp.zeros(1), candidates, merge=0.0)
    assert len(apart.speeds) >= len(found.speeds)


def test_refusals():
    cell = jb.lstm(2, 3)
    params, x = cell.init(jax.random.key(0)), jnp.ones(2)
    states = cell.initial_state(params, (5,))

    def raises(error, *pieces, x=x, candidates=states, **options):
        check(lambda: fixed_points(cell, params, x, candidates, **options), error, *pieces)

    raises(ValueError, "x has the batch axes (5,)", "once for each", x=jnp.ones((5, 2)))
    raises(ValueError, "fixed_points: xs", "does not end in (2,)", x=jnp.ones(3))
    raises(TypeError, "candidates is an array", "trajectory", candidates=states.h)
    one = cell.initial_state(params, ())
    raises(ValueError, "candidates.h.shape=(3,)", "one or more axes", candidates=one)
    uneven = states._replace(c=states.c[:4])
    raises(ValueError, "candidates.c.shape=(4, 3)", "same for all leaves", candidates=uneven)
    none = jax.tree.map(lambda a: a[:0], states)
    raises(ValueError, "there are no candidates", candidates=none)
    bad = states._replace(c=states.c.at[1, 1].set(jnp.nan))
    raises(ValueError, "candidates.c has numbers that are not finite", candidates=bad)
    single = jax.tree.map(lambda a: a.astype(jnp.float32), states)
    raises(TypeError, "candidates.h has dtype float32", "astype('float64')", candidates=single)
    raises(ValueError, "merge must be a number, not negative, got -1", merge=-1)
    raises(ValueError, "merge must be a number, not negative, got None", merge=None)
    raises(ValueError, "tolerance must be a number", tolerance="small")
    check(
        lambda: jax.jit(lambda s: fixed_points(cell, params, x, s).speeds)(states),
        TypeError,
        "Call it outside jax.jit",
    )


def test_the_picture_says_what_there_is():
    pytest.importorskip("matplotlib")
    from jax_bptt.diagnostics import plots

    cell = jb.elman(1, 2)
    run = jb.diagnostics.trajectory(cell, product(cell), jnp.ones((5, 3, 1)))
    axes = plots.fixed_points(nine()[1], run)
    assert axes.get_title(loc="left") == "4 stable fixed points, 4 saddles, 1 repeller"
    # Three paths, a line for each of 4 x 1 + 1 x 2 unstable directions, and three kinds of points.
    assert len(axes.lines) == 3 + 6 + 3
    legend = axes.get_legend()
    assert legend is not None
    labels = [text.get_text() for text in legend.get_texts()]
    assert labels == ["stable (4)", "saddle, 1 unstable direction (4)", "repeller (1)"]
    some = plots.fixed_points(nine()[1].where(nine()[1].unstable == 1))
    assert some.get_title(loc="left") == "no stable fixed points, 4 saddles"
    nothing = nine()[1].where(nine()[1].unstable > 2)
    check(lambda: plots.fixed_points(nothing), ValueError, "plots.fixed_points: a phase plane")


def test_a_turning_saddle_has_two_directions():
    from jax_bptt.diagnostics.plots.fixed_points import _growing

    turn = np.array([[0.0, -1.2, 0.0], [1.2, 0.0, 0.0], [0.0, 0.0, 0.5]])
    first, second = _growing(turn)
    assert abs(first @ second) < 1e-12 and first[2] == second[2] == 0
