"""Loops over tokens and groups of them beside NumPy's products."""

from __future__ import annotations

import numpy as np
import pytest

from heredity.kernels.grouped import COLUMNS, products_of, scores_of

TOKENS, FEATURES, BOUNDS = 60, 23, np.array([0, 7, 7, 40, 60])


@pytest.fixture(params=[5, COLUMNS, COLUMNS + 3])
def given(request):
    """Features [tokens, features] in compressed rows and dense, and vectors of so many columns."""
    rng = np.random.default_rng(0)
    dense = np.where(rng.random((TOKENS, FEATURES)) < 0.2, rng.random((TOKENS, FEATURES)), 0).astype(np.float32)
    dense[3] = 0
    rows, indices = np.nonzero(dense)
    indptr = np.searchsorted(rows, np.arange(TOKENS + 1))
    x = rng.standard_normal((TOKENS, request.param)).astype(np.float32)
    return (indptr, indices, dense[rows, indices]), dense.astype(np.float64), x


def in_pieces(work, number: int) -> None:
    """All blocks, but not in one call."""
    work(0, 1)
    work(1, number)


def test_products_are_those_of_centered_vectors(given):
    features, dense, x = given
    mean, made = x.mean(0, dtype=np.float64), np.full((FEATURES, x.shape[1]), np.nan)
    in_pieces(lambda a, b: products_of(*features, x, mean, made, COLUMNS, a, b), -(-x.shape[1] // COLUMNS))
    np.testing.assert_allclose(made, dense.T @ (x - mean), atol=1e-12)


def test_scores_are_what_features_have_in_common_with_what_rows_leave(given):
    features, dense, x = given
    rng = np.random.default_rng(1)
    rows, shift, mean = rng.standard_normal((FEATURES, x.shape[1])), rng.standard_normal(x.shape[1]), dense.mean(0)
    made = np.full((len(BOUNDS) - 1, FEATURES, x.shape[1]), np.nan, np.float32)
    blocks = -(-x.shape[1] // COLUMNS) * (len(BOUNDS) - 1)
    in_pieces(lambda a, b: scores_of(*features, BOUNDS, x, shift, rows, mean, made, COLUMNS, a, b), blocks)
    left = x - shift - dense @ rows
    for group, (low, high) in enumerate(zip(BOUNDS[:-1], BOUNDS[1:], strict=True)):
        wanted = (dense[low:high] - mean).T @ left[low:high]
        np.testing.assert_allclose(made[group], wanted, rtol=1e-5, atol=1e-5)
