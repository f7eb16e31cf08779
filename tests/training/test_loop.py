import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from trainer import check, network, text

import jax_bptt as jb
from jax_bptt.training import devices, evaluate, loop, losses

SETTINGS = loop.Settings(learning_rate=0.1, clip=1.0, steps=20)


@pytest.fixture(autouse=True)
def standard_promotion():
    # optax raises a decay rate to the power of an integer step count.
    with jax.numpy_dtype_promotion("standard"):
        yield


def quadratic(params, state, batch):
    return jnp.sum((params - batch) ** 2), state + 1


def parabola_run(settings, stop=lambda: False, loss=quadratic):
    begun = loop.start(jnp.array([3.0, -2.0]), jnp.zeros(()), settings)
    return list(loop.fit(loss, begun, lambda step: jnp.ones(2), settings, stop))


def test_fit_goes_down_for_as_many_steps_as_asked_and_carries_the_state():
    run = parabola_run(SETTINGS._replace(steps=200))
    assert [p.step for p in run] == list(range(1, 201))
    assert run[-1].loss < 1e-2 * run[0].loss
    assert run[-1].learner.state == 200


def test_fit_leaves_the_caller_s_parameters_alone_though_steps_donate():
    params = jnp.array([3.0, -2.0])
    state = (jnp.zeros(2),) * 2  # the same buffer twice, as an LSTM's initial state
    begun = loop.start(params, state, SETTINGS)

    def loss(params, state, batch):
        return jnp.sum(params**2), state

    for _ in loop.fit(loss, begun, lambda step: 0, SETTINGS):
        pass
    np.testing.assert_array_equal(params, [3.0, -2.0])
    np.testing.assert_array_equal(state[0], 0)


def test_fit_leaves_arrays_where_they_are():
    mesh = devices.mesh(4, 2)

    def loss(params, state, batch):
        state = 0.5 * state + batch[0]
        return jnp.mean((state @ params["w"] + params["b"][None] - 1) ** 2), state

    params = {"w": jnp.ones((3, 2)), "b": jnp.zeros(2)}
    xs = np.random.default_rng(0).normal(size=(5, 1, 4, 3))
    ends = {}
    for placed in False, True:
        start, state, batches = params, jnp.zeros((4, 3)), list(xs)
        if placed:
            start = devices.replicate(start, mesh)
            state = devices.split_state(state, mesh)
            batches = [devices.split_batch(batch, mesh) for batch in batches]
        settings = SETTINGS._replace(steps=len(batches))
        begun = loop.start(start, state, settings)
        where = jax.tree.map(lambda a: a.sharding, begun.learner)
        # The learner of the last step alone: the others have given theirs away.
        *_, last = loop.fit(loss, begun, batches.__getitem__, settings)
        for a, sharding in zip(*map(jax.tree.leaves, (last.learner, where)), strict=True):
            assert a.sharding.is_equivalent_to(sharding, a.ndim)
        ends[placed] = last
    split = ends[True].learner
    assert len(split.state.sharding.device_set) == 2
    assert split.state.addressable_shards[0].data.shape == (2, 3)
    assert split.params["w"].is_fully_replicated
    assert ends[True].loss == pytest.approx(ends[False].loss, rel=1e-12)
    for a, b in zip(*(jax.tree.leaves(end.learner) for end in ends.values()), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10)


def test_fit_goes_on_from_any_place_to_the_last_bit():
    def loss(params, state, batch):
        state = 0.5 * state + batch
        return jnp.sum((params - state) ** 2), state

    def batches(step):
        return np.random.default_rng(step).normal(size=2)

    def run(begun, stop=lambda: False):
        # Copies of what the steps give away.
        found = loop.fit(loss, begun, batches, SETTINGS, stop)
        return [p._replace(learner=jax.tree.map(jnp.array, p.learner)) for p in found]

    begun = loop.start(jnp.array([3.0, -2.0]), jnp.zeros(2), SETTINGS)
    whole = run(begun)
    calls = itertools.count()
    begun = loop.start(jnp.array([3.0, -2.0]), jnp.zeros(2), SETTINGS)
    first = run(begun, stop=lambda: next(calls) >= 7)
    parts = first + run(first[-1])
    assert [p.step for p in parts] == list(range(1, 21))
    assert [p.loss for p in parts] == [p.loss for p in whole]
    assert all(a.seconds <= b.seconds for a, b in itertools.pairwise(parts))
    for a, b in zip(*(jax.tree.leaves(r[-1].learner) for r in (parts, whole)), strict=True):
        np.testing.assert_array_equal(a, b)
    assert run(parts[-1]) == []


