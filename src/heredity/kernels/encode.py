"""Sparse encoding: x [n, d_in] to the active features of an SAE as CSR arrays, to float32 rounding.

The matrix product runs in chunks of rows that stay in cache, and the active entries are picked out of each chunk
before the next one is made, so the dense [n, d_sae] activations never exist. The plain reference is `dense_encode`.

Where the processor multiplies bfloat16 natively, in a half to a quarter of the time, that product names candidates.
With x̃ and w̃ the rounded vectors, |x·w − x̃·w̃| <= ‖x − x̃‖ ‖w‖ + ‖x̃‖ ‖w − w̃‖ (Cauchy-Schwarz), and every norm on the
right is known exactly. What lies above the cut by the bounds is a candidate, and a candidate's pre-activation is made
again in float32. So no active feature is missed, none is invented, and no value depends on the rows around a token.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from heredity.kernels.sparse import FAST, Sparse, compiled, in_ranges, starts_of
from heredity.kernels.torch_forms import CAPACITY, OUTPUT_ROUNDING, active_entries, key_starts, linear, native_bfloat16

# Bytes of one chunk of pre-activations: it fits the last cache level, stays below the threshold from which malloc
# returns memory to the system, and is work enough that changing from the product to the selection costs little.
CHUNK_BYTES = 16 << 20
SCREENED_ROWS, SCREENED_WEIGHTS = 256, 1 << 20  # rows of a call and encoder weights from which screening pays
# Candidates, as a share of the features, beyond which the float32 product is cheaper than deciding them one by one.
# Measured at 1024 -> 16384: a candidate costs as much as 60 to 70 entries of what bfloat16 saves on the product.
MOST_CANDIDATES = 0.015
MOST_OVERFULL = 0.125  # share of tokens beyond CAPACITY from which a whole chunk is done in float32
BLOCK = 64  # entries looked at together; a block without a chosen one is skipped
LANES = 16  # entries of which the largest stands for all when the k-th largest of a row is bounded


class Screen(NamedTuple):
    """Rows of a matrix in bfloat16 and bounds of their rounding."""

    rows: Tensor  # bfloat16 [n, d]
    norm: np.ndarray  # float32 [n]: of the exact row
    rounding: np.ndarray  # float32 [n]: norm of the exact row minus the rounded one


def sparse_encode(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    k: int | None = None,
    threshold: Tensor | None = None,
    screen: Screen | None = None,
) -> Sparse:
    """Active features of centered inputs: tokens x features, features rising within a token, values above 0.

    x: [n, d_in], b_dec subtracted; weight: [d_sae, d_in], the encoder's transpose; bias: [d_sae]. k and threshold: as
    in `dense_encode`; of equal pre-activations at the k-th place the lower features win. screen: `make_screen(weight)`,
    where one serves several calls. Raises ValueError when x holds NaN or infinity.
    """
    if not torch.isfinite(x.sum(dtype=torch.float64)):
        raise ValueError("x holds NaN or infinite activations; find the model or token that makes them")
    d_sae, d_in = weight.shape
    if x.device.type != "cpu" or x.dtype != torch.float32:
        tokens, features, values = active_entries(x, weight, bias, k, threshold)
        starts = key_starts(tokens, len(x)).cpu().numpy()
        return Sparse(starts, features.to(torch.int32).cpu().numpy(), values.float().cpu().numpy(), d_sae)
    least = torch.zeros(()) if threshold is None or k is not None else threshold.detach().float().clamp(min=0)
    weight, floor = weight.contiguous(), np.ascontiguousarray(least.expand(d_sae).numpy())
    # Where rounding the weights and deciding the candidates costs less than bfloat16 saves on the product.
    many = len(x) >= SCREENED_ROWS and d_sae * d_in >= SCREENED_WEIGHTS
    screening = many and (k or 0) <= MOST_CANDIDATES * d_sae and native_bfloat16()
    screen = (screen or make_screen(weight)) if screening else None
    parts = []
    for chunk in x.split(max(16, CHUNK_BYTES // ((4 if screen is None else 2) * d_sae))):
        chosen = screened(chunk, screen, weight, bias, k, floor) if screen is not None else None
        part, candidates = chosen or (_chosen(linear(chunk, weight, bias).numpy(), k, floor), np.inf)
        parts.append(part)
        # What the first chunk shows decides for the rest.
        if len(parts) == 1 and candidates > MOST_CANDIDATES * d_sae * len(chunk):
            screen = None
    arrays = zip(*((np.diff(part.indptr), part.indices, part.values) for part in parts), strict=True)
    counts, indices, values = map(np.concatenate, arrays)
    return Sparse(starts_of(counts), indices, values, d_sae)


def keep_largest(acts: Sparse, count: int) -> Sparse:
    """The `count` largest entries over all tokens together (BatchTopK, Bussmann et al. 2024); ties: the first ones."""
    nnz = len(acts.values)
    if nnz <= count:
        return acts
    least = np.partition(acts.values, nnz - count)[nnz - count]
    keep = acts.values > least
    keep[np.flatnonzero(acts.values == least)[: count - int(keep.sum())]] = True
    return Sparse(starts_of(keep)[acts.indptr], acts.indices[keep], acts.values[keep], acts.width)


def make_screen(x: Tensor) -> Screen:
    """Round rows x [n, d], float32 on a CPU."""
    n = len(x)
    rows, norm, rounding = torch.empty(x.shape, dtype=torch.bfloat16), np.empty(n, np.float32), np.empty(n, np.float32)
    arrays = (x.numpy(), rows.view(torch.uint16).numpy(), norm, rounding)
    in_ranges(lambda a, b: _round(*(array[a:b] for array in arrays)), n, x.numel())
    return Screen(rows, norm, rounding)


def screened(
    x: Tensor, screen: Screen, weight: Tensor, bias: Tensor, k: int | None, floor: np.ndarray
) -> tuple[Sparse, int] | None:
    """Active features by screening, and the number of candidates decided; None for many rows beyond CAPACITY.

    Arguments as for `sparse_encode`, in float32. k: the k largest positive, or None for those above `floor` [d_sae].
    """
    rows = make_screen(x)
    products = product(rows.rows, screen.rows)
    n, d_sae = products.shape
    # The sums inside either product are float32 and add an error of their own.
    rounding = rows.rounding + np.float32(x.shape[1] * 2.0**-22) * rows.norm
    capacity = max(256, int(CAPACITY * d_sae), 4 * (k or 0))
    counts, tried = np.empty((2, n), np.int64)
    indices, values = np.empty((n, capacity), np.int32), np.empty((n, capacity), np.float32)
    per_row = (products.view(torch.uint16).numpy(), rows.norm, rounding, x.numpy(), counts, indices, values, tried)
    per_feature = (screen.norm, screen.rounding, weight.numpy(), bias.numpy(), floor)
    in_ranges(lambda a, b: _select(*(array[a:b] for array in per_row), *per_feature, k or 0), n, products.numel(), 2)
    overfull = np.flatnonzero(counts < 0)
    if len(overfull) > MOST_OVERFULL * n:
        return None
    counts[overfull] = 0
    used = np.arange(capacity) < counts[:, None]
    acts = Sparse(starts_of(counts), indices[used], values[used], d_sae)
    if len(overfull):
        rest = _chosen(linear(x[overfull], weight, bias).numpy(), k, floor)
        counts[overfull] = np.diff(rest.indptr)
        at = np.repeat(acts.indptr[overfull], counts[overfull])
        indices, values = (np.insert(a, at, b) for a, b in zip(acts[1:3], rest[1:3], strict=True))
        acts = Sparse(starts_of(counts), indices, values, d_sae)
    return acts, int(tried.sum())


def product(x: Tensor, weight: Tensor) -> Tensor:
    """bfloat16 x @ weight.T, summed in float32; for processors with `native_bfloat16`."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")


