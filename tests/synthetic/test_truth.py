"""Labels of SAE features, and the judgment of calls made by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest

from heredity.features.acts import FeatureActs
from heredity.synthetic.codes import noisy_codes
from heredity.synthetic.world import FAINT, KEPT, LOST, MERGED, NEW, NOISY, ROTATED, SPLIT, WorldConfig
from heredity.synthetic.truth import UNKNOWN, Group, Labels, Truth, judge, judge_new, label, label_edge, recovery
from heredity.synthetic.world import World


def labels(fate: list[int]) -> Labels:
    own = np.array(fate, np.int8)
    return Labels(np.arange(len(own), dtype=np.int32), own, np.ones(len(own)), np.ones(len(own)), own, 0.5)


PARENT = [KEPT, KEPT, ROTATED, FAINT, NOISY, SPLIT, MERGED, LOST, LOST, LOST, UNKNOWN]
CHILD = [KEPT, ROTATED, SPLIT, SPLIT, NEW, NEW, NEW, UNKNOWN]
TRUTH = Truth(labels(PARENT), labels(CHILD))


def test_calls_of_persistence_are_judged_by_kept_like_and_lost_features():
    called = np.array([1, 1, 1, 0, 0, 1, 1, 1, 0, 0, 1], bool)
    found = judge(called, TRUTH)
    assert found.groups["kept"] == Group(2, 2, 1.0) and found.groups["faint"] == Group(1, 0, 0.0)
    assert found.groups["lost"] == Group(3, 1, 1 / 3) and found.groups["unknown"] == Group(1, 1, 1.0)
    assert "new" not in found.groups
    assert (found.precision, found.recall, found.specificity, found.judged) == (3 / 4, 3 / 5, 2 / 3, 8)


def test_what_counts_as_kept_is_an_argument():
    called = np.array([1, 1, 1, 0, 0, 1, 1, 1, 0, 0, 1], bool)
    assert judge(called, TRUTH, (KEPT, ROTATED)).recall == 1
    assert judge(called, TRUTH, (KEPT, SPLIT, MERGED, NOISY)).recall == 4 / 5


def test_calls_of_emergence_are_judged_by_new_and_kept_like_features():
    found = judge_new(np.array([0, 1, 1, 1, 1, 1, 0, 1], bool), TRUTH)
    assert (found.precision, found.recall, found.specificity, found.judged) == (2 / 3, 2 / 3, 1 / 2, 5)
    assert found.groups["split"] == Group(2, 2, 1.0)


def test_nothing_called_has_no_precision_and_still_is_json():
    found = judge(np.zeros(11, bool), TRUTH)
    assert np.isnan(found.precision) and found.recall == 0
    plain = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert plain["precision"] is None and plain["groups"]["lost"] == {"n": 3, "called": 0, "share": 0.0}


def test_calls_of_another_shape_or_type_are_refused():
    with pytest.raises(ValueError, match=r"bool \(3,\); give bool \(11,\)"):
        judge(np.zeros(3, bool), TRUTH)
    with pytest.raises(ValueError, match="float64"):
        judge(np.zeros(11), TRUTH)


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
    found = label(sae, true, fate)
    assert found.feature.tolist() == [0, 0, -1, -1, -1]
    assert found.fate.tolist() == [KEPT, KEPT, UNKNOWN, UNKNOWN, UNKNOWN]
    expected = np.corrcoef(sae.dense().T[:4], true.dense().T[:3])[:4, 4:].max(1)
    np.testing.assert_allclose(found.r[:4], expected, atol=1e-6)
    assert np.isnan(found.r[4]) and np.isnan(found.true_r[3])
    assert label(sae, true, fate, recovered=0.3).feature.tolist() == [0, 0, 1, -1, -1]
    assert label(sae, true, fate, one_to_one=True).feature.tolist() == [0, -1, -1, -1, -1]
    with pytest.raises(ValueError, match="fate has shape"):
        label(sae, true, fate[:2])


def test_recovery_counts_found_doubled_and_unknown_features():
    sae, true = planted_saes()
    found = recovery(label(sae, true, np.array([KEPT, LOST, NEW, KEPT], np.int8)))
    assert (found.features, found.found, found.duplicates, found.unknown) == (3, 1, 1, 2)
    assert found.by_fate == {"kept": 1.0, "lost": 0.0, "new": 0.0} and found.share == 1 / 3
    json.dumps(found.as_dict(), allow_nan=False)
    empty = FeatureActs.from_dense(np.zeros((4_000, 2)))
    nothing = recovery(label(empty, true, np.zeros(4, np.int8)))
    assert nothing.found == 0 and nothing.as_dict()["median_r"] is None


def test_codes_are_labeled_with_the_features_they_were_made_from():
    world = World(WorldConfig(kept=40, rotated=20, noisy=20, split=10, merged=10, lost=40, new=40, l0=4), 0)
    codes = noisy_codes(world, 30_000, 1)
    truth = label_edge(codes.parent.acts, codes.child.acts, codes.sample, world)
    np.testing.assert_array_equal(truth.parent.feature, codes.parent.feature)
    np.testing.assert_array_equal(truth.parent_fate, world.parent.fate[codes.parent.feature])
    np.testing.assert_array_equal(truth.child_fate, world.child.fate[codes.child.feature])
    assert recovery(truth.child).share == 1
