import itertools

import numpy as np
import pytest
from trainer import ngram
from trainer.errors import InputError

RTOL = 1e-12


def ids_of(text, alphabet):
    return np.array([alphabet.index(c) for c in text])


def probabilities(model, contexts, ids):
    """Return P(ids | contexts), contexts [N, n - 1]."""
    digits = np.column_stack([contexts, ids])
    powers = np.arange(digits.shape[1])[::-1]
    return ngram.probabilities(model, digits @ (model.vocabulary_size + 1) ** powers)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_probabilities_sum_to_one_after_every_context(order):
    ids = np.random.default_rng(0).integers(0, 4, 60) % 3  # character 3 is never seen
    model = ngram.count(ids, vocabulary_size=4, order=order)
    for context in itertools.product(range(5), repeat=order - 1):
        contexts = np.tile(np.array(context, int), (4, 1))
        p = probabilities(model, contexts, np.arange(4))
        np.testing.assert_allclose(p.sum(), 1, rtol=RTOL)
        assert (p > 0).all()


def test_a_case_counted_by_hand():
    # "abab" + "a" with the alphabet abc: bigrams ab 2, ba 2; n1 = 0, n2 = 2, so
    # D_2 = 1 / (1 + 2 * 3) = 1/7. Continuations: a after {b}, b after {a}, one each, so n1 = 2,
    # n2 = 0, D_1 = 3 / (3 + 2) = 3/5, and P_1(a) = (1 - 3/5) / 2 + 3/5 * 2 / 2 * 1/3 = 2/5.
    model = ngram.count(ids_of("ababa", "abc"), vocabulary_size=3, order=2)
    p = probabilities(model, np.array([[0], [0], [0], [2], [2]]), np.array([0, 1, 2, 0, 2]))
    unigram = np.array([2 / 5, 2 / 5, 1 / 5])
    after_a = np.array([0, 2 - 1 / 7, 0]) / 2 + 1 / 7 * 1 / 2 * unigram
    np.testing.assert_allclose(p, [*after_a, unigram[0], unigram[2]], rtol=RTOL)


def test_lower_orders_count_distinct_predecessors_as_kneser_and_ney_do():
    # b follows a alone, however often; c follows a and b. With equal counts of one predecessor
    # more for c, the unigram must prefer c though b is the more frequent character.
    model = ngram.count(ids_of("abababacabc", "abcd"), vocabulary_size=4, order=2)
    unseen_context = np.full((2, 1), 3)
    b, c = probabilities(model, unseen_context, np.array([1, 2]))
    assert c > b


def test_bits_per_character_is_the_mean_over_all_but_the_first():
    ids = ids_of("abcabdabcab", "abcd")
    model = ngram.count(ids, vocabulary_size=4, order=3)
    text = ids_of("cabd", "abcd")
    # 4 is no character: what stands before the text begins.
    contexts = np.array([[4, 2], [2, 0], [0, 1]])
    expected = -np.log2(probabilities(model, contexts, text[1:])).mean()
    np.testing.assert_allclose(ngram.bits_per_character(model, text), expected, rtol=RTOL)


def test_a_longer_context_helps_where_the_text_has_structure():
    ids = np.tile(ids_of("abcacb", "abc"), 50)
    bits = [
        ngram.bits_per_character(ngram.count(ids[:200], vocabulary_size=3, order=n), ids[200:])
        for n in (1, 2, 3)
    ]
    assert bits[0] > bits[1] > bits[2]


def test_random_text_costs_the_logarithm_of_the_alphabet():
    ids = np.random.default_rng(1).integers(0, 8, 20_000)
    model = ngram.count(ids[:10_000], vocabulary_size=8, order=1)
    assert abs(ngram.bits_per_character(model, ids[10_000:]) - 3) < 0.01


@pytest.mark.parametrize("dense", [1, 10**9])
def test_a_text_in_chunks_is_counted_as_a_whole(dense, monkeypatch):
    ids = np.random.default_rng(0).integers(0, 5, 1000).astype(np.uint8)
    wanted = np.unique([ids[k] * 36 + ids[k + 1] * 6 + ids[k + 2] for k in range(998)])
    monkeypatch.setattr(ngram, "CHUNK", 70)
    monkeypatch.setattr(ngram, "DENSE", dense)
    grams, counts = ngram._counted(ids, 3, 6)
    np.testing.assert_array_equal(grams, wanted)
    assert counts.sum() == 998 and counts.dtype == np.int64
    first = ids[:-2] * 36 + ids[1:-1] * 6 + ids[2:]
    np.testing.assert_array_equal(counts, [np.sum(first == gram) for gram in grams])


def test_an_order_whose_keys_would_overflow_is_refused():
    with pytest.raises(InputError, match="take at most 9"):
        ngram.count(np.zeros(20, int), vocabulary_size=103, order=10)
    assert len(ngram.count(np.zeros(20, int), vocabulary_size=103, order=9).levels) == 9
