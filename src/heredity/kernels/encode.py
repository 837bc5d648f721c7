"""Sparse encoding: x [n, d_in] to the active features of an SAE as CSR arrays, to float32 rounding.

The matrix product runs in chunks of rows that stay in cache, and the active entries are picked out of each chunk
before the next one is made, so the dense [n, d_sae] activations never exist. The plain reference is `dense_encode`.
"""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np
import torch
from torch import Tensor

from heredity.kernels.dense import linear, native_bfloat16
from heredity.kernels.entries import Entries, active_entries
from heredity.kernels.screen import MOST_CANDIDATES, Screen, Screened, make_screen, screened
from heredity.kernels.select import LANES, collect, cut_for_largest, keep_largest_of
from heredity.kernels.threads import in_ranges

CHUNK_BYTES = 16 << 20
"""Bytes of one chunk of pre-activations: it fits the last cache level, stays below the threshold from which malloc
returns memory to the system, and is work enough that changing from the product to the selection costs little."""


SCREENED_ROWS, SCREENED_WEIGHTS = 256, 1 << 20
"""Rows of a call and encoder weights from which screening by a bfloat16 product pays."""


class Csr(NamedTuple):
    """Active features of n tokens."""

    indptr: np.ndarray
    """int64 [n + 1]: entries of token i are indptr[i] to indptr[i + 1]."""
    indices: np.ndarray
    """int32 [nnz]: features, ascending within a token."""
    values: np.ndarray
    """float32 [nnz]: activations, all above 0."""


def sparse_encode(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    k: int | None = None,
    threshold: Tensor | None = None,
    screen: Screen | None = None,
) -> Csr:
    """Active features of centered inputs.

    x: [n, d_in], b_dec already subtracted; weight: [d_sae, d_in], the encoder's transpose; bias: [d_sae].
    k and threshold: as in `dense.dense_encode`; of equal pre-activations at the k-th place the lower features win.
    screen: `make_screen(weight)` where it is at hand, so that it need not be made for every call.
    Raises ValueError when x holds NaN or infinity.
    """
    if not torch.isfinite(x.sum(dtype=torch.float64)):
        raise ValueError("x holds NaN or infinite activations; find the model or token that makes them")
    if x.device.type != "cpu" or x.dtype != torch.float32:
        return _to_csr(active_entries(x, weight, bias, k, threshold), len(x))
    d_sae = len(weight)
    floor = _floor(threshold, d_sae)
    weight = weight.contiguous()
    if not _worth_screening(x, weight, k):
        screen = None
    elif screen is None:
        screen = make_screen(weight)
    parts = []
    for chunk in x.split(max(16, CHUNK_BYTES // ((4 if screen is None else 2) * d_sae))):
        found = screened(chunk, screen, weight, bias, k, floor) if screen is not None else None
        if found is None:
            parts.append(_by_product(chunk, weight, bias, k, floor))
        else:
            overfull = np.flatnonzero(found.counts < 0)
            rest = _by_product(chunk[overfull], weight, bias, k, floor) if len(overfull) else None
            parts.append(_unpadded(found, overfull, rest))
        # What the first chunk shows decides for the rest.
        if not parts[1:] and (found is None or found.candidates > MOST_CANDIDATES * d_sae * len(chunk)):
            screen = None
    return _joined(parts)


def keep_largest(csr: Csr, count: int) -> Csr:
    """The `count` largest entries over all tokens together (BatchTopK, Bussmann et al. 2024); ties: the first ones."""
    nnz = len(csr.values)
    if nnz <= count:
        return csr
    least = np.partition(csr.values, nnz - count)[nnz - count]
    keep = csr.values > least
    ties = np.flatnonzero(csr.values == least)
    keep[ties[: count - int(keep.sum())]] = True
    kept_before = np.concatenate(([0], np.cumsum(keep)))
    return Csr(kept_before[csr.indptr].astype(np.int64), csr.indices[keep], csr.values[keep])


def _to_csr(entries: Entries, n: int) -> Csr:
    indptr = np.zeros(n + 1, np.int64)
    np.cumsum(torch.bincount(entries.tokens, minlength=n).cpu().numpy(), out=indptr[1:])
    return Csr(indptr, entries.features.to(torch.int32).cpu().numpy(), entries.values.float().cpu().numpy())


def _worth_screening(x: Tensor, weight: Tensor, k: int | None) -> bool:
    """Whether rounding the weights and deciding the candidates costs less than bfloat16 saves on the product."""
    d_sae, d_in = weight.shape
    many = len(x) >= SCREENED_ROWS and d_sae * d_in >= SCREENED_WEIGHTS
    return many and (k or 0) <= MOST_CANDIDATES * d_sae and native_bfloat16()


def _by_product(x: Tensor, weight: Tensor, bias: Tensor, k: int | None, floor: np.ndarray) -> Csr:
    pre_acts = linear(x, weight, bias).numpy()
    return _above(pre_acts, floor) if k is None else _largest(pre_acts, k)


def _unpadded(found: Screened, overfull: np.ndarray, rest: Csr | None) -> Csr:
    """Screened rows, with the rows numbered `overfull` taken from `rest`."""
    counts = found.counts.copy()
    used = np.arange(found.indices.shape[1]) < counts[:, None]
    if rest is None:
        values, indices = found.values[used], found.indices[used]
    else:
        counts[overfull] = np.diff(rest.indptr)
        from_rest = np.repeat(found.counts < 0, counts)
        values, indices = np.empty(len(from_rest), np.float32), np.empty(len(from_rest), np.int32)
        for target, screened_part, rest_part in (
            (values, found.values[used], rest.values),
            (indices, found.indices[used], rest.indices),
        ):
            target[~from_rest], target[from_rest] = screened_part, rest_part
    indptr = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=indptr[1:])
    return Csr(indptr, indices, values)


def _floor(threshold: Tensor | None, d_sae: int) -> np.ndarray:
    if threshold is None:
        return np.zeros(d_sae, np.float32)
    return np.ascontiguousarray(threshold.detach().float().clamp(min=0).expand(d_sae).cpu().numpy())


def _joined(parts: list[Csr]) -> Csr:
    if not parts:
        return Csr(np.zeros(1, np.int64), np.zeros(0, np.int32), np.zeros(0, np.float32))
    counts = np.concatenate([np.diff(part.indptr) for part in parts])
    indptr = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=indptr[1:])
    return Csr(indptr, np.concatenate([p.indices for p in parts]), np.concatenate([p.values for p in parts]))


