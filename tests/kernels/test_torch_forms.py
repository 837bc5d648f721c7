"""The GPU's kernel against the compiled one, on the processor and, where there is one, on a GPU."""

from __future__ import annotations

import numpy as np
import pytest

from heredity.features.acts import FeatureActs
from heredity.features.correlate import correlate
from heredity.kernels.pearson import TopPearson, join, top_pearson
from heredity.kernels.torch_forms import top_pearson_torch
from worlds import DEVICES, NO_GPU


@pytest.fixture(scope="module")
def ends() -> tuple[FeatureActs, FeatureActs]:
    """Copies, ties, dead, constant and always active features; some tokens at which a side is silent."""
    rng = np.random.default_rng(0)
    x = rng.lognormal(0, 1, (240, 50)) * (rng.random((240, 50)) < np.geomspace(0.002, 0.6, 50))
    y = rng.lognormal(0, 1, (240, 70)) * (rng.random((240, 70)) < np.geomspace(0.002, 0.6, 70))
    y[:, 10:40] += x[:, 15:45]
    x[:, 30], y[:, 5], y[:, 60] = x[:, 20], x[:, 20], x[:, 20]
    x[30:60], y[50:80] = 0, 0
    x[:, 1], y[:, 3], x[:, 2], y[:, 4] = 0, 0, 0.7, 0.7
    return FeatureActs.from_dense(x), FeatureActs.from_dense(y)


def assert_agree(found: TopPearson, expected: TopPearson) -> None:
    """r to 1e-12; the same partners but where r of different partners differ by less."""
    for end in ("parent", "child"):
        r, wanted = getattr(found, f"{end}_r"), getattr(expected, f"{end}_r")
        np.testing.assert_allclose(r, wanted, rtol=0, atol=1e-12)
        apart = np.pad(np.abs(np.diff(wanted)) > 1e-9, ((0, 0), (1, 1)), constant_values=False)
        sure = apart[:, :-1] & apart[:, 1:] | np.isnan(wanted)
        np.testing.assert_array_equal(getattr(found, f"{end}_match")[sure], getattr(expected, f"{end}_match")[sure])
    assert found.parent_range == expected.parent_range and found.thresholds == expected.thresholds
    np.testing.assert_array_equal(found.pairs_over, expected.pairs_over)
    np.testing.assert_array_equal(found.histogram, expected.histogram)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("memory", "top"), [(0, 4), (20_000, 1), (400_000, 90), (1 << 28, 4)])
def test_it_agrees_with_the_compiled_kernel(ends, device, memory, top):
    parent, child = (acts.sparse for acts in ends)
    assert_agree(top_pearson_torch(parent, child, top, device, memory=memory), top_pearson(parent, child, top))


@pytest.mark.parametrize("device", DEVICES)
def test_ranges_join_and_progress_ends_at_all_features(ends, device):
    parent, child, seen = *(acts.sparse for acts in ends), []
    parts = [top_pearson_torch(parent, child, 3, device, parent_range=own, bins=9) for own in ((0, 21), (21, 50))]
    assert_agree(join(parts), top_pearson(parent, child, 3, bins=9))
    top_pearson_torch(parent, child, 1, device, lambda *of: seen.append(of), memory=20_000)
    assert seen == sorted(seen) and len(seen) > 1 and seen[-1] == (50, 50)


def test_ties_go_to_the_lower_index():
    x = np.zeros((40, 6), np.float32)
    x[np.arange(40), np.arange(40) % 3] = 1
    x[:, 3:] = x[:, :3]
    acts = FeatureActs.from_dense(x).sparse
    for top in (1, 2, 3, 6):
        found = top_pearson_torch(acts, acts, top, "cpu", bins=0)
        np.testing.assert_array_equal(found.parent_match[:, 0], [0, 1, 2, 0, 1, 2])
        np.testing.assert_array_equal(found.child_match, top_pearson(acts, acts, top).child_match)
        assert found.histogram.shape == (0,)


@pytest.mark.gpu
@NO_GPU
def test_correlate_takes_the_device_it_is_given(ends):
    found, expected = correlate(*ends, device="cuda"), correlate(*ends)
    np.testing.assert_allclose(found.parent_r, expected.parent_r, rtol=0, atol=1e-12)
