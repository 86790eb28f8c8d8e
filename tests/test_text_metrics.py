"""Text metrics: normal forms, word error rates, paired quotes, F1, bootstrap intervals."""

import jiwer
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bagpiper_jax.errors import UserError
from bagpiper_jax.evaluation import text_metrics as metrics

WORDS = st.lists(st.sampled_from("one two three b k".split()), max_size=6)


@pytest.mark.parametrize(
    "text, words",
    [
        ("Press 1, please!", "press one please"),
        ("Extension 142.", "extension one hundred forty two"),
        ("The 21st of May", "the twenty first of may"),
        ("the 12th and 40th", "the twelfth and fortieth"),
        ("1,234 callers", "one thousand two hundred thirty four callers"),
        ("call 0800 or 5551234", "call zero eight zero zero or five five five one two three four"),
        ("I’m sorry", "im sorry"),
        ("90 % & rising", "ninety percent and rising"),
        ("you've e-mail", "youve e mail"),
        ("", ""),
    ],
)
def test_running_speech_is_normalized(text, words):
    assert metrics.normalize(text) == words.split()


@pytest.mark.parametrize(
    "text, units",
    [
        ("9, 4, 0, 4", "nine four zero four"),
        ("90513", "nine zero five one three"),
        ("9-7.", "nine seven"),
        ("Seven, three", "seven three"),
        ("To 9 9 1 2", "two nine nine one two"),
        ("B-K-T", "b k t"),
        ("bkt", "b k t"),
        ("b k t.", "b k t"),
        ("B. K. T.", "b k t"),
        ("bee, kay, tea", "b k t"),
        ("Double-U X", "w x"),
        ("H6J", "h six j"),
        ("You 3 x y", "u three x y"),
        ("T8.", "t eight"),
        ("7th", "seven"),
        ("", ""),
    ],
)
def test_spelled_strings_are_normalized(text, units):
    assert metrics.normalize_spelled(text) == units.split()


def test_other_words_count_letter_by_letter_only_where_letters_are_asked_for():
    assert metrics.normalize_spelled("thanks 7") == [*"thanks", "seven"]
    assert metrics.normalize_spelled("thanks 7", letters=False) == ["thanks", "seven"]


@given(st.lists(st.tuples(WORDS.filter(len), WORDS), min_size=1, max_size=8))
def test_corpus_error_rate_is_that_of_jiwer(pairs):
    counts = [metrics.count_errors(truth, heard) for truth, heard in pairs]
    expected = jiwer.wer([" ".join(t) for t, _ in pairs], [" ".join(h) for _, h in pairs])
    assert sum(counts, metrics.Errors()).rate == pytest.approx(expected)
    assert metrics.word_error_rate(counts).value == pytest.approx(expected)


def test_quotes_are_paired_in_order_with_the_fewest_errors():
    truth = ["good morning".split(), "seven three".split(), "b k".split()]
    assert metrics.align_quotes(truth, truth) == [(0, 0), (1, 1), (2, 2)]
    assert metrics.align_quotes(truth, [truth[1], truth[2]]) == [(0, None), (1, 0), (2, 1)]
    assert metrics.align_quotes(truth[1:], truth) == [(None, 0), (0, 1), (1, 2)]
    assert metrics.align_quotes(truth, []) == [(0, None), (1, None), (2, None)]
    assert metrics.align_quotes([], []) == []


@given(st.lists(WORDS, max_size=3), st.lists(WORDS, max_size=3))
def test_every_quote_is_paired_once_and_never_costs_more_than_all(truth, written):
    pairs = metrics.align_quotes(truth, written)
    assert [i for i, _ in pairs if i is not None] == list(range(len(truth)))
    assert [j for _, j in pairs if j is not None] == list(range(len(written)))
    errors = sum(
        metrics.count_errors([] if i is None else truth[i], [] if j is None else written[j]).errors
        for i, j in pairs
    )
    assert errors <= sum(map(len, truth)) + sum(map(len, written))


def test_perfect_and_wholly_wrong_results_are_no_proof_of_perfection():
    assert metrics.word_error_rate([metrics.Errors(0, 3)] * 60) == (0, 0, 0.05, 60)
    assert metrics.word_error_rate([metrics.Errors(3, 3)] * 60) == (1, 0.95, 1, 60)
    assert metrics.events_f1([({"rain"}, {"rain"})] * 4) == (1, 0.25, 1, 4)
    assert metrics.events_f1([({"rain"}, {"a gong"})] * 4) == (0, 0, 0.75, 4)
    same = [i % 6 for i in range(60)]
    assert metrics.bootstrap_ratio([0] * 60, [3] * 60, groups=same).high == 0.5


def test_f1_is_micro_over_scenes():
    value, low, high, count = metrics.events_f1(
        [({"rain", "a gong"}, {"rain"}), ({"rain"}, {"rain", "wind"}), ({"wind"}, set())]
    )
    assert value == pytest.approx(2 * 2 / (2 * 2 + 1 + 2))
    assert low <= value <= high and count == 3


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(100):
        words = rng.integers(2, 6, 150)
        errors = rng.binomial(words, 0.1)
        _, low, high, _ = metrics.bootstrap_ratio(errors, words, seed=trial)
        covered += low <= 0.1 <= high
    assert 88 <= covered <= 100


def test_intervals_depend_on_the_seed_only():
    errors, words = [0, 1, 2, 0, 3], [3, 4, 5, 2, 4]
    first = metrics.bootstrap_ratio(errors, words, seed=1)
    assert first == metrics.bootstrap_ratio(errors, words, seed=1)
    assert first != metrics.bootstrap_ratio(errors, words, seed=2)


def test_nothing_to_measure_is_told():
    with pytest.raises(UserError, match="nothing to measure"):
        metrics.word_error_rate([])


def test_scenes_that_say_the_same_are_one_draw():
    """Thirty scenes of three strings tell no more than three."""
    errors = [[0, 1, 2][i % 3] for i in range(30)]
    alone = metrics.bootstrap_ratio(errors, [2] * 30)
    together = metrics.bootstrap_ratio(errors, [2] * 30, groups=[i % 3 for i in range(30)])
    assert alone.value == together.value == 0.5 and alone.count == together.count == 30
    assert together.low == 0 and together.high == 1
    assert 0.3 < alone.low < alone.high < 0.7
