"""What two features do where both of them fire, and the lists of best partners of a matrix of scores.

Sums over common rows are the one thing that Pearson's r over all positions does not need: the masked cosine of Bricken
et al. and the r over common token types both do. All sums are float64; all loops let other threads run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numba
import numpy as np

from heredity.kernels.pearson import default_workers, empty_best, without_infinity
from heredity.kernels.sparse import Sparse

_SUMS = 6
# A variance this far below the mean square is what rounding leaves of a constant.
_CONSTANT = 1e-12


class MaskedSums(NamedTuple):
    """For each pair of features, sums over the rows on which both are stored."""

    common: np.ndarray
    """int64 [pairs]: how many rows these are."""
    product: np.ndarray
    """float64 [pairs]: sum of the products of the two values."""
    parent_square: np.ndarray
    """float64 [pairs]: sum of squares of the parent feature's values."""
    child_square: np.ndarray
    """float64 [pairs]: sum of squares of the child feature's values."""


class Ranked(NamedTuple):
    """The best partners both ways of a matrix of scores, best first, ties to the lower index."""

    parent_match: np.ndarray
    """int32 [d_parent, top]: columns of the matrix; -1 where there is none."""
    parent_score: np.ndarray
    """float64 [d_parent, top]: their scores, falling; nan where there is none."""
    child_match: np.ndarray
    """int32 [d_child, top]: rows of the matrix; -1 where there is none."""
    child_score: np.ndarray
    """float64 [d_child, top]."""


class Means(NamedTuple):
    """Mean activations of features at token types, by rows."""

    indptr: np.ndarray
    """int64 [rows + 1]: where each row starts."""
    indices: np.ndarray
    """int32 [n]: the column of each entry, rising within a row."""
    values: np.ndarray
    """float64 [n]."""


@numba.njit(nogil=True, cache=True)
def _masked_sums(start, stop, pairs, starts, rows, values, child_starts, child_rows, child_values, common, sums):  # noqa: ANN001, ANN202
    for n in range(start, stop):
        p, c = pairs[n, 0], pairs[n, 1]
        a, a_end, b, b_end = starts[p], starts[p + 1], child_starts[c], child_starts[c + 1]
        while a < a_end and b < b_end:
            row, child_row = rows[a], child_rows[b]
            if row == child_row:
                x, y = np.float64(values[a]), np.float64(child_values[b])
                common[n] += 1
                sums[0, n] += x * y
                sums[1, n] += x * x
                sums[2, n] += y * y
            # Both steps without a branch, which would be mispredicted half of the time.
            a += row <= child_row
            b += child_row <= row


def masked_sums(parent: Sparse, child: Sparse, pairs: np.ndarray, workers: int | None = None) -> MaskedSums:
    """Sums over the common rows of pairs of features, given by features with rising rows (as `sparse.transpose` does).

    pairs: int [n, 2] of (parent, child) features. Work is the firings of both features of every pair. workers: threads,
    by default one a processor; their number changes no bit.
    """
    firings, child_firings = np.diff(parent.indptr), np.diff(child.indptr)
    common, sums = np.zeros(len(pairs), np.int64), np.zeros((3, len(pairs)))

    def work(start: int, stop: int) -> None:
        _masked_sums(start, stop, pairs, *parent[:3], *child[:3], common, sums)

    in_threads(work, firings[pairs[:, 0]] + child_firings[pairs[:, 1]], workers)
    return MaskedSums(common, *sums)


def in_threads(work: Callable[[int, int], None], cost: np.ndarray, workers: int | None = None) -> None:
    """Call `work(start, stop)` over ranges of about equal cost that cover [0, len(cost)), in threads."""
    workers = workers or default_workers()
    reached = np.cumsum(cost + 1.0)
    if not len(reached):
        return
    number = 8 * workers
    cuts = np.searchsorted(reached, np.arange(1, number) * (reached[-1] / number))
    edges = np.unique([0, *cuts, len(cost)])
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(work, edges[:-1].tolist(), edges[1:].tolist()))


