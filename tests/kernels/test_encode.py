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
    key_starts,
    largest_entries,
    linear,
    native_bfloat16,
    screened_entries,
)
from worlds import DEVICES, dense_of, dense_to_csr

D_IN, D_SAE = 96, 2048


def layer(d_in: int, d_sae: int, bias: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(d_sae, d_in, generator=generator) / d_in**0.5, torch.full((d_sae,), bias)


def vectors(n: int, d_in: int) -> torch.Tensor:
    return torch.randn(n, d_in, generator=torch.Generator().manual_seed(1))


def dense_way(x, weight, bias, k=None, threshold=None) -> Sparse:
    return dense_to_csr(dense_encode(linear(x, weight, bias), k, threshold))


def assert_same(found: Sparse, expected: Sparse) -> None:
    assert found.width == expected.width
    for array, other in zip(found[:3], expected[:3], strict=True):
        np.testing.assert_array_equal(array, other)
        assert array.dtype == other.dtype


@pytest.mark.parametrize("d_sae", [1, 5, 64, 200, 1000])
@pytest.mark.parametrize("k", [None, 1, 3, 40])
@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_sparse_encoding_equals_the_dense_one_bit_for_bit(d_sae, k, kind):
    given = [part.to(kind) for part in (vectors(37, 24), *layer(24, d_sae, -0.3))]
    k = None if k is None else min(k, d_sae)
    assert_same(sparse_encode(*given, k), dense_way(*given, k))


@pytest.mark.parametrize("threshold", [torch.linspace(-1, 2, 130), torch.tensor(0.7), torch.tensor(-0.7)])
def test_thresholds_of_each_feature_and_of_all_hold(threshold):
    given = vectors(50, 24), *layer(24, 130)
    found = sparse_encode(*given, threshold=threshold)
    assert_same(found, dense_way(*given, threshold=threshold))
    assert (found.values > 0).all()


def test_chunks_join_to_the_whole_and_threads_change_no_bit(monkeypatch):
    given = vectors(301, 16), *layer(16, 96, -0.2)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(sparse_encode(*given, 5))
    finally:
        torch.set_num_threads(before)
    assert_same(*found)
    monkeypatch.setattr(encode, "CHUNK_BYTES", 1)
    chunked = sparse_encode(*given, 5)
    np.testing.assert_array_equal(chunked.indptr, found[0].indptr)
    np.testing.assert_array_equal(chunked.indices, found[0].indices)
    np.testing.assert_allclose(chunked.values, found[0].values, rtol=1e-6, atol=1e-6)


def test_of_equal_activations_the_lower_features_win():
    weight, bias = torch.zeros(300, 4), torch.ones(300)
    bias[250] = 2
    found = sparse_encode(vectors(3, 4), weight, bias, 4)
    assert found.indices.reshape(3, 4).tolist() == [[0, 1, 2, 250]] * 3


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.integers(-3, 6), min_size=90, max_size=90), min_size=1, max_size=4),
    st.integers(1, 90),
)
def test_top_k_keeps_the_largest_positive_values_whatever_the_ties(rows, k):
    pre_acts = np.array(rows, dtype=np.float32)
    found = encode._chosen(pre_acts, k, np.zeros(90, np.float32))
    for i, row in enumerate(pre_acts):
        part = slice(found.indptr[i], found.indptr[i + 1])
        expected = sorted(np.flatnonzero(row > 0), key=lambda j: (-row[j], j))[:k]
        assert found.indices[part].tolist() == sorted(expected)
        np.testing.assert_array_equal(found.values[part], row[found.indices[part]])


def test_nothing_active_and_no_tokens_give_empty_arrays_and_what_is_not_finite_is_refused():
    weight, bias = layer(8, 70, -100.0)
    for n in (5, 0):
        found = sparse_encode(vectors(n, 8), weight, bias)
        assert len(found.values) == 0 and found.indptr.tolist() == [0] * (n + 1)
    for bad in (float("nan"), float("inf")):
        x = vectors(5, 8)
        x[3, 2] = bad
        with pytest.raises(ValueError, match="NaN or infinite"):
            sparse_encode(x, weight, bias)


def test_batch_top_k_keeps_the_count_of_largest_entries_and_first_ties():
    acts = Sparse(np.array([0, 2, 2, 5]), np.array([1, 4, 0, 1, 2], np.int32), np.array([3, 1, 1, 1, 2], np.float32), 5)
    kept = keep_largest(acts, 3)
    assert [part.tolist() for part in kept[:3]] == [[0, 2, 2, 3], [1, 4, 2], [3, 1, 2]]
    assert_same(keep_largest(acts, 9), acts)


@pytest.fixture
def screening(monkeypatch) -> list[int]:
    """Screens whatever the processor and the size of the problem; the list counts the candidates of each chunk."""
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


@pytest.fixture
def planted() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens of a few directions each, encoder rows of very different norms, biases that leave about 8 active."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(D_SAE, D_IN, generator=generator)
    weight *= torch.rand(D_SAE, 1, generator=generator).mul(3).exp() / weight.norm(dim=1, keepdim=True)
    chosen = torch.randint(0, D_SAE, (300, 6), generator=generator)
    x = torch.nn.functional.normalize(weight, dim=1)[chosen].sum(1) + 0.1 * torch.randn(300, D_IN, generator=generator)
    return x, weight, -(x @ weight.T).quantile(0.996, dim=0)


