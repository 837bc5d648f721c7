"""Sparse encoding gives exactly what the dense definition gives; screening by bfloat16 misses and invents nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from heredity.kernels import encode
from heredity.kernels.encode import keep_largest, sparse_encode
from heredity.kernels.sparse import Sparse
from heredity.kernels.torch_forms import (
    active_entries,
    dense_encode,
    largest_entries,
    linear,
    native_bfloat16,
    screened_entries,
)
from worlds import dense_to_csr

D_IN, D_SAE = 96, 2048
NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, NO_GPU])]


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


@pytest.fixture
def screening(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Screens whatever the processor and the size of the problem; the list counts the chunks screened."""
    candidates: list[int] = []
    real = encode.screened

    def counted(*arguments):
        found = real(*arguments)
        candidates.append(-1 if found is None else found[1])
        return found

    monkeypatch.setattr(encode, "screened", counted)
    if not native_bfloat16():
        monkeypatch.setattr(encode, "product", lambda x, weight: (x.float() @ weight.float().T).bfloat16())
    monkeypatch.setattr(encode, "native_bfloat16", lambda: True)
    monkeypatch.setattr(encode, "SCREENED_ROWS", 1)
    monkeypatch.setattr(encode, "SCREENED_WEIGHTS", 1)
    return candidates


