"""SAEs of planted worlds: trained, with given errors, and led back to their true features."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from heredity.features.acts import FeatureActs
from heredity.features.correlate import correlate
from heredity.synthetic.saes import (
    KEPT_LIKE,
    UNKNOWN,
    Training,
    judge,
    label,
    noisy_code,
    noisy_codes,
    train_pair,
)
from heredity.synthetic.world import FAINT, KEPT, LOST, MERGED, NEW, NOISY, ROTATED, SPLIT, World, WorldConfig

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


PARENT = np.array([KEPT, KEPT, ROTATED, FAINT, NOISY, SPLIT, MERGED, LOST, LOST, LOST, UNKNOWN], np.int8)
CHILD = np.array([KEPT, ROTATED, SPLIT, SPLIT, NEW, NEW, NEW, UNKNOWN], np.int8)
PERSIST = np.array([1, 1, 1, 0, 0, 1, 1, 1, 0, 0, 1], bool)


def test_calls_of_persistence_are_judged_by_kept_like_and_lost_features():
    judgment = judge(PERSIST, PARENT)
    called = {"kept": 1, "rotated": 1, "faint": 0, "noisy": 0, "split": 1, "merged": 1, "lost": 1 / 3, "unknown": 1}
    assert judgment == (called, 3 / 4, 3 / 5)


def test_what_counts_as_kept_is_an_argument():
    assert judge(PERSIST, PARENT, (KEPT, ROTATED)).recall == 1
    assert judge(PERSIST, PARENT, (KEPT, SPLIT, MERGED, NOISY)).recall == 4 / 5


def test_calls_of_emergence_are_judged_by_new_and_kept_like_features():
    judgment = judge(np.array([0, 1, 1, 1, 1, 1, 0, 1], bool), CHILD, (NEW,), KEPT_LIKE)
    assert judgment == ({"kept": 0, "rotated": 1, "split": 1, "new": 2 / 3, "unknown": 1}, 2 / 3, 2 / 3)


def test_no_call_has_no_precision():
    judgment = judge(np.zeros(11, bool), PARENT)
    assert np.isnan(judgment.precision) and judgment.recall == 0 and judgment.called["lost"] == 0


def test_calls_of_another_shape_or_type_are_refused():
    with pytest.raises(ValueError, match=r"bool \(3,\); give bool \(11,\)"):
        judge(np.zeros(3, bool), PARENT)
    with pytest.raises(ValueError, match="float64"):
        judge(np.zeros(11), PARENT)


def planted_saes() -> tuple[FeatureActs, FeatureActs]:
    """True acts of four features, the last of which never fires; and an SAE: feature 0 twice, 1 badly, noise, dead."""
    rng = np.random.default_rng(0)
    true = np.where(rng.random((4_000, 4)) < 0.1, rng.lognormal(0, 0.3, (4_000, 4)), 0)
    true[:, 3] = 0
    noise = np.where(rng.random((4_000, 4)) < 0.1, 1.0, 0)
    sae = np.stack(
        [true[:, 0], true[:, 0] + noise[:, 0], true[:, 1] + 2 * noise[:, 1], noise[:, 2], 0 * noise[:, 3]], axis=1
    )
    return FeatureActs.from_dense(sae), FeatureActs.from_dense(true)


def test_labels_follow_the_best_true_feature_above_the_threshold():
    sae, true = planted_saes()
    fate = np.array([KEPT, LOST, NEW, KEPT], np.int8)
    labels = label(sae, true, fate)
    assert labels.feature.tolist() == [0, 0, -1, -1, -1]
    assert labels.fate.tolist() == [KEPT, KEPT, UNKNOWN, UNKNOWN, UNKNOWN]
    expected = np.corrcoef(sae.dense().T[:4], true.dense().T[:3])[:4, 4:].max(1)
    np.testing.assert_allclose(labels.r[:4], expected, atol=1e-6)
    assert np.isnan(labels.r[4]) and np.isnan(labels.true_r[3])
    with pytest.raises(ValueError, match="fate has shape"):
        label(sae, true, fate[:2])


def test_recovery_is_the_share_of_features_that_fired_and_reliability_the_median_r():
    sae, true = planted_saes()
    labels = label(sae, true, np.array([KEPT, LOST, NEW, KEPT], np.int8))
    assert labels.recovered == 1 / 3 and labels.reliability == np.median(labels.r[:2])
    nothing = label(FeatureActs.from_dense(np.zeros((4_000, 2))), true, np.zeros(4, np.int8))
    assert np.isnan([nothing.recovered, nothing.reliability]).all()


def test_codes_are_labeled_with_the_features_they_were_made_from():
    world = World(WorldConfig(kept=40, rotated=20, noisy=20, split=10, merged=10, lost=40, new=40, l0=4), 0)
    *codes, sample = noisy_codes(world, 30_000, 1)
    for code, acts, model in zip(codes, (sample.parent, sample.child), (world.parent, world.child), strict=True):
        labels = label(code.acts, acts, model.fate)
        np.testing.assert_array_equal(labels.feature, code.feature)
        np.testing.assert_array_equal(labels.fate, model.fate[code.feature])
        assert labels.recovered == 1


SMALL = Training(tokens=10_000, epochs=4, k=4, lr=6e-3, batch=256)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # problems of this size gain nothing from more
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def trained() -> World:
    return World(WorldConfig(d=32, kept=20, rotated=8, lost=25, new=25, l0=3, rarity=0.3), 0)


@pytest.mark.parametrize("init", ["independent", "parent"])
def test_trained_saes_distinguish_kept_from_lost_features(trained, init):
    pair = train_pair(trained, init, SMALL, 6_000, seed=0)
    parent = label(pair.parent, pair.sample.parent, trained.parent.fate)
    child = label(pair.child, pair.sample.child, trained.child.fate)
    assert parent.recovered > 0.95 and child.recovered > 0.9
    matches = correlate(pair.parent, pair.child, top=1)
    called = judge(matches.parent_r[:, 0] > 0.5, parent.fate)
    assert called.precision > 0.95 and called.recall > 0.9
    new = judge((matches.child_density > 0) & ~(matches.child_r[:, 0] > 0.5), child.fate, (NEW,), KEPT_LIKE)
    assert new.precision > 0.85 and new.recall > 0.95
    # Two SAEs of one model share their input noise and agree better than those of an edge.
    follows = parent.feature >= 0
    control = correlate(pair.parent, pair.parent_control, top=1).parent_r[follows, 0]
    assert np.median(control) > np.median(matches.parent_r[follows & (matches.parent_r[:, 0] > 0.5), 0])
    assert min(pair.explained_variance.values()) > 0.7


def test_a_pair_is_reproducible_and_its_controls_are_other_saes():
    world = World(WorldConfig(d=16, kept=10, rotated=0, lost=5, new=5, l0=2), 0)
    tiny = Training(tokens=2_000, epochs=1, k=3, expansion=2, batch=256)
    one, again = (train_pair(world, "parent", tiny, 500, seed=1) for _ in range(2))
    np.testing.assert_array_equal(one.child.values, again.child.values)
    np.testing.assert_array_equal(one.sample.child.values, world.draw(500, 3).child.values)
    assert one.parent_control is not None and not np.array_equal(one.parent.values, one.parent_control.values)


def test_what_cannot_be_trained_is_refused(trained):
    with pytest.raises(ValueError, match="init='other'"):
        train_pair(trained, "other", SMALL, 100, 0)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="epochs=0"):
        Training(epochs=0)
    with pytest.raises(ValueError, match="continue_tokens=0"):
        Training(continue_tokens=0)
