"""Persisting features whose match fires more often, or less, than they do."""

from __future__ import annotations

import numpy as np

from artifacts import match_artifact, work_of
from heredity.analyses import density_change
from heredity.features.acts import FeatureActs
from heredity.study import Edge


def test_features_that_keep_their_meaning_may_fire_more_or_less_often(tmp_path):
    rng = np.random.default_rng(0)
    parent = np.where(rng.random((4000, 4)) < 0.1, rng.uniform(1, 2, (4000, 4)), 0)
    child = parent.copy()
    child[::3, 1] = 0  # two of three firings remain
    child[parent[:, 2] < 1.7, 2] = 0  # three of ten remain, the strongest
    child[:, 3] = np.where(rng.random(4000) < 0.2, 1, 0)  # another feature
    ends = (FeatureActs.from_dense(acts.astype(np.float32)) for acts in (parent, child))
    match = match_artifact(tmp_path / "match", Edge("base", "lua"), *ends, threshold=0.4)
    rows = density_change.ANALYSIS.run(work_of(tmp_path / "work", {"match": match}), ())["density_change"]
    (row,) = density_change.DENSITY_CHANGE.check(rows, instrument="joint", site="hook", edge="base->lua").to_pylist()
    assert (row["pairs"], row["more"], row["fewer"]) == (3, 0, 1)
    kept = [(child[:, i] > 0).mean() / (parent[:, i] > 0).mean() for i in range(3)]
    np.testing.assert_allclose(row["median_ratio"], np.median(kept))
    (statement,) = density_change.ANALYSIS.say({"density_change": [row]})
    assert statement.about == "lua" and "0 of 3 (0 %) fire at least twice as often, 1 of 3 (33 %)" in statement.text
