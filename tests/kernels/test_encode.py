"""Sparse encoding gives exactly what the dense definition gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from heredity.kernels import encode
from heredity.kernels.encode import keep_largest, sparse_encode
from heredity.kernels.sparse import Sparse
from heredity.kernels.torch_forms import dense_encode, linear
from worlds import dense_to_csr


def layer(d_in: int, d_sae: int, bias: float = 0.0, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(d_sae, d_in, generator=generator) / d_in**0.5, torch.full((d_sae,), bias)


def vectors(n: int, d_in: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(n, d_in, generator=torch.Generator().manual_seed(seed))


def assert_same(found: Sparse, expected: Sparse) -> None:
    assert found.width == expected.width
    for array, other in zip(found[:3], expected[:3], strict=True):
        np.testing.assert_array_equal(array, other)
        assert array.dtype == other.dtype


@pytest.mark.parametrize("d_sae", [1, 5, 64, 200, 1000])
@pytest.mark.parametrize("k", [None, 1, 3, 40])
def test_sparse_encoding_equals_the_dense_one_bit_for_bit(d_sae: int, k: int | None):
    x, (weight, bias) = vectors(37, 24), layer(24, d_sae, -0.3)
    k = None if k is None else min(k, d_sae)
    assert_same(sparse_encode(x, weight, bias, k), dense_to_csr(dense_encode(linear(x, weight, bias), k, None)))


def test_thresholds_of_each_feature_and_of_all_hold():
    x, (weight, bias) = vectors(50, 24), layer(24, 130)
    each = torch.linspace(-1, 2, 130)
    for threshold in (each, torch.tensor(0.7), torch.tensor(-0.7)):
        expected = dense_to_csr(dense_encode(linear(x, weight, bias), None, threshold))
        assert_same(sparse_encode(x, weight, bias, threshold=threshold), expected)
        assert (expected.values > 0).all()


def test_chunks_join_to_the_whole(monkeypatch: pytest.MonkeyPatch):
    x, (weight, bias) = vectors(100, 16), layer(16, 96, -0.2)
    whole = sparse_encode(x, weight, bias)
    monkeypatch.setattr(encode, "CHUNK_BYTES", 1)
    chunked = sparse_encode(x, weight, bias)
    np.testing.assert_array_equal(chunked.indptr, whole.indptr)
    np.testing.assert_array_equal(chunked.indices, whole.indices)
    np.testing.assert_allclose(chunked.values, whole.values, rtol=1e-6, atol=1e-6)


def test_one_and_two_threads_give_the_same():
    x, (weight, bias) = vectors(301, 16), layer(16, 96, -0.2)
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(sparse_encode(x, weight, bias, 5))
    finally:
        torch.set_num_threads(before)
    assert_same(*found)


def test_of_equal_activations_the_lower_features_win():
    weight = torch.zeros(300, 4)
    bias = torch.ones(300)
    bias[250] = 2
    found = sparse_encode(vectors(3, 4), weight, bias, 4)
    assert found.indices.reshape(3, 4).tolist() == [[0, 1, 2, 250]] * 3


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.integers(-3, 6), min_size=90, max_size=90), min_size=1, max_size=4),
    st.integers(1, 90),
)
def test_top_k_keeps_the_largest_positive_values_whatever_the_ties(rows: list[list[int]], k: int):
    pre_acts = np.array(rows, dtype=np.float32)
    found = encode._chosen(pre_acts, k, np.zeros(90, np.float32))
    for i, row in enumerate(pre_acts):
        part = slice(found.indptr[i], found.indptr[i + 1])
        expected = sorted(np.flatnonzero(row > 0), key=lambda j: (-row[j], j))[:k]
        assert found.indices[part].tolist() == sorted(expected)
        np.testing.assert_array_equal(found.values[part], row[found.indices[part]])


def test_nothing_active_and_no_tokens_give_empty_arrays():
    weight, bias = layer(8, 70, -100.0)
    for x in (vectors(5, 8), vectors(0, 8)):
        found = sparse_encode(x, weight, bias)
        assert len(found.values) == 0
        assert found.indptr.tolist() == [0] * (len(x) + 1)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_activations_that_are_not_finite_are_refused(bad: float):
    x, (weight, bias) = vectors(5, 8), layer(8, 16)
    x[3, 2] = bad
    with pytest.raises(ValueError, match="NaN or infinite"):
        sparse_encode(x, weight, bias)


def test_batch_top_k_keeps_the_count_of_largest_entries_and_first_ties():
    acts = Sparse(np.array([0, 2, 2, 5]), np.array([1, 4, 0, 1, 2], np.int32), np.array([3, 1, 1, 1, 2], np.float32), 5)
    kept = keep_largest(acts, 3)
    assert kept.indptr.tolist() == [0, 2, 2, 3]
    assert kept.indices.tolist() == [1, 4, 2]
    assert kept.values.tolist() == [3, 1, 2]
    assert_same(keep_largest(acts, 9), acts)


def test_a_type_other_than_float32_takes_the_plain_way():
    x, (weight, bias) = vectors(20, 8).double(), layer(8, 50, -0.2)
    weight, bias = weight.double(), bias.double()
    expected = dense_to_csr(dense_encode(x @ weight.T + bias, 3, None))
    assert_same(sparse_encode(x, weight, bias, 3), expected)
