"""Labels of SAE features, and judgments of hand-made calls."""

from __future__ import annotations

import numpy as np
import pytest

from heredity.features.acts import FeatureActs
from heredity.synthetic.codes import noisy_codes
from heredity.synthetic.truth import KEPT_LIKE, UNKNOWN, judge, label
from heredity.synthetic.world import FAINT, KEPT, LOST, MERGED, NEW, NOISY, ROTATED, SPLIT, World, WorldConfig

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
