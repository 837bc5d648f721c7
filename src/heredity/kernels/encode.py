"""Sparse encoding: x [n, d_in] to the active features of an SAE as CSR arrays, exactly as dense float32 gives them.

The matrix product runs in chunks of rows that stay in cache, and the active entries are picked out of each chunk
before the next one is made, so the dense [n, d_sae] activations never exist. `dense_encode` is the plain reference.
"""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np
import torch
from torch import Tensor

from .threads import in_ranges

CHUNK_BYTES = 8 << 20
"""Bytes of one chunk of pre-activations: it fits the last cache level and stays below malloc's mmap threshold."""

BLOCK = 64
"""Pre-activations looked at together; a block without an active one is skipped."""

LANES = 16
"""Pre-activations of which the largest stands for all when the k-th largest of a row is bounded."""


class Csr(NamedTuple):
    """Active features of n tokens."""

    indptr: np.ndarray
    """int64 [n + 1]: entries of token i are indptr[i] to indptr[i + 1]."""
    indices: np.ndarray
    """int32 [nnz]: features, ascending within a token."""
    values: np.ndarray
    """float32 [nnz]: activations, all above 0."""


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [n, i] @ weight [o, i].T + bias [o] -> [n, o].

    Float32 on a CPU goes to oneDNN, whose product is up to twice as fast as torch's default; otherwise torch's own.
    """
    if x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32 and torch.backends.mkldnn.is_available():
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return torch.nn.functional.linear(x, weight, bias)


def dense_encode(pre_acts: Tensor, k: int | None, threshold: Tensor | None) -> Tensor:
    """Activations [n, d_sae] of pre-activations [n, d_sae]: the plain definition, on any device.

    With k, the k largest positive pre-activations of each token; otherwise those above the threshold (scalar or
    [d_sae]; none means 0), which is never taken below 0.
    """
    if k is not None:
        top = pre_acts.topk(k, dim=-1)
        return torch.zeros_like(pre_acts).scatter_(-1, top.indices, top.values.relu())
    if threshold is None:
        return pre_acts.relu()
    return torch.where(pre_acts > threshold.clamp(min=0), pre_acts, torch.zeros_like(pre_acts))


def sparse_encode(
    x: Tensor, weight: Tensor, bias: Tensor, k: int | None = None, threshold: Tensor | None = None
) -> Csr:
    """Active features of centered inputs.

    x: [n, d_in], b_dec already subtracted; weight: [d_sae, d_in], the encoder's transpose; bias: [d_sae].
    k and threshold: as in `dense_encode`; of equal pre-activations at the k-th place the lower features win.
    Raises ValueError when x holds NaN or infinity.
    """
    if not torch.isfinite(x.sum(dtype=torch.float64)):
        raise ValueError("x holds NaN or infinite activations; find the model or token that makes them")
    if x.device.type != "cpu" or x.dtype != torch.float32:
        return _encode_with_torch(x, weight, bias, k, threshold)
    n, d_sae = len(x), len(weight)
    floor = _floor(threshold, d_sae)
    rows = max(16, CHUNK_BYTES // (4 * d_sae))
    parts = []
    for start in range(0, n, rows):
        pre_acts = linear(x[start : start + rows], weight, bias).numpy()
        parts.append(_above(pre_acts, floor) if k is None else _largest(pre_acts, k))
    return _joined(parts)


def dense_to_csr(acts: Tensor) -> Csr:
    """CSR arrays of dense activations [n, d_sae] >= 0, zeros left out."""
    token, feature = acts.nonzero(as_tuple=True)
    indptr = np.zeros(len(acts) + 1, np.int64)
    np.cumsum((acts != 0).sum(1).cpu().numpy(), out=indptr[1:])
    return Csr(indptr, feature.to(torch.int32).cpu().numpy(), acts[token, feature].float().cpu().numpy())


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


def _encode_with_torch(x: Tensor, weight: Tensor, bias: Tensor, k: int | None, threshold: Tensor | None) -> Csr:
    rows = max(1, (64 * CHUNK_BYTES) // (x.element_size() * len(weight)))
    parts = [dense_to_csr(dense_encode(linear(chunk, weight, bias), k, threshold)) for chunk in x.split(rows)]
    return _joined(parts)


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
def _collect(row, floor, found):
    """Write the positions where row > floor, ascending; return their number. found: int32 [d_sae + 1]."""
    n = 0
    whole = len(row) - len(row) % BLOCK
    for block in range(0, whole, BLOCK):
        # Slices, because an index that might be negative (and wrap around) keeps the loops scalar.
        some, least = row[block : block + BLOCK], floor[block : block + BLOCK]
        active = np.int32(0)
        for j in range(BLOCK):
            active = np.int32(active + np.int32(some[j] > least[j]))
        if active > 0:
            for j in range(BLOCK):
                # Written whether active or not, and overwritten by the next one if not: no branch to mispredict.
                found[n] = block + j
                n += np.int64(some[j] > least[j])
    for j in range(whole, len(row)):
        found[n] = j
        n += np.int64(row[j] > floor[j])
    return n


@numba.njit(cache=True, nogil=True)
def _fill_above(pre_acts, floor, starts, indices, values):
    found = np.empty(pre_acts.shape[1] + 1, np.int32)
    for i in range(len(pre_acts)):
        row, at = pre_acts[i], starts[i]
        for c in range(_collect(row, floor, found)):
            indices[at + c] = found[c]
            values[at + c] = row[found[c]]


@numba.njit(cache=True, nogil=True)
def _fill_largest(pre_acts, k, counts, indices, values):
    """The k largest positive entries of each row, k >= 1.

    Bisection finds a cut that k entries or a few more exceed. Its first rounds look at maxima over LANES entries
    that lie `stride` apart (taken lane by lane): when k maxima exceed a cut, so do k entries.
    """
    d_sae = pre_acts.shape[1]
    stride = (d_sae + LANES - 1) // LANES
    maxima, floor = np.empty(stride, np.float32), np.empty(d_sae, np.float32)
    found, candidates = np.empty(d_sae + 1, np.int32), np.empty(d_sae, np.float32)
    for i in range(len(pre_acts)):
        row = pre_acts[i]
        if stride >= k:
            maxima[:] = row[:stride]
            for start in range(stride, d_sae, stride):
                part = row[start : start + stride]
                for b in range(len(part)):
                    maxima[b] = max(maxima[b], part[b])
            floor[:] = _cut(maxima, k, k + k // 4, 16)
        else:
            floor[:] = _cut(row, k, k + k // 4, 16)
        n = _collect(row, floor, found)
        for c in range(n):
            candidates[c] = row[found[c]]
        ties = 0
        least = np.float32(0)
        if n > k:
            least = _cut(candidates[:n], k, k, 200)
            if _exceeding(candidates[:n], least) != k:
                # Equal entries around the k-th place: bisection ended at the two floats around them.
                least = _next_above(candidates[:n], least)
                ties = k - _exceeding(candidates[:n], least)
        at = 0
        for c in range(n):
            if candidates[c] > least or (ties > 0 and candidates[c] == least):
                ties -= np.int64(candidates[c] == least)
                indices[i, at] = found[c]
                values[i, at] = candidates[c]
                at += 1
        counts[i] = at


@numba.njit(cache=True, nogil=True)
def _exceeding(values, cut):
    count = np.int32(0)
    for j in range(len(values)):
        count = np.int32(count + np.int32(values[j] > cut))
    return count


@numba.njit(cache=True, nogil=True)
def _next_above(values, cut):
    least = np.float32(np.inf)
    for j in range(len(values)):
        if cut < values[j] < least:
            least = values[j]
    return least


@numba.njit(cache=True, nogil=True, fastmath={"reassoc", "nsz", "contract", "nnan"})
def _cut(values, least, most, rounds):
    """A cut >= 0 that at least `least` and, if bisection finds one in time, at most `most` values exceed.

    0 when fewer than `least` values are positive.
    """
    low, high = np.float32(0), np.float32(0)
    for j in range(len(values)):
        high = max(high, values[j])
    for _ in range(rounds):
        middle = np.float32(0.5) * (low + high)
        if middle <= low or middle >= high:
            break
        count = _exceeding(values, middle)
        if count >= least:
            low = middle
            if count <= most:
                break
        else:
            high = middle
    return low
