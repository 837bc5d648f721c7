"""The best Pearson partners of every feature, both ways, without ever holding the matrix of all pairs.

One parent feature at a time: its firings are walked through, the child's rows at those tokens are added up into one
float64 row of `d_child` products, the row becomes r through sums known beforehand, and only the best are kept.
`dense_pearson` is the plain reference.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import NamedTuple

import numba
import numpy as np

from .prefetch import prefetch
from .sparse import Sparse, moments, transpose

# One record an entry: column and value arrive with the same cache line.
_ENTRY = np.dtype([("column", np.uint32), ("value", np.float32)])
_ENTRIES_A_LINE = 8
# Firings between the hint and the use of a child row; the speed is flat between 4 and 32.
_AHEAD = np.uint64(8)
_TWICE_AHEAD = np.uint64(16)
_ONE = np.uint64(1)


class TopPearson(NamedTuple):
    """The best partners of each feature, best first; ties go to the lower index."""

    parent_match: np.ndarray
    """int32 [d_parent, top]: indices of child features, -1 where there is none."""
    parent_r: np.ndarray
    """float64 [d_parent, top]: their correlations, nan where there is none."""
    child_match: np.ndarray
    """int32 [d_child, top]: indices of parent features, -1 where there is none."""
    child_r: np.ndarray
    """float64 [d_child, top]."""


def dense_pearson(parent: np.ndarray, child: np.ndarray) -> np.ndarray:
    """Pearson r of all pairs of columns, the plain way: float64 [d_parent, d_child] of [tokens, d] arrays.

    Rows and columns of constant features are nan.
    """
    sides = []
    for x in (parent, child):
        x = np.asarray(x, np.float64)
        centered = x - x.mean(0)
        norm = np.sqrt(np.square(centered).sum(0))
        norm[x.min(0) == x.max(0)] = np.nan
        sides.append(centered / norm)
    return sides[0].T @ sides[1]


@numba.njit(nogil=True, cache=True)
def _add_products(rows, weights, indptr, entries, products):  # noqa: ANN001, ANN202 (typed by numba)
    """products[c] += sum over n of weights[n] * child[rows[n], c]; unsigned indices spare the test for wrapping."""
    products[:] = 0.0
    firings = np.uint64(len(rows))
    for n in range(firings):
        if n + _TWICE_AHEAD < firings:
            prefetch(indptr, np.int64(rows[n + _TWICE_AHEAD]))
        if n + _AHEAD < firings:
            soon = np.uint64(rows[n + _AHEAD])
            line, end = np.int64(indptr[soon]), np.int64(indptr[soon + _ONE])
            while line < end:
                prefetch(entries, line)
                line += _ENTRIES_A_LINE
        token, weight = np.uint64(rows[n]), np.float64(weights[n])
        for k in range(np.uint64(indptr[token]), np.uint64(indptr[token + _ONE])):
            entry = entries[k]
            products[np.uint64(entry.column)] += weight * entry.value


@numba.njit(nogil=True, cache=True)
def _insert(best_r, best, r, index):  # noqa: ANN001, ANN202 (typed by numba)
    """Put (r, index) into a list sorted by falling r, then rising index, if it belongs there."""
    at = len(best_r) - 1
    if r < best_r[at] or (r == best_r[at] and index > best[at]):
        return
    while at > 0 and (r > best_r[at - 1] or (r == best_r[at - 1] and index < best[at - 1])):
        best_r[at], best[at] = best_r[at - 1], best[at - 1]
        at -= 1
    best_r[at], best[at] = r, index


@numba.njit(nogil=True, cache=True)
def _to_r(products, tokens, mean, scale, child_mean, child_scale):  # noqa: ANN001, ANN202 (typed by numba)
    """Turn a row of products into r in place; -inf for constant child features, which no list accepts.

    `scale` is one over the centered norm, 0 for a constant feature. The means are multiplied first,
    and so are the scales: swapping parent and child then gives the same bits.
    """
    for c in range(len(products)):
        r = (products[c] - tokens * (mean * child_mean[c])) * (scale * child_scale[c])
        r = min(1.0, max(-1.0, r))
        products[c] = r if child_scale[c] > 0.0 else -np.inf


@numba.njit(nogil=True, cache=True)
def _keep_best(parent, r, best_r, best, child_r, child_match, child_worst):  # noqa: ANN001, ANN202 (typed by numba)
    """Offer a row of r to the parent's list and to the lists of the child features.

    `child_worst` repeats the last column of `child_r` in one stretch of memory: nearly every r is turned away by it.
    """
    last = len(best_r) - 1
    for c in range(len(r)):
        if r[c] > best_r[last]:
            _insert(best_r, best, r[c], c)
        if r[c] >= child_worst[c] and r[c] > -np.inf:
            _insert(child_r[c], child_match[c], r[c], parent)
            child_worst[c] = child_r[c, last]


@numba.njit(nogil=True, cache=True)
def _match_chunk(chunk, parent, child, parent_stats, child_stats, tokens, scratch, parent_best, child_best):  # noqa: ANN001, ANN202
    """All of the above for the parent features of one chunk."""
    starts, tokens_of, weights = parent
    indptr, entries = child
    mean, scale = parent_stats
    products, child_worst = scratch
    for p in chunk:
        own = slice(starts[p], starts[p + 1])
        _add_products(tokens_of[own], weights[own], indptr, entries, products)
        _to_r(products, tokens, mean[p], scale[p], child_stats[0], child_stats[1])
        _keep_best(p, products, parent_best[0][p], parent_best[1][p], child_best[0], child_best[1], child_worst)


def _means_and_scales(matrix: Sparse, tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and one over the centered norm of each column, both float64 [width]; scale 0 for constant columns."""
    sums = moments(matrix)
    norm = np.sqrt(sums.square)
    return sums.total / max(tokens, 1), np.divide(1.0, norm, out=np.zeros_like(norm), where=norm > 0)


