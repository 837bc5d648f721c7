"""Tiles of integer products, alone: the two largest of each group as NumPy finds them, by an instruction or plainly."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import pytest

from heredity.kernels import tiles, words
from heredity.kernels.screens import LEVELS, levels_of
from heredity.kernels.squares import HAS_SQUARES

SHAPES = [
    (1, 1, 1),
    (13, 7, 33),
    (24, 64, 512),
    (25, 130, 700),
    (5, 48, (1 << 10) + 16),
    (5, 48, (1 << 12) + 16),
    (3, 16, (1 << 15) + 40),
]


def largest(rows: np.ndarray, scale: np.ndarray, own: np.ndarray, weight: np.ndarray, *of_features: np.ndarray):
    """What a plain product finds largest and second in each group, and which features of it these are."""
    w_scale, plain, apart = of_features
    acts = (rows.astype(np.int64) @ weight.astype(np.int64).T) * scale[:, None] * w_scale + plain + own @ apart
    size = tiles.in_a_group(len(weight))
    filled = np.full((len(rows), -(-len(weight) // size) * size), tiles.LOWEST)
    filled[:, : len(weight)] = acts
    filled = filled.reshape(len(rows), -1, size)
    members = np.argsort(-filled, axis=2, kind="stable")[:, :, :2]
    return np.moveaxis(np.take_along_axis(filled, members, 2), 2, 0), np.moveaxis(members, 2, 0)


@pytest.fixture(params=[True, False], ids=["instruction", "plain"])
def largest_of_groups(request, monkeypatch):
    """The kernel as this processor has it, and one that is compiled without an instruction for words of four."""
    if request.param:
        return tiles.largest_of_groups
    monkeypatch.setattr(words, "HAS_FOURS", False)
    return numba.njit(tiles.largest_of_groups.py_func, error_model="numpy")


def test_rows_are_kept_for_as_long_as_they_are_read():
    """As many as the allocator maps for themselves alone, and takes away when they are freed."""
    rows, weight = np.ones((300_000, 128), np.int8), np.ones((32, 128), np.int8)
    none = np.empty((0, 32), np.float32)
    made = tiles.make_tiles(tiles.packed(weight), np.ones(32, np.float32), np.zeros(32, np.float32), none)
    found = tiles.largest_of_groups(rows, np.ones(len(rows), np.float32), np.empty((len(rows), 0), np.float32), made)
    np.testing.assert_allclose(np.stack(found)[:, : len(rows), :16], 128, rtol=2e-6)


def test_registers_for_matrices_that_are_missing_are_not_taken(monkeypatch):
    monkeypatch.setattr(tiles, "HAS_SQUARES", False)
    rows, scale, none = tiles.packed(np.ones((32, 64), np.int8), True), np.ones(32, np.float32), np.empty((0, 32))
    with pytest.raises(RuntimeError, match="no registers for matrices"):
        tiles.make_tiles(rows, scale, scale, none, True)


def problem(n: int, d_in: int, d_sae: int, kind: Any) -> tuple[np.ndarray, ...]:
    """Rows, scales, columns apart, weights and what belongs to their features; with the largest sums there are."""
    random = np.random.default_rng(d_sae)
    most = LEVELS if kind == np.int8 else levels_of(d_in)
    rows, weight = (random.integers(-most, most + 1, (some, d_in)).astype(kind) for some in (n, d_sae))
    rows[0], weight[0], weight[-1] = most, most, -most
    scale, w_scale = (random.uniform(0.5, 2, some).astype(np.float32) / most for some in (n, d_sae))
    own, apart = (random.normal(0, 1, shape).astype(np.float32) for shape in ((n, 2), (2, d_sae)))
    return rows, scale, own, weight, w_scale, random.normal(0, 1, d_sae).astype(np.float32), apart


@pytest.mark.parametrize("kind", [np.int8, np.int16])
def test_tiles_write_the_two_largest_of_each_group_whatever_the_shape_and_the_signs(largest_of_groups, kind):
    for n, d_in, d_sae in SHAPES:
        rows, scale, own, weight, *of_features = problem(n, d_in, d_sae, kind)
        made = tiles.make_tiles(tiles.packed(weight), *of_features)
        expected, members = largest(rows, scale, own, weight, *of_features)
        found = np.stack(largest_of_groups(rows, scale, own, made))[:, :n, : expected.shape[2]]
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
        apart = expected[0] - expected[1] > 1e-4 * np.abs(expected[0])
        assert apart.mean() > 0.9
        np.testing.assert_array_equal((found[0].view(np.uint32) % tiles.LARGEST_GROUP)[apart], members[0][apart])


@pytest.mark.parametrize("kind", [np.int8, np.int16])
@pytest.mark.parametrize("has_fours", [True, False])
def test_dots_are_those_of_integers_whatever_the_length_of_a_row(monkeypatch, kind, has_fours):
    if not has_fours:
        monkeypatch.setattr(words, "HAS_FOURS", False)
    elif not words.HAS_FOURS:
        pytest.skip("no instruction for words of four")
    dots = words.dots if has_fours else numba.njit(words.dots.py_func)
    for d_in in (1, 31, 32, 63, 64, 65, 200):
        rows, _, _, weight, *_ = problem(3, d_in, 20, kind)
        sums = np.empty(7, np.int32)
        dots(rows, 1, weight, 13, sums)
        np.testing.assert_array_equal(sums, weight[13:].astype(np.int64) @ rows[1].astype(np.int64))
        dots(rows, 0, weight, 13, sums)  # the largest sums there are
        np.testing.assert_array_equal(sums, weight[13:].astype(np.int64) @ rows[0].astype(np.int64))


@pytest.mark.skipif(not HAS_SQUARES, reason="no registers for matrices")
def test_registers_for_matrices_give_the_same_bits():
    for n, d_in, d_sae in [*SHAPES, (70, 200, 3000)]:
        rows, scale, own, weight, *of_features = problem(n, d_in, d_sae, np.int8)
        found = [
            np.stack(
                tiles.largest_of_groups(
                    rows, scale, own, tiles.make_tiles(tiles.packed(weight, in_squares), *of_features, in_squares)
                )
            )[:, :n, : -(-d_sae // tiles.in_a_group(d_sae))]
            for in_squares in (False, True)
        ]
        np.testing.assert_array_equal(*found)
