"""Sparse encoding gives exactly what the dense definition gives; no screen misses or invents a feature."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from heredity.kernels import encode, paths, screens, sparse
from heredity.kernels.candidates import active_among, sum_pre_acts
from heredity.kernels.encode import keep_largest, sparse_encode
from heredity.kernels.screens import IN_TILES, Kind, make_screen
from heredity.kernels.sparse import Sparse, starts_of
from heredity.kernels.squares import HAS_SQUARES
from heredity.kernels.torch_forms import (
    active_entries,
    dense_encode,
    key_starts,
    largest_entries,
    linear,
    screened_entries,
)
from worlds import DEVICES, dense_of, dense_to_csr

D_IN, D_SAE = 96, 2048
KINDS: tuple[Kind, ...] = get_args(Kind)
WITH_SQUARES = pytest.mark.skipif(not HAS_SQUARES, reason="no registers for matrices")


def layer(d_in: int, d_sae: int, bias: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(d_sae, d_in, generator=generator) / d_in**0.5, torch.full((d_sae,), bias)


def force(monkeypatch: pytest.MonkeyPatch, kind: Kind, d_in: int, d_sae: int) -> None:
    if getattr(paths.costs_of(d_in, d_sae), kind) == np.inf:
        pytest.skip("no such product on this processor")
    monkeypatch.setenv(paths.FORCE, kind)


def vectors(n: int, d_in: int) -> torch.Tensor:
    return torch.randn(n, d_in, generator=torch.Generator().manual_seed(1))


def pre_acts_of(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """All pre-activations as sparse encoding sums those of candidates: float32's in one fixed order."""
    if x.dtype != torch.float32:
        return linear(x, weight, bias)
    n, d_sae = len(x), len(weight)
    values = np.full(n * d_sae, np.nan, np.float32)
    listed = np.arange(n + 1) * d_sae, np.tile(np.arange(d_sae, dtype=np.int32), n)
    sum_pre_acts(x.numpy(), weight.numpy(), bias.numpy(), *listed, values)
    made = torch.from_numpy(values).view(n, d_sae)
    # No more than float32's rounding lies between it and any other order.
    torch.testing.assert_close(made.double(), exact(x, weight, bias), rtol=1e-5, atol=1e-5 * float(made.abs().max()))
    return made


def dense_way(x, weight, bias, k=None, threshold=None) -> Sparse:
    return dense_to_csr(dense_encode(pre_acts_of(x, weight, bias), k, threshold))


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
    assert_same(chunked, found[0])


def test_of_equal_activations_the_lower_features_win():
    weight, bias = torch.zeros(300, 4), torch.ones(300)
    bias[250] = 2
    found = sparse_encode(vectors(3, 4), weight, bias, 4)
    assert found.indices.reshape(3, 4).tolist() == [[0, 1, 2, 250]] * 3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("d_in", "d_sae"), [(24, 130), (96, 2048), (24, 5000), (16, 40_000)])
