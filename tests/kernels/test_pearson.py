"""The sparse kernel against the plain reference and against its own symmetries."""

from __future__ import annotations

import numpy as np
import pytest

from heredity.features.acts import FeatureActs
from heredity.kernels import pearson
from heredity.kernels.pearson import MEMORY, TopPearson, join, tiles, top_pearson
from heredity.kernels.sparse import Sparse
from worlds import best_of, dense_pearson
from worlds import random_acts as drawn


def random_acts(seed: int, tokens: int, d: int, signed: bool = False) -> np.ndarray:
    """With rare, frequent, dead, always active and constant features."""
    acts = drawn(seed, tokens, d, density=None)
    if signed:
        acts[:, 6:] *= np.random.default_rng(seed).choice([-1, 1], (tokens, d - 6))
    return acts


def sparse(dense: np.ndarray) -> Sparse:
    return FeatureActs.from_dense(dense).sparse


def ends_of(found: TopPearson) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(found.parent_match, found.parent_r), (found.child_match, found.child_r)]


@pytest.mark.parametrize("signed", [False, True])
def test_every_pair_equals_numpy_corrcoef(signed):
    x, y = random_acts(0, 2000, 23, signed), random_acts(1, 2000, 31, signed)
    y[:, 8:16] += x[:, 8:16]
    found = top_pearson(sparse(x), sparse(y), top=31, workers=2)
    with np.errstate(invalid="ignore", divide="ignore"):
        expected = np.corrcoef(x.T.astype(np.float64), y.T.astype(np.float64))[:23, 23:]
    expected[[1, 4]] = expected[:, [1, 4]] = np.nan
    r = np.full((23, 31), np.nan)
    for i, (match, value) in enumerate(zip(found.parent_match, found.parent_r, strict=True)):
        r[i, match[match >= 0]] = value[match >= 0]
    np.testing.assert_allclose(r, expected, atol=1e-6, equal_nan=True)
    np.testing.assert_allclose(dense_pearson(x, y), expected, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("top", [1, 5, 40])
def test_both_lists_are_the_best_of_the_full_matrix(top):
    x, y = random_acts(2, 1500, 24), random_acts(3, 1500, 37)
    y[:, 8:16] += x[:, 8:16]
    r = dense_pearson(x, y)
    for (match, value), matrix in zip(ends_of(top_pearson(sparse(x), sparse(y), top)), (r, r.T), strict=True):
        expected_match, expected = best_of(matrix, top)
        np.testing.assert_allclose(value, expected, atol=1e-9, equal_nan=True)
        np.testing.assert_array_equal(match, expected_match)


def bits(found: TopPearson) -> list[object]:
    """Everything in a result, exactly."""
    return [x.tobytes() if isinstance(x, np.ndarray) else x for x in found]


@pytest.fixture(scope="module")
def ends() -> tuple[Sparse, Sparse]:
    """Two ends of an edge with copies, ties and more features than are screened together."""
    x, y = random_acts(4, 800, 60), random_acts(5, 800, 300)
    x[:, 30], x[:, 40] = x[:, 20], x[:, 20]
    y[:, 30], y[:, 45], y[:, 200] = x[:, 20], x[:, 20], x[:, 20]
    return sparse(x), sparse(y)


@pytest.mark.parametrize(
    ("workers", "memory"), [(2, MEMORY), (3, MEMORY), (7, MEMORY), (2, 0), (2, 60_000), (2, 100_000), (2, 1 << 40)]
)
def test_any_number_of_threads_and_bound_on_memory_gives_the_same_bits(ends, workers, memory):
    assert bits(top_pearson(*ends, 3, workers, memory=memory)) == bits(top_pearson(*ends, 3, workers=1))


@pytest.mark.parametrize("edges", [[0, 60], [0, 1, 60], [0, 20, 20, 41, 60]])
def test_ranges_join_to_what_one_call_gives(ends, edges):
    ranges = list(zip(edges[:-1], edges[1:], strict=True))
    parts = [top_pearson(*ends, 3, parent_range=own) for own in reversed(ranges)]
    assert parts[0].parent_r.shape == (edges[-1] - edges[-2], 3)
    assert bits(join(parts)) == bits(top_pearson(*ends, 3))


def test_ranges_that_do_not_meet_and_empty_lists_are_refused(ends):
    first, apart = (top_pearson(*ends, 3, parent_range=own) for own in ((0, 20), (25, 60)))
    shorter = top_pearson(*ends, 2, parent_range=(20, 60))
    for parts, message in (([first, apart], "not follow each other"), ([], "not follow"), ([first, shorter], "differ")):
        with pytest.raises(ValueError, match=message):
            join(parts)
    for top, wanted, message in ((3, (20, 61), "no range of 60 features"), (0, None, "top=0")):
        with pytest.raises(ValueError, match=message):
            top_pearson(*ends, top, parent_range=wanted)


def wide(seed: int, tokens: int, d: int) -> np.ndarray:
    """Many features that fire rarely, some with few partners that fire with them; dead and constant ones."""
    rng = np.random.default_rng(seed)
    acts = np.where(rng.random((tokens, d)) < rng.uniform(0.001, 0.02, d), rng.random((tokens, d)) + 0.1, 0)
    acts[:, 3], acts[:, 5], acts[:, 7] = 0, 1, 0.5 + rng.random(tokens)
    acts[:, 10:40] = 0
    acts[rng.integers(tokens, size=30), np.arange(10, 40)] = 1.0
    return acts.astype(np.float32)


@pytest.mark.parametrize(("top", "bins", "thresholds", "ranges", "few"), [
    (1, 200, (0.5, 0.9), [(0, 300)], True), (5, 200, (0.5,), [(0, 100), (100, 300)], True),
    (5, 0, (), [(0, 300)], True), (5, 7, (0.5,), [(0, 300)], False), (5, 200, (-0.1,), [(0, 300)], False),
    (260, 200, (0.5,), [(0, 300)], False),
])  # fmt: skip
def test_looking_only_at_features_that_share_tokens_gives_the_bits_of_looking_at_all(
    top, bins, thresholds, ranges, few, monkeypatch
):
    x, y = wide(7, 600, 300), wide(8, 600, 280)
    y[:, 100:180] = x[:, 100:180]
    found, skipped, match = {}, [], pearson._match_features
    monkeypatch.setattr(pearson, "_match_features", lambda *given: skipped.append(match(*given)) or skipped[-1])
    for share in (0.0, 1.0):
        monkeypatch.setattr(pearson, "_FEW", share)
        given = {"bins": bins, "thresholds": thresholds}
        found[share] = [top_pearson(sparse(x), sparse(y), top, 2, parent_range=span, **given) for span in ranges]
    assert [bits(one) for one in found[0.0]] == [bits(one) for one in found[1.0]]
    assert any(skipped) == few


@pytest.mark.parametrize("few", [0.0, 0.25])
def test_more_features_than_16_bits_can_number_and_one_that_never_varies(few, monkeypatch):
    monkeypatch.setattr(pearson, "_FEW", few)
    rng, d = np.random.default_rng(3), 70_000
    y, firing = np.zeros((300, d), np.float32), rng.choice(d, 60, replace=False)
    y[:, firing] = np.where(rng.random((300, 60)) < 0.1, rng.random((300, 60)), 0)
    y[:, d - 1] = 2.5
    x = y[:, firing[:40]] + np.where(rng.random((300, 40)) < 0.05, 1, 0).astype(np.float32)
    for parent, child in ((x, y), (y, x)):
        r = dense_pearson(parent, child)
        found = ends_of(top_pearson(sparse(parent), sparse(child), 3, 2))
        for (match, value), matrix in zip(found, (r, r.T), strict=True):
            expected_match, expected = best_of(matrix, 3)
            np.testing.assert_allclose(value, expected, atol=1e-9, equal_nan=True)
            np.testing.assert_array_equal(match, expected_match)


@pytest.mark.parametrize("bins", [200, 7, 1, 0])
def test_counts_are_those_of_the_full_matrix(bins):
    x, y = random_acts(22, 700, 40, signed=True), random_acts(23, 700, 290)
    y[:, 100:120] = x[:, 10:30] * np.float32(2)
    y[:, 130:140] += x[:, 10:20]
    y[:, 150] = 1 - y[:, 150]
    found = top_pearson(sparse(x), sparse(y), 2, thresholds=(0.5, 0.9, -0.1), bins=bins)
    r = np.clip(dense_pearson(x, y), -1, 1)
    r = r[np.isfinite(r)]
    assert found.pairs_over.tolist() == [(r > threshold).sum() for threshold in (0.5, 0.9, -0.1)]
    at = np.minimum(((r + 1) * (bins / 2)).astype(int), bins - 1)
    expected = np.bincount(at, minlength=bins) if bins else []
    np.testing.assert_array_equal(found.histogram, expected)


@pytest.mark.parametrize("limit", [0, 1, 5, 100])
def test_tiles_cover_everything_once_within_the_limit(limit):
    sizes = np.array([3, 0, 2, 9, 0, 0, 1, 4])
    cut = list(tiles(sizes, limit))
    assert [a for a, _ in cut] == [0, *(b for _, b in cut[:-1])] and cut[-1][1] == 8
    assert all(sizes[a:b].sum() <= limit or b == a + 1 for a, b in cut)
    assert list(tiles(sizes[:0], limit)) == []


def test_an_end_compared_with_itself_matches_itself_and_ties_go_to_the_lower_index():
    x = random_acts(9, 1200, 30)
    found = top_pearson(sparse(x), sparse(x), 2)
    live = np.setdiff1d(np.arange(30), [1, 4])
    assert found.parent_match[live, 0].tolist() == live.tolist()
    np.testing.assert_allclose(found.parent_r[live, 0], 1, atol=1e-12)
    assert found.parent_r[live].max() <= 1
    x[:, 9], x[:, 7] = x[:, 6], x[:, 6]
    found = top_pearson(sparse(x), sparse(x), 4, workers=2)
    for match, _ in ends_of(found):
        assert match[[6, 7, 9], :3].tolist() == [[6, 7, 9]] * 3


def test_swapping_the_ends_swaps_the_lists_to_the_bit(ends):
    ahead, back = bits(top_pearson(*ends, 5)), bits(top_pearson(*reversed(ends), 5))
    assert ahead[:4] == [*back[2:4], *back[:2]]


def test_a_tiny_variation_on_a_large_mean_still_counts():
    rng = np.random.default_rng(13)
    common = rng.normal(size=5000)
    x = np.stack([1000 + common, rng.normal(size=5000)], 1).astype(np.float32)
    y = np.stack([rng.normal(size=5000), 500 - common], 1).astype(np.float32)
    found = top_pearson(sparse(x), sparse(y), 2)
    np.testing.assert_allclose(found.parent_r[0], sorted(np.corrcoef(x[:, 0], y.T)[0, 1:], reverse=True), atol=1e-6)


@pytest.mark.parametrize("magnitude", [1e-18, 1.0, 1e18])
def test_a_positive_scale_changes_nothing_and_a_negative_one_turns_the_sign(magnitude):
    x, y = random_acts(14, 700, 9), random_acts(15, 700, 9)
    plain, turned = top_pearson(sparse(x), sparse(y), 9), top_pearson(sparse(x), sparse(-y), 9)
    scaled = top_pearson(sparse((x * np.float32(magnitude)).astype(np.float32)), sparse(y), 9)
    np.testing.assert_allclose(scaled.parent_r, plain.parent_r, atol=1e-6)
    np.testing.assert_array_equal(scaled.parent_match, plain.parent_match)
    np.testing.assert_allclose(turned.parent_r[:, :7], -plain.parent_r[:, :7][:, ::-1], atol=1e-12)


def test_adding_a_constant_changes_nothing():
    rng = np.random.default_rng(16)
    x = np.round(rng.random((900, 8)) * (rng.random((900, 8)) < 0.2), 3).astype(np.float32)
    y = x[:, ::-1] + np.round(rng.random((900, 8)), 3).astype(np.float32)
    # Eighths of a power of two are added without rounding; what is left is the float64 sums' own.
    plain, moved = top_pearson(sparse(x), sparse(y), 2), top_pearson(sparse(x), sparse(y + 4), 2)
    np.testing.assert_allclose(moved.parent_r, plain.parent_r, atol=1e-6)
    np.testing.assert_array_equal(moved.child_match, plain.child_match)


def test_progress_reaches_all_features_that_can_match(ends):
    seen = []
    top_pearson(*ends, 1, progress=lambda *of: seen.append(of))
    assert seen == sorted(seen) and seen[-1] == (57, 57), "three are dead or constant"
