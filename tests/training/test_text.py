import numpy as np
import pytest
from trainer import text
from trainer.errors import InputError


def test_the_next_window_continues_the_former():
    ids = np.arange(50)
    windows = text.training_windows(ids, 4, 3)
    (first, _), (second, _) = windows(0), windows(1)
    np.testing.assert_array_equal(first[:, 0], [0, 1, 2, 3])
    np.testing.assert_array_equal(first[0], [0, 16, 33])
    np.testing.assert_array_equal(second[0], first[-1] + 1)


def test_targets_are_the_inputs_shifted_by_one_across_the_text_s_end_too():
    ids = np.arange(10) ** 2
    following = dict(zip(ids, np.roll(ids, -1), strict=True))
    for inputs, targets in map(text.training_windows(ids, 3, 2), range(10)):
        np.testing.assert_array_equal(targets, np.vectorize(following.get)(inputs))


def test_a_lane_reads_the_whole_text_in_a_circle():
    ids = np.arange(7)
    windows = map(text.training_windows(ids, 2, 3), range(7))
    lane = np.concatenate([inputs[:, 1] for inputs, _ in windows])
    np.testing.assert_array_equal(lane, (2 + np.arange(14)) % 7)


@pytest.mark.parametrize("length, batch", [(4, 3), (7, 1), (1, 5), (64, 8)])
def test_held_out_windows_predict_every_character_but_the_first_once(length, batch):
    ids = np.arange(30)
    windows = text.held_out_windows(ids, length, batch)
    counted = np.concatenate([targets[counts] for _, targets, counts in windows])
    np.testing.assert_array_equal(np.sort(counted), ids[1:])
    for inputs, targets, _ in windows:
        assert inputs.shape == (length, batch)
        np.testing.assert_array_equal(targets, inputs + 1)


def test_held_out_windows_continue_one_another_in_each_lane():
    windows = text.held_out_windows(np.arange(100), 5, 4)
    lanes, _, counts = map(np.concatenate, zip(*windows, strict=True))
    for lane, counted in zip(lanes.T, counts.T, strict=True):
        np.testing.assert_array_equal(np.diff(lane[counted]), 1)


def test_split_holds_out_whole_documents_spread_over_the_text():
    documents = [f"{k:03d} is number {k}\n" for k in range(200)]
    corpus = text.split(documents)
    held_out = text.decode(corpus.characters, corpus.held_out)
    train = text.decode(corpus.characters, corpus.train)
    held = [d for d in documents if d in held_out]
    assert "".join(held) == held_out
    assert not any(d in train for d in held)
    assert len(train) + len(held_out) == sum(map(len, documents))
    assert 0.09 * len(train) < len(held_out) <= 0.1 * (len(train) + len(held_out))
    assert np.diff([documents.index(d) for d in held]).max() <= 11


def test_of_a_long_text_a_million_characters_are_held_out(monkeypatch):
    monkeypatch.setattr(text, "HELD_OUT", 100)
    corpus = text.split([f"{k:03d}\n" for k in range(1000)])
    held_out = text.decode(corpus.characters, corpus.held_out).split()
    assert 90 < len(corpus.held_out) <= 100
    assert np.diff(list(map(int, held_out))).max() < 50


def test_split_numbers_the_characters_of_both_parts():
    corpus = text.split(["bab"] * 10 + ["é"])
    assert corpus.characters == "abé"
    assert text.decode(corpus.characters, corpus.train[:3]) == "bab"


def test_the_reference_text_repeats_no_paragraph():
    documents = text.reference_documents()
    paragraphs = [" ".join(p.split()) for d in documents for p in d.split("\n\n")]
    paragraphs = [p for p in paragraphs if p]
    assert len(paragraphs) == len(set(paragraphs))
    assert sum(map(len, documents)) > 300_000


def test_files_come_back_whole(tmp_path):
    contents = ["naïve — text\nof two lines\n" * 20, "short"]
    paths = []
    for k, content in enumerate(contents):
        paths.append(tmp_path / f"{k}.txt")
        paths[-1].write_text(content, encoding="utf-8")
    assert "".join(text.read_documents(list(map(str, paths)))) == "".join(contents)


@pytest.mark.parametrize(
    "content, message",
    [(b"a\0b", "binary"), (b"caf\xe9", "not UTF-8")],
)
def test_files_that_are_no_text_are_refused(tmp_path, content, message):
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        text.read_documents([str(path)])


def test_files_that_cannot_be_read_are_refused(tmp_path):
    with pytest.raises(InputError, match="No such file"):
        text.read_documents([str(tmp_path / "missing")])
    with pytest.raises(InputError, match="directory"):
        text.read_documents([str(tmp_path)])


def test_a_text_too_short_is_refused():
    with pytest.raises(InputError, match="too few for one window"):
        text.training_windows(np.arange(12), 4, 3)
    assert text.training_windows(np.arange(13), 4, 3)(0)[0].shape == (4, 3)
    with pytest.raises(InputError, match="too short to hold"):
        text.split(["a"])
