"""Recurrent PPO: its task by hand, its targets by a loop, and one curve from two layers."""

import importlib
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.registry import assert_close, slow_unless

pytest.importorskip("flax.linen")
SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture(scope="module")
def script():
    sys.path.insert(0, str(SCRIPTS))
    yield importlib.import_module("ppo")
    sys.path.remove(str(SCRIPTS))


@pytest.fixture(scope="module")
def ppo(script):
    return script.ppo


@pytest.fixture(autouse=True)
def as_it_comes():
    """Flax is written for JAX as it comes."""
    with (
        jax.enable_x64(False),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        yield


@pytest.mark.parametrize("right", [True, False])
def test_an_episode_by_hand(ppo, right):
    task = ppo.task
    state = task.reset(jax.random.key(3))
    cue, delay = int(state.cue), int(state.left)
    assert task.DELAYS[0] <= delay <= task.DELAYS[1]
    seen, rewards, ends = [], [], []
    for _ in range(delay + 1):
        seen.append(np.asarray(task.observe(state)))
        action = jnp.asarray(cue if right else (cue + 1) % task.CUES)
        state, reward, done = task.step(state, action, jax.random.key(4))
        rewards.append(float(reward))
        ends.append(bool(done))
    want = np.zeros((delay + 1, task.OBSERVED))
    want[0, cue] = want[-1, -1] = 1
    assert_close(np.stack(seen), want, 0)
    assert rewards == [0.0] * delay + [task.OPTIMUM * right]
    assert ends == [False] * delay + [True]
    assert_close(state, task.reset(jax.random.key(4)), 0)


def test_advantages_are_those_of_a_loop(ppo):
    rng = np.random.default_rng(0)
    rewards, values, last = rng.normal(size=(6, 3)), rng.normal(size=(6, 3)), rng.normal(size=3)
    done = rng.random((6, 3)) < 0.4
    assert done.any() and not done.all()
    rollout = ppo.Rollout(*(None,) * 8)._replace(rewards=rewards, values=values, done=done)
    want, after = np.zeros((6, 3)), np.zeros(3)
    for t in reversed(range(6)):
        following = values[t + 1] if t < 5 else last
        for b in range(3):
            target = rewards[t, b]
            if not done[t, b]:
                target += ppo.GAMMA * (following[b] + ppo.LAMBDA * after[b])
            want[t, b] = after[b] = target - values[t, b]
    with jax.enable_x64(True):
        assert_close(ppo.advantages(rollout, jnp.asarray(last)), want, 1e-12)


@pytest.mark.parametrize("layer", ["ours", slow_unless(False, "flax")])
def test_learning_sees_what_acting_saw(ppo, layer):
    """The ratio is one before any parameter has changed, and only with the right resets."""

    def rolled_out(runner):
        return ppo.roll_out(layer, runner, 30)

    runner, rollout = jax.jit(rolled_out)(ppo.start(layer, ppo.Sizes(4, 30, 5), 0))
    ends = np.asarray(rollout.done)
    assert ends[:-1].any() and len({int(np.argmax(column)) for column in ends.T}) > 1
    assert_close(rollout.resets[1:], ends[:-1], 0)
    runner, rollout = jax.jit(rolled_out)(runner)
    assert np.any(rollout.carry != 0)
    evaluate = jax.jit(lambda params, rollout: ppo.evaluate(layer, params, rollout)[:2])
    ratios, values = evaluate(runner.params, rollout)
    assert_close(ratios, np.ones_like(ratios), 1e-5)
    assert_close(values, rollout.values, 1e-5)
    _, values = evaluate(runner.params, rollout._replace(resets=rollout.done))
    assert np.max(np.abs(values - rollout.values)) > 1e-3


@pytest.mark.slow
def test_both_layers_have_one_curve(ppo):
    """From the same numbers, in float64 and over three updates."""

    def double(tree):
        return jax.tree.map(
            lambda a: a.astype("float64") if jnp.issubdtype(a.dtype, jnp.floating) else a, tree
        )

    def trained(layer):
        runner = ppo.start(layer, ppo.Sizes(8, 24, 6), 0)
        params = double(runner.params)
        runner = runner._replace(
            params=params, optimizer=ppo.optimizer().init(params), carry=double(runner.carry)
        )
        scanned = jax.jit(
            lambda r: jax.lax.scan(lambda r, _: ppo.update(layer, r, 24), r, length=3)
        )
        return scanned(runner)

    with jax.enable_x64(True):
        (ours, own), (flax, theirs) = trained("ours"), trained("flax")
    assert_close(own.loss, theirs.loss, 1e-9)
    assert_close(own.returns, theirs.returns, 0)
    assert_close(ours.carry, flax.carry, 1e-9)
    for curve in (own, theirs):
        assert np.max(np.asarray(curve.ratio_error)) < 1e-12
        assert np.ptp(np.asarray(curve.loss)) > 1e-3


@pytest.mark.slow
def test_who_forgets_has_the_return_of_a_guess(ppo, monkeypatch):
    """The same training, with a reset before every step."""
    run = ppo.network.FlaxRNN.__call__

    def forgetful(self, carry, x):
        return run(self, carry, (x[0], jnp.ones_like(x[1])))

    monkeypatch.setattr(ppo.network.FlaxRNN, "__call__", forgetful)
    runner = ppo.start("flax", ppo.Sizes(32, 32, 16), 0)
    scanned = jax.jit(lambda r: jax.lax.scan(lambda r, _: ppo.update("flax", r, 32), r, length=40))
    _, curve = scanned(runner)
    assert abs(np.mean(curve.returns[-10:]) - ppo.task.WITHOUT_MEMORY) < 0.05


@pytest.mark.slow
def test_the_script(script, tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- bench ppo -->\nold\n<!-- end of bench ppo -->\nafter\n")
    argv = ["--seeds", "1", "--updates", "2", "--turn", "1", "--envs", "4", "--steps", "6"]
    assert script.main([*argv, "--hidden", "4", "--markdown", str(page)]) == 1
    printed = capsys.readouterr().out
    assert "seed 0, ours" in printed and "ms an update" in printed
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert "| flax |" in text and "python scripts/ppo.py --seeds 1" in text


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--layer", "theirs"], "invalid choice"),
        (["--envs", "6"], "--envs 6 is not a multiple of 4"),
        (["--seeds", "0"], "not a positive number"),
    ],
)
def test_bad_arguments_are_one_line(script, capsys, argv, message):
    with pytest.raises(SystemExit) as stopped:
        script.main(argv)
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