@numba.njit(nogil=True, cache=True)
def greedy_cover(groups, whole, part, starts, rows, values, part_starts, part_rows, cover, least, mostly, added):  # noqa: ANN001, ANN201
    """For each group of candidate pairs (whole, part), which parts cover the whole between them, the largest first.

    groups: [n + 1], where the pairs of each whole start. cover: share of the whole's squared activation on the rows of
    a part. A part is taken when what it adds is `least` or more of the whole, and more than `mostly` of its own cover.
    added: float64 [pairs], gets what each part taken adds, as a share of the whole; 0 for all others.
    """
    for g in range(len(groups) - 1):
        first, last = starts[whole[groups[g]]], starts[whole[groups[g]] + 1]
        left = np.square(values[first:last].astype(np.float64))
        total = left.sum()
        while True:
            best, most = -1, 0.0
            for k in range(groups[g], groups[g + 1]):
                if added[k] == 0.0:
                    new = _on_common(rows[first:last], part_rows[part_starts[part[k]] : part_starts[part[k] + 1]], left)
                    new /= total
                    if new >= least and new > mostly * cover[k] and new > most:
                        best, most = k, new
            if best < 0:
                break
            added[best] = most
            own = part_rows[part_starts[part[best]] : part_starts[part[best] + 1]]
            _clear_common(rows[first:last], own, left)


@numba.njit(nogil=True, cache=True)
def _on_common(rows, others, left):  # noqa: ANN001, ANN202 (typed by numba)
    """Sum of what is left on the rows that both have."""
    a, b, total = 0, 0, 0.0
    while a < len(rows) and b < len(others):
        row, other = rows[a], others[b]
        if row == other:
            total += left[a]
        a += row <= other
        b += other <= row
    return total


@numba.njit(nogil=True, cache=True)
def _clear_common(rows, others, left):  # noqa: ANN001, ANN202 (typed by numba)
    a, b = 0, 0
    while a < len(rows) and b < len(others):
        row, other = rows[a], others[b]
        if row == other:
            left[a] = 0.0
        a += row <= other
        b += other <= row


@numba.njit(nogil=True, cache=True)
def _insert(score, match, value, index):  # noqa: ANN001, ANN202 (typed by numba)
    """Put (value, index) into a list of falling scores, behind equal ones; the last one drops out."""
    at = len(score) - 1
    while at > 0 and value > score[at - 1]:
        score[at], match[at] = score[at - 1], match[at - 1]
        at -= 1
    score[at], match[at] = value, index


@numba.njit(nogil=True, cache=True)
def _offer(block, first, score, match, child_score, child_match):  # noqa: ANN001, ANN202 (typed by numba)
    """Offer a block of scores, whose first row is `first`, to the lists; rows must come in rising order."""
    last = score.shape[1] - 1
    worst = child_score[:, last].copy()
    for n in range(len(block)):
        row = block[n]
        for c in range(len(row)):
            value = row[c]
            if value > score[first + n, last]:
                _insert(score[first + n], match[first + n], value, c)
            if value > worst[c]:
                _insert(child_score[c], child_match[c], value, first + n)
                worst[c] = child_score[c, last]


def ranked(blocks: Iterable[np.ndarray], shape: tuple[int, int], top: int) -> Ranked:
    """The best partners both ways of a matrix [d_parent, d_child] that comes in blocks of whole rows, in order.

    Scores of nan or -inf belong to nobody's list. Raises `ValueError` for a `top` below 1.
    """
    if top < 1:
        raise ValueError(f"top={top} keeps no match; use 1 or more")
    rows, columns = empty_best(shape[0], top), empty_best(shape[1], top)
    done = 0
    for block in blocks:
        _offer(block, done, *rows, *columns)
        done += len(block)
    return Ranked(rows.match, without_infinity(rows), columns.match, without_infinity(columns))


@numba.njit(nogil=True, cache=True)
def _type_means(starts, rows, values, types, number, indptr, indices, means):  # noqa: ANN001, ANN202
    """Mean value of each feature over its rows of each type; returns the number of (feature, type) entries."""
    total, count = np.zeros(number), np.zeros(number, np.int64)
    seen = np.empty(number, np.int32)
    n = 0
    for feature in range(len(starts) - 1):
        found = 0
        for k in range(starts[feature], starts[feature + 1]):
            kind = types[rows[k]]
            if count[kind] == 0:
                seen[found] = kind
                found += 1
            count[kind] += 1
            total[kind] += values[k]
        seen[:found].sort()
        for kind in seen[:found]:
            indices[n], means[n] = kind, total[kind] / count[kind]
            total[kind], count[kind] = 0.0, 0
            n += 1
        indptr[feature + 1] = n
    return n