def test_features_that_follow_equal_ones_are_found(monkeypatch, kind, d_in, d_sae):
    """Several of a group are active, and are told apart by nothing but their number."""
    weight, bias = layer(d_in, d_sae, -0.5)
    x, weight = vectors(70, d_in), weight.repeat_interleave(5, 0)[:d_sae].contiguous()
    acts = np.maximum(pre_acts_of(x, weight, bias).numpy(), 0)
    force(monkeypatch, kind, d_in, d_sae)
    for k in (d_sae, 1, 12):
        order = np.argsort(-acts, axis=1, kind="stable")[:, :k]  # of equal ones the lower first
        expected = np.zeros_like(acts)
        np.put_along_axis(expected, order, np.take_along_axis(acts, order, 1), 1)
        assert_same(sparse_encode(x, weight, bias, None if k == d_sae else k), dense_to_csr(torch.from_numpy(expected)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("of_x", "of_weight", "threshold"),
    [(1e37, 1, 0), (1e38, 0.01, 0), (1e-10, 1e36, 0), (1e-10, 1e34, 0), (1e-30, 1e-6, 8e-36), (1e-20, 1e-15, 8e-36)],
)
def test_what_lies_near_the_ends_of_float32_is_found(monkeypatch, kind, of_x, of_weight, threshold):
    if kind == "bf16" and of_x < 1e-10:
        pytest.skip("products of bfloat16 near the smallest float are flushed to 0")
    x, (weight, bias) = vectors(70, D_IN).clamp(-3, 3), layer(D_IN, D_SAE)
    x[::3] *= of_x
    x[68] *= 3 * of_x if of_x == 1e37 else of_x
    given = x, weight * of_weight, bias
    force(monkeypatch, kind, D_IN, D_SAE)
    found = dense_of(sparse_encode(*given, threshold=torch.tensor(threshold) if threshold else None))
    whole = exact(*given).numpy()
    near = 1e-5 * np.abs(whole).max(1, keepdims=True)  # within rounding of the threshold
    assert (whole > threshold + near).any()
    assert (found[whole > threshold + near] > 0).all()
    assert (found[whole < threshold - near] == 0).all()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.integers(-3, 6), min_size=90, max_size=90), min_size=1, max_size=4),
    st.integers(1, 90),
)
def test_top_k_keeps_the_largest_positive_values_whatever_the_ties(rows, k):
    pre_acts = np.array(rows, dtype=np.float32)
    features, counts = np.tile(np.arange(90, dtype=np.int32), len(rows)), np.empty(len(rows), np.int64)
    listed = np.arange(len(rows) + 1) * 90, features, pre_acts.ravel()
    found = Sparse(counts, *active_among(*listed, np.zeros(90, np.float32), k, counts), 90)
    found = found._replace(indptr=starts_of(counts))
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


def emulate_what_is_missing(monkeypatch) -> None:
    """Products that this machine lacks, by slower ones."""
    monkeypatch.setattr(paths, "HAS_FOURS", True)
    paths._measured.cache_clear()
    if paths.costs_of(D_IN, D_SAE).bf16 == np.inf:
        slow = lambda x, weight: (x.float() @ weight.float().T).bfloat16()  # noqa: E731
        monkeypatch.setattr(screens, "bfloat16_product", slow)
    paths._measured.cache_clear()


class Screening(NamedTuple):
    kind: Kind
    """The screen that every encoding begins with."""
    candidates: list[tuple[Kind, int]]
    """Screen and candidates of each chunk so far; -1 for too many."""


@pytest.fixture(params=[pytest.param(kind, marks=WITH_SQUARES if kind == "amx" else ()) for kind in KINDS])
def screening(request, monkeypatch) -> Iterator[Screening]:
    """Each screen in turn, followed by the exacter ones, whatever the machine and the size of the problem."""
    seen, real = Screening(request.param, []), encode._screened

    def counted(x, ready, *rest):
        found = real(x, ready, *rest)
        useless = found.crowded > encode.MOST_CROWDED * len(x)
        seen.candidates.append((ready.screen.kind, -1 if useless else found.candidates))
        return found

    emulate_what_is_missing(monkeypatch)
    monkeypatch.setattr(encode, "_screened", counted)
    monkeypatch.setattr(encode, "SCREENED_ROWS", 1)

    def there(d_in: int, d_sae: int) -> tuple[Kind, ...]:
        costs = paths.costs_of(d_in, d_sae)
        return tuple(kind for kind in KINDS[KINDS.index(request.param) :] if getattr(costs, kind) < np.inf)

    monkeypatch.setattr(paths, "screens", there)
    monkeypatch.setattr(paths, "pays", lambda *given: False)
    yield seen
    paths._measured.cache_clear()


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
    assert screening.candidates and all(kind == screening.kind and n >= 0 for kind, n in screening.candidates)
    assert_equal_but_for_rounding(found, exact(*planted), k, floor)
    assert_same(found, dense_way(*planted, k, floor))


@pytest.mark.parametrize("d_in", [1, 3, 40, 129])
@pytest.mark.parametrize("d_sae", [1, 8, 63, 200, 1031])
@pytest.mark.parametrize("k", [None, 1, 5])
def test_every_screen_gives_the_same_bits_at_every_shape(screening, d_in, d_sae, k):
    given = vectors(70, d_in), *layer(d_in, d_sae, -0.5)
    assert_same(sparse_encode(*given, k and min(k, d_sae)), dense_way(*given, k and min(k, d_sae)))


