"""Screening by a bfloat16 product misses no active feature, invents none, and gives float32 values."""

from __future__ import annotations

import numpy as np
import pytest
import torch

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


NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, NO_GPU])]


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
