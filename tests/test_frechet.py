"""Fréchet distances against the analytic value, and against the root of a matrix."""

import numpy as np
import pytest
from scipy.linalg import sqrtm

from bagpiper_jax.errors import UserError
from bagpiper_jax.evaluation.frechet import frechet_distance, halved_distances


def exact_sample(rng, count, mean, covariance):
    """Rows whose mean and covariance are exactly these."""
    rows = rng.standard_normal((count, len(mean)))
    rows -= rows.mean(0)
    rows = rows @ np.linalg.inv(np.linalg.cholesky(np.cov(rows.T))).T
    return mean + rows @ np.linalg.cholesky(covariance).T


def random_covariance(rng, width):
    half = rng.standard_normal((width, width))
    return half @ half.T + 0.1 * np.eye(width)


@pytest.mark.parametrize("counts", [(50, 50), (200, 40), (13, 300)])
def test_it_is_that_of_the_root_of_the_product(counts):
    rng = np.random.default_rng(0)
    width = 12
    means = rng.standard_normal((2, width))
    one, two = (random_covariance(rng, width) for _ in range(2))
    sets = [exact_sample(rng, n, m, c) for n, m, c in zip(counts, means, (one, two))]
    expected = np.sum((means[0] - means[1]) ** 2) + np.trace(one + two - 2 * sqrtm(one @ two).real)
    assert frechet_distance(*sets) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(*sets[::-1]) == pytest.approx(expected, rel=1e-9)


def test_it_is_the_analytic_value_where_axes_are_shared():
    rng = np.random.default_rng(1)
    one, two = np.array([1.0, 4.0, 9.0]), np.array([4.0, 1.0, 0.25])
    sets = [exact_sample(rng, 30, np.full(3, m), np.diag(v)) for m, v in ((0, one), (2, two))]
    expected = 3 * 4 + np.sum((np.sqrt(one) - np.sqrt(two)) ** 2)
    assert frechet_distance(*sets) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(sets[0], sets[0]) == pytest.approx(0, abs=1e-9)


def test_sets_smaller_than_their_width():
    """There the covariances have no full rank; with few rows, all that is not shared counts."""
    rng = np.random.default_rng(2)
    rows = rng.standard_normal((10, 64))
    assert frechet_distance(rows, rows) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(rows, rows + 1) == pytest.approx(64)
    expected = np.trace(np.cov(rows.T)) * (1 - 2) ** 2  # the same axes, twice as wide
    assert frechet_distance(rows - rows.mean(0), 2 * (rows - rows.mean(0))) == pytest.approx(
        expected
    )


def test_float32_features_are_taken_in_float64():
    rng = np.random.default_rng(3)
    rows = (1e3 + rng.standard_normal((400, 8))).astype(np.float32)
    assert frechet_distance(rows, rows) < 1e-9


def test_two_samples_of_one_distribution_are_apart_by_their_size():
    rng = np.random.default_rng(4)
    found = [
        np.mean([frechet_distance(*rng.standard_normal((2, n, 16))) for _ in range(8)])
        for n in (32, 128, 512)
    ]
    assert found[0] > 3 * found[1] > 9 * found[2] > 0


def test_halves_tell_the_floor_from_a_shift():
    rng = np.random.default_rng(5)
    truth = rng.standard_normal((60, 16))
    sets = {"floor": truth, "copy": truth + 1e-6, "shifted": truth + 2, "wide": 3 * truth}
    found = halved_distances(truth, sets, seed=0)
    # a copy of the very clips is no nearer than other true clips are: the halves share no scene
    assert found["copy"].value == pytest.approx(found["floor"].value, rel=1e-3)
    assert found["shifted"].low > found["floor"].high + 30
    assert found["wide"].low > found["floor"].high
    for interval in found.values():
        assert interval.low < interval.value < interval.high and interval.count == 30


def test_too_few_clips_and_unequal_sets_are_told():
    rows = np.zeros((3, 2))
    with pytest.raises(UserError, match="four clips"):
        halved_distances(rows, {"floor": rows})
    with pytest.raises(UserError, match="'few': 3"):
        halved_distances(np.zeros((8, 2)), {"few": rows})
    with pytest.raises(UserError, match="of one width"):
        frechet_distance(rows, np.zeros((3, 4)))
    with pytest.raises(UserError, match="two clips"):
        frechet_distance(rows[:1], rows)
