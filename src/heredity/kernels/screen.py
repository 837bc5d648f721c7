"""Screening for sparse encoding: a bfloat16 product names the candidates, float32 dot products decide.

A bfloat16 product takes a half to a quarter of the time of a float32 one where the processor has the instruction, and
alone it is wrong by up to a quarter of an activation. But its error is bounded. With x̃ and w̃ the rounded vectors,
|x·w − x̃·w̃| <= ‖x − x̃‖ ‖w‖ + ‖x̃‖ ‖w − w̃‖ (Cauchy-Schwarz), and every norm on the right is known exactly. What lies
above the cut by the bounds is a candidate, and a candidate's pre-activation is made again in float32. So no active
feature is missed, none is invented, and every value is a float32 one, which no longer depends on the rows that
happened to share its matrix product.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from heredity.kernels.sparse import FAST, compiled, in_ranges

MOST_CANDIDATES = 0.015
"""Candidates, as a share of the features, beyond which the float32 product is cheaper than deciding them one by one.
Measured at 1024 -> 16384: a candidate costs as much as 60 to 70 entries of what bfloat16 saves on the product."""

CAPACITY = 0.0625
"""Share of the features that the candidates of one token may reach before the token is done in float32."""

MOST_OVERFULL = 0.125
"""Share of such tokens in a chunk from which the whole chunk is done in float32."""

OUTPUT_ROUNDING = 0.004
"""Bound of the relative error of rounding a pre-activation to bfloat16, 2^-8, and a little more."""

BLOCK = 64
"""Entries looked at together; a block without a chosen one is skipped."""

LANES = 16
"""Entries of which the largest stands for all when the k-th largest of a row is bounded."""


class Screen(NamedTuple):
    """Encoder rows in bfloat16 and bounds of their rounding."""

    weight: Tensor
    """bfloat16 [d_sae, d_in]."""
    norm: np.ndarray
    """float32 [d_sae]: ‖w‖."""
    rounding: np.ndarray
    """float32 [d_sae]: ‖w − w̃‖."""


class Screened(NamedTuple):
    """Active features of a chunk of rows, padded."""

    counts: np.ndarray
    """int64 [n]: active features of each row; -1 for a row with more candidates than there is room for."""
    indices: np.ndarray
    """int32 [n, capacity]: features, ascending; the first `counts` are valid."""
    values: np.ndarray
    """float32 [n, capacity]."""
    candidates: int
    """Pre-activations made again in float32."""


def make_screen(weight: Tensor) -> Screen:
    """Round encoder rows [d_sae, d_in], float32 on a CPU."""
    return Screen(*_rounded(weight))


def screened(
    x: Tensor, screen: Screen, weight: Tensor, bias: Tensor, k: int | None, floor: np.ndarray
) -> Screened | None:
    """Active features of centered rows x [n, d_in]; None when many rows have more candidates than CAPACITY allows.

    weight: float32 [d_sae, d_in]; bias: float32 [d_sae]; k: the k largest positive, or None for those above `floor`,
    float32 [d_sae], which is at least 0.
    """
    rounded, norm, rounding = _rounded(x)
    products = product(rounded, screen.weight)
    # The sums inside either product are float32 and add an error of their own.
    rounding += np.float32(x.shape[1] * 2.0**-22) * norm
    n, d_sae = products.shape
    capacity = max(256, int(CAPACITY * d_sae), 4 * (k or 0))
    counts, tried = np.empty(n, np.int64), np.empty(n, np.int64)
    indices, values = np.empty((n, capacity), np.int32), np.empty((n, capacity), np.float32)
    per_row = (_bits(products), norm, rounding, x.numpy(), counts, indices, values, tried)
    per_feature = (screen.norm, screen.rounding, weight.numpy(), bias.numpy(), floor)
    in_ranges(lambda a, b: _select(*(array[a:b] for array in per_row), *per_feature, k or 0), n, products.numel(), 2)
    if (counts < 0).sum() > MOST_OVERFULL * n:
        return None
    return Screened(counts, indices, values, int(tried.sum()))


def product(x: Tensor, weight: Tensor) -> Tensor:
    """bfloat16 x @ weight.T, summed in float32; for processors with `native_bfloat16`."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")


def _bits(x: Tensor) -> np.ndarray:
    return x.view(torch.int16).numpy().view(np.uint16)


def _rounded(x: Tensor) -> tuple[Tensor, np.ndarray, np.ndarray]:
    """Rows in bfloat16, the norm of each and the norm of its rounding error."""
    rounded = torch.empty(x.shape, dtype=torch.bfloat16)
    norm, rounding = np.empty(len(x), np.float32), np.empty(len(x), np.float32)
    given, bits = x.numpy(), _bits(rounded)
    in_ranges(lambda a, b: _round(given[a:b], bits[a:b], norm[a:b], rounding[a:b]), len(x), x.numel())
    return rounded, norm, rounding


@compiled()
def widen(bits):
    """The float32 with the value of the bfloat16 of these uint16 bits."""
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
    """Bounds of the pre-activations of one row."""
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
                features[n] = block + j
                n += np.int64(some[j] > least[j])
    for j in range(whole, len(row)):
        features[n] = j
        n += np.int64(row[j] > floor[j])
    return n


@compiled()
def cut_for_largest(row, k, maxima):
    """A cut just below the k largest positive entries of the row, exceeded by them and a few more; k >= 1.

    The first rounds look at maxima over LANES entries that lie `stride` apart (taken lane by lane): when k maxima
    exceed a cut, so do k entries. maxima: float32 scratch of ceil(len(row) / LANES).
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
    """Write the k largest candidates > 0 in their order and return their number; of equal ones the first ones win.

    features: int32 [n], the positions the candidates come from; indices and values: room for k.
    """
    least, ties = np.float32(0), 0
    if len(candidates) > k:
        least = bisect(candidates, k, k, 200)
        if exceeding(candidates, least) != k:
            # Equal entries around the k-th place: bisection ended at the two floats around them.
            least = next_above(candidates, least)
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


@compiled()
def next_above(values, cut):
    least = np.float32(np.inf)
    for j in range(len(values)):
        if cut < values[j] < least:
            least = values[j]
    return least


@compiled({*FAST, "nnan"})
def bisect(values, least, most, rounds):
    """A cut >= 0, exceeded by at least `least` and, if bisection reaches it in time, at most `most` values.

    0 when fewer than `least` values are positive.
    """
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
