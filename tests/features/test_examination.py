"""Fates of lost and changed features are those that were planted."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest

from heredity.analyses import lost_features
from heredity.features import examination
from heredity.features.acts import FeatureActs
from heredity.features.examination import (
    FATES,
    MARGIN,
    Evidence,
    Sides,
    beside,
    fates_of,
    partners,
    readability,
    unevenness,
)
from heredity.features.transmission import Regression
from heredity.synthetic.planted_edges import PLANTED, EdgeConfig, EdgeSample, PlantedEdge

EVERY = dict.fromkeys(PLANTED[1:7], 0.1)
SIZE = {"features": 120, "d": 96, "l0": 4.0, "topics": 5}


class Examined(NamedTuple):
    planted: np.ndarray  # str [chosen]
    fate: np.ndarray
    readable: np.ndarray
    readable_apart: np.ndarray


def examined(structure: str, at: int = 0, seed: int = 0, tokens: int = 30_000, **shares: float) -> Examined:
    """All features of one end that are not kept, seen by perfect SAEs."""
    edge = PlantedEdge(EdgeConfig(**SIZE, **{**EVERY, **shares}, structure=structure), seed)
    fitting, sample = edge.draw(tokens, 1), edge.draw(tokens, 2)
    own, other = sample.acts[at], sample.acts[1 - at]
    fate = np.array(PLANTED)[(edge.parent, edge.child)[at].fate]
    effect = Regression(own, sample.x[at], sample.document).effects(np.eye(sample.x[at].shape[1]), sample.x[1 - at])
    seen = own.firings() >= 50
    chosen = np.flatnonzero((fate != "kept") & seen if at == 0 else (fate == "new") & seen)
    nothing = np.zeros(other.d_sae, bool)

    def sides(one: EdgeSample) -> Sides:
        return Sides(beside(one.acts[at], one.acts[1 - at], nothing), one.x[at], one.x[1 - at])

    read, found = readability(sides(fitting), sides(sample), chosen, seen), partners(own, other, chosen)
    bound = effect.transmission + MARGIN * effect.transmission_error
    evidence = Evidence(
        *(getattr(effect, name)[chosen] for name in ("strength", "strength_error", "direction", "direction_error")),
        bound[chosen],
        found.best_r,
    )
    fates = fates_of(read.readable_apart, unevenness(sides(sample), chosen, seen), found, evidence)
    return Examined(fate[chosen], fates, read.readable, read.readable_apart)


def shares(result: Examined) -> dict[str, dict[str, float]]:
    """Shares of fates by what was planted."""
    return {
        name: {fate: float((result.fate[result.planted == name] == fate).mean()) for fate in FATES}
        for name in np.unique(result.planted)
    }


@pytest.mark.parametrize("structure", ["flat", "pairs"])
def test_planted_fates_are_found(structure):
    found = shares(examined(structure))
    assert found["lost"]["gone"] > 0.8
    assert found["turned"]["moved"] > 0.85 and found["rotated"]["moved"] > 0.85
    assert found["faint"]["faint"] > 0.85 and found["narrowed"]["narrowed"] > 0.85
    assert found["split"]["split"] > 0.85
    assert not any(row["gone"] for name, row in found.items() if name != "lost"), "nothing that is there is called gone"


def test_what_one_other_feature_silences_is_absorbed():
    found = shares(examined("chains", new=0.0, lost=0.0, absorbed=0.4))["absorbed"]
    assert found["absorbed"] > 0.5 and found["gone"] == 0


def test_new_features_of_the_child_are_nowhere_in_the_parent():
    assert shares(examined("flat", at=1))["new"]["gone"] > 0.85


def test_a_lost_half_of_a_pair_is_readable_by_its_other_half_alone():
    result = examined("pairs", lost=0.4, **dict.fromkeys(PLANTED[1:7], 0.0), new=0.0)
    leaks = result.readable > 0.3
    assert leaks.sum() >= 5 and np.median(result.readable_apart[leaks]) < 0.05


def test_readouts_equal_regressions_on_all_other_variables():
    rng = np.random.default_rng(0)

    def sides(seed: int) -> Sides:
        rng_of = np.random.default_rng(seed)
        dense = (rng_of.random((3_000, 6)) < 0.2) * rng_of.lognormal(0, 0.5, (3_000, 6))
        dense[:, 1] += 0.5 * dense[:, 0]
        x = (dense @ mixing + 0.3 * rng_of.standard_normal((3_000, 4))).astype(np.float32)
        return Sides(FeatureActs.from_dense(dense), x, x[:, :2])

    mixing = rng.standard_normal((6, 4))
    fitting, judging = sides(1), sides(2)
    read = readability(fitting, judging, np.array([1, 4]), np.arange(6) < 5)

    def left(regressors: list[np.ndarray], target: int) -> float:
        """Variance left on the judging tokens, in shares of the whole."""
        parts = []
        for side, columns in zip((fitting, judging), regressors, strict=True):
            y = side.acts.dense()[:, target].astype(np.float64)
            parts.append((columns - columns.mean(0), y - y.mean()))
        weight = np.linalg.lstsq(*parts[0])[0]
        return float(np.square(parts[1][1] - parts[1][0] @ weight).mean() / np.square(parts[1][1]).mean())

    for i, feature in enumerate((1, 4)):
        rest = [j for j in range(5) if j != feature]
        others = [side.acts.dense()[:, rest].astype(np.float64) for side in (fitting, judging)]
        for x, plain, apart in (
            ([fitting.own, judging.own], read.own, read.own_apart),
            ([fitting.other, judging.other], read.other, read.other_apart),
        ):
            assert plain[i] == pytest.approx(1 - left(x, feature), abs=1e-3)
            both = [np.concatenate(pair, axis=1) for pair in zip(others, x, strict=True)]
            assert apart[i] == pytest.approx(1 - left(both, feature) / left(others, feature), abs=2e-3)


def test_a_feature_that_existed_before_is_no_part_of_another():
    """A root whose leaves are features of their own, in both models: the two largest leaves do not split it."""
    rng = np.random.default_rng(3)
    leaf = rng.integers(0, 2, 8_000)
    root = (rng.random(8_000) < 0.1) * rng.lognormal(0, 0.5, 8_000)
    leaves = np.stack([(root > 0) * (leaf == side) * rng.lognormal(0, 0.3, 8_000) for side in (0, 1)], 1)
    own = FeatureActs.from_dense(np.column_stack([root, leaves]))
    found = partners(own, FeatureActs.from_dense(leaves), np.array([0]))
    assert found.first[0] == -1 and np.isnan(found.pair_r[0])
    halves = FeatureActs.from_dense(np.stack([root * (leaf == side) for side in (0, 1)], 1))
    split = partners(FeatureActs.from_dense(root[:, None]), halves, np.array([0]))
    assert {split.first[0], split.second[0]} == {0, 1} and split.pair_r[0] == pytest.approx(1, abs=1e-6)


def test_names_agree():
    assert sorted(FATES) == sorted(lost_features._FATES) and examination.GONE < examination.READABLE