def type_means(columns: Sparse, types: np.ndarray, number: int) -> Means:
    """Mean of each feature over the rows of each token type on which it is stored: features x types.

    columns: by features, as `sparse.transpose` gives. types: int32 [rows], each below `number`.
    """
    indptr = np.zeros(len(columns.indptr), np.int64)
    indices, values = np.empty(len(columns.indices), np.int32), np.empty(len(columns.indices))
    n = _type_means(*columns[:3], types, number, indptr, indices, values)
    return Means(indptr, indices[:n].copy(), values[:n].copy())


@numba.njit(nogil=True, cache=True)
def _to_r(n, x, y, xx, yy, xy):  # noqa: ANN001, ANN202 (typed by numba)
    """Pearson r of n points from their sums, -inf where one side is constant; exactly 1 or -1 for two points."""
    square, child_square = n * xx - x * x, n * yy - y * y
    if square <= _CONSTANT * n * xx or child_square <= _CONSTANT * n * yy:
        return -np.inf
    covariance = n * xy - x * y
    if n == 2:
        return 1.0 if covariance > 0 else -1.0
    return min(1.0, max(-1.0, covariance / np.sqrt(square * child_square)))


@numba.njit(nogil=True, cache=True)
def _common_rows(start, stop, first, starts, types, x, by_type, features, y, least, sums, r):  # noqa: ANN001, ANN202
    """r over common types of parent features first + start to first + stop with all child features."""
    for n in range(start, stop):
        sums[:] = 0.0
        for k in range(starts[first + n], starts[first + n + 1]):
            a = x[k]
            for m in range(np.uint64(by_type[types[k]]), np.uint64(by_type[types[k] + 1])):
                own, b = sums[np.uint64(features[m])], y[m]
                own[0] += 1.0
                own[1] += a
                own[2] += b
                own[3] += a * a
                own[4] += b * b
                own[5] += a * b
        for c in range(len(sums)):
            own = sums[c]
            r[n, c] = _to_r(own[0], own[1], own[2], own[3], own[4], own[5]) if own[0] >= least else -np.inf


def common_r(
    parent: Means, by_type: Means, d_child: int, least: int, workers: int | None = None
) -> Iterable[np.ndarray]:
    """Blocks of rows of the matrix [d_parent, d_child] of Pearson r over the types that both features have.

    parent: features x types. by_type: the child's types x features. -inf where fewer than `least` types are common, or
    one feature is constant on them. Values should be near 0: the sums of squares are not centered on common types.
    """
    workers = workers or default_workers()
    features, size = len(parent.indptr) - 1, max(1, (1 << 22) // max(1, d_child))
    cost = np.diff(by_type.indptr)[parent.indices]
    reached = np.concatenate([[0], np.cumsum(cost)])[parent.indptr]
    for first in range(0, features, size):
        r = np.empty((min(size, features - first), d_child))

        def work(start: int, stop: int, first: int = first, r: np.ndarray = r) -> None:
            sums = np.empty((d_child, _SUMS))
            _common_rows(start, stop, first, *parent, *by_type, least, sums, r)

        in_threads(work, np.diff(reached[first : first + len(r) + 1]), workers)
        yield r


@numba.njit(nogil=True, cache=True)
def _common_pairs(start, stop, pairs, starts, types, x, child_starts, child_types, y, least, common, r):  # noqa: ANN001, ANN202
    for n in range(start, stop):
        p, c = pairs[n, 0], pairs[n, 1]
        a, a_end, b, b_end = starts[p], starts[p + 1], child_starts[c], child_starts[c + 1]
        own = np.zeros(_SUMS)
        while a < a_end and b < b_end:
            kind, child_kind = types[a], child_types[b]
            if kind == child_kind:
                own[0] += 1.0
                own[1] += x[a]
                own[2] += y[b]
                own[3] += x[a] * x[a]
                own[4] += y[b] * y[b]
                own[5] += x[a] * y[b]
            a += kind <= child_kind
            b += child_kind <= kind
        common[n] = own[0]
        r[n] = _to_r(own[0], own[1], own[2], own[3], own[4], own[5]) if own[0] >= least else -np.inf


def common_r_of(
    parent: Means, child: Means, pairs: np.ndarray, least: int, workers: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Common types int64 [pairs] and r float64 [pairs] of pairs of features, both features x types; see `common_r`."""
    common, r = np.zeros(len(pairs), np.int64), np.empty(len(pairs))
    types, child_types = np.diff(parent.indptr), np.diff(child.indptr)

    def work(start: int, stop: int) -> None:
        _common_pairs(start, stop, pairs, *parent, *child, least, common, r)

    in_threads(work, types[pairs[:, 0]] + child_types[pairs[:, 1]], workers)
    return common, r
