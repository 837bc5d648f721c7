"""One-to-one assignment, splits and merges, and how rules differ."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from heredity.features.acts import FeatureActs
from heredity.features.correlate import correlate
from heredity.features.criteria import agreement, candidates, one_to_one, scores, splits_and_merges
from heredity.features.criteria import token_type_correlate as by_token_type
from heredity.features.fates import THRESHOLDS, curve, fates
from heredity.kernels.pairs import masked_sums
from heredity.kernels.sparse import transpose
from worlds import best_of, matches_of
from worlds import random_acts as drawn


def lists(r: np.ndarray, top: int) -> tuple[np.ndarray, ...]:
    """The top partners both ways of a full matrix, nan for features without an r."""
    return (*best_of(r, top), *best_of(r.T, top))


def acts_of(*dense: np.ndarray) -> tuple[FeatureActs, ...]:
    return tuple(map(FeatureActs.from_dense, dense))


@pytest.mark.parametrize("seed", range(20))
def test_the_assignment_is_the_hungarian_one(seed):
    rng = np.random.default_rng(seed)
    r = rng.uniform(-0.3, 1, (rng.integers(1, 25), rng.integers(1, 25)))
    r[rng.random(len(r)) < 0.1] = np.nan
    pairs, assigned_r = one_to_one(*lists(r, max(r.shape)))
    gain = np.nan_to_num(np.maximum(r, 0), nan=0.0)
    rows, columns = linear_sum_assignment(gain, maximize=True)
    made = gain[rows, columns] > 0
    np.testing.assert_array_equal(pairs, np.stack([rows[made], columns[made]], axis=1))
    np.testing.assert_array_equal(assigned_r, r[rows[made], columns[made]])


@pytest.mark.parametrize("seed", range(10))
def test_short_lists_give_the_best_assignment_within_them(seed):
    rng = np.random.default_rng(seed)
    # Few directions for many features, so that lists overlap and greedy choices are wrong.
    r = np.asarray(np.corrcoef(rng.standard_normal((60, 4))))[:28, 28:] + 0.01 * rng.standard_normal((28, 32))
    kept = lists(r, 3)
    pairs = candidates(kept[0], kept[2])
    gain = np.zeros_like(r)
    gain[pairs[:, 0], pairs[:, 1]] = np.maximum(r[pairs[:, 0], pairs[:, 1]], 0)
    assigned, assigned_r = one_to_one(*kept)
    assert assigned_r.sum() == pytest.approx(gain[linear_sum_assignment(gain, maximize=True)].sum(), abs=1e-12)
    assert len(set(assigned[:, 0])) == len(set(assigned[:, 1])) == len(assigned) > 10
    np.testing.assert_array_equal(assigned_r, r[assigned[:, 0], assigned[:, 1]])


def test_pairs_that_nothing_contends_for_leave_the_others_their_best_assignment():
    rng = np.random.default_rng(0)
    r = rng.uniform(-0.2, 0.5, (300, 320))
    r[np.arange(200), np.arange(200)] = rng.uniform(0.4, 1, 200)  # some clear pairs, some contended
    r[250], r[:, 310] = r[3], r[:, 5]  # twins, equal to the bit
    pairs, found = one_to_one(*lists(r, 320))
    gain = np.maximum(r, 0)
    assert found.sum() == pytest.approx(gain[linear_sum_assignment(gain, maximize=True)].sum(), abs=1e-9)
    np.testing.assert_array_equal(found, r[pairs[:, 0], pairs[:, 1]])
    assert (np.diff(pairs[:, 0]) > 0).all() and len(set(pairs[:, 1].tolist())) == len(pairs)


def test_candidates_are_the_pairs_of_either_list():
    parent, child = np.array([[1, -1], [0, 2]]), np.array([[1], [0], [0]])
    assert candidates(parent, child).tolist() == [[0, 1], [0, 2], [1, 0], [1, 2]]


# Splits and merges: latents fire at random; a part fires on a share of its whole's firings.

TOKENS, DENSITY = 6000, 0.03


def latents(seed: int, number: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.lognormal(0, 0.4, (TOKENS, number)) * (rng.random((TOKENS, number)) < DENSITY)


def noisy(acts: np.ndarray, rng: np.random.Generator, lost: float = 0.1, stray: float = 0.002) -> np.ndarray:
    """What another SAE makes of it: magnitudes off by a tenth, some firings lost, some out of place."""
    seen = acts * rng.normal(1, 0.1, acts.shape).clip(0.2) * (rng.random(acts.shape) >= lost)
    return np.where(rng.random(acts.shape) < stray, 0.5, seen)


def partition(column: np.ndarray, shares: list[float], rng: np.random.Generator) -> np.ndarray:
    """[tokens, parts]: each firing goes to one part."""
    part = rng.choice(len(shares), len(column), p=shares)
    return column[:, None] * (part[:, None] == np.arange(len(shares)))


def world(seed: int) -> tuple[np.ndarray, np.ndarray, dict[int, list[int]]]:
    """Twelve wholes; and what becomes of them: 0, 1 and 2 come apart in 2, 3 and 2 parts, 3 to 9 stay, 10 stays twice,
    11 goes; two features are new. Also which columns are the parts of which whole."""
    rng = np.random.default_rng(seed)
    before = latents(seed, 12)
    halves, thirds = partition(before[:, 0], [0.5, 0.5], rng), partition(before[:, 1], [0.5, 0.3, 0.2], rng)
    uneven = partition(before[:, 2], [0.75, 0.25], rng)
    after = np.concatenate([halves, thirds, uneven, before[:, 3:11], before[:, 10:11], latents(seed + 99, 2)], axis=1)
    parts = {0: [0, 1], 1: [2, 3, 4], 2: [5, 6]}
    return noisy(before, rng), noisy(after, rng), parts


def compared(parent: np.ndarray, child: np.ndarray):
    ends = acts_of(parent, child)
    matches = correlate(*ends, top=5)
    return splits_and_merges(*ends, candidates(matches.parent_match, matches.child_match))


def members(parts) -> dict[int, list[int]]:
    return {int(whole): sorted(parts.pairs[parts.pairs[:, 0] == whole, 1].tolist()) for whole in parts.wholes}


@pytest.mark.parametrize("seed", range(5))
def test_planted_splits_are_found_and_nothing_else_and_a_merge_is_a_split_read_backwards(seed):
    before, after, parts = world(seed)
    (splits, merges, _), (none, back, _) = compared(before, after), compared(after, before)
    assert members(splits) == members(back) == parts and members(merges) == members(none) == {}
    for a, b in zip(splits, back, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)
    assert np.all(splits.cosine > 0.7)
    together = np.bincount(splits.pairs[:, 0], splits.share)
    assert np.all(together[splits.wholes] > 0.75)
    first = splits.share[splits.pairs[:, 0] == 1]
    np.testing.assert_allclose(first, [0.45, 0.27, 0.18], atol=0.08)


BEFORE, RNG = latents(7, 15), np.random.default_rng(7)
SLIVERS = partition(BEFORE[:, 0], [0.15, 0.15, 0.7], RNG)[:, :2]
NO_SPLIT = {
    "copies": [noisy(BEFORE, RNG, 0.0), noisy(BEFORE, RNG, 0.0)],
    "noisy copies": [noisy(BEFORE, RNG, 0.3), noisy(BEFORE, RNG, 0.3)],
    "a finer version beside a copy": [BEFORE, partition(BEFORE[:, 0], [0.4, 0.6], RNG)[:, :1]],
    "slivers of a lost feature": [SLIVERS, BEFORE[:, 1:]],
    "slivers beside new features": [SLIVERS, BEFORE[:, 1:], latents(10, 4)],
    # It fires wherever the parent's feature fires, and elsewhere still more often.
    "a broader feature": [BEFORE[:, :1] + 3 * latents(12, 1) + 3 * latents(13, 1), BEFORE[:, 1:]],
    "nothing": [np.zeros((TOKENS, 1))],
}


@pytest.mark.parametrize("after", NO_SPLIT)
def test_what_is_no_split_is_not_called_one(after):
    splits, merges, cosine = compared(BEFORE, np.concatenate(NO_SPLIT[after], axis=1))
    assert len(splits.pairs) == len(merges.pairs) == len(splits.wholes) == 0
    assert len(cosine) >= (0 if after == "nothing" else 15)


def test_the_masked_cosine_equals_its_definition():
    rng = np.random.default_rng(3)
    a = (rng.standard_normal((300, 6)) * (rng.random((300, 6)) < 0.2)).astype(np.float32)
    b = (0.5 * a[:, ::-1] + rng.standard_normal((300, 6)) * (rng.random((300, 6)) < 0.05)).astype(np.float32)
    b[:, 2], b[:, 3] = 0, np.where(a[:, 1] == 0, 1, 0)
    pairs = np.argwhere(np.ones((6, 6)))
    *_, found = splits_and_merges(*acts_of(a, b), pairs)
    for (i, j), value in zip(pairs, found, strict=True):
        x, y = a[:, i].astype(float), b[:, j].astype(float)
        cosines = []
        for mask in (x != 0, y != 0):
            norm = np.linalg.norm(x[mask]) * np.linalg.norm(y[mask])
            cosines.append(x[mask] @ y[mask] / norm if norm else 0.0)
        assert value == pytest.approx(max(cosines), abs=1e-12)
    assert found[2] == 0 and found[9] == 0 and found[5] > 0.8


def test_sums_over_common_rows_do_not_depend_on_threads():
    x, y = acts_of(latents(1, 20), latents(1, 20) * latents(2, 20).clip(0.5))
    pairs = np.argwhere(np.ones((20, 20)))
    one, four = (masked_sums(transpose(x.sparse), transpose(y.sparse), pairs, workers=n) for n in (1, 4))
    for a, b in zip(one, four, strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(one.common, ((x.dense() != 0).astype(int).T @ (y.dense() != 0)).ravel())


# Rules side by side.


def test_scores_lead_to_the_calls_of_fates():
    r = np.random.default_rng(5).uniform(-0.2, 1, (40, 30))
    r[7], r[:, 3] = np.nan, np.nan
    matches = matches_of(r)
    found = scores(matches, one_to_one(*matches[:4]))
    called = fates(matches, 0.8)
    np.testing.assert_array_equal(found["existence"] > 0.8, called.persist)
    np.testing.assert_array_equal(np.flatnonzero(found["mutual"] > 0.8), called.mutual[:, 0])
    assert np.isfinite(found["assigned"]).sum() == 29 and np.isnan(found["assigned"][7])
    for at in THRESHOLDS:
        assert (found["existence"] > at).sum() == curve(matches)[f"{at:.2f}"]
        assert (found["assigned"] > at).sum() <= (found["existence"] > at).sum()
    # A duplicated feature persists twice by existence and once one to one.
    matches = matches_of(np.array([[0.95, 0.1], [0.9, 0.1], [0.1, 0.9]]), top=2)
    found = scores(matches, one_to_one(*matches[:4]))
    assert {rule: (score > 0.8).sum() for rule, score in found.items()} == {"existence": 3, "mutual": 2, "assigned": 2}


def test_agreement_with_the_best_match_is_cohens_kappa():
    best = np.array([0.9, 0.8, 0.7, 0.2, 0.1, 0.6])
    r = np.array([0.95, 0.3, 0.8, 0.1, np.nan, 0.7])
    found = agreement(best, r, 0.5)
    assert (found.persisting, found.both, found.only, found.only_matched, found.neither) == (3, 3, 0, 1, 2)
    observed, expected = 5 / 6, (4 * 3 + 2 * 3) / 36
    assert found.kappa == pytest.approx((observed - expected) / (1 - expected))
    assert found.median == pytest.approx(0.7) and found.rank == pytest.approx(0.7)
    assert agreement(best, best, 0.5).kappa == pytest.approx(1) and agreement(best, best, 0.0).kappa is None
    assert agreement(best, best, 1.0).kappa is None and agreement(best, np.ones(6), 0.5).kappa == 0


# -- the token-type variant of correlation ----------------------------------------------------------------------------


def plain(parent: np.ndarray, child: np.ndarray, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
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
            if len(both) >= 2 and np.ptp(x) > 0 and np.ptp(y) > 0:
                r[i, j] = np.corrcoef(x, y)[0, 1]
    return r, common


def random_acts(seed: int, tokens: int, d: int, density: float) -> np.ndarray:
    """Feature 0 is dead, feature 1 the same wherever it fires."""
    acts = drawn(seed, tokens, d, density)
    acts[:, 0], acts[:, 1] = 0, (acts[:, 1] > 0) * 0.1
    return acts


@pytest.mark.parametrize(("seed", "density"), [(0, 0.05), (1, 0.3), (3, 0.01)])
def test_lists_equal_the_double_loop(seed, density):
    parent, child = random_acts(seed, 400, 17, density), random_acts(seed + 50, 400, 23, density)
    # Ids far apart, as token ids are.
    ids = np.random.default_rng(seed).choice([3, 7, 11, 500, 501, 40_000, 9, 12, 13, 2], 400)
    found = by_token_type(*acts_of(parent, child), ids, top=4)
    r, common = plain(parent, child, ids)
    for match, value, matrix, counts in ((*found[:2], r, common), (*found[2:], r.T, common.T)):
        best = -np.sort(-np.where(np.isnan(matrix), -np.inf, matrix), axis=1)[:, :4]
        np.testing.assert_allclose(value, np.where(np.isinf(best), np.nan, best), atol=1e-9)
        rows, places = np.nonzero(match >= 0)
        np.testing.assert_allclose(matrix[rows, match[rows, places]], value[rows, places], atol=1e-9)
        assert (counts[rows, match[rows, places]] >= 2).all()
        assert np.all(match[:2] == -1)
    assert (found.parent_match >= 0).sum() > 15


def test_two_common_types_always_correlate_perfectly():
    # The features never fire on the same position, share two token types, and differ on the rest.
    acts = np.zeros((8, 2), np.float32)
    ids = np.array([0, 0, 1, 1, 2, 3, 4, 5])
    acts[[0, 2, 4, 5], 0], acts[[1, 3, 6, 7], 1] = [1, 3, 9, 9], [2, 2.5, 1, 7]
    parent, child, opposite = acts_of(acts[:, :1], acts[:, 1:], -acts[:, 1:])
    assert by_token_type(parent, child, ids).parent_score[0, 0] == 1
    assert by_token_type(parent, opposite, ids).parent_score[0, 0] == -1
    assert correlate(parent, child).parent_r[0, 0] < 0


def test_unrelated_features_persist_by_this_variant_and_not_by_the_papers_text():
    # Every feature fires on few token types; parent and child have nothing in common but the text.
    rng = np.random.default_rng(6)
    ids = rng.integers(0, 60, 6000)

    def unrelated() -> FeatureActs:
        chosen = rng.random((60, 150)) < 0.15
        return FeatureActs.from_dense(rng.lognormal(0, 1, (6000, 150)) * chosen[ids] * (rng.random((6000, 150)) < 0.3))

    parent, child = unrelated(), unrelated()
    inflated = by_token_type(parent, child, ids)
    assert (inflated.parent_score[:, 0] > 0.8).mean() > 0.95
    assert (correlate(parent, child).parent_r[:, 0] > 0.8).mean() == 0


def test_threads_change_no_bit_and_other_samples_are_refused():
    parent, child = acts_of(*(random_acts(seed, 400, 30, 0.1) for seed in (8, 9)))
    ids = np.random.default_rng(8).integers(0, 20, 400)
    one, three = (by_token_type(parent, child, ids, workers=n) for n in (1, 3))
    for a, b in zip(one, three, strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(ValueError, match=r"400 token positions, the child 400, and ids is \[399\]"):
        by_token_type(parent, child, ids[1:])
    with pytest.raises(ValueError, match="top=0"):
        by_token_type(parent, child, ids, top=0)
    with pytest.raises(ValueError, match="400 token positions and the child 399"):
        splits_and_merges(parent, child.rows(0, 399), np.array([[0, 0]]))
