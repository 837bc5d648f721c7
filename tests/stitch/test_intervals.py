"""Intervals cover what they say they do, and stay open at 0 and 1."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import beta, norm

from heredity.stitch.intervals import balanced_accuracy, proportion, roc_auc


@pytest.mark.parametrize(("hits", "n"), [(0, 7), (3, 7), (7, 7), (81, 163)])
def test_a_proportion_has_the_quantiles_of_the_beta_distribution_as_ends(hits: int, n: int):
    found = proportion(hits, n)
    assert found.value == hits / n
    assert found.low == pytest.approx(beta.ppf(0.025, hits, n - hits + 1) if hits else 0)
    assert found.high == pytest.approx(beta.ppf(0.975, hits + 1, n - hits) if hits < n else 1)


def test_no_cases_are_no_share():
    with pytest.raises(ValueError, match="0 hits of 0"):
        proportion(0, 0)


def test_balanced_accuracy_is_that_of_the_classes_however_many_cases_they_have():
    y = np.array([True] * 10 + [False] * 90)
    guess = np.concatenate([np.arange(10) < 5, np.zeros(90, bool)])
    found = balanced_accuracy(guess, y)
    assert found.value == 0.75
    # The ten cases of the rare class decide the width, not the ninety others.
    assert 0.2 < found.high - found.low < 0.35 and found.low < 0.75 < found.high


def test_perfect_guesses_leave_room_below():
    y = np.arange(20) % 2 == 0
    assert balanced_accuracy(y, y).high == 1 and 0.8 < balanced_accuracy(y, y).low < 1
    perfect = roc_auc(y.astype(float), y)
    assert perfect.value == perfect.high == 1 and 0.7 < perfect.low < 0.95
    assert roc_auc(1.0 - y, y)[:2] == (0, 0)


def test_area_is_the_share_of_pairs_in_the_right_order():
    rng = np.random.default_rng(0)
    scores, y = rng.integers(0, 6, 40).astype(float), np.arange(40) % 3 == 0
    pairs = np.sign(scores[y][:, None] - scores[~y][None])
    assert roc_auc(scores, y).value == pytest.approx((pairs.mean() + 1) / 2)


def test_intervals_of_area_and_balanced_accuracy_cover_the_truth_as_often_as_they_say():
    rng, shift, runs = np.random.default_rng(1), 1.2, 120
    y = np.arange(80) % 4 == 0
    area, right, covered = norm.cdf(shift / np.sqrt(2)), norm.cdf(shift / 2), np.zeros(2)
    for _ in range(runs):
        scores = rng.standard_normal(80) + shift * (y - 0.5)
        for at, (found, truth) in enumerate(((roc_auc(scores, y), area), (balanced_accuracy(scores > 0, y), right))):
            covered[at] += found.low <= truth <= found.high
    assert (covered / runs > 0.9).all() and (covered / runs < 0.995).all()


def test_one_class_alone_has_no_area():
    with pytest.raises(ValueError, match="3 cases, of which 3 of 3"):
        roc_auc(np.zeros(3), np.ones(3, bool))
