"""Intervals: against published values, the equation that defines them, exact coverage, and a bootstrap by scipy."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from m1jax.evaluate import statistics


@settings(deadline=None)
@given(st.integers(1, 400), st.data())
def test_the_interval_holds_the_share_and_solves_wilsons_equation(total, data):
    correct = data.draw(st.integers(0, total))
    low, high = statistics.wilson(correct, total)
    share = correct / total
    assert (low == 0, high == 1) == (correct == 0, correct == total)
    assert 0 <= low <= share + 1e-12
    assert share - 1e-12 <= high <= 1
    for end in (low, high):
        if 0 < end < 1:  # (share - p)^2 = z^2 p (1 - p) / n
            assert (share - end) ** 2 == pytest.approx(1.959963984540054**2 * end * (1 - end) / total, abs=1e-9)


@pytest.mark.parametrize(
    ("correct", "total", "low", "high"),
    # Newcombe, Statistics in Medicine 17 (1998), table I, method 3 (Wilson, without continuity correction).
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_intervals_are_the_published_ones(correct, total, low, high):
    assert statistics.wilson(correct, total) == pytest.approx((low, high), abs=5e-5)
    mirrored = statistics.wilson(total - correct, total)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=5e-5)


def test_a_paired_interval_is_the_published_one():
    """Airway hyper-responsiveness before and after: Fagerland et al., Statistics in Medicine 33 (2014), 2850-2875."""
    assert statistics.newcombe(1, 1, 7, 12) == pytest.approx((-0.507, -0.026), abs=5e-4)
    low, high = statistics.newcombe(1, 7, 1, 12)
    assert (low, high) == pytest.approx((0.026, 0.507), abs=5e-4)


@pytest.mark.parametrize("shares", [(0.5, 0.2, 0.1, 0.2), (0.1, 0.05, 0.25, 0.6), (0.6, 0.1, 0.05, 0.25)])
def test_95_of_100_paired_intervals_hold_the_true_difference(shares):
    """The exact probability over all outcomes of 20 pairs."""
    covered, total = 0.0, 0.0
    for both, first, second in itertools.product(range(21), repeat=3):
        neither = 20 - both - first - second
        if neither < 0:
            continue
        counts = (both, first, second, neither)
        ways = math.factorial(20) / math.prod(map(math.factorial, counts))
        probability = ways * math.prod(share**count for share, count in zip(shares, counts, strict=True))
        low, high = statistics.newcombe(*counts)
        covered += probability * (low <= shares[1] - shares[2] <= high)
        total += probability
    assert total == pytest.approx(1)
    assert 0.93 < covered < 0.99


def test_a_bootstrap_of_many_pairs_agrees():
    rng = np.random.default_rng(0)
    first = rng.random(1500) < 0.6
    second = np.where(rng.random(1500) < 0.7, first, rng.random(1500) < 0.4)
    found = statistics.paired(first, second, range(1500))
    assert found.difference == pytest.approx(first.mean() - second.mean())
    assert (found.only_first, found.only_second) == ((first & ~second).sum(), (second & ~first).sum())
    differences = first.astype(float) - second
    theirs = stats.bootstrap((differences,), np.mean, n_resamples=3000, rng=np.random.default_rng(1))
    interval = theirs.confidence_interval
    assert found.interval == pytest.approx((interval.low, interval.high), abs=0.003)
    mirrored = statistics.paired(second, first, range(1500)).interval
    assert mirrored == pytest.approx((-found.interval[1], -found.interval[0]))


def test_questions_about_one_entity_count_as_fewer():
    rng = np.random.default_rng(2)
    whole = np.repeat(rng.random(300) < 0.5, 4)  # an entity is known or not
    clusters = np.repeat(np.arange(300), 4).tolist()
    assert statistics.effective_size(whole, clusters) == pytest.approx(300, rel=0.01)
    mixed = rng.random(1200) < 0.5
    assert statistics.effective_size(mixed, clusters) > 1000
    assert statistics.effective_size(mixed, range(1200)) == 1200
    assert statistics.effective_size([1.0, 1.0], ["a", "a"]) == 2
    # The interval of a difference is that of resampled entities.
    other = np.repeat(rng.random(300) < 0.4, 4)
    found = statistics.paired(whole, other, clusters)
    means = (whole.astype(float) - other).reshape(300, 4).mean(axis=1)
    interval = stats.bootstrap((means,), np.mean, n_resamples=3000, rng=np.random.default_rng(3)).confidence_interval
    assert found.interval == pytest.approx((interval.low, interval.high), abs=0.006)


@pytest.mark.parametrize("same", [True, False])
def test_models_that_never_differ_still_leave_a_doubt(same):
    found = statistics.paired([same] * 9, [same] * 9, range(9))
    assert found.difference == 0
    assert found.interval[0] < 0 < found.interval[1]
