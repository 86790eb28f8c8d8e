"""Keyed permutations: bijective at every size, uniform, independent between keys and epochs."""

import subprocess
import sys

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from bagpiper_jax.input_pipeline.permutation import chance, key_of, shuffled


@given(st.integers(1, 3000), st.integers(0, 2**62), st.integers(0, 1000))
def test_every_epoch_is_a_permutation(size, seed, epoch):
    order = shuffled(np.arange(epoch * size, (epoch + 1) * size), size, key_of(seed))
    assert np.array_equal(np.sort(order), np.arange(size))


@given(st.integers(1, 2**62), st.integers(0, 2**62 - 1))
def test_any_number_of_a_large_order(size, number):
    alone = shuffled(np.array([number]), size, key_of(7))
    assert 0 <= alone[0] < size
    assert alone[0] == shuffled(np.array([0, number, number // 2]), size, key_of(7))[1]


def test_a_billion_without_a_table():
    """Distinct numbers have distinct values; a million draws are spread evenly."""
    values = shuffled(np.arange(10**6) * 997, 10**9, key_of("a"))
    assert len(np.unique(values)) == 10**6
    counts = np.histogram(values, 100, (0, 10**9))[0]
    assert scipy.stats.chisquare(counts).pvalue > 1e-4


@pytest.mark.parametrize("size", [2, 3, 5, 10, 34])
def test_values_and_pairs_are_uniform(size):
    """Over keys, each place holds each value alike, and neighbours are as of a fair shuffle."""
    numbers = np.arange(size)
    orders = np.stack([shuffled(numbers, size, key_of("key", i)) for i in range(4000)])
    for place in (0, size // 2, size - 1):
        counts = np.bincount(orders[:, place], minlength=size)
        assert scipy.stats.chisquare(counts).pvalue > 1e-4
    steps = np.bincount((orders[:, 1] - orders[:, 0]) % size, minlength=size)
    assert steps[0] == 0
    if size > 2:
        assert scipy.stats.chisquare(steps[1:]).pvalue > 1e-4


def test_epochs_and_keys_are_independent():
    size = 5000
    first, second = shuffled(np.arange(2 * size), size, key_of(0)).reshape(2, size)
    other = shuffled(np.arange(size), size, key_of(1))
    straight = np.arange(size)
    for a, b in ((first, second), (first, other), (first, straight), (second, straight)):
        assert abs(scipy.stats.spearmanr(a, b).statistic) < 0.06  # four standard deviations
        assert (a == b).sum() < 12


def test_the_same_on_every_machine():
    """Fixed values: another order would not go on where a checkpoint stopped."""
    code = (
        "from bagpiper_jax.input_pipeline.permutation import *; import sys;"
        "print(shuffled(np.arange(8), 8, key_of('a', 1)).tolist(), key_of('a', 1));"
        "print('jax' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    order = shuffled(np.arange(8), 8, key_of("a", 1)).tolist()
    assert out.stdout.splitlines() == [f"{order} {key_of('a', 1)}", "False"]
    assert order == [0, 1, 7, 5, 2, 6, 3, 4] and key_of("a", 1) == 13841258190003339186


def test_chances_are_uniform():
    draws = [chance("dropout", i) for i in range(5000)]
    assert scipy.stats.kstest(draws, "uniform").pvalue > 1e-4
    assert chance("dropout", 3) == draws[3] and 0 <= min(draws) and max(draws) < 1
