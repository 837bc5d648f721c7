"""Sparse encoding: x [n, d_in] to the active features of an SAE as CSR arrays, to float32 rounding.

The matrix product runs in chunks of rows that stay in cache, and the active entries are picked out of each chunk
before the next one is made, so the dense [n, d_sae] activations never exist. The plain reference is `dense_encode`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from heredity.kernels.screen import (
    LANES,
    MOST_CANDIDATES,
    Screen,
    Screened,
    collect,
    cut_for_largest,
    keep_largest_of,
    make_screen,
    screened,
)
from heredity.kernels.sparse import compiled, in_ranges, starts_of
from heredity.kernels.torch_forms import active_entries, linear, native_bfloat16

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
    k and threshold: as in `dense_encode`; of equal pre-activations at the k-th place the lower features win.
    screen: `make_screen(weight)` where it is at hand, so that it need not be made for every call.
    Raises ValueError when x holds NaN or infinity.
    """
    if not torch.isfinite(x.sum(dtype=torch.float64)):
        raise ValueError("x holds NaN or infinite activations; find the model or token that makes them")
    if x.device.type != "cpu" or x.dtype != torch.float32:
        entries = active_entries(x, weight, bias, k, threshold)
        counts = torch.bincount(entries.tokens, minlength=len(x)).cpu().numpy()
        features, values = entries.features.to(torch.int32).cpu().numpy(), entries.values.float().cpu().numpy()
        return Csr(starts_of(counts), features, values)
    d_sae, d_in = weight.shape
    floor = np.zeros(d_sae, np.float32)
    if threshold is not None:
        floor = np.ascontiguousarray(threshold.detach().float().clamp(min=0).expand(d_sae).cpu().numpy())
    weight = weight.contiguous()
    # Where rounding the weights and deciding the candidates costs less than bfloat16 saves on the product.
    many = len(x) >= SCREENED_ROWS and d_sae * d_in >= SCREENED_WEIGHTS
    screening = many and (k or 0) <= MOST_CANDIDATES * d_sae and native_bfloat16()
    screen = (screen or make_screen(weight)) if screening else None
    parts = []
    for chunk in x.split(max(16, CHUNK_BYTES // ((4 if screen is None else 2) * d_sae))):
        chosen = screened(chunk, screen, weight, bias, k, floor) if screen is not None else None
        if chosen is None:
            parts.append(_by_product(chunk, weight, bias, k, floor))
        else:
            overfull = chunk[np.flatnonzero(chosen.counts < 0)]
            parts.append(_unpadded(chosen, _by_product(overfull, weight, bias, k, floor)))
        # What the first chunk shows decides for the rest.
        if not parts[1:] and (chosen is None or chosen.candidates > MOST_CANDIDATES * d_sae * len(chunk)):
            screen = None
    counts, indices, values = (
        np.concatenate(arrays)
        for arrays in zip(*((np.diff(part.indptr), part.indices, part.values) for part in parts), strict=True)
    )
    return Csr(starts_of(counts), indices, values)


def keep_largest(csr: Csr, count: int) -> Csr:
    """The `count` largest entries over all tokens together (BatchTopK, Bussmann et al. 2024); ties: the first ones."""
    nnz = len(csr.values)
    if nnz <= count:
        return csr
    least = np.partition(csr.values, nnz - count)[nnz - count]
    keep = csr.values > least
    ties = np.flatnonzero(csr.values == least)
    keep[ties[: count - int(keep.sum())]] = True
    return Csr(starts_of(keep)[csr.indptr], csr.indices[keep], csr.values[keep])


def _unpadded(chosen: Screened, rest: Csr) -> Csr:
    """Screened rows, with those of too many candidates taken from `rest`."""
    overfull = chosen.counts < 0
    counts = chosen.counts.copy()
    counts[overfull] = np.diff(rest.indptr)
    used = np.arange(chosen.indices.shape[1]) < chosen.counts[:, None]
    from_rest = np.repeat(overfull, counts)

    def joined(padded: np.ndarray, others: np.ndarray) -> np.ndarray:
        entries = np.empty(len(from_rest), padded.dtype)
        entries[~from_rest], entries[from_rest] = padded[used], others
        return entries

    return Csr(starts_of(counts), joined(chosen.indices, rest.indices), joined(chosen.values, rest.values))


def _by_product(x: Tensor, weight: Tensor, bias: Tensor, k: int | None, floor: np.ndarray) -> Csr:
    pre_acts = linear(x, weight, bias).numpy()
    return _above(pre_acts, floor) if k is None else _largest(pre_acts, k)


def _above(pre_acts: np.ndarray, floor: np.ndarray) -> Csr:
    n = len(pre_acts)
    counts = np.zeros(n, np.int64)
    in_ranges(lambda a, b: _count_above(pre_acts[a:b], floor, counts[a:b]), n, pre_acts.size)
    indptr = starts_of(counts)
    indices, values = np.empty(indptr[-1], np.int32), np.empty(indptr[-1], np.float32)
    in_ranges(lambda a, b: _fill_above(pre_acts[a:b], floor, indptr[a:b], indices, values), n, pre_acts.size)
    return Csr(indptr, indices, values)


def _largest(pre_acts: np.ndarray, k: int) -> Csr:
    n = len(pre_acts)
    counts = np.zeros(n, np.int64)
    indices, values = np.empty((n, k), np.int32), np.empty((n, k), np.float32)
    in_ranges(lambda a, b: _fill_largest(pre_acts[a:b], k, counts[a:b], indices[a:b], values[a:b]), n, pre_acts.size)
    used = np.arange(k) < counts[:, None]
    return Csr(starts_of(counts), indices[used], values[used])


@compiled()
def _count_above(pre_acts, floor, counts):
    for i in range(len(pre_acts)):
        row = pre_acts[i]
        # Counted in int32 so that the comparison and the sum have lanes of one width.
        count = np.int32(0)
        for j in range(len(row)):
            count = np.int32(count + np.int32(row[j] > floor[j]))
        counts[i] = count


@compiled()
def _fill_above(pre_acts, floor, starts, indices, values):
    features = np.empty(pre_acts.shape[1] + 1, np.int32)
    for i in range(len(pre_acts)):
        row, at = pre_acts[i], starts[i]
        for c in range(collect(row, floor, features)):
            indices[at + c] = features[c]
            values[at + c] = row[features[c]]


@compiled()
def _fill_largest(pre_acts, k, counts, indices, values):
    """The k largest positive entries of each row, k >= 1."""
    d_sae = pre_acts.shape[1]
    maxima, floor = np.empty((d_sae + LANES - 1) // LANES, np.float32), np.empty(d_sae, np.float32)
    features, candidates = np.empty(d_sae + 1, np.int32), np.empty(d_sae, np.float32)
    for i in range(len(pre_acts)):
        row = pre_acts[i]
        floor[:] = cut_for_largest(row, k, maxima)
        n = collect(row, floor, features)
        for c in range(n):
            candidates[c] = row[features[c]]
        counts[i] = keep_largest_of(features[:n], candidates[:n], k, indices[i], values[i])