@pytest.mark.parametrize("k", [None, 1, 30])
def test_massive_activations_in_few_columns_leave_few_candidates(screening, planted, k):
    x, weight, _ = planted
    x[:, [5, 77]] *= 1000
    x[::7, 20] = 3e4
    bias = -(x @ weight.T).quantile(0.996, dim=0)
    found = sparse_encode(x, weight, bias, k)
    assert_same(found, dense_way(x, weight, bias, k))
    if screening.kind in IN_TILES:
        assert sum(n for _, n in screening.candidates) < 0.05 * len(x) * D_SAE


def test_rows_of_zeros_and_rows_of_every_size_are_encoded(screening, planted):
    x, weight, bias = planted
    x[3] = 0
    x[4] *= 1e-36
    x[5] *= 1e30
    for bias_here in (bias, torch.zeros(D_SAE), bias.abs()):
        for k in (None, 3):
            assert_same(sparse_encode(x, weight, bias_here, k), dense_way(x, weight, bias_here, k))


def test_of_equal_features_the_lower_ones_are_kept_whatever_the_screen(screening, planted):
    x, weight, bias = planted
    weight[D_SAE // 2 :], bias[D_SAE // 2 :] = weight[: D_SAE // 2].clone(), bias[: D_SAE // 2].clone()
    found, pre_acts = sparse_encode(x, weight, bias, 7), pre_acts_of(x, weight, bias).numpy()
    assert (np.diff(found.indptr) == 7).any()
    for i, row in enumerate(pre_acts):
        largest = np.argsort(-row, kind="stable")[:7]
        own = slice(found.indptr[i], found.indptr[i + 1])
        np.testing.assert_array_equal(found.indices[own], np.sort(largest[row[largest] > 0]))
        np.testing.assert_array_equal(found.values[own], row[found.indices[own]])


def test_thresholds_of_jumprelu_and_negative_biases_hold_for_every_screen(screening, planted):
    x, weight, bias = planted
    threshold = torch.linspace(-1, 2, D_SAE)
    assert_same(sparse_encode(x, weight, bias, threshold=threshold), dense_way(x, weight, bias, threshold=threshold))
    none = torch.zeros(D_SAE)
    assert_same(sparse_encode(x, weight, none, threshold=-bias), dense_way(x, weight, none, threshold=-bias))


def test_adversarial_rounding_misses_nothing(screening):
    """Inputs and weights in the middle between two steps of a screen, all errors of one sign: the bounds still hold."""
    # Of bfloat16's steps; of those of integers, whose scale the first element sets.
    half_step = 1 + 2.0**-8 - 2.0**-20
    x, weight = torch.full((64, D_IN), half_step), torch.full((D_SAE, D_IN), half_step)
    if screening.kind in IN_TILES:
        levels = 127 if screening.kind != "int16" else screens.levels_of(D_IN)
        x[:, 1:], weight[:, 1:] = 2 * [(levels // 2 + 0.49) / levels * half_step]
    # A few features are left just above or just below zero, by far less than what the screen loses; the rest far below.
    above = torch.full((D_SAE,), -40.0, dtype=torch.float64)
    lost = {"amx": 0.5, "int8": 0.5, "int16": 0.5 * 127 / screens.levels_of(D_IN)}.get(screening.kind, 1.0)
    above[:100] = torch.linspace(-1.0, 0.5, 100, dtype=torch.float64) * lost
    bias = above - exact(x, weight, torch.zeros(D_SAE))[0, 0]
    bias = bias.float()[torch.randperm(D_SAE, generator=torch.Generator().manual_seed(1))]
    found, pre_acts = dense_of(sparse_encode(x, weight, bias)) > 0, exact(x, weight, bias)
    sure = (pre_acts.abs() > 1e-4 * lost).numpy()
    np.testing.assert_array_equal(found[sure], (pre_acts > 0).numpy()[sure])
    if screening.kind == "float32":
        return
    assert (64 * 50 if screening.kind == "bf16" else 1) <= screening.candidates[0][1] <= 64 * 100
    sides = [make_screen(rows, screening.kind) for rows in (x, weight)]
    x_low, weight_low = (side.rows.float() * torch.from_numpy(side.scale)[:, None] for side in sides)
    assert (x_low @ weight_low.T + bias).numpy()[(pre_acts > 0).numpy() & sure].min() < 0


def test_many_candidates_go_to_the_float32_product(screening, planted):
    given = torch.randn(200, D_IN), planted[1], torch.zeros(D_SAE)
    found = sparse_encode(*given)
    tried = [kind for kind, n in screening.candidates if n < 0]
    assert tried == list(KINDS[KINDS.index(screening.kind) : -1]) and screening.candidates[-1][0] == "float32"
    assert_same(found, dense_way(*given))


def test_a_screen_that_leaves_too_much_to_decide_gives_way(screening, planted, monkeypatch):
    monkeypatch.setattr(paths, "pays", lambda other, kind, spurious, *shape: spurious > 0)
    monkeypatch.setattr(encode, "TRIAL_ROWS", 20)
    given = planted[0], planted[1], 0.8 * planted[2]
    assert_same(sparse_encode(*given), dense_way(*given))
    assert [kind for kind, _ in screening.candidates][-1] == "float32"


def test_a_token_with_many_active_features_does_not_stop_the_others(screening, planted):
    x, weight, _ = planted
    x[7] = 100 * weight.mean(0)
    x[200] *= -50
    found, expected = sparse_encode(*planted), dense_to_csr(exact(*planted).relu())
    counts, wanted = np.diff(found.indptr), np.diff(expected.indptr)
    assert screening.candidates[0][1] > 0 and counts[[7, 200]].max() > 0.3 * D_SAE
    np.testing.assert_array_equal(counts[[7, 200]], wanted[[7, 200]])
    assert np.abs(counts - wanted).sum() <= 2
    np.testing.assert_allclose(found.values.sum(), expected.values.sum(), rtol=1e-5)
    assert_same(found, dense_way(*planted))


@pytest.mark.parametrize("k", [None, 7])
def test_values_do_not_depend_on_the_rows_around_a_token(screening, planted, k):
    x, weight, bias = planted
    whole, part = sparse_encode(x, weight, bias, k), sparse_encode(x[100:157], weight, bias, k)
    own = slice(whole.indptr[100], whole.indptr[157])
    np.testing.assert_array_equal(whole.indices[own], part.indices)
    np.testing.assert_array_equal(whole.values[own], part.values)


def test_chunks_change_no_bit_of_a_screened_encoding(screening, planted, monkeypatch):
    whole = sparse_encode(*planted, 7)
    monkeypatch.setattr(encode, "CHUNK_BYTES", 1)
    monkeypatch.setattr(encode, "LEAST_ROWS", 1)
    monkeypatch.setattr(encode, "_rows_of_a_piece", lambda screen: 11)
    monkeypatch.setattr(encode, "TRIAL_ROWS", 5)
    assert_same(sparse_encode(*planted, 7), whole)
    assert len(screening.candidates) > 15


@pytest.mark.parametrize("k", [None, 7])
def test_ranges_in_threads_join_to_the_same_bits(screening, planted, monkeypatch, k):
    before, alone = torch.get_num_threads(), sparse_encode(*planted, k)
    monkeypatch.setattr(sparse, "WORTH_THREADS", 1)
    try:
        torch.set_num_threads(3)
        assert_same(sparse_encode(*planted, k), alone)
    finally:
        torch.set_num_threads(before)


def test_a_screen_serves_several_calls_and_another_call_s_choice_changes_nothing(screening, planted):
    x, weight, bias = planted
    for kind in KINDS if HAS_SQUARES else KINDS[1:]:
        assert_same(sparse_encode(x, weight, bias, 7, screen=make_screen(weight, kind)), dense_way(x, weight, bias, 7))


@pytest.mark.parametrize("kind", KINDS)
def test_the_norms_of_a_screen_are_bounds(kind):
    x = torch.randn(50, 33) * torch.logspace(-30, 30, 50)[:, None]
    x[9], x[10] = 0, 1e-40
    screen = make_screen(x, kind)
    if kind == "bf16":
        assert torch.equal(screen.rows, x.bfloat16())
    rounded = screen.rows.double() * torch.from_numpy(screen.scale).double()[:, None]
    big = (x.abs() > 1e-28).all(1)
    for bound, vector in ((screen.rounding, x.double() - rounded), (screen.norm, x.double())):
        assert (torch.from_numpy(bound).double() >= vector.norm(dim=1))[big].all()
        assert np.isfinite(bound).all()


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