@pytest.mark.slow
def test_options_of_a_batch_are_the_layer_s():
    net = jb.stack(jb.layer(jb.elman(1, 2, output_size=1)), jb.dropout(rate=0.5))
    params = net.init(jax.random.key(0))
    xs, key = jnp.ones((3, 4, 1)), jax.random.key(1)
    lengths = jnp.array([3, 2, 0, 1])
    batch = xs, jnp.zeros(4), {"key": key, "lengths": lengths}

    def score(ys, targets):
        return jnp.sum(ys)

    _, ys = net.apply(params, xs, key=key, lengths=lengths)
    for loss in losses.carried, losses.fresh:
        state = net.initial_state(params, (4,))
        found, _ = loss(net, score)(params, state, batch)
        np.testing.assert_allclose(found, jnp.sum(ys), rtol=1e-12)
    placed = devices.split_batch(batch, devices.mesh(4, 2))
    assert placed[2]["key"].is_fully_replicated
    assert placed[2]["lengths"].addressable_shards[0].data.shape == (2,)


def test_fit_stops_when_asked_and_after_its_seconds():
    calls = itertools.count()
    assert len(parabola_run(SETTINGS, stop=lambda: next(calls) >= 3)) == 3
    assert parabola_run(SETTINGS, stop=lambda: True) == []
    run = parabola_run(SETTINGS._replace(steps=None, seconds=0.2))
    assert run[-1].seconds < 60  # as long as a loaded machine takes for what it began
    assert run[-1].loss < run[0].loss


def test_the_first_step_is_adam_s_at_the_rate_of_its_place_in_the_run():
    # Adam's first update is the sign of the gradient, here [+, -], whatever the clipping.
    settings = SETTINGS._replace(steps=100)
    calls = itertools.count()
    (only,) = parabola_run(settings, stop=lambda: next(calls) >= 1)
    step = 0.1 * loop.rate(0.01)
    expected = np.array([3.0 - step, -2.0 + step])
    np.testing.assert_allclose(only.learner.params, expected, rtol=1e-7)


def test_the_rate_warms_up_and_ends_at_zero():
    assert loop.rate(0) == 0
    assert loop.rate(loop.WARM_UP) > 0.99
    assert loop.rate(0.5) == pytest.approx(0.5)
    assert loop.rate(1) == pytest.approx(0, abs=1e-15)
    late = [loop.rate(k / 100) for k in range(2, 101)]
    assert all(a > b for a, b in itertools.pairwise(late))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_ends_the_run(value):
    def loss(params, state, batch):
        return jnp.where(state >= 2, value, jnp.sum(params)), state + 1

    with pytest.raises(FloatingPointError, match="at step 3"):
        parabola_run(SETTINGS, loss=loss)


SIZES = network.Network("lstm", 5, 1, "float64", 3, 4, 4)
LAYER = network.build(SIZES)


def test_the_explicit_gradient_passes_the_check():
    explicit, plain = (
        losses.carried(LAYER, losses.cross_entropy, a)
        for a in (jb.bptt(block_length=3), jb.autodiff())
    )
    params = LAYER.init(jax.random.key(0))
    window = text.training_windows(np.arange(40) % 4, 9, 3)(0)
    state = LAYER.initial_state(params, (3,))
    errors = check.gradient_errors(explicit, plain, params, state, window)
    assert len(errors) == len(jax.tree.leaves(params))
    assert 0 < max(errors.values()) <= check.TOLERANCE["float64"]


def test_the_check_measures_errors_by_the_largest_entry():
    def plain(params, state, batch):
        return params["a"] @ batch + 0 * params["b"], state

    def wrong(params, state, batch):
        return plain(params, state, batch)[0] + 1e-3 * params["a"][0] + params["b"], state

    params = {"a": jnp.ones(2), "b": jnp.ones(())}
    errors = check.gradient_errors(wrong, plain, params, (), jnp.array([1.0, -4.0]))
    assert errors == {"['a']": pytest.approx(1e-3 / 4), "['b']": math.inf}
    errors = check.gradient_errors(plain, plain, params, (), jnp.array([1.0, -4.0]))
    assert errors == {"['a']": 0, "['b']": 0}


@pytest.mark.slow
def test_the_carried_cross_entropy_matches_one_pass_over_the_text():
    params = LAYER.init(jax.random.key(0))
    ids = np.random.default_rng(0).integers(0, 4, 31).astype(np.int32)
    _, logits = LAYER.apply(params, ids[:-1, None])
    log_p = jax.nn.log_softmax(logits[:, 0])[np.arange(30), ids[1:]]
    windows = text.held_out_windows(ids, 7, 1)
    found = evaluate.carried_cross_entropy(LAYER, params, windows)
    assert found == pytest.approx(-float(log_p.mean()), rel=1e-12)


def test_accuracy_is_the_share_of_largest_logits():
    logits = jnp.array([[0.0, 1.0], [2.0, 1.0], [0.0, 3.0]])
    assert evaluate.accuracy(logits, jnp.array([1, 0, 0])) == pytest.approx(2 / 3)
