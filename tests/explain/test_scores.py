"""Scores are high for a right explanation, near 0 for a wrong one, 0 for a constant one; no answer is no score."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.stats import mannwhitneyu, spearmanr

from explain.planted import AFTER_SELF, ASSIGN, NUMBER, TOKEN, World, drawn_of, world
from heredity.explain.protocol import Excerpt, Failure, quantized
from heredity.explain.scores import (
    BINS,
    UNSCORED,
    Scores,
    agreement,
    compare,
    correlation,
    detection_set,
    effect,
    fuzz_set,
    intruder_score,
    intruder_set,
    scored,
    simulation,
)  # fmt: skip

PLANTED = (ASSIGN, AFTER_SELF, NUMBER, TOKEN)


@pytest.fixture(scope="module")
def found() -> World:
    return world()


class Stubborn:
    """A judge that always answers the same."""

    name = "stubborn"

    def simulate(self, feature, description, excerpts):
        return [np.full(len(excerpt.ids), 3.1) for excerpt in excerpts]

    def detect(self, feature, description, excerpts):
        return np.full(len(excerpts), 0.7)

    def fuzz(self, feature, description, excerpts, marked):
        return np.full(len(excerpts), 0.2)

    def intruder(self, feature, groups):
        return np.full(len(groups), 2)


class Broken(Stubborn):
    """A judge that answers nothing but one excerpt."""

    def simulate(self, feature, description, excerpts):
        return [excerpts[0].values, *[Failure("truncated", "")] * (len(excerpts) - 1)]

    def detect(self, *_):
        return Failure("refused", "")

    fuzz = intruder = detect


def scores(found: World, feature: int, explained: int, seed: int = 0) -> Scores:
    """Of one feature under the explanation of another."""
    said: Any = found.judge.explain(str(explained), ())
    return scored(found.judge, str(feature), said, drawn_of(found, feature, seed), seed)


@pytest.mark.parametrize("feature", PLANTED)
def test_a_right_explanation_scores_high(found: World, feature: int):
    told = scores(found, feature, feature)
    names = ("simulation", "simulation_levels", "simulation_top_random", "detection_auc", "fuzzing_auc")
    assert min(told.columns[name] for name in names) > 0.95 and not told.failures
    assert min(told.columns[name] for name in ("detection", "fuzzing", "intruder")) > 0.9


def test_a_wrong_explanation_scores_about_nothing(found: World):
    wrong = [
        scores(found, feature, other, seed)
        for feature in PLANTED
        for other in PLANTED
        if feature != other and {feature, other} != {AFTER_SELF, NUMBER}
        for seed in range(3)
    ]
    for sort in ("simulation", "detection", "fuzzing"):
        assert abs(np.mean([told.columns[sort] for told in wrong])) < 0.15


def test_a_constant_answer_scores_exactly_0(found: World):
    told = scored(Stubborn(), "0", "", drawn_of(found, ASSIGN), 0)
    zero = ("simulation", "simulation_levels", "simulation_top_random", "spearman", "detection", "fuzzing", "intruder")
    assert all(told.columns[name] == 0 for name in zero) and told.columns["intruder_n"] == 20
    assert told.columns["detection_auc"] == told.columns["fuzzing_auc"] == 0.5


def test_an_answer_that_did_not_come_is_counted_and_not_scored(found: World):
    drawn = drawn_of(found, ASSIGN)
    told = scored(Broken(), "0", "", drawn, 0)
    assert told.columns["simulation_n"] == 1 and told.columns["simulation"] == pytest.approx(1)
    assert told.failures == {"truncated": 1, "refused": 3}, "one request failed for many excerpts"
    for sort in ("detection", "fuzzing", "intruder"):
        assert np.isnan(told.columns[sort]) and told.columns[f"{sort}_n"] == 0
    nothing = simulation(drawn.scoring, Failure("budget", ""), 1.0)
    assert nothing.pop("simulation_n") == 0 and np.isnan([*nothing.values()]).all()
    assert {name for name, value in UNSCORED.items() if value == 0} == {name for name in UNSCORED if name[-2:] == "_n"}


def test_correlation_is_numpys_and_nan_never_becomes_0():
    rng = np.random.default_rng(0)
    x, y = rng.normal(5, 3, 50), rng.normal(size=50)
    y += 0.3 * x
    assert correlation(x, y) == pytest.approx(np.corrcoef(x, y)[0, 1])
    assert correlation(x, np.full(50, 0.1)) == 0
    for true, predicted in ((np.full(50, 0.1), y), (x, np.where(x > 5, np.nan, y)), (np.empty(0), np.empty(0))):
        assert np.isnan(correlation(true, predicted))


def test_simulation_is_over_the_concatenated_excerpts_and_by_kind():
    rng = np.random.default_rng(1)
    kinds = ("top", "random", "interval", "random")
    excerpts = [Excerpt(("a",) * 5, np.zeros(5, int), rng.random(5), kind, n, 0) for n, kind in enumerate(kinds)]
    levels = [9 * rng.random(5) for _ in kinds]
    true, told = np.concatenate([excerpt.values for excerpt in excerpts]), np.concatenate(levels)
    found = simulation(excerpts, levels, 0.8)
    chance = np.isin(np.repeat(kinds, 5), ["random"])
    wide = chance | np.isin(np.repeat(kinds, 5), ["top"])
    pairs = [(true, told), (quantized(true, 0.8), told), (true[wide], told[wide]), (true[chance], told[chance])]
    expected = [*(np.corrcoef(*pair)[0, 1] for pair in pairs), spearmanr(true, told).statistic, 4]
    assert [*found.values()] == pytest.approx(expected)
    silent = [excerpt._replace(values=np.zeros(5)) if excerpt.kind == "random" else excerpt for excerpt in excerpts]
    assert np.isnan(simulation(silent, levels, 0.8)["simulation_random"])


def test_agreement_is_informedness_and_the_area_under_the_curve():
    truth = np.array([True, True, True, False, False, False])
    for answers, expected in (
        ([0.9, 0.5, 0.1, 0.6, 0.2, 0.1], [2 / 3 - 1 / 3, (3 + 2 + 0.5) / 9, 6]),
        ([0.9, 0.8, np.nan, 0.1, 0.2, np.nan], [1, 1, 4]),
    ):
        assert [*agreement("detection", truth, np.array(answers)).values()] == pytest.approx(expected)
    assert np.isnan(agreement("detection", truth[:3], np.ones(3))["detection"])


def test_effect_counts_pairs():
    rng = np.random.default_rng(2)
    first, second = rng.integers(0, 5, 30).astype(float), rng.integers(0, 6, 20).astype(float)
    pairs = [1.0 * (x > y) + 0.5 * (x == y) for x in first for y in second]
    assert effect(first, second) == pytest.approx(np.mean(pairs))


def test_intruders_are_corrected_for_chance():
    places = np.arange(20) % 5
    for answers, score in ((places, 1), (np.full(20, 3), 0), ((places + 1) % 5, -0.25)):
        assert intruder_score(places, answers) == {"intruder": score, "intruder_n": 20}
    assert np.isnan(intruder_score(places[:0], places[:0])["intruder"])


def test_questions_are_balanced_and_true(found: World):
    drawn = drawn_of(found, ASSIGN)
    active = [excerpt for excerpt in drawn.scoring if excerpt.values.any()]
    excerpts, truth = detection_set(active, drawn.silent, 12, 3)
    assert len(excerpts) == 24 and truth.sum() == 12
    assert [bool(excerpt.values.any()) for excerpt in excerpts] == truth.tolist()
    assert not truth[:12].all(), "mixed"
    assert len(detection_set(active, drawn.silent[:3], 12, 3)[0]) == 6

    excerpts, marked, right = fuzz_set(active, 8, 3)
    assert right.sum() * 2 == len(right) == 16
    for excerpt, marks, is_right in zip(excerpts, marked, right, strict=True):
        truth = excerpt.values > 0
        assert marks.sum() == truth.sum() and (marks == truth).all() == is_right
        assert is_right or not (marks & truth).any()

    groups, places = intruder_set(active, drawn.silent, 19, 3)
    assert np.bincount(places).tolist() == [3] * 5
    for group, place in zip(groups, places, strict=True):
        assert [bool(excerpt.values.any()) for excerpt in group] == [at != place for at in range(5)]
        assert len({excerpt.block for excerpt in group}) >= 4
    assert intruder_set(active[:3], drawn.silent, 19, 3)[0] == ()


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
