"""The parts of the benchmark: mapped weights, errors, summaries, settings and turns."""

import numpy as np
import pytest

from tests.scripts import test_bench

bench, part = test_bench.bench, test_bench.part


@pytest.mark.parametrize("name", ["flax", "nnx", "haiku", "equinox"])
@pytest.mark.parametrize("cell", ["elman", "gru", "gru_reset_before", "lstm"])
def test_peers_map_weights_back_and_forth(bench, name, cell):
    roster, data, models = part("roster"), part("data"), part("models")
    if roster.absent([name]):
        pytest.skip(f"{name} is not installed")
    row = data.Row(cell, 3, 2, 4, 5, "float32")
    model = roster.jax_model(name, row)
    if model is None:
        assert cell in {"elman", "gru_reset_before"}
        return
    weights = data.draw(row).weights
    back = models.host(model.unpack(model.pack(models.cast(weights, "float32"))))
    for leaf in back:
        # Haiku's forget gate is packed one lower, since its cell adds one.
        shift = (
            np.array([0, 1, 0, 0])[:, None] if (name, cell, leaf) == ("haiku", "lstm", "b") else 0
        )
        np.testing.assert_allclose(back[leaf] + shift, weights[leaf], atol=1e-6, err_msg=leaf)


def test_errors_are_relative_to_the_largest_element():
    errors = part("measure").errors
    want = {"a": np.array([0.0, 4.0]), "zero": np.zeros(2)}
    assert errors({"a": np.array([1.0, 4.0]), "zero": np.ones(2)}, want) == {"a": 0.25, "zero": 1.0}
    assert errors({"a": np.zeros(3)}, want) == errors({"a": np.full(2, np.nan)}, want)
    assert errors({"a": np.zeros(3)}, want) == {"a": np.inf}
    mean = part("measure").root_mean_square
    assert errors({"a": np.array([3.0, 4.0])}, want, mean) == {"a": pytest.approx(0.75)}
    assert part("measure").refusal({"a": 1e-4}, "float32") is None
    assert "error of b is 1.0e-01" in part("measure").refusal({"a": 0.0, "b": 0.1}, "float32")


def test_summary_takes_the_fastest_peer_of_each_row():
    row = {"cell": "gru", "T": 1, "B": 1, "I": 1, "H": 1, "dtype": "float32"}
    rows = [
        row | {"competitors": [{"name": "own", "ratio": 1.0}, {"name": "flax", "ratio": f}, h]}
        for f, h in ((2.0, {"name": "haiku", "ratio": 4.0}), (8.0, {"name": "haiku", "ratio": 0.5}))
    ]
    summary = part("race").summary(rows, "own")
    assert summary["flax"]["geometric_mean"] == pytest.approx(4.0)
    fastest = summary["fastest of flax, nnx, haiku, equinox"]
    assert fastest["geometric_mean"] == pytest.approx(1.0) and fastest["min"] == 0.5


def test_a_competitor_counts_in_its_better_setting(bench):
    race, measure = part("race"), part("measure")
    ready = {
        key: measure.Prepared(dict, dict, dict, key[1], None)
        for key in [("own", 1), ("own", 2), ("peer", 1), ("peer", 2)]
    }
    seconds = dict(
        zip(ready, np.array([[4.0, 4, 4], [1, 2, 3], [6, 2, 3], [9, 9, 9]]), strict=True)
    )
    entries = [{"name": "own", "refused": None}, {"name": "peer", "refused": None}]
    race.add_times(entries, ready, seconds)
    own, peer = entries
    assert (own["devices"], own["seconds"], own["temp_bytes"], own["ratio"]) == (2, 2, 2, 1)
    assert (peer["devices"], peer["seconds"], peer["ratio"]) == (1, 3, 1)
    assert [s["seconds"] for s in peer["settings"]] == [3, 9]


def test_rows_with_many_sequences_have_a_summary_of_their_own(bench):
    competitors = [{"name": "own", "ratio": 1.0}, {"name": "plain scan", "ratio": 2.0}]
    row = {"cell": "gru", "T": 1, "I": 1, "H": 1, "dtype": "float32"}
    narrow = row | {"B": 4, "competitors": [{"name": "plain scan", "ratio": 8.0}]}
    summaries = part("race").summaries([row | {"B": 8, "competitors": competitors}, narrow], "own")
    assert summaries["all rows"]["plain scan"]["geometric_mean"] == pytest.approx(4)
    assert summaries["rows with B >= 8"]["plain scan"]["geometric_mean"] == pytest.approx(2)


def test_calls_with_threads_of_their_own_are_timed_last(bench):
    order = []
    calls = {name: lambda name=name: order.append(name) for name in ("noisy", "a", "b")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(part("measure"), "TURN_SECONDS", 0)
        seconds = part("measure").rounds(calls, 2, lambda: None, last=["noisy"])
    assert [len(s) for s in seconds.values()] == [2, 2, 2]
    assert order[::2] == order[1::2] == ["a", "b", "noisy", "a", "b", "noisy", "b", "a", "noisy"]
