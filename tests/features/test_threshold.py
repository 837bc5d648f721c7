"""Where to cut between kept and lost."""

from __future__ import annotations

import numpy as np

from heredity.features.threshold import PAPER, choose_threshold, corrected, split_threshold


def test_two_groups_are_split_between_them():
    rng = np.random.default_rng(0)
    r = np.concatenate([rng.uniform(0, 0.15, 300), rng.uniform(0.7, 0.9, 80), [np.nan]])
    assert 0.15 < split_threshold(r) < 0.7
    assert np.isnan(split_threshold(np.array([0.5, 0.5, np.nan])))


def test_correcting_for_noise_undoes_it():
    np.testing.assert_allclose(corrected(np.array([0.72, 0.9]), 0.9, 0.9), [0.8, 1.0])
    assert np.isnan(corrected(np.array([0.5]), np.array([-0.1]), np.array([-0.1]))).all()


def groups(kept: int, lost: int, r: float = 0.8, seed: int = 0) -> np.ndarray:
    """Best r of kept features around r, of lost ones near 0, and one that never fires."""
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.normal(r, 0.05, kept), rng.uniform(0.02, 0.1, lost), [np.nan]])


def test_the_threshold_lies_in_the_gap_between_its_bounds():
    chance = np.random.default_rng(1).uniform(0, 0.1, (3, 301))
    found = choose_threshold(groups(150, 150), chance, [np.full(301, 0.9)])
    assert found.same == 0.9 and 0.09 < found.chance <= 0.1
    assert 0.3 - 0.006 <= found.threshold <= 0.5 + 0.006
    assert ((groups(150, 150) > found.threshold).sum()) == 150


def test_one_group_alone_is_not_cut_in_half():
    chance = np.random.default_rng(1).uniform(0, 0.1, (3, 301))
    all_kept, all_lost = groups(300, 0), groups(0, 300)
    assert (all_kept > choose_threshold(all_kept, chance, [np.full(301, 0.9)]).threshold).sum() == 300
    assert (all_lost > choose_threshold(all_lost, chance, [np.full(301, 0.9)]).threshold).sum() == 0
    assert (all_lost > split_threshold(all_lost)).sum() > 50, "the cut alone would keep many"


def test_poor_saes_get_a_lower_threshold():
    chance = np.zeros((2, 301))
    good, poor = (choose_threshold(groups(150, 150, r), chance, [np.ones(301)]).threshold for r in (0.9, 0.5))
    assert poor < good


def test_without_a_ceiling_the_best_matches_stand_in_and_without_r_the_papers_threshold():
    r = groups(150, 150)
    found = choose_threshold(r, np.zeros((1, 301)))
    assert found.same == np.nanquantile(r, 0.95) and found.threshold < 0.5
    assert choose_threshold(np.full(3, np.nan), np.full((1, 3), np.nan)).threshold == PAPER
