"""Sums over groups of tokens."""

from __future__ import annotations

import numpy as np
import pytest

from heredity.features.acts import FeatureActs
from heredity.kernels.pairs import pair_moments


def plain_moments(parent, child, candidates, group, groups):
    """The definition, group by group, on dense activations."""
    x, y = parent.dense().astype(np.float64), child.dense().astype(np.float64)
    partner = np.where(candidates >= 0, y[:, candidates], 0.0)
    own = [group == g for g in range(groups)]

    def sums(values):
        return np.stack([values[rows].sum(0) for rows in own])

    return np.bincount(group), sums(x), sums(x * x), sums(y), sums(y * y), sums(x[:, :, None] * partner)


@pytest.mark.parametrize("seed", range(3))
def test_sums_are_those_of_each_group(seed):
    rng = np.random.default_rng(seed)
    dense = [rng.normal(0.5, 1, (400, d)) * (rng.random((400, d)) < 0.2) for d in (12, 19)]
    parent, child = map(FeatureActs.from_dense, dense)
    candidates = rng.integers(-1, 19, (12, 3))
    group = rng.integers(0, 7, 400)
    found = pair_moments(parent.sparse, child.sparse, candidates, group, 7)
    for sums, plain in zip(found[:6], plain_moments(parent, child, candidates, group, 7), strict=True):
        assert sums.dtype == np.float64
        np.testing.assert_allclose(sums, plain, rtol=1e-12, atol=1e-12)
    assert (found.xy[:, candidates < 0] == 0).all()


def test_sums_are_in_float64():
    acts = FeatureActs.from_dense(np.full((3000, 1), 4097.3, np.float32))
    found = pair_moments(acts.sparse, acts.sparse, np.zeros((1, 1)), np.zeros(3000), 1)
    assert found.xx[0, 0] == pytest.approx(3000 * float(np.float32(4097.3)) ** 2, rel=1e-12)
