"""Groups that differ are told apart, groups that do not are not, and nobody is lost in the counts."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from heredity.explain.excerpts import choose, priorities
from heredity.explain.scores import BINS, compare
from heredity.features.correlate import Matches


def test_a_planted_difference_is_found():
    rng = np.random.default_rng(0)
    high, low = rng.normal(0.6, 0.1, 120), rng.normal(0.4, 0.1, 80)
    found = compare(high, low, seed=1)
    assert found.p < 1e-6 and found.effect == pytest.approx(0.92, abs=0.03)
    assert 0.8 < found.low < found.effect < found.high < 1
    assert found.p == mannwhitneyu(high, low).pvalue
    assert found.effect == pytest.approx(mannwhitneyu(high, low).statistic / (120 * 80))
    assert found.persisting.low < found.persisting.median < found.persisting.high
    assert found.persisting.low < 0.6 < found.persisting.high and found.others.low < 0.4 < found.others.high
    assert compare(high, low, seed=1).low == found.low and compare(high, low, seed=2).low != found.low


def test_the_interval_of_the_effect_covers_what_is_true():
    rng = np.random.default_rng(3)
    inside = [
        found.low <= 0.5 <= found.high
        for found in (compare(rng.normal(size=40), rng.normal(size=30), resamples=100) for _ in range(30))
    ]
    assert 0.8 <= np.mean(inside) <= 1


def test_what_has_no_score_is_counted_apart():
    found = compare(np.array([0.5, np.nan, -0.9, 1.0]), np.array([np.nan, np.nan]), rare=(3, 4))
    assert (found.persisting.n, found.persisting.unscored, found.persisting.rare) == (3, 1, 3)
    assert (found.others.n, found.others.unscored, found.others.rare) == (0, 2, 4)
    assert np.isnan([found.p, found.effect, found.low, found.others.median, found.others.low]).all()
    histogram = found.persisting.histogram
    assert len(histogram) == len(BINS) - 1 and histogram.sum() == 3
    assert histogram[0] == histogram[-1] == histogram[14] == 1 and found.others.histogram.sum() == 0


def test_one_score_has_a_median_and_no_interval():
    found = compare(np.array([0.5]), np.array([0.4, 0.3]))
    assert found.persisting.median == 0.5 and np.isnan(found.persisting.low) and np.isnan(found.low)
    assert found.effect == 1


def matches(child: list[int], r: list[float]) -> Matches:
    """By the child's features."""
    match, value = np.array(child)[:, None], np.array(r)[:, None]
    return Matches(match, value, match, value, np.ones(len(child)), np.ones(len(child)), 10)


def test_features_share_the_number_of_the_match_that_they_descend_from():
    counting = {
        ("a", "b"): matches([2, -1, 0], [0.9, np.nan, 0.9]),
        ("a", "c"): matches([1, 1, -1], [0.8, 0.9, np.nan]),
        ("b", "c"): matches([0, -1, 1], [0.9, np.nan, 0.7]),
    }
    found = priorities([("a", "b"), ("a", "c"), ("b", "c")], counting, {"a": 3, "b": 3, "c": 3}, 0)
    assert found["b"][0] == found["a"][2] and found["b"][2] == found["a"][0]
    assert found["b"][1] not in found["a"]
    assert found["c"].tolist() == [found["b"][0], found["a"][1], found["b"][1]], "the highest r counts"


def test_as_many_others_as_persisting_ones_are_chosen_live_and_often_enough():
    match = np.array([1, 1, 1, 1, -1, -1, -1, -1, -1, 1])
    density = np.array([0.1] * 8 + [0.0, 0.1])
    firings = np.array([50, 50, 50, 19, 50, 50, 50, 50, 50, 50])
    priority = np.array([5, 4, 3, 0, 9, 8, 7, 6, 0, 1.0])
    found = choose(match, density, firings, priority, 100)
    assert found.persisting.tolist() == [0, 1, 2, 9] and found.others.tolist() == [4, 5, 6, 7]
    assert found.rare == (1, 0)
    few = choose(match, density, firings, priority, 5)
    assert few.persisting.tolist() == [2, 9] and few.others.tolist() == [6, 7]
    lonely = choose(np.where(np.arange(10) == 1, 1, -1), density, firings, priority, 100)
    assert lonely.persisting.tolist() == [1] and lonely.others.tolist() == [9]