def _chunks(
    by_parent: Sparse, child_indptr: np.ndarray, d_child: int, scale: np.ndarray, workers: int
) -> list[np.ndarray]:
    """Parent features that can match, costliest first, cut into chunks of similar cost (products to add up)."""
    live = np.flatnonzero(scale > 0)
    firings = np.diff(by_parent.indptr)[live]
    mean_row = child_indptr[-1] / max(len(child_indptr) - 1, 1)
    cost = firings * (mean_row + 1.0) + d_child
    order = np.argsort(-cost, kind="stable")
    reached = np.cumsum(cost[order])
    number = min(len(live), 32 * workers)
    cuts = np.searchsorted(reached, np.arange(1, number) * (reached[-1] / number)) + 1 if number else []
    return [chunk for chunk in np.split(live[order], cuts) if len(chunk)]


def _empty(features: int, top: int) -> tuple[np.ndarray, np.ndarray]:
    return np.full((features, top), -np.inf), np.full((features, top), -1, np.int32)


def _merged(lists: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """The best of several workers' lists, in the same order that one worker would have kept."""
    top = lists[0][0].shape[1]
    r, match = (np.concatenate([pair[side] for pair in lists], axis=1) for side in (0, 1))
    order = np.lexsort((match, -r), axis=1)[:, :top]
    return np.take_along_axis(r, order, 1), np.take_along_axis(match, order, 1)


def default_workers() -> int:
    """Threads to use: `NUMBA_NUM_THREADS` if set, else the processors this process may run on."""
    if "NUMBA_NUM_THREADS" in os.environ:
        return max(1, int(os.environ["NUMBA_NUM_THREADS"]))
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def top_pearson(
    parent: Sparse,
    child: Sparse,
    top: int,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> TopPearson:
    """The `top` best Pearson partners of each column of `parent` in `child` and the reverse, over all their rows.

    Both matrices are tokens x features with the same tokens; entries that are not stored are zeros and count. A column
    that is constant (never fires, for one) has no partner and is nobody's partner. Sums are float64 in token order, so
    the result has the same bits for any number of `workers` (threads; default all processors).
    Memory beside the arguments: 8 bytes a stored entry of each side, and workers x d_child x (top + 2) numbers.

    Work is one multiplication and addition for each pair of features and each token on which both fire. The threads are
    Python's, which the compiled loop lets run by releasing the interpreter lock: unlike with numba's own pool several
    callers can run at once, nothing global is set, and chunks go to whoever is free.
    Raises `ValueError` when the rows differ in number or `top` is below 1.
    """
    tokens = len(child.indptr) - 1
    if len(parent.indptr) - 1 != tokens:
        raise ValueError(f"parent has {len(parent.indptr) - 1} tokens and child {tokens}; give aligned activations")
    if top < 1:
        raise ValueError(f"top={top} keeps no match; use 1 or more")
    workers = workers or default_workers()
    by_parent = transpose(parent)
    parent_stats, child_stats = _means_and_scales(parent, tokens), _means_and_scales(child, tokens)
    entries = np.empty(len(child.indices), _ENTRY)
    entries["column"], entries["value"] = child.indices, child.values
    chunks = _chunks(by_parent, child.indptr, child.width, parent_stats[1], workers)

    parent_best = _empty(parent.width, top)
    child_bests = [_empty(child.width, top) for _ in range(workers)]
    free: SimpleQueue[tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]] = SimpleQueue()
    for child_best in child_bests:
        free.put(((np.empty(child.width), np.full(child.width, -np.inf)), child_best))

    def match(chunk: np.ndarray) -> int:
        scratch, child_best = free.get()
        _match_chunk(
            chunk,
            by_parent[:3],
            (child.indptr, entries),
            parent_stats,
            child_stats,
            float(tokens),
            scratch,
            parent_best,
            child_best,
        )
        free.put((scratch, child_best))
        return len(chunk)

    done, total = 0, sum(map(len, chunks))
    with ThreadPoolExecutor(workers) as pool:
        for matched in pool.map(match, chunks):
            done += matched
            if progress is not None:
                progress(done, total)
    child_r, child_match = _merged(child_bests)
    return TopPearson(parent_best[1], _nan(parent_best), child_match, _nan((child_r, child_match)))


def _nan(best: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    return np.where(best[1] < 0, np.nan, best[0])
