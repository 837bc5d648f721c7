"""Matching the features of two SAEs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from heredity.features.acts import FeatureActs
from heredity.features.correlate import correlate, join_matches, median, rank_correlation
from worlds import dense_pearson
from worlds import random_acts as drawn


def random_acts(seed: int, d: int = 30) -> FeatureActs:
    return FeatureActs.from_dense(drawn(seed, d=d))


def test_dictionaries_may_differ_in_size_and_a_feature_that_never_fires_has_no_r():
    parent, child = drawn(2, d=4), drawn(3, d=40)
    parent[:, 2] = 0
    found = correlate(FeatureActs.from_dense(parent), FeatureActs.from_dense(child), top=5)
    for match, r, density, acts in ((*found[:2], found[4], parent), (*found[2:4], found[5], child)):
        assert match.shape == r.shape == (acts.shape[1], 5)
        np.testing.assert_allclose(density, (acts != 0).mean(0))
    assert np.all(found.child_match[:, 3:] == -1) and np.all(np.isnan(found.child_r[:, 3:])) and found.tokens == 2000
    assert np.isnan(found.parent_r[2]).all() and np.all(found.parent_match[2] == -1)


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_best_r_equals_the_dense_definition_on_any_small_sample(data):
    tokens = data.draw(st.integers(2, 12))
    value = st.sampled_from([0.0, 0.0, 0.0, 0.5, 1.0, 2.0, 7.25, -1.5])
    x, y = (data.draw(arrays(np.float32, (tokens, data.draw(st.integers(1, 5))), elements=value)) for _ in range(2))
    found = correlate(FeatureActs.from_dense(x), FeatureActs.from_dense(y), top=2)
    with np.errstate(invalid="ignore", divide="ignore"):
        r = dense_pearson(x, y)
    for match, best, matrix in ((*found[:2], r), (*found[2:4], r.T)):
        highest = np.where(np.isnan(matrix), -np.inf, matrix).max(1)
        np.testing.assert_allclose(best[:, 0], np.where(np.isinf(highest), np.nan, highest), atol=1e-6)
        for i in np.flatnonzero(match[:, 0] >= 0):
            assert matrix[i, match[i, 0]] == pytest.approx(best[i, 0], abs=1e-6)


def test_ranges_of_parent_features_join_to_the_whole_but_not_those_of_different_edges():
    parent, child = random_acts(6, d=31), random_acts(7, d=9)
    whole = correlate(parent, child, 3)
    parts = [correlate(parent, child, 3, parent_range=own, memory=1) for own in ((0, 4), (4, 30), (30, 31))]
    assert parts[1].parent_start == 4 and parts[1].parent_density.shape == (26,)
    for a, b in zip(join_matches(parts[::-1]), whole, strict=True):
        np.testing.assert_array_equal(a, b)
    assert whole.histogram is not None and whole.histogram.sum() == 31 * 9
    other = correlate(parent, parent, 3, parent_range=(4, 30))
    for wrong, message in (
        ([parts[0], other], "other children"),
        ([parts[0]._replace(pairs_over=None)], "without counts"),
        ([], "do not follow"),
    ):
        with pytest.raises(ValueError, match=message):
            join_matches(wrong)


def test_one_position_defines_no_correlation_and_samples_that_are_not_aligned_are_refused():
    one, acts = FeatureActs.from_dense(np.ones((1, 3))), random_acts(0)
    assert np.isnan(correlate(one, one).parent_r).all()
    with pytest.raises(ValueError, match="2000 token positions and the child 1999"):
        correlate(acts, acts.rows(0, 1999))
    with pytest.raises(ValueError, match="no token positions"):
        correlate(acts.rows(0, 0), acts.rows(0, 0))


def test_matches_above_a_threshold_keep_their_places():
    matches = correlate(random_acts(1), random_acts(1), top=3)
    kept = matches.above(0.5)
    np.testing.assert_array_equal(kept.parent_match[:, 0], np.arange(30))
    assert np.all(kept.parent_match[:, 1:] == -1) and np.isnan(kept.child_r[:, 1:]).all()
    assert matches.parent_match[0, 1] >= 0  # the matches themselves are left as they were


def test_values_without_a_number_are_left_out():
    assert rank_correlation(np.array([1.0, 2, np.nan, 9]), np.array([3.0, 4, 5, 6])) == pytest.approx(1)
    assert rank_correlation(np.array([1.0, 1]), np.array([3.0, 4])) is None
    assert median(np.array([np.nan, 1, 4, np.inf])) == 2.5 and np.isnan(median(np.array([np.nan])))