def _above(pre_acts: np.ndarray, floor: np.ndarray) -> Csr:
    n = len(pre_acts)
    counts = np.zeros(n, np.int64)
    in_ranges(lambda a, b: _count_above(pre_acts[a:b], floor, counts[a:b]), n, pre_acts.size)
    indptr = np.zeros(n + 1, np.int64)
    np.cumsum(counts, out=indptr[1:])
    indices, values = np.empty(indptr[-1], np.int32), np.empty(indptr[-1], np.float32)
    in_ranges(lambda a, b: _fill_above(pre_acts[a:b], floor, indptr[a:b], indices, values), n, pre_acts.size)
    return Csr(indptr, indices, values)


def _largest(pre_acts: np.ndarray, k: int) -> Csr:
    n = len(pre_acts)
    counts = np.zeros(n, np.int64)
    indices, values = np.empty((n, k), np.int32), np.empty((n, k), np.float32)
    in_ranges(lambda a, b: _fill_largest(pre_acts[a:b], k, counts[a:b], indices[a:b], values[a:b]), n, pre_acts.size)
    indptr = np.zeros(n + 1, np.int64)
    np.cumsum(counts, out=indptr[1:])
    if indptr[-1] == n * k:
        return Csr(indptr, indices.reshape(-1), values.reshape(-1))
    used = np.arange(k) < counts[:, None]
    return Csr(indptr, indices[used], values[used])


@numba.njit(cache=True, nogil=True)
def _count_above(pre_acts, floor, counts):
    for i in range(len(pre_acts)):
        row = pre_acts[i]
        # Counted in int32 so that the comparison and the sum have lanes of one width.
        count = np.int32(0)
        for j in range(len(row)):
            count = np.int32(count + np.int32(row[j] > floor[j]))
        counts[i] = count


@numba.njit(cache=True, nogil=True)
def _fill_above(pre_acts, floor, starts, indices, values):
    found = np.empty(pre_acts.shape[1] + 1, np.int32)
    for i in range(len(pre_acts)):
        row, at = pre_acts[i], starts[i]
        for c in range(collect(row, floor, found)):
            indices[at + c] = found[c]
            values[at + c] = row[found[c]]


@numba.njit(cache=True, nogil=True)
def _fill_largest(pre_acts, k, counts, indices, values):
    """The k largest positive entries of each row, k >= 1."""
    d_sae = pre_acts.shape[1]
    maxima, floor = np.empty((d_sae + LANES - 1) // LANES, np.float32), np.empty(d_sae, np.float32)
    found, candidates = np.empty(d_sae + 1, np.int32), np.empty(d_sae, np.float32)
    for i in range(len(pre_acts)):
        row = pre_acts[i]
        floor[:] = cut_for_largest(row, k, maxima)
        n = collect(row, floor, found)
        for c in range(n):
            candidates[c] = row[found[c]]
        counts[i] = keep_largest_of(found[:n], candidates[:n], k, indices[i], values[i])
