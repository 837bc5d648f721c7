"""Listed pairs of features, and the lists of best partners of a matrix of scores.

Sums over the rows on which both features of a pair fire serve the masked cosine of Bricken et al. and the r over common
token types; sums over groups of tokens give Pearson's r on any combination of the groups. All sums are float64.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from queue import SimpleQueue
from typing import NamedTuple

import numpy as np

from heredity.kernels.pearson import Best, empty_best, insert, listed, merged
from heredity.kernels.processors import default_workers
from heredity.kernels.sparse import Sparse, compiled, in_ranges, starts_of, transpose

_CONSTANT = 1e-12  # a variance this far below the mean square is what rounding leaves of a constant


class MaskedSums(NamedTuple):
    """For each pair of features, sums over the rows on which both are stored."""

    common: np.ndarray  # int64 [pairs]: number of rows
    product: np.ndarray  # float64 [pairs]: sum of the products of the two values
    parent_square: np.ndarray  # float64 [pairs]: sum of squares of the parent feature's values
    child_square: np.ndarray  # float64 [pairs]


def masked_sums(parent: Sparse, child: Sparse, pairs: np.ndarray, workers: int | None = None) -> MaskedSums:
    """Sums over the common rows of pairs of features; both matrices by features with rising rows (`sparse.transpose`).

    pairs: int [n, 2] of (parent, child) features. workers: threads, by default one per free processor.
    """
    sums = np.zeros((4, len(pairs)))
    cost = starts_of(np.diff(parent.indptr)[pairs[:, 0]] + np.diff(child.indptr)[pairs[:, 1]] + 1)
    work = partial(_add_common, pairs, *parent[:3], *child[:3], sums)
    in_ranges(work, len(pairs), cost[-1], 8, cost, workers or default_workers())
    return MaskedSums(sums[0].astype(np.int64), *sums[1:])


@compiled()
def _add_common(pairs, starts, rows, values, child_starts, child_rows, child_values, sums, start, stop):
    for n in range(start, stop):
        p, c = pairs[n, 0], pairs[n, 1]
        a, a_end, b, b_end = starts[p], starts[p + 1], child_starts[c], child_starts[c + 1]
        while a < a_end and b < b_end:
            row, child_row = rows[a], child_rows[b]
            if row == child_row:
                x, y = np.float64(values[a]), np.float64(child_values[b])
                sums[0, n] += 1.0
                sums[1, n] += x * y
                sums[2, n] += x * x
                sums[3, n] += y * y
            # Both steps without a branch, which would be mispredicted half of the time.
            a += row <= child_row
            b += child_row <= row


def greedy_cover(
    wholes: Sparse, parts: Sparse, pairs: np.ndarray, cover: np.ndarray, least: float, mostly: float
) -> np.ndarray:
    """Parts that cover a whole between them, the largest first: what each adds, as a share of the whole, float64 [n]; 0
    for parts that are not taken.

    wholes, parts: by features with rising rows (`sparse.transpose`). pairs: int [n, 2] of (whole, part), by rising
    whole. cover: float64 [n], share of the whole's squared activation on the rows of the part, which is taken when it
    adds `least` or more of the whole, and more than `mostly` of its cover.
    """
    (whole, part), added = np.ascontiguousarray(pairs.T), np.zeros(len(pairs))
    if not len(pairs):
        return added
    groups = np.flatnonzero(np.diff(whole, prepend=-1, append=-1))
    reached = starts_of(np.diff(wholes.indptr)[whole] + np.diff(parts.indptr)[part])[groups]
    work = partial(_cover_greedily, groups, whole, part, *wholes[:3], *parts[:2], cover, least, mostly, added)
    in_ranges(work, len(groups) - 1, int(reached[-1]), 8, reached)
    return added


@compiled()
def _cover_greedily(
    groups, whole, part, starts, rows, values, part_starts, part_rows, cover, least, mostly, added, start, stop
):  # fmt: skip
    """groups: [n + 1], where the pairs of each whole start."""
    for g in range(start, stop):
        first, last = starts[whole[groups[g]]], starts[whole[groups[g]] + 1]
        left = np.square(values[first:last].astype(np.float64))
        total = left.sum()
        while True:
            best, most = -1, 0.0
            for k in range(groups[g], groups[g + 1]):
                if added[k] == 0.0:
                    others = part_rows[part_starts[part[k]] : part_starts[part[k] + 1]]
                    new = _on_common(rows[first:last], others, left, False) / total
                    if new >= least and new > mostly * cover[k] and new > most:
                        best, most = k, new
            if best < 0:
                break
            added[best] = most
            others = part_rows[part_starts[part[best]] : part_starts[part[best] + 1]]
            _on_common(rows[first:last], others, left, True)


@compiled()
def _on_common(rows, others, left, clear):
    """Sum of `left` over the common rows; with `clear`, it becomes 0 there."""
    a, b, total = 0, 0, 0.0
    while a < len(rows) and b < len(others):
        row, other = rows[a], others[b]
        if row == other:
            total += left[a]
            if clear:
                left[a] = 0.0
        a += row <= other
        b += other <= row
    return total


class Ranked(NamedTuple):
    """The best partners both ways of a matrix of scores, best first, ties to the lower index."""

    parent_match: np.ndarray  # int32 [d_parent, top]: columns of the matrix; -1 where there is none
    parent_score: np.ndarray  # float64 [d_parent, top]: their scores, falling; nan where there is none
    child_match: np.ndarray  # int32 [d_child, top]: rows of the matrix
    child_score: np.ndarray  # float64 [d_child, top]


def ranked(blocks: Iterable[np.ndarray], shape: tuple[int, int], top: int) -> Ranked:
    """The best partners both ways of a matrix [d_parent, d_child] that comes in blocks of whole rows, in order.

    Scores of nan or -inf are in nobody's list. Raises `ValueError` for a `top` below 1.
    """
    if top < 1:
        raise ValueError(f"top={top} keeps no match; use 1 or more")
    rows, columns, done = empty_best(shape[0], top), empty_best(shape[1], top), 0
    for block in blocks:
        _offer(block, done, *rows, *columns)
        done += len(block)
    return Ranked(*listed(rows), *listed(columns))


@compiled()
def _offer(block, first, score, match, child_score, child_match):
    """Offer a block of scores, whose first row is `first`, to the lists; rows must come in rising order."""
    last = score.shape[1] - 1
    worst = child_score[:, last].copy()
    for n in range(len(block)):
        row = block[n]
        for c in range(len(row)):
            value = row[c]
            if value > score[first + n, last]:
                insert(score[first + n], match[first + n], value, c)
            if value > worst[c]:
                insert(child_score[c], child_match[c], value, first + n)
                worst[c] = child_score[c, last]


class Means(NamedTuple):
    """Mean activations of features at token types, by rows."""

    indptr: np.ndarray  # int64 [rows + 1]: where each row starts
    indices: np.ndarray  # int32 [n]: the column of each entry, rising within a row
    values: np.ndarray  # float64 [n]


def type_means(columns: Sparse, types: np.ndarray, number: int) -> Means:
    """Mean of each feature over the rows of each token type on which it is stored: features x types.

    columns: by features, as `sparse.transpose` gives. types: int32 [rows], each below `number`.
    """
    # Transposed twice, the entries of a feature come by rising type, those of one type in the order of rows.
    workers = default_workers()
    by_type = transpose(Sparse(columns.indptr, types[columns.indices], columns.values, number), workers=workers)
    indptr, indices, values, _ = transpose(by_type, workers=workers)
    feature = np.repeat(np.arange(by_type.width), np.diff(indptr))
    first = np.flatnonzero((np.diff(feature, prepend=-1) != 0) | (np.diff(indices, prepend=-1) != 0))
    counts = np.diff(first, append=len(indices))
    totals = np.bincount(np.repeat(np.arange(len(first)), counts), values, len(first))
    return Means(starts_of(np.bincount(feature[first], minlength=by_type.width)), indices[first], totals / counts)


class _Common(NamedTuple):
    """What one thread alone writes."""

    common: np.ndarray  # uint8 [d_child]: types in common with the parent feature at hand, up to `least`
    sums: np.ndarray  # float64 [d_child, 6]: n, Σx, Σy, Σx², Σy², Σxy over the types in common
    place: np.ndarray  # int64 [d_child]: where the sums of a child feature are, counted through all parent features
    touched: np.ndarray  # int32 [d_child]: the child features that it shares `least` types or more with
    child: Best


def common_best(
    parent: Means, by_type: Means, d_child: int, least: int, top: int, workers: int | None = None
) -> Ranked:
    """The best partners both ways by Pearson r over the token types that both features have.

    parent: features x types. by_type: the child's types x features. Features with fewer than `least` types in common
    (at most 255), and those of which one is constant on them, are no partners. Values should be near 0: the sums of
    squares are not centered on common types. Raises `ValueError` for a `top` below 1.
    """
    if top < 1:
        raise ValueError(f"top={top} keeps no match; use 1 or more")
    features, workers = len(parent.indptr) - 1, workers or default_workers()
    cost = starts_of(np.diff(by_type.indptr)[parent.indices])[parent.indptr] + np.arange(features + 1)
    best, threads, free = empty_best(features, top), list[_Common](), SimpleQueue[_Common]()
    for _ in range(workers):
        room = np.empty(d_child, np.uint8), np.empty((d_child, 6)), np.full(d_child, -1), np.empty(d_child, np.int32)
        threads.append(_Common(*room, empty_best(d_child, top)))
        free.put(threads[-1])

    def work(start: int, stop: int) -> None:
        thread = free.get()
        _match_common(start, stop, *parent, *by_type, least, best.r, best.match, *thread[:4], *thread.child)
        free.put(thread)

    in_ranges(work, features, cost[-1], 8, cost, workers)
    return Ranked(*listed(best), *listed(merged([thread.child for thread in threads])))


@compiled()
def _match_common(
    start, stop, starts, types, x, by_type, features, y, least, best_r, best, common, sums, place, touched, child_r,
    child_best
):  # fmt: skip
    """Match the parent features start to stop: each looks only at child features that it shares enough types with,
    which are few. Their sums lie side by side, since those of all child features do not stay in the cache."""
    last, first, n = best_r.shape[1] - 1, place.max() + 1, 0
    for p in range(start, stop):
        first, n = first + n, 0
        common[:] = 0
        for k in range(starts[p], starts[p + 1]):
            for m in range(np.uint64(by_type[types[k]]), np.uint64(by_type[types[k] + 1])):
                c = np.uint64(features[m])
                common[c] += common[c] < least
        for k in range(starts[p], starts[p + 1]):
            a = x[k]
            for m in range(np.uint64(by_type[types[k]]), np.uint64(by_type[types[k] + 1])):
                c, b = np.uint64(features[m]), y[m]
                if common[c] < least:
                    continue
                if place[c] < first:
                    place[c], touched[n], sums[n] = first + n, features[m], 0.0
                    n += 1
                at = np.uint64(place[c] - first)
                sums[at, 0] += 1.0
                sums[at, 1] += a
                sums[at, 2] += b
                sums[at, 3] += a * a
                sums[at, 4] += b * b
                sums[at, 5] += a * b
        for t in range(n):
            r, c = _to_r(sums[t]), touched[t]
            if r == -np.inf:
                continue
            if r >= best_r[p, last]:
                insert(best_r[p], best[p], r, c)
            if r >= child_r[c, last]:
                insert(child_r[c], child_best[c], r, p)


@compiled()
def _to_r(sums):
    """Pearson r from n, Σx, Σy, Σx², Σy², Σxy: -inf for a constant side; exactly 1 or -1 for n = 2."""
    n, x, y, xx, yy, xy = sums[0], sums[1], sums[2], sums[3], sums[4], sums[5]
    square, child_square = n * xx - x * x, n * yy - y * y
    if square <= _CONSTANT * n * xx or child_square <= _CONSTANT * n * yy:
        return -np.inf
    covariance = n * xy - x * y
    if n == 2:
        return 1.0 if covariance > 0 else -1.0
    return min(1.0, max(-1.0, covariance / np.sqrt(square * child_square)))


class PairMoments(NamedTuple):
    """Sums over the tokens of each group, entries that are not stored counted as zeros; all float64."""

    tokens: np.ndarray  # [groups]: token positions
    x: np.ndarray  # [groups, d_parent]: sums of parent activations
    xx: np.ndarray  # [groups, d_parent]: of their squares, not centered
    y: np.ndarray  # [groups, d_child]: sums of child activations
    yy: np.ndarray  # [groups, d_child]
    xy: np.ndarray  # [groups, d_parent, top]: of the products of each parent feature with its candidates; 0 for none
    candidates: np.ndarray  # int32 [d_parent, top]: child features; -1 where there is none


def pair_moments(parent: Sparse, child: Sparse, candidates: np.ndarray, group: np.ndarray, groups: int) -> PairMoments:
    """Moments of each parent column with its candidate child columns, over each group of rows.

    candidates: int [d_parent, top], child columns, -1 for none. group: int [rows], in [0, groups); neither is checked.
    """
    # One dtype each, so that one compiled version serves all callers.
    group, candidates = np.ascontiguousarray(group, np.int32), np.ascontiguousarray(candidates, np.int32)
    (x, xx), (y, yy) = np.zeros((2, groups, parent.width)), np.zeros((2, groups, child.width))
    xy = np.zeros((groups, *candidates.shape))
    order = np.argsort(group, kind="stable")  # group by group, the sums stay in the processor's cache
    tokens = np.bincount(group, minlength=groups)
    starts = starts_of(tokens)

    def add(first: int, stop: int) -> None:
        own = order[starts[first] : starts[stop]]
        _add_own(*parent[:3], own, group, x, xx)
        _add_own(*child[:3], own, group, y, yy)
        _add_pairs(*parent[:3], *child[:3], candidates, own, group, np.zeros(child.width), xy)

    in_ranges(add, groups, len(parent.indices) + 2 * len(child.indices), 4, starts, default_workers())
    return PairMoments(tokens.astype(np.float64), x, xx, y, yy, xy, candidates)


@compiled()
def _add_own(indptr, indices, values, order, group, total, square):
    for token in order:
        g = group[token]
        for k in range(indptr[token], indptr[token + 1]):
            value = np.float64(values[k])
            total[g, indices[k]] += value
            square[g, indices[k]] += value * value


@compiled()
def _add_pairs(
    indptr, indices, values, child_indptr, child_indices, child_values, candidates, order, group, row, products
):
    """Each row of the child is laid out in `row`, float64 [d_child], all zeros before and after."""
    top = candidates.shape[1]
    for token in order:
        g = group[token]
        for k in range(child_indptr[token], child_indptr[token + 1]):
            row[child_indices[k]] = child_values[k]
        for k in range(indptr[token], indptr[token + 1]):
            feature, value = indices[k], np.float64(values[k])
            for c in range(top):
                candidate = candidates[feature, c]
                if candidate >= 0 and row[candidate] != 0.0:
                    products[g, feature, c] += value * row[candidate]
        for k in range(child_indptr[token], child_indptr[token + 1]):
            row[child_indices[k]] = 0.0
