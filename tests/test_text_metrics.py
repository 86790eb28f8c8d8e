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


def test_scenes_with_nothing_of_the_kind_are_no_proof_and_not_counted():
    rate = metrics.bootstrap_ratio([0] * 60, [1] * 6 + [0] * 54)
    assert rate == (0, 0, 0.5, 6) and rate.sums.groups == list("012345")
    music = [({"music"}, {"music"})] * 6 + [(set(), set())] * 54
    assert metrics.events_f1(music) == (1, 0.5, 1, 6)
    grouped = metrics.bootstrap_ratio([0] * 4, [1, 1, 0, 0], groups=["a", "b", "c", "c"])
    assert grouped.sums.groups == ["'a'", "'b'"]
    found = metrics.paired_difference(rate.sums, rate.sums)
    assert found == (0, -0.5, 0.5, 6)


def test_a_scale_has_its_own_end():
    marks = metrics.bootstrap_ratio([10.0] * 6, [1] * 6, highest=10)
    assert marks == (10, 5, 10, 6)
    assert metrics.bootstrap_ratio([1.0] * 6, [1] * 6, highest=10)[:3] == (1, 1, 1)
    assert metrics.paired_difference(marks.sums, marks.sums) == (0, -5, 5, 6)


def test_f1_is_micro_over_scenes():
    value, low, high, count = metrics.events_f1(
        [({"rain", "a gong"}, {"rain"}), ({"rain"}, {"rain", "wind"}), ({"wind"}, set())]
    )
    assert value == pytest.approx(2 * 2 / (2 * 2 + 1 + 2))
    assert low <= value <= high and count == 3


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(300):
        words = rng.integers(2, 6, 150)
        errors = rng.binomial(words, 0.1)
        _, low, high, _ = metrics.bootstrap_ratio(errors, words, seed=trial)
        covered += low <= 0.1 <= high
    assert 270 <= covered <= 297


def test_paired_differences_cover_the_truth_and_are_narrower_than_unpaired_ones():
    """Scenes differ in how hard they are, for both runs alike; the true rates are 0.2 and 0.15."""
    rng = np.random.default_rng(0)
    covered, narrower = 0, 0
    for trial in range(300):
        hard = rng.beta(0.5, 0.5, 150)
        words = rng.integers(2, 6, 150)
        first, other = (
            metrics.bootstrap_ratio(rng.binomial(words, 2 * rate * hard), words, seed=trial)
            for rate in (0.2, 0.15)
        )
        value, low, high, count = metrics.paired_difference(first.sums, other.sums, seed=trial)
        assert value == pytest.approx(other.value - first.value) and count == 150
        covered += low <= -0.05 <= high
        apart = np.hypot(first.high - first.low, other.high - other.low)
        narrower += high - low < apart
    assert 270 <= covered <= 297 and narrower > 290


def test_a_run_compared_with_itself_does_not_differ():
    counts = [metrics.Errors(i % 3, 4) for i in range(60)]
    sums = metrics.word_error_rate(counts).sums
    assert metrics.paired_difference(sums, sums) == (0, -0.05, 0.05, 60)


def test_groups_are_paired_by_name_though_one_run_left_some_out():
    """A scene without words counts only where something was written there."""
    silent, loud = metrics.Errors(0, 0), metrics.Errors(2, 0)
    both = [metrics.Errors(i % 3, 4) for i in range(20)]
    first = metrics.word_error_rate([silent, *both]).sums
    other = metrics.word_error_rate([loud, *both]).sums
    assert (len(first.groups), len(other.groups)) == (20, 21)
    found = metrics.paired_difference(first, other)
    assert found.value == pytest.approx(2 / 80) and found.count == 21
    assert found.low == 0  # all but the first are alike, so draws without it do not differ
    with pytest.raises(UserError, match="nothing to compare"):
        metrics.paired_difference(first, metrics.Sums(["0"], [1.0], [0.0]))


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
