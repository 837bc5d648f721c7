"""What chance alone would match, and where to cut between kept and lost."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heredity.features.acts import FeatureActs
from heredity.features.correlate import correlate
from heredity.features.null import (
    PAPER,
    chance_threshold,
    choose_threshold,
    corrected,
    floor,
    offsets,
    p_values,
    q_values,
    split_threshold,
)
from worlds import random_acts


def test_shifts_are_far_from_alignment_distinct_and_seeded():
    drawn = offsets(1000, 20, seed=3)
    assert drawn.min() >= 100 and drawn.max() <= 900 and len(set(drawn.tolist())) == 20
    np.testing.assert_array_equal(drawn, offsets(1000, 20, seed=3))
    assert not np.array_equal(drawn, offsets(1000, 20, seed=4))
    with pytest.raises(ValueError, match="shifts=9"):
        offsets(9, 9, seed=0)


def test_the_floor_of_a_perfect_match_is_chance():
    acts = FeatureActs.from_dense(random_acts(6, tokens=20_000))
    found = floor(acts, acts, passes=3, seed=0)
    assert found.parent_r.shape == found.child_r.shape == (3, 30) and np.all(found.parent_r < 0.1)
    np.testing.assert_array_equal(found.parent_r, floor(acts, acts, passes=3, seed=0).parent_r)
    assert len(np.unique(found.parent_r[:, 0])) == 3


def test_without_anything_to_find_p_values_are_uniform():
    """The best of 400 candidates, features whose rates differ by a factor of 100: p must be right at every rate."""
    rng = np.random.default_rng(0)
    rate = np.geomspace(0.0005, 0.05, 400)
    ends = [FeatureActs.from_dense(rng.lognormal(0, 1, (8000, 400)) * (rng.random((8000, 400)) < rate)) for _ in (0, 1)]
    found = correlate(*ends, top=1)
    by_chance = floor(*ends, passes=4, seed=1)
    for end in ("parent", "child"):
        best, density = getattr(found, f"{end}_r")[:, 0], getattr(found, f"{end}_density")
        p = p_values(best, getattr(by_chance, f"{end}_r"), density, stratum=100)
        for part in np.split(p[np.argsort(density)], 4):
            assert abs(np.nanmean(part) - 0.5) < 4 / np.sqrt(12 * 100)
        assert np.nanmean(q_values(p) < 0.1) < 0.02


def test_planted_pairs_are_called_at_the_nominal_rate_of_false_discoveries():
    """Over 20 seeds: 60 of 200 features are shared in part, the others are alone."""
    nominal, shares = 0.1, []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        rate = np.geomspace(0.004, 0.05, 200)[rng.permutation(200)]
        fired = rng.random((4000, 200)) < rate
        parent = rng.lognormal(0, 0.5, fired.shape) * fired
        again = np.where(rng.random(fired.shape) < 0.5, fired, rng.random(fired.shape) < rate)
        again[:, 60:] = rng.random((4000, 140)) < rate[60:]
        child = rng.lognormal(0, 0.5, fired.shape) * again
        ends = FeatureActs.from_dense(parent), FeatureActs.from_dense(child)
        found, by_chance = correlate(*ends, top=1), floor(*ends, passes=8, seed=seed)
        called = q_values(p_values(found.parent_r[:, 0], by_chance.parent_r, found.parent_density, 100)) <= nominal
        assert called[:60].mean() > 0.9
        shares.append(called[60:].sum() / max(called.sum(), 1))
    assert np.mean(shares) <= 1.2 * nominal


def test_p_is_nan_without_an_r_and_small_samples_pool_all():
    p = p_values(np.array([0.5, np.nan]), np.array([[0.1, np.nan], [0.6, 0.2]]), np.array([0.1, 0.0]))
    np.testing.assert_array_equal(p, [2 / 3, np.nan])
    np.testing.assert_array_equal(q_values(p), [2 / 3, np.nan])
    assert np.isnan(q_values(np.array([np.nan]))).all()


def false_discovery_rate(best: np.ndarray, chance: np.ndarray, threshold: float) -> float:
    """Expected share of chance among the features called persisting at a threshold."""
    called = int((best > threshold).sum())
    return min(1.0, float((chance > threshold).sum()) / len(chance) / called) if called else 0.0


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 10_000), st.sampled_from([0.01, 0.05, 0.3]))
def test_the_chance_threshold_is_the_lowest_that_holds_the_rate(seed, rate):
    rng = np.random.default_rng(seed)
    best = np.concatenate([rng.normal(0.8, 0.05, 40), rng.normal(0.1, 0.1, 60), [np.nan]])
    chance = rng.normal(0.1, 0.1, (3, 101))
    cut = chance_threshold(best, chance, rate)
    above = [value for value in np.unique(chance) if value >= cut]
    assert all(false_discovery_rate(best, chance, value) <= rate for value in above)
    below = np.unique(chance)[np.unique(chance) < cut]
    if len(below):
        assert false_discovery_rate(best, chance, below[-1]) > rate


def test_nothing_above_chance_has_no_threshold_and_correcting_undoes_noise():
    assert chance_threshold(np.array([0.1, 0.2]), np.array([[0.5, 0.1]])) == 1.0
    assert chance_threshold(np.array([np.nan]), np.array([[np.nan]])) == 1.0
    # Correcting for noise undoes it.
    np.testing.assert_allclose(corrected(np.array([0.72, 0.9]), 0.9, 0.9), [0.8, 1.0])
    assert np.isnan(corrected(np.array([0.5]), np.array([-0.1]), np.array([-0.1]))).all()


# Where to cut between kept and lost.

CHANCE = np.random.default_rng(1).uniform(0, 0.1, (3, 301))


def groups(kept: int, lost: int, r: float = 0.8) -> np.ndarray:
    """Best r of kept features around r, of lost ones near 0, and one that never fires."""
    rng = np.random.default_rng(0)
    return np.concatenate([rng.normal(r, 0.05, kept), rng.uniform(0.02, 0.1, lost), [np.nan]])


def test_the_threshold_lies_in_the_gap_between_its_bounds():
    r = groups(150, 150)
    assert 0.1 < split_threshold(r) < 0.65 and np.isnan(split_threshold(np.array([0.5, 0.5, np.nan])))
    found = choose_threshold(r, CHANCE, [np.full(301, 0.9)])
    assert found.same == 0.9 and 0.09 < found.chance <= 0.1
    assert 0.3 - 0.006 <= found.threshold <= 0.5 + 0.006
    assert (r > found.threshold).sum() == 150


@pytest.mark.parametrize(("kept", "lost"), [(300, 0), (0, 300)])
def test_one_group_alone_is_not_cut_in_half(kept, lost):
    r = groups(kept, lost)
    assert (r > choose_threshold(r, CHANCE, [np.full(301, 0.9)]).threshold).sum() == kept
    assert kept or (r > split_threshold(r)).sum() > 50, "the cut alone would keep many"


def test_poor_saes_get_a_lower_threshold():
    good, poor = (choose_threshold(groups(150, 150, r), 0 * CHANCE, [np.ones(301)]).threshold for r in (0.9, 0.5))
    assert poor < good


def test_without_a_ceiling_the_best_matches_stand_in_and_without_r_the_papers_threshold():
    found = choose_threshold(groups(150, 150), np.zeros((1, 301)))
    assert found.same == np.nanquantile(groups(150, 150), 0.95) and found.threshold < 0.5
    assert choose_threshold(np.full(3, np.nan), np.full((1, 3), np.nan)).threshold == PAPER
