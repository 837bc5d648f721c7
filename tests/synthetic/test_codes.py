"""Untrained SAEs have the errors they are given, and lead back to their true features."""

from __future__ import annotations

import numpy as np
import pytest

from heredity.features.acts import FeatureActs
from heredity.features.correlate import correlate
from heredity.synthetic.codes import noisy_code, noisy_codes
from heredity.synthetic.world import LOST, World, WorldConfig

TOKENS = 20_000


@pytest.fixture(scope="module")
def world() -> World:
    return World(WorldConfig(kept=60, rotated=20, lost=60, new=60, l0=3, rarity=0.3), 0)


def expected_r(reliability: float, miss: float, false_fire: float) -> float:
    """r of a rare feature's code with its true activation, as `noisy_code` documents it."""
    return reliability * (1 - miss) / np.sqrt(1 - miss + false_fire)


def r_with_truth(code: FeatureActs, true: FeatureActs, feature: np.ndarray) -> np.ndarray:
    z = [code.dense(), true.dense()[:, feature]]
    z = [x - x.mean(0) for x in z]
    return (z[0] * z[1]).sum(0) / np.sqrt(np.square(z[0]).sum(0) * np.square(z[1]).sum(0))


def test_without_faults_a_code_is_the_truth_in_another_order(world):
    acts = world.draw(5_000, 1).parent
    code = noisy_code(acts, np.random.default_rng(0), 1.0, 0.0, 0.0)
    assert not np.array_equal(code.feature, np.arange(140))
    np.testing.assert_array_equal(code.acts.dense(), acts.dense()[:, code.feature])


@pytest.mark.parametrize(
    ("reliability", "miss", "false_fire"), [(0.8, 0, 0), (1, 0.3, 0), (1, 0, 0.4), (0.9, 0.1, 0.05), (0.85, 0.2, 0.2)]
)
def test_r_with_the_truth_is_the_expected_one(world, reliability, miss, false_fire):
    parent, child, sample = noisy_codes(world, TOKENS, 1, reliability, miss, false_fire)
    for code, true in ((parent, sample.parent), (child, sample.child)):
        r = r_with_truth(code.acts, true, code.feature)
        assert np.median(r) == pytest.approx(expected_r(reliability, miss, false_fire), abs=0.015)


def test_misses_and_false_firings_are_as_many_as_asked_for(world):
    acts = world.draw(TOKENS, 1).parent
    code = noisy_code(acts, np.random.default_rng(0), 0.9, 0.2, 0.1)
    true, fired = acts.dense()[:, code.feature] > 0, code.acts.dense() > 0
    assert (true & ~fired).sum() / true.sum() == pytest.approx(0.2, abs=0.01)
    assert (fired & ~true).sum() / true.sum() == pytest.approx(0.1, abs=0.01)
    # False firings belong to features in proportion to their density.
    false, density = (fired & ~true).sum(0), true.sum(0)
    assert np.corrcoef(false, density)[0, 1] > 0.8
    factor = code.acts.dense()[true & fired] / acts.dense()[:, code.feature][true & fired]
    assert factor.mean() == pytest.approx(1, abs=0.01) and (factor**2).mean() == pytest.approx(1 / 0.81, rel=0.03)


def test_codes_of_a_kept_feature_correlate_as_the_product_of_their_faults(world):
    parent, child, _ = noisy_codes(world, TOKENS, 2, 0.9, 0.1, 0.05)
    r = correlate(parent.acts, child.acts, top=1)
    fate = world.parent.fate[parent.feature]
    kept = fate != LOST
    assert np.median(r.parent_r[kept, 0]) == pytest.approx(expected_r(0.9, 0.1, 0.05) ** 2, abs=0.02)
    assert r.parent_r[~kept].max() < 0.2
    partner = world.parent.partners[parent.feature, 0]
    np.testing.assert_array_equal(child.feature[r.parent_match[kept, 0]], partner[kept])


def test_seeds_decide_and_ends_differ(world):
    (parent, child, sample), (_, again, _), (other, _, _) = (noisy_codes(world, 3_000, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(child.acts.values, again.acts.values)
    np.testing.assert_array_equal(sample.parent.values, world.draw(3_000, 1).parent.values)
    assert not np.array_equal(parent.feature, other.feature)
    assert not np.array_equal(parent.feature, child.feature)


def test_shares_out_of_range_are_refused(world):
    acts, rng = world.draw(100, 1).parent, np.random.default_rng(0)
    with pytest.raises(ValueError, match="reliability=0"):
        noisy_code(acts, rng, 0.0)
    with pytest.raises(ValueError, match=r"miss=1\.1"):
        noisy_code(acts, rng, miss=1.1)
    assert noisy_code(acts, rng, miss=1.0, false_fire=0.0).acts.n == 0