def _chosen(pre_acts: np.ndarray, k: int | None, floor: np.ndarray) -> Sparse:
    """Entries of float32 [n, d_sae] above `floor`, with k the k largest of each row (then `floor` is 0)."""
    n, d_sae = pre_acts.shape
    counts = np.zeros(n, np.int64)
    in_ranges(lambda a, b: _count_above(pre_acts[a:b], floor, counts[a:b]), n, pre_acts.size)
    most = d_sae if k is None else k
    indptr = starts_of(np.minimum(counts, most))
    indices, values = np.empty(indptr[-1], np.int32), np.empty(indptr[-1], np.float32)
    rows = pre_acts, counts, indptr
    in_ranges(lambda a, b: _fill(*(part[a:b] for part in rows), floor, most, indices, values), n, pre_acts.size)
    return Sparse(indptr, indices, values, d_sae)


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
def _fill(pre_acts, counts, starts, floor, k, indices, values):
    d_sae = pre_acts.shape[1]
    maxima, cut = np.empty((d_sae + LANES - 1) // LANES, np.float32), floor.copy()
    features, candidates = np.empty(d_sae + 1, np.int32), np.empty(d_sae, np.float32)
    for i in range(len(pre_acts)):
        row, at = pre_acts[i], starts[i]
        if counts[i] > k:
            cut[:] = cut_for_largest(row, k, maxima)
            n = collect(row, cut, features)
        else:
            n = collect(row, floor, features)
        for c in range(n):
            candidates[c] = row[features[c]]
        keep_largest_of(features[:n], candidates[:n], k, indices[at:], values[at:])


@compiled()
def widen(bits):
    """The float32 of a bfloat16, given as its uint16 bits."""
    return np.uint32(np.uint32(bits) << np.uint32(16)).view(np.float32)


@compiled()
def narrow(value):
    """Bits of the bfloat16 nearest to a finite float32, ties to even."""
    bits = np.float32(value).view(np.uint32)
    odd = np.uint32(np.uint32(bits >> np.uint32(16)) & np.uint32(1))
    return np.uint16(np.uint32(np.uint32(bits + odd) + np.uint32(0x7FFF)) >> np.uint32(16))


@compiled(FAST)
def _round(x, bits, norm, rounding):
    # The bounds must hold, so the sums' own rounding is added.
    slack = np.float32(1 + 1e-4)
    for i in range(len(x)):
        row, low = x[i], bits[i]
        square, lost = np.float32(0), np.float32(0)
        for c in range(len(row)):
            low[c] = narrow(row[c])
            square += row[c] * row[c]
            difference = row[c] - widen(low[c])
            lost += difference * difference
        norm[i] = slack * np.sqrt(square)
        rounding[i] = slack * np.sqrt(lost)


@compiled(FAST)
def _dot(x, w):
    total = np.float32(0)
    for c in range(len(x)):
        total += x[c] * w[c]
    return total


@compiled({"contract"})
def _bounds(products, norm, rounding, w_norm, w_rounding, bias, lower, upper):
    rel = np.float32(OUTPUT_ROUNDING)
    reach = norm + rounding
    for j in range(len(products)):
        p = widen(products[j])
        error = rel * (abs(p) + abs(bias[j])) + rounding * w_norm[j] + reach * w_rounding[j]
        lower[j] = p + bias[j] - error
        upper[j] = p + bias[j] + error


@compiled()
def _select(products, norm, rounding, x, counts, indices, values, tried, w_norm, w_rounding, weight, bias, floor, k):
    d_sae = products.shape[1]
    lower, upper = np.empty(d_sae, np.float32), np.empty(d_sae, np.float32)
    maxima, cut = np.empty((d_sae + LANES - 1) // LANES, np.float32), floor.copy()
    features, candidates = np.empty(d_sae + 1, np.int32), np.empty(indices.shape[1], np.float32)
    for i in range(len(products)):
        _bounds(products[i], norm[i], rounding[i], w_norm, w_rounding, bias, lower, upper)
        if k > 0:
            # k pre-activations are certainly above this cut, so what cannot reach it is not among the k largest.
            cut[:] = cut_for_largest(lower, k, maxima)
        n = collect(upper, cut, features)
        tried[i] = n
        if n > indices.shape[1]:
            counts[i] = -1
            continue
        for c in range(n):
            candidates[c] = _dot(x[i], weight[features[c]]) + bias[features[c]]
        if k > 0:
            counts[i] = keep_largest_of(features[:n], candidates[:n], k, indices[i], values[i])
            continue
        at = 0
        for c in range(n):
            if candidates[c] > floor[features[c]]:
                indices[i, at], values[i, at] = features[c], candidates[c]
                at += 1
        counts[i] = at


@compiled()
def collect(row, floor, features):
    """Write the positions where row > floor, ascending; return their number. features: int32 [d_sae + 1]."""
    n, whole = 0, len(row) - len(row) % BLOCK
    for block in range(0, whole, BLOCK):
        # Slices, because an index that might be negative (and wrap around) keeps the loops scalar.
        some, least = row[block : block + BLOCK], floor[block : block + BLOCK]
        active = np.int32(0)
        for j in range(BLOCK):
            active = np.int32(active + np.int32(some[j] > least[j]))
        if active > 0:
            for j in range(BLOCK):
                # Written whether active or not, and overwritten by the next one if not: no branch to mispredict.
                features[n] = block + j
                n += np.int64(some[j] > least[j])
    for j in range(whole, len(row)):
        features[n] = j
        n += np.int64(row[j] > floor[j])
    return n


@compiled()
def cut_for_largest(row, k, maxima):
    """A cut just below the k largest positive entries of the row, exceeded by them and a few more; k >= 1.

    When k maxima over LANES entries, which lie `stride` apart, exceed a cut, so do k entries. maxima: float32 scratch
    of ceil(len(row) / LANES).
    """
    stride = len(maxima)
    if stride < k:
        return bisect(row, k, k + k // 4, 16)
    maxima[:] = row[:stride]
    for start in range(stride, len(row), stride):
        part = row[start : start + stride]
        for b in range(len(part)):
            maxima[b] = max(maxima[b], part[b])
    return bisect(maxima, k, k + k // 4, 16)


@compiled()
def keep_largest_of(features, candidates, k, indices, values):
    """Write the k largest candidates > 0 and their features in their order; return their number. Ties: the first."""
    least, ties = np.float32(0), 0
    if len(candidates) > k:
        least = bisect(candidates, k, k, 200)
        if exceeding(candidates, least) != k:
            # Equal entries around the k-th place: bisection ended at the two floats around them.
            cut, least = least, np.float32(np.inf)
            for candidate in candidates:
                if cut < candidate < least:
                    least = candidate
            ties = k - exceeding(candidates, least)
    at = 0
    for c in range(len(candidates)):
        if candidates[c] > least or (ties > 0 and candidates[c] == least):
            ties -= np.int64(candidates[c] == least)
            indices[at], values[at] = features[c], candidates[c]
            at += 1
    return at


@compiled()
def exceeding(values, cut):
    count = np.int32(0)
    for j in range(len(values)):
        count = np.int32(count + np.int32(values[j] > cut))
    return count


@compiled({*FAST, "nnan"})
def bisect(values, least, most, rounds):
    """A cut >= 0 that `least` to `most` values exceed, if `rounds` suffice; 0 when fewer than `least` are positive."""
    low, high = np.float32(0), np.float32(0)
    for j in range(len(values)):
        high = max(high, values[j])
    for _ in range(rounds):
        middle = np.float32(0.5) * (low + high)
        if middle <= low or middle >= high:
            break
        count = exceeding(values, middle)
        if count >= least:
            low = middle
            if count <= most:
                break
        else:
            high = middle
    return low
