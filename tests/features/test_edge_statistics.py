"""Figures of an edge agree with the functions they are made of, and with each other."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from heredity.features.acts import FeatureActs
from heredity.features.correlate import correlate
from heredity.features.edge_statistics import Compared, Directions, EdgeStatistics, Settings, ceiling_r, edge_statistics
from heredity.features.fates import STRATA, THRESHOLDS, curve, fates, strata
from heredity.features.null import choose_threshold, floor

TOKENS, D_SAE = 3_000, 40
KEPT = 36  # the child keeps the first parent features; the last one of the parent is dead


def edge(spare: int = 1, documents: int = 60, one_dictionary: bool = False) -> Compared:
    rng = np.random.default_rng(0)
    parent = rng.random((TOKENS, D_SAE)) * (rng.random((TOKENS, D_SAE)) < rng.uniform(0.005, 0.15, D_SAE))
    parent[:, -1] = 0

    def noisy(features: int) -> FeatureActs:
        noise = rng.random((TOKENS, features)) * (rng.random((TOKENS, features)) < 0.01)
        return FeatureActs.from_dense(parent[:, :features] + noise)

    acts, child, further = FeatureActs.from_dense(parent), noisy(KEPT), [noisy(D_SAE) for _ in range(spare)]
    matched = correlate(acts, child, 5), [correlate(acts, other, 1) for other in further], floor(acts, child, 2, 1)
    document, ids = np.arange(TOKENS) // (TOKENS // documents), rng.integers(0, 50, TOKENS)
    return Compared(acts, child, further, *matched, document, ids, one_dictionary)


def directions() -> Directions:
    rng = np.random.default_rng(1)
    decoders = rng.standard_normal((D_SAE, 16)), rng.standard_normal((KEPT, 16))
    return Directions((decoders[0].T, decoders[1].T), decoders)


def settings(threshold: float | None = None) -> Settings:
    return Settings(threshold, rate=0.01, resamples=200, level=0.95, seed=3)


@pytest.fixture(scope="module")
def world() -> Compared:
    return edge(spare=2)


@pytest.fixture(scope="module")
def statistics(world) -> EdgeStatistics:
    return edge_statistics(world, settings(), directions())


def test_the_threshold_is_that_of_the_evidence_or_of_the_study(world, statistics):
    evidence = choose_threshold(world.matches.parent_r[:, 0], world.floor.parent_r, ceiling_r(world))
    assert (statistics.threshold, statistics.chance_end, statistics.same_end) == evidence
    assert statistics.threshold_by == "evidence" and list(statistics.counts) == ["evidence", "paper"]
    given = edge_statistics(world, settings(0.7))
    assert given.threshold == 0.7 and given.threshold_by == "study" and list(given.counts) == ["study", "paper"]
    assert (given.chance_end, given.same_end) == evidence[1:]


def test_counts_of_both_rules_are_the_fates_with_intervals_around_them(world, statistics):
    assert statistics.parent_live == D_SAE - 1 and statistics.child_live == KEPT
    for figures in statistics.counts.values():
        row: dict[str, Any] = dict(figures)
        fate = fates(world.matches, row["threshold"])
        for name in ("persist", "disappear", "emerge"):
            assert row[name] == getattr(fate, name).sum()
        assert row["one_to_one"] == len(fate.mutual)
        assert row["persist"] + row["disappear"] == statistics.parent_live
        assert row["relative"] == pytest.approx(row["persist"] / statistics.parent_live / row["ceiling"])
        for name in ("persist", "disappear", "emerge", "ceiling", "relative"):
            assert row[f"{name}_low"] <= row[name] <= row[f"{name}_high"]
        assert row["persist_low"] + row["disappear_high"] == statistics.parent_live
    assert statistics.counts["evidence"]["persist"] == KEPT and statistics.counts["evidence"]["floor"] == 0


def test_rows_agree_with_the_counts(world, statistics):
    assert {f"{at:.2f}": persist for at, persist in statistics.curve} == curve(world.matches)
    by_rule = {rule: (persist, threshold, flag) for rule, persist, threshold, flag in statistics.rules}
    assert list(by_rule) == ["existence", "mutual", "assigned", "decoder_cosine", "shared", "token_types"]
    assert by_rule["existence"][:2] == (statistics.counts["evidence"]["persist"], statistics.threshold)
    assert by_rule["mutual"][0] == statistics.counts["evidence"]["one_to_one"]
    assert [rule for rule, (_, _, flag) in by_rule.items() if flag] == ["token_types"]
    curves = {(rule, at): persist for rule, at, persist in statistics.rule_curves}
    assert len(curves) == len(by_rule) * len(THRESHOLDS)
    assert [curves["existence", at] for at in THRESHOLDS] == [persist for _, persist in statistics.curve]
    only = {(rule, other): count for rule, other, count in statistics.disagreement}
    assert len(only) == len(by_rule) * (len(by_rule) - 1)
    difference = by_rule["existence"][0] - by_rule["shared"][0]
    assert only["existence", "shared"] - only["shared", "existence"] == difference
    assert only["mutual", "existence"] == 0, "a mutual match is a match"
    assert only["existence", "mutual"] == by_rule["existence"][0] - by_rule["mutual"][0]


def test_strata_add_up_by_end_and_have_their_limits(world, statistics):
    for end, features, matched in (("parent", D_SAE, KEPT), ("child", KEPT, KEPT)):
        rows = {row[1]: row[2:] for row in statistics.strata if row[0] == end}
        assert tuple(rows) == STRATA and sum(row[0] for row in rows.values()) == features
        assert sum(row[1] for row in rows.values()) == matched
        assert sum(row[3] for row in rows.values()) == pytest.approx(matched / features)
        assert rows["dead"][2] is None and rows["usual"][2] == rows["usual"][1] / rows["usual"][0]
    expected = strata(world.matches.parent_density, world.matches.tokens)
    np.testing.assert_array_equal(statistics.columns["parent"]["stratum"], expected)
    limits = strata(np.array([0, 29, 30, 300, 301]) / 3_000, 3_000)
    assert [STRATA[label] for label in limits] == ["dead", "rare", "usual", "usual", "dense"]


def test_columns_hold_a_value_per_feature(statistics):
    names = ["density", "best_r", "p", "q", "stratum", "r_low", "r_high", "effective_groups"]
    assert list(statistics.columns["child"]) == names
    assert list(statistics.columns["parent"]) == [*names, "ceiling_r", "corrected_r"]
    for end, features in (("parent", D_SAE), ("child", KEPT)):
        assert {len(column) for column in statistics.columns[end].values()} == {features}
    above = (statistics.columns["parent"]["q"] <= 0.01).sum(), (statistics.columns["child"]["q"] <= 0.01).sum()
    assert (statistics.chance["parent_above"], statistics.chance["child_above"]) == above
    assert statistics.corrected is not None
    assert statistics.corrected["persist"] == (statistics.columns["parent"]["corrected_r"] > 0.8).sum()


def test_nothing_stands_in_for_what_was_not_measured():
    alone = edge_statistics(edge(spare=0, documents=5), settings(0.7))
    row = alone.counts["study"]
    assert row["ceiling"] is None and row["relative"] is None and alone.corrected is None
    assert {value for name, value in row.items() if name.endswith(("_low", "_high"))} == {None}
    assert "r_low" not in alone.columns["parent"] and "ceiling_r" not in alone.columns["parent"]
    assert [row[0] for row in alone.rules] == ["existence", "mutual", "assigned", "token_types"]


def test_one_dictionary_has_a_ceiling_of_one():
    joint = edge_statistics(edge(spare=0, one_dictionary=True), settings(0.7), directions())
    row = joint.counts["study"]
    assert row["ceiling"] == row["ceiling_low"] == row["ceiling_high"] == 1
    assert row["relative"] == row["persist"] / joint.parent_live  # type: ignore[operator]
    assert row["relative_low"] == row["persist_low"] / joint.parent_live  # type: ignore[operator]
    assert "shared" not in {rule for rule, *_ in joint.rules} and joint.one_dictionary