def exact(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return x.double() @ weight.double().T + bias.double()


def assert_equal_but_for_rounding(found: Sparse, pre_acts: torch.Tensor, k: int | None, floor=None) -> None:
    """The entries of the dense encoding, but for those that lie at the cut within float32's rounding."""
    ours, expected = dense_of(found), dense_encode(pre_acts, k, floor).numpy()
    differ = (ours > 0) != (expected > 0)
    assert differ.sum() <= 2
    assert np.abs(ours - expected)[~differ].max() < 1e-6 * float(pre_acts.abs().max())


@pytest.mark.parametrize("k", [None, 1, 7, 30])
@pytest.mark.parametrize("floor", [None, torch.tensor(0.3)])
def test_screened_encoding_is_the_float32_one(screening, planted, k, floor):
    found = sparse_encode(*planted, k, floor)
    assert screening and min(screening) >= 0
    assert_equal_but_for_rounding(found, exact(*planted), k, floor)


def test_adversarial_rounding_misses_nothing(screening):
    """Inputs and weights in the middle between bfloat16 neighbours, all errors of one sign: the bounds still hold."""
    half_step = 1 + 2.0**-8 - 2.0**-20
    x, weight = torch.full((64, D_IN), half_step), torch.full((D_SAE, D_IN), half_step)
    # A few features are left just above or just below zero, by far less than what bfloat16 loses; the rest far below.
    above = torch.full((D_SAE,), -40.0, dtype=torch.float64)
    above[:100] = torch.linspace(-1.0, 0.5, 100, dtype=torch.float64)
    bias = above - exact(x, weight, torch.zeros(D_SAE))[0, 0]
    bias = bias.float()[torch.randperm(D_SAE, generator=torch.Generator().manual_seed(1))]
    found, pre_acts = dense_of(sparse_encode(x, weight, bias)) > 0, exact(x, weight, bias)
    sure = (pre_acts.abs() > 1e-4).numpy()
    assert 64 * 50 <= screening[0] <= 64 * 100
    np.testing.assert_array_equal(found[sure], (pre_acts > 0).numpy()[sure])
    assert (x.bfloat16().float() @ weight.bfloat16().float().T + bias).numpy()[(pre_acts > 0).numpy() & sure].min() < 0


def test_many_candidates_go_to_the_float32_product(screening, planted):
    given = torch.randn(200, D_IN), planted[1], torch.zeros(D_SAE)
    found = sparse_encode(*given)
    assert screening == [-1]
    np.testing.assert_array_equal(found.values, dense_way(*given).values)


def test_a_token_with_many_active_features_does_not_stop_the_others(screening, planted):
    x, weight, _ = planted
    x[7] = 100 * weight.mean(0)
    x[200] *= -50
    found, expected = sparse_encode(*planted), dense_to_csr(exact(*planted).relu())
    counts, wanted = np.diff(found.indptr), np.diff(expected.indptr)
    assert screening[0] > 0 and counts[[7, 200]].max() > 0.3 * D_SAE
    np.testing.assert_array_equal(counts[[7, 200]], wanted[[7, 200]])
    assert np.abs(counts - wanted).sum() <= 2
    np.testing.assert_allclose(found.values.sum(), expected.values.sum(), rtol=1e-5)


def test_values_do_not_depend_on_the_rows_around_a_token(screening, planted):
    x, weight, bias = planted
    whole, part = sparse_encode(x, weight, bias), sparse_encode(x[100:157], weight, bias)
    own = slice(whole.indptr[100], whole.indptr[157])
    np.testing.assert_array_equal(whole.indices[own], part.indices)
    np.testing.assert_array_equal(whole.values[own], part.values)


def test_rounding_is_that_of_torch_and_its_norms_are_bounds():
    x = torch.randn(50, 33) * torch.logspace(-30, 30, 50)[:, None]
    rounded, norm, rounding = encode.make_screen(x)
    assert torch.equal(rounded, x.bfloat16())
    finite = (x.abs() < 1e15).all(1) & (x.abs() > 1e-15).all(1)
    for bound, vector in ((rounding, x.double() - rounded.double()), (norm, x.double())):
        assert (torch.from_numpy(bound).double() >= vector.norm(dim=1))[finite].all()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("k", [None, 1, 7])
def test_entries_are_those_of_the_compiled_encoding(device, k, planted):
    there = [tensor.to(device) for tensor in planted]
    screened = screened_entries(*there, k, there[2].new_zeros(()))
    assert screened is not None
    for entries in (screened, active_entries(*there, k, None)):
        tokens, features, values = (part.cpu() for part in entries)
        found = Sparse(key_starts(tokens, 300).numpy(), features.int().numpy(), values.numpy(), D_SAE)
        assert_equal_but_for_rounding(found, exact(*planted), k)


def test_the_largest_entries_of_a_batch_are_the_same_in_both_forms(planted):
    entries = largest_entries(active_entries(*planted, None, None), 500)
    expected = keep_largest(sparse_encode(*planted), 500)
    np.testing.assert_array_equal(entries.features.numpy(), expected.indices)
    np.testing.assert_allclose(entries.values.numpy(), expected.values, rtol=1e-5)
