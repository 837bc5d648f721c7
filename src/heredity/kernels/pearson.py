"""The best Pearson partners of every feature, both ways, without ever holding the matrix of all pairs.

One parent feature at a time: its firings are walked through, the child's rows at those tokens are added up into one
float64 row of `d_child` products, the row becomes r through sums known beforehand, and only the best are kept and the
rest counted. The child is used as it is; the parent is needed by features, which is made for a tile of them at a time.
`dense_pearson` is the plain reference.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import NamedTuple

import numpy as np

from heredity.kernels.pearson_rows import Best, Scratch, Stats, Tally, match_features
from heredity.kernels.processors import processors
from heredity.kernels.sparse import Moments, Sparse, moments, transpose

THRESHOLDS = tuple(step / 100 for step in range(50, 100, 5))
"""Thresholds over which pairs are counted: 0.50 to 0.95 in steps of 0.05."""

BINS = 200
"""Bins of the histogram of r over [-1, 1]."""

MEMORY = 1 << 29
"""Bytes that the lists and a tile of the parent may take."""


class TopPearson(NamedTuple):
    """The best partners of each feature, best first, ties to the lower index; and counts over all pairs.

    For a range of parent features, the parent's lists are those of the range and everything else counts its pairs only.
    """

    parent_match: np.ndarray
    """int32 [d_parent, top]: indices of child features, -1 where there is none."""
    parent_r: np.ndarray
    """float64 [d_parent, top]: their correlations, nan where there is none."""
    child_match: np.ndarray
    """int32 [d_child, top]: indices of parent features, -1 where there is none."""
    child_r: np.ndarray
    """float64 [d_child, top]."""
    parent_range: tuple[int, int]
    """First parent feature, and the one behind the last."""
    thresholds: tuple[float, ...]
    """On r, as given."""
    pairs_over: np.ndarray
    """int64 [thresholds]: pairs of features with r above each threshold."""
    histogram: np.ndarray
    """int64 [bins]: all pairs of live (not constant) features, by floor((r + 1) * bins / 2); r = 1 in the last bin."""


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


def stats_of(sums: Moments, matrix: Sparse) -> Stats:
    """Mean and one over the centered norm (0 for a constant one) of each column, from the matrix and its sums."""
    norm = np.sqrt(sums.square)
    scale = np.divide(1.0, norm, out=np.zeros_like(norm), where=norm > 0)
    return Stats(sums.total / max(len(matrix.indptr) - 1, 1), scale)


def tiles(sizes: np.ndarray, limit: int) -> Iterator[tuple[int, int]]:
    """Cut [0, len(sizes)) into ranges whose sizes sum to `limit` at most, each as long as it can be; one at least."""
    reached = np.concatenate([[0], np.cumsum(sizes)])
    start = 0
    while start < len(sizes):
        stop = max(start + 1, int(np.searchsorted(reached, reached[start] + limit, side="right")) - 1)
        yield start, stop
        start = stop


def _chunks(live: np.ndarray, firings: np.ndarray, mean_row: float, d_child: int, number: int) -> list[np.ndarray]:
    """The live features, costliest first, cut into about `number` chunks of similar cost (products to add up)."""
    cost = firings * (mean_row + 1.0) + d_child
    order = np.argsort(-cost, kind="stable")
    reached = np.cumsum(cost[order])
    number = min(len(live), number)
    cuts = np.searchsorted(reached, np.arange(1, number) * (reached[-1] / number)) + 1 if number else []
    return [chunk for chunk in np.split(live[order], cuts) if len(chunk)]


def empty_best(features: int, top: int) -> Best:
    """Lists that hold nothing yet."""
    return Best(np.full((features, top), -np.inf), np.full((features, top), -1, np.int32))


def merged(lists: Sequence[Best]) -> Best:
    """The best of several lists of the same features, in the order that one list of all would have."""
    top = lists[0].r.shape[1]
    r, match = np.concatenate([best.r for best in lists], 1), np.concatenate([best.match for best in lists], 1)
    order = np.lexsort((match, -r), axis=1)[:, :top]
    return Best(np.take_along_axis(r, order, 1), np.take_along_axis(match, order, 1))


def join(parts: Sequence[TopPearson]) -> TopPearson:
    """What one call gives for the parent features of all parts, from calls on ranges that follow each other.

    It has the same bits. Raises `ValueError` when the ranges, put in order, do not meet, or the parts differ in
    `top`, child or thresholds.
    """
    parts = sorted(parts, key=lambda part: part.parent_range)
    ranges = [part.parent_range for part in parts]
    if not parts or any(a[1] != b[0] for a, b in zip(ranges[:-1], ranges[1:], strict=True)):
        raise ValueError(f"parent ranges {ranges} do not follow each other; join ranges without gap or overlap")
    kinds = {(part.child_r.shape, part.thresholds, len(part.histogram)) for part in parts}
    if len(kinds) > 1:
        raise ValueError(f"parts differ in (child lists, thresholds, bins): {sorted(kinds)}; make them alike")
    lists = [Best(np.where(part.child_match < 0, -np.inf, part.child_r), part.child_match) for part in parts]
    child = merged(lists)
    return TopPearson(
        np.concatenate([part.parent_match for part in parts]),
        np.concatenate([part.parent_r for part in parts]),
        child.match,
        without_infinity(child),
        (ranges[0][0], ranges[-1][1]),
        parts[0].thresholds,
        np.sum([part.pairs_over for part in parts], axis=0),
        np.sum([part.histogram for part in parts], axis=0),
    )


def without_infinity(best: Best) -> np.ndarray:
    """r of the lists with nan where there is no partner."""
    return np.where(best.match < 0, np.nan, best.r)


def default_workers() -> int:
    """Threads to use: `NUMBA_NUM_THREADS` if set, else the processors this process may run on."""
    if "NUMBA_NUM_THREADS" in os.environ:
        return max(1, int(os.environ["NUMBA_NUM_THREADS"]))
    return processors()


class _Thread(NamedTuple):
    """What one thread alone writes."""

    scratch: Scratch
    child_best: Best
    tally: Tally


def _threads(number: int, child_scale: np.ndarray, top: int, thresholds: Sequence[float], bins: int) -> list[_Thread]:
    d_child = len(child_scale)
    return [
        _Thread(
            Scratch(np.empty(d_child), np.where(child_scale > 0, -np.inf, np.inf)),
            empty_best(d_child, top),
            Tally(np.array(thresholds, np.float64), np.zeros(len(thresholds), np.int64), np.zeros(bins, np.int64)),
        )
        for _ in range(number)
    ]


class _Work(NamedTuple):
    """What all threads read."""

    parent: Sparse
    child: Sparse
    stats: Stats
    child_stats: Stats
    pool: ThreadPoolExecutor


def _match_tile(work: _Work, threads: list[_Thread], tile: tuple[int, int], best: Best) -> Iterator[int]:
    """Match a range of parent features, whose lists are `best`; yields how many were done each time some are."""
    start, stop = tile
    child, tokens = work.child, len(work.child.indptr) - 1
    columns = transpose(work.parent, start, stop, len(threads))
    stats = Stats(work.stats.mean[start:stop], work.stats.scale[start:stop])
    free: SimpleQueue[_Thread] = SimpleQueue()
    for thread in threads:
        free.put(thread)

    def match(chunk: np.ndarray) -> int:
        own = free.get()
        match_features(
            chunk, start, columns[:3], child[:3], stats, work.child_stats, float(tokens), own.scratch, best,
            own.child_best, own.tally,
        )  # fmt: skip
        free.put(own)
        return len(chunk)

    live = np.flatnonzero(stats.scale > 0)
    mean_row = len(child.indices) / max(tokens, 1)
    chunks = _chunks(live, np.diff(columns.indptr)[live], mean_row, child.width, 32 * len(threads))
    yield from work.pool.map(match, [chunk + start for chunk in chunks])


def checked_range(parent: Sparse, child: Sparse, top: int, parent_range: tuple[int, int] | None) -> tuple[int, int]:
    """The range of parent features to match. Raises `ValueError` for arguments that `top_pearson` refuses."""
    tokens = len(child.indptr) - 1
    if len(parent.indptr) - 1 != tokens:
        raise ValueError(f"parent has {len(parent.indptr) - 1} tokens and child {tokens}; give aligned activations")
    if top < 1:
        raise ValueError(f"top={top} keeps no match; use 1 or more")
    start, stop = (0, parent.width) if parent_range is None else parent_range
    if not 0 <= start <= stop <= parent.width:
        raise ValueError(f"parent_range={start, stop} is no range of {parent.width} features")
    return start, stop


def top_pearson(
    parent: Sparse,
    child: Sparse,
    top: int,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    *,
    memory: int = MEMORY,
    parent_range: tuple[int, int] | None = None,
    thresholds: Sequence[float] = THRESHOLDS,
    bins: int = BINS,
) -> TopPearson:
    """The `top` best Pearson partners of each column of `parent` in `child` and the reverse, over all their rows.

    Both matrices are tokens x features with the same tokens; entries that are not stored are zeros and count. A column
    that is constant (never fires, for one) has no partner and is nobody's partner. Sums are float64 in token order, so
    the result has the same bits for any number of `workers` (threads; default all processors), any `memory`, and any
    division into ranges: `join` puts the results for several `parent_range`s (start, stop) together.

    memory: bytes beside the arguments and the result. The lists take workers x d_child x (12 top + 16) of them; the
    rest holds the firings of a tile of parent features, 8 bytes each, of one feature at least. Every tile costs one
    walk through the parent. thresholds: on r, over which pairs are counted. bins: of the histogram; 0 for none.

    Work is one multiplication and addition for each pair of features and each token on which both fire. The threads are
    Python's, which the compiled loop lets run by releasing the interpreter lock: unlike with numba's own pool several
    callers can run at once, nothing global is set, and chunks go to whoever is free.
    Raises `ValueError` when the rows differ in number, `top` is below 1 or the range leaves the parent.
    """
    start, stop = checked_range(parent, child, top, parent_range)
    workers = workers or default_workers()
    best = empty_best(stop - start, top)
    with ThreadPoolExecutor(workers) as pool:
        sums, child_sums = pool.map(moments, (parent, child))
        work = _Work(parent, child, stats_of(sums, parent), stats_of(child_sums, child), pool)
        threads = _threads(workers, work.child_stats.scale, top, thresholds, bins)
        room = max(0, memory - workers * child.width * (12 * top + 16)) // 8
        live = int((work.stats.scale[start:stop] > 0).sum())
        done = 0
        for a, b in tiles(sums.stored[start:stop], room):
            for matched in _match_tile(work, threads, (start + a, start + b), Best(best.r[a:b], best.match[a:b])):
                done += matched
                if progress is not None:
                    progress(done, live)
    histogram = np.sum([thread.tally.histogram for thread in threads], axis=0)
    # The compiled loop counts constant child features as r = 0.
    histogram[bins // 2 : bins // 2 + 1] -= live * int((work.child_stats.scale == 0).sum())
    child_best = merged([thread.child_best for thread in threads])
    return TopPearson(
        best.match,
        without_infinity(best),
        child_best.match,
        without_infinity(child_best),
        (start, stop),
        tuple(thresholds),
        np.sum([thread.tally.over for thread in threads], axis=0),
        histogram,
    )
