import math
import sys

import numpy as np
import pytest

from jax_bptt.training import tasks


def test_adding_marks_one_number_in_each_half_and_asks_for_their_sum():
    xs, targets = tasks.adding(np.random.default_rng(0), length=7, batch=200)
    numbers, marks = xs[..., 0], xs[..., 1]
    np.testing.assert_array_equal(marks[:3].sum(axis=0), 1)
    np.testing.assert_array_equal(marks[3:].sum(axis=0), 1)
    assert marks.sum() == 400
    for lane in range(200):
        first, second = np.flatnonzero(marks[:, lane])
        assert targets[lane] == numbers[first, lane] + numbers[second, lane]
    assert set(np.nonzero(marks)[0]) == set(range(7))


def test_adding_baseline_is_the_variance_of_the_target():
    _, targets = tasks.adding(np.random.default_rng(0), length=10, batch=100_000)
    # The error of a mean of N squares (t - 1)^2 is sqrt(Var / N); four of them.
    squares = (targets - 1) ** 2
    assert abs(squares.mean() - tasks.ADDING_BASELINE) < 4 * squares.std() / math.sqrt(100_000)


def test_copy_shows_waits_signals_and_wants_the_symbols_again():
    xs, targets = tasks.copy(np.random.default_rng(0), delay=3, symbols=2, batch=1)
    a, b = xs[:2, 0]
    blank, go = tasks.BLANK, tasks.GO
    np.testing.assert_array_equal(xs[:, 0], [a, b, blank, blank, go, blank, blank])
    np.testing.assert_array_equal(targets[:, 0], [blank] * 5 + [a, b])
    assert max(a, b) < tasks.SYMBOLS


def test_copy_baseline_is_the_entropy_of_the_symbols_over_the_steps():
    assert tasks.copy_baseline(delay=3, symbols=2) == 2 * math.log(8) / 7


def test_flip_flops_keep_what_their_last_pulse_was():
    xs, targets = tasks.flip_flop(np.random.default_rng(0), length=40, batch=300, bits=2, rate=0.1)
    assert xs.shape == targets.shape == (40, 300, 2)
    bits = np.zeros((300, 2))
    for x, target in zip(xs, targets, strict=True):
        bits = np.where(x == 0, bits, x)
        np.testing.assert_array_equal(target, bits)
    assert set(np.unique(xs)) == {-1, 0, 1} and (xs[0] != 0).all()
    share = np.mean(xs[1:] != 0)  # of 23400 draws: four deviations
    assert abs(share - 0.1) < 4 * math.sqrt(0.1 * 0.9 / xs[1:].size)


def test_batches_are_drawn_anew_at_every_step_and_the_same_at_the_same_step():
    def inputs(*seeds):
        batches = tasks.drawn(lambda rng: tasks.adding(rng, length=4, batch=2), *seeds)
        return [batches(step)[0] for step in (2, 0, 1)]

    first = inputs(0, 0)
    assert not np.array_equal(first[0], first[1])
    np.testing.assert_array_equal(first, inputs(0, 0))
    assert not np.array_equal(first[0], inputs(1, 0)[0])
    assert not np.array_equal(first[0], inputs(0, 1)[0])


@pytest.mark.slow
@pytest.mark.parametrize("by_row, shape", [(True, (8, 8)), (False, (64, 1))])
def test_digits_are_read_in_order_and_split_without_overlap(by_row, shape):
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    xs, targets, held_out_xs, held_out_targets = tasks.digits(0, by_row=by_row)
    assert (xs.shape[0], xs.shape[2]) == shape
    every = np.concatenate([held_out_xs, xs], axis=1).swapaxes(0, 1).reshape(-1, 64) * 16
    every = np.column_stack([every, np.concatenate([held_out_targets, targets])])
    wanted = np.column_stack([images, labels])
    np.testing.assert_array_equal(every[np.lexsort(every.T)], wanted[np.lexsort(wanted.T)])
    assert len(held_out_targets) == 359


def test_minibatches_show_every_example_once_an_epoch_in_changing_order():
    xs, targets = np.arange(6).reshape(1, 6, 1), np.arange(6)
    at = tasks.minibatches(xs, targets, 0, batch=2)
    batches = [at(step)[1] for step in range(6)]
    np.testing.assert_array_equal(batches[1], at(1)[1])  # going back as well
    first, second = np.concatenate(batches[:3]), np.concatenate(batches[3:])
    np.testing.assert_array_equal(np.sort(first), targets)
    np.testing.assert_array_equal(np.sort(second), targets)
    assert not np.array_equal(first, second)


def test_impossible_sizes_are_refused():
    with pytest.raises(ValueError, match="at least 2"):
        tasks.adding(np.random.default_rng(0), length=1, batch=1)
    with pytest.raises(ValueError, match="more than the 6"):
        tasks.minibatches(np.zeros((1, 6, 1)), np.arange(6), 0, batch=7)


def test_without_scikit_learn_one_line_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ModuleNotFoundError, match=r"scikit-learn.*is not installed.*\[data\]"):
        tasks.digits(0, by_row=True)
