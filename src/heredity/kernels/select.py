"""Compiled selection: positions above a floor, and the k largest of a row by bisection."""

from __future__ import annotations

import numba
import numpy as np

BLOCK = 64
"""Entries looked at together; a block without a chosen one is skipped."""

LANES = 16
"""Entries of which the largest stands for all when the k-th largest of a row is bounded."""


@numba.njit(cache=True, nogil=True)
def collect(row, floor, found):
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
def cut_for_largest(row, k, maxima):
    """A cut that the k largest positive entries of the row and a few more exceed, k >= 1.

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


@numba.njit(cache=True, nogil=True)
def keep_largest_of(found, candidates, k, indices, values):
    """Write the k largest candidates > 0 in their order and return their number; of equal ones the first ones win.

    found: int32 [n], the positions the candidates come from; indices and values: room for k.
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
            indices[at], values[at] = found[c], candidates[c]
            at += 1
    return at


@numba.njit(cache=True, nogil=True)
def exceeding(values, cut):
    count = np.int32(0)
    for j in range(len(values)):
        count = np.int32(count + np.int32(values[j] > cut))
    return count


@numba.njit(cache=True, nogil=True)
def next_above(values, cut):
    least = np.float32(np.inf)
    for j in range(len(values)):
        if cut < values[j] < least:
            least = values[j]
    return least


@numba.njit(cache=True, nogil=True, fastmath={"reassoc", "nsz", "contract", "nnan"})
def bisect(values, least, most, rounds):
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
        count = exceeding(values, middle)
        if count >= least:
            low = middle
            if count <= most:
                break
        else:
            high = middle
    return low
