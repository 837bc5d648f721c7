"""The token-type variant of correlation."""

from __future__ import annotations

import numpy as np
import pytest

from heredity.features.acts import FeatureActs
from heredity.features.correlate import correlate
from heredity.features.token_types import token_type_correlate, token_type_r


def plain(parent: np.ndarray, child: np.ndarray, ids: np.ndarray, least: int) -> tuple[np.ndarray, np.ndarray]:
    """(r, common types) of all pairs by two loops and numpy.corrcoef; nan where r is not defined."""

    def means(column: np.ndarray) -> dict[int, float]:
        fired = column != 0
        return {int(t): float(column[fired & (ids == t)].astype(float).mean()) for t in np.unique(ids[fired])}

    of_parent, of_child = [means(x) for x in parent.T], [means(x) for x in child.T]
    r, common = np.full((len(of_parent), len(of_child)), np.nan), np.zeros((len(of_parent), len(of_child)), int)
    for i, a in enumerate(of_parent):
        for j, b in enumerate(of_child):
            both = sorted(a.keys() & b.keys())
            common[i, j] = len(both)
            x, y = np.array([[a[t], b[t]] for t in both]).reshape(-1, 2).T
            if len(both) >= least and np.ptp(x) > 0 and np.ptp(y) > 0:
                r[i, j] = np.corrcoef(x, y)[0, 1]
    return r, common


def random_acts(seed: int, tokens: int, d: int, density: float) -> np.ndarray:
    rng = np.random.default_rng(seed)
    acts = rng.lognormal(0, 1, (tokens, d)) * (rng.random((tokens, d)) < density)
    acts[:, 0] = 0
    acts[:, 1] = (acts[:, 1] > 0) * 0.1
    return acts.astype(np.float32)


@pytest.mark.parametrize(("seed", "density", "least"), [(0, 0.05, 2), (1, 0.3, 2), (2, 0.05, 5), (3, 0.01, 2)])
def test_lists_equal_the_double_loop(seed, density, least):
    parent, child = random_acts(seed, 400, 17, density), random_acts(seed + 50, 400, 23, density)
    # Ids far apart, as token ids are.
    ids = np.random.default_rng(seed).choice([3, 7, 11, 500, 501, 40_000, 9, 12, 13, 2], 400)
    ends = FeatureActs.from_dense(parent), FeatureActs.from_dense(child)
    found = token_type_correlate(*ends, ids, top=4, least_common=least)
    r, common = plain(parent, child, ids, least)
    assert found.types == 10 and found.tokens == 400
    for match, value, count, matrix, counts in (
        (found.parent_match, found.parent_r, found.parent_common, r, common),
        (found.child_match, found.child_r, found.child_common, r.T, common.T),
    ):
        best = -np.sort(-np.where(np.isnan(matrix), -np.inf, matrix), axis=1)[:, :4]
        np.testing.assert_allclose(value, np.where(np.isinf(best), np.nan, best), atol=1e-9)
        for i, place in zip(*np.nonzero(match >= 0), strict=True):
            assert matrix[i, match[i, place]] == pytest.approx(value[i, place], abs=1e-9)
            assert count[i, place] == counts[i, match[i, place]] >= least
        assert np.all(count[match < 0] == 0) and np.all(match[:2] == -1)
    assert (found.parent_match >= 0).sum() > 15


def test_given_pairs_have_the_same_measure_as_all_pairs():
    parent, child = random_acts(4, 300, 9, 0.1), random_acts(5, 300, 8, 0.1)
    ids = np.random.default_rng(4).integers(0, 6, 300)
    pairs = np.array([(i, j) for i in range(9) for j in range(8)])
    found = token_type_r(FeatureActs.from_dense(parent), FeatureActs.from_dense(child), ids, pairs)
    r, common = plain(parent, child, ids, 2)
    np.testing.assert_allclose(found.r, r.ravel(), atol=1e-9)
    np.testing.assert_array_equal(found.common, common.ravel())


def test_two_common_types_always_correlate_perfectly():
    # The features never fire on the same position, share two token types, and differ on the rest.
    acts = np.zeros((8, 2), np.float32)
    ids = np.array([0, 0, 1, 1, 2, 3, 4, 5])
    acts[[0, 2, 4, 5], 0], acts[[1, 3, 6, 7], 1] = [1, 3, 9, 9], [2, 2.5, 1, 7]
    parent, child = FeatureActs.from_dense(acts[:, :1]), FeatureActs.from_dense(acts[:, 1:])
    found = token_type_correlate(parent, child, ids)
    assert found.parent_r[0, 0] == 1 and found.parent_common[0, 0] == 2
    assert np.isnan(token_type_correlate(parent, child, ids, least_common=3).parent_r).all()
    assert token_type_r(parent, FeatureActs.from_dense(-acts[:, 1:]), ids, np.array([[0, 0]])).r[0] == -1
    assert correlate(parent, child).parent_r[0, 0] < 0


def test_unrelated_features_persist_by_this_variant_and_not_by_the_papers_text():
    # Every feature fires on few token types; parent and child have nothing in common but the text.
    rng = np.random.default_rng(6)
    ids = rng.integers(0, 60, 6000)

    def unrelated() -> FeatureActs:
        chosen = rng.random((60, 150)) < 0.15
        return FeatureActs.from_dense(rng.lognormal(0, 1, (6000, 150)) * chosen[ids] * (rng.random((6000, 150)) < 0.3))

    parent, child = unrelated(), unrelated()
    inflated = token_type_correlate(parent, child, ids)
    assert (inflated.parent_r[:, 0] > 0.8).mean() > 0.95 and np.median(inflated.parent_common[:, 0]) <= 3
    assert (correlate(parent, child).parent_r[:, 0] > 0.8).mean() == 0


def test_a_copy_has_r_of_one_on_all_of_its_types():
    acts = random_acts(7, 500, 12, 0.2)
    ids = np.random.default_rng(7).integers(0, 30, 500)
    copied = FeatureActs.from_dense(acts[:, ::-1] * 3)
    found = token_type_r(FeatureActs.from_dense(acts), copied, ids, np.stack([np.arange(12), np.arange(12)[::-1]], 1))
    np.testing.assert_allclose(found.r[2:], 1, atol=1e-9)
    assert np.isnan(found.r[:2]).all() and np.all(found.common[2:] > 20)


def test_threads_change_no_bit():
    parent, child = (FeatureActs.from_dense(random_acts(seed, 400, 30, 0.1)) for seed in (8, 9))
    ids = np.random.default_rng(8).integers(0, 20, 400)
    one, three = (token_type_correlate(parent, child, ids, workers=n) for n in (1, 3))
    for a, b in zip(one, three, strict=True):
        np.testing.assert_array_equal(a, b)


def test_bad_input_is_refused():
    acts = FeatureActs.from_dense(random_acts(0, 10, 3, 0.5))
    with pytest.raises(ValueError, match=r"10 token positions, the child 10, and ids is \[9\]"):
        token_type_correlate(acts, acts, np.zeros(9, int))
    with pytest.raises(ValueError, match="least_common=1"):
        token_type_correlate(acts, acts, np.zeros(10, int), least_common=1)
    with pytest.raises(ValueError, match="top=0"):
        token_type_correlate(acts, acts, np.zeros(10, int), top=0)