def planted(n: int = 300, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens of a few directions each, encoder rows of very different norms, biases that leave about 8 active."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(D_SAE, D_IN, generator=generator)
    weight *= torch.rand(D_SAE, 1, generator=generator).mul(3).exp() / weight.norm(dim=1, keepdim=True)
    chosen = torch.randint(0, D_SAE, (n, 6), generator=generator)
    x = torch.nn.functional.normalize(weight, dim=1)[chosen].sum(1) + 0.1 * torch.randn(n, D_IN, generator=generator)
    pre_acts = x @ weight.T
    return x, weight, -pre_acts.quantile(0.996, dim=0)


def exact(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return x.double() @ weight.double().T + bias.double()


@pytest.mark.parametrize("k", [None, 1, 7, 30])
@pytest.mark.parametrize("threshold", [None, 0.3])
def test_screened_encoding_is_the_float32_one(screening: list[int], k: int | None, threshold: float | None):
    x, weight, bias = planted()
    floor = None if threshold is None else torch.tensor(threshold)
    found = sparse_encode(x, weight, bias, k, floor)
    assert screening and min(screening) >= 0
    pre_acts = exact(x, weight, bias)
    expected = dense_to_csr(dense_encode(pre_acts, k, floor))
    assert_equal_but_for_rounding(found, expected, scale=float(pre_acts.abs().max()))


def assert_equal_but_for_rounding(found: Sparse, expected: Sparse, scale: float) -> None:
    """The same entries, but for those that lie at the cut within float32's rounding."""
    sides = []
    for csr in (found, expected):
        dense = np.zeros((len(csr.indptr) - 1, D_SAE))
        dense[np.repeat(np.arange(len(dense)), np.diff(csr.indptr)), csr.indices] = csr.values
        sides.append(dense)
    differ = (sides[0] > 0) != (sides[1] > 0)
    assert differ.sum() <= 2
    assert np.abs(sides[0] - sides[1])[~differ].max() < 1e-6 * scale


def test_adversarial_rounding_misses_nothing(screening: list[int]):
    """Inputs and weights in the middle between bfloat16 neighbours, all errors of one sign: the bounds still hold."""
    generator = torch.Generator().manual_seed(1)
    half_step = 1 + 2.0**-8 - 2.0**-20
    weight = torch.full((D_SAE, D_IN), half_step)
    x = torch.full((64, D_IN), half_step)
    sums = exact(x, weight, torch.zeros(D_SAE))[0, 0]
    # A few features are left just above or just below zero, by far less than what bfloat16 loses; the rest far below.
    above = torch.full((D_SAE,), -40.0, dtype=torch.float64)
    above[:100] = torch.linspace(-1.0, 0.5, 100, dtype=torch.float64)
    bias = (above - sums).float()[torch.randperm(D_SAE, generator=generator)]
    found = sparse_encode(x, weight, bias)
    expected = exact(x, weight, bias) > 0
    sure = exact(x, weight, bias).abs() > 1e-4
    assert 64 * 50 <= screening[0] <= 64 * 100
    dense = np.zeros((64, D_SAE), bool)
    dense[np.repeat(np.arange(64), np.diff(found.indptr)), found.indices] = True
    np.testing.assert_array_equal(dense[sure.numpy()], expected.numpy()[sure.numpy()])
    assert (x.bfloat16().float() @ weight.bfloat16().float().T + bias)[expected & sure].min() < 0


def test_many_candidates_go_to_the_float32_product(screening: list[int]):
    x, weight = torch.randn(200, D_IN), planted()[1]
    found = sparse_encode(x, weight, torch.zeros(D_SAE))
    assert screening == [-1]
    expected = dense_to_csr(dense_encode(linear(x, weight, torch.zeros(D_SAE)), None, None))
    np.testing.assert_array_equal(found.values, expected.values)


def test_a_token_with_many_active_features_does_not_stop_the_others(screening: list[int]):
    x, weight, bias = planted()
    x[7] = 100 * weight.mean(0)
    x[200] *= -50
    found = sparse_encode(x, weight, bias)
    pre_acts = exact(x, weight, bias)
    assert screening[0] > 0 and np.diff(found.indptr)[[7, 200]].max() > 0.3 * D_SAE
    rest = np.delete(np.arange(len(x)), [7, 200])
    expected = dense_to_csr(pre_acts.relu())
    np.testing.assert_array_equal(np.diff(found.indptr)[[7, 200]], np.diff(expected.indptr)[[7, 200]])
    assert np.abs(np.diff(found.indptr) - np.diff(expected.indptr))[rest].sum() <= 2
    np.testing.assert_allclose(found.values.sum(), expected.values.sum(), rtol=1e-5)


def test_values_do_not_depend_on_the_rows_around_a_token(screening: list[int]):
    x, weight, bias = planted()
    whole, part = sparse_encode(x, weight, bias), sparse_encode(x[100:157], weight, bias)
    own = slice(whole.indptr[100], whole.indptr[157])
    np.testing.assert_array_equal(whole.indices[own], part.indices)
    np.testing.assert_array_equal(whole.values[own], part.values)


def test_rounding_is_that_of_torch_and_its_norms_are_bounds():
    x = torch.randn(50, 33) * torch.logspace(-30, 30, 50)[:, None]
    rounded, norm, rounding = encode.make_screen(x)
    assert torch.equal(rounded, x.bfloat16())
    lost = (x.double() - rounded.double()).norm(dim=1)
    finite = (x.abs() < 1e15).all(1) & (x.abs() > 1e-15).all(1)
    assert (torch.from_numpy(rounding).double() >= lost)[finite].all()
    assert (torch.from_numpy(norm).double() >= x.double().norm(dim=1))[finite].all()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("k", [None, 1, 7])
def test_entries_are_those_of_the_compiled_encoding(device: str, k: int | None):
    x, weight, bias = planted()
    expected = dense_to_csr(dense_encode(exact(x, weight, bias), k, None))
    there = [tensor.to(device) for tensor in (x, weight, bias)]
    screened = screened_entries(*there, k, there[2].new_zeros(()))
    assert screened is not None
    for entries in (screened, active_entries(*there, k, None)):
        indptr = np.concatenate([[0], np.cumsum(np.bincount(entries.tokens.cpu().numpy(), minlength=len(x)))])
        found = Sparse(indptr, entries.features.int().cpu().numpy(), entries.values.cpu().numpy(), D_SAE)
        assert_equal_but_for_rounding(found, expected, scale=float(exact(x, weight, bias).abs().max()))


def test_the_largest_entries_of_a_batch_are_the_same_in_both_forms():
    x, weight, bias = planted()
    entries = largest_entries(active_entries(x, weight, bias, None, None), 500)
    expected = keep_largest(sparse_encode(x, weight, bias), 500)
    np.testing.assert_array_equal(entries.features.numpy(), expected.indices)
    np.testing.assert_allclose(entries.values.numpy(), expected.values, rtol=1e-5)
