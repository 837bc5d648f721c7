"""The best Pearson partners of every feature, both ways, without ever holding the matrix of all pairs.

One parent feature at a time: the child's rows at its firings are added up into one float64 row of products, the row
becomes r through sums known beforehand, the best are kept and the rest counted. The parent is transposed a tile of
features at a time; the child's features stand in the order of their firings, so that those that are often added to
lie together. A feature that shares tokens with few of the child's looks at these alone: all others have an r just below
0, which fills no list that has enough above it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from queue import SimpleQueue
from typing import NamedTuple

import numpy as np

from heredity.kernels.processors import default_workers
from heredity.kernels.sparse import Moments, Sparse, compiled, in_ranges, moments, prefetch, transpose

THRESHOLDS = tuple(step / 100 for step in range(50, 100, 5))  # on r, over which pairs are counted
BINS = 200  # of the histogram of r over [-1, 1]
MEMORY = 1 << 29  # bytes that the lists and a tile of the parent may take
_PLACES_PER_LINE, _VALUES_PER_LINE = 32, 16
_AHEAD = np.uint64(8)  # firings between the hint and the use of a child row; the speed is flat between 4 and 32
_TWICE_AHEAD = np.uint64(16)
_ONE = np.uint64(1)
_FEW = 0.25  # share of the child's features below which those that a feature shares tokens with are looked at alone
_WAIT = 16  # features that are matched with all after one that shared tokens with more
_LEAST_R, _MOST_R = 1e-14, 0.99  # of pairs without common tokens: r below 0 for sure, and |r| within the bin next to 0
_BLOCK = 128  # pairs screened together: nearly all blocks hold nothing to keep and nothing unusual to count


class TopPearson(NamedTuple):
    """The best partners of each feature, best first, ties to the lower index; and counts over all pairs.

    For a range of parent features, the parent's lists are those of the range and everything else counts its pairs only.
    """

    parent_match: np.ndarray  # int32 [d_parent, top]: child features, -1 where there is none
    parent_r: np.ndarray  # float64 [d_parent, top]: their correlations, nan where there is none
    child_match: np.ndarray  # int32 [d_child, top]: parent features, -1 where there is none
    child_r: np.ndarray  # float64 [d_child, top]
    parent_range: tuple[int, int]  # the first parent feature, and the one behind the last
    thresholds: tuple[float, ...]  # on r
    pairs_over: np.ndarray  # int64 [thresholds]: pairs of features with r above each threshold
    histogram: np.ndarray  # int64 [bins]: pairs of live (not constant) features by floor((r + 1) * bins / 2)


class Stats(NamedTuple):
    """What turns the products of a feature into its r."""

    mean: np.ndarray  # float64 [features]: over all tokens
    scale: np.ndarray  # float64 [features]: one over the centered norm; 0 for a constant feature


class Best(NamedTuple):
    """Lists of best partners, best first, ties to the lower index."""

    r: np.ndarray  # float64 [features, top]: -inf where the list is not full
    match: np.ndarray  # int32 [features, top]: -1 where the list is not full


class _Child(NamedTuple):
    """The child, whose features have places: those that vary come first, of these the most frequent."""

    indptr: np.ndarray  # int64 [rows + 1]
    places: np.ndarray  # uint16 or uint32 [nnz]: of the feature of each entry
    values: np.ndarray  # float32 [nnz]
    features: np.ndarray  # int32 [stored]: the feature at each place; those that are never stored have none
    mean: np.ndarray  # float64 [vary]
    scale: np.ndarray  # float64 [vary]


class _Thread(NamedTuple):
    """What one thread alone writes, by the child's places."""

    products: np.ndarray  # float64 [stored]: first sums of products, then r
    stamp: np.ndarray  # int32 [stored]: the last parent feature that added to a product without going through all
    touched: np.ndarray  # int32 [stored + 1]: the places whose products it added to
    r: np.ndarray  # float64 [stored]: of these places
    worst: np.ndarray  # float64 [vary]: r to exceed for a child feature's list
    child_best: Best
    over: np.ndarray  # int64 [thresholds]: as `pairs_over`
    histogram: np.ndarray  # int64 [bins]


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

    Both matrices are tokens x features of the same tokens; entries that are not stored are zeros and count. A column
    that is constant (never fires, for one) has no partner and is nobody's partner. Sums are float64 in token order, so
    the result has the same bits for any number of `workers` (threads; default one per free processor), any `memory`,
    and any division into `parent_range`s (start, stop), which `join` puts together.

    memory: bytes beside the arguments and the result. The lists take workers x d_child x (12 top + 32) of them, and the
    places of the child's entries 2 bytes each, or 4 with more than 65,536 features; the rest holds the firings of a
    tile of parent features, 8 bytes each. Every tile costs one walk through the parent.
    bins: of the histogram; 0 for none. Work is one multiply-add per pair of features and token on which both fire.
    Raises `ValueError` when `top` is below 1 or the range leaves the parent.
    """
    start, stop = checked_range(parent, top, parent_range)
    workers = workers or default_workers()
    tokens, d_child = len(child.indptr) - 1, child.width
    best = empty_best(stop - start, top)
    free: SimpleQueue[_Thread] = SimpleQueue()
    limits = np.array(thresholds, np.float64)

    def match(columns: Sparse, stats: Stats, best: Best, first: int, features: np.ndarray) -> int:
        thread, given = free.get(), (first, columns[:3], placed, stats, float(tokens), limits, best)
        skipped.append(_match_features(features, *given, near_zero, int(_FEW * vary), thread))
        free.put(thread)
        return len(features)

    # Python's threads, unlike numba's own pool, let several callers run at once, and chunks go to whoever is free.
    with ThreadPoolExecutor(workers) as pool:
        sums, child_sums = pool.map(moments, (parent, child))
        stats, child_stats = stats_of(sums, parent), stats_of(child_sums, child)
        placed = _placed(child, child_sums.stored, child_stats, workers)
        threads, skipped = list[_Thread](), list[bool]()
        stored, vary = len(placed.features), len(placed.mean)
        for _ in range(workers):
            room = np.empty(stored), np.full(stored, -1, np.int32), np.empty(stored + 1, np.int32), np.empty(stored)
            counts = np.zeros(len(limits), np.int64), np.zeros(bins, np.int64)
            threads.append(_Thread(*room, np.full(vary, -np.inf), empty_best(vary, top), *counts))
            free.put(threads[-1])
        done, live = 0, int((stats.scale[start:stop] > 0).sum())
        mean_row, near_zero = len(child.indices) / max(tokens, 1), _near_zero(placed, limits, bins)
        room = max(0, memory - workers * d_child * (12 * top + 32) - placed.places.nbytes) // 8
        for a, b in tiles(sums.stored[start:stop], room):
            first, last = start + a, start + b
            columns = transpose(parent, first, last, workers)
            tile_stats = Stats(stats.mean[first:last], stats.scale[first:last])
            features = np.flatnonzero(tile_stats.scale > 0)
            cost = np.diff(columns.indptr)[features] * (mean_row + 1.0) + vary
            task = partial(match, columns, tile_stats, Best(best.r[a:b], best.match[a:b]), first)
            for matched in pool.map(task, _chunks(features + first, cost, 32 * workers)):
                done += matched
                if progress is not None:
                    progress(done, live)
    child_best = empty_best(d_child, top)
    own = merged([thread.child_best for thread in threads])
    child_best.r[placed.features[:vary]], child_best.match[placed.features[:vary]] = own.r, own.match
    lacking = np.flatnonzero((child_stats.scale > 0) & (child_best.r[:, -1] < 0))
    if any(skipped) and len(lacking):  # parent features with which they share no token may be among their best
        columns, given = transpose(child, workers=workers)[:3], (parent[:3], child_stats, stats, float(tokens))
        with ThreadPoolExecutor(workers) as pool:
            parts = np.array_split(lacking, min(len(lacking), 4 * workers))
            list(pool.map(lambda part: _list_all(part, columns, *given, start, stop, child_best), parts))
    over, histogram = (np.sum([getattr(thread, name) for thread in threads], axis=0) for name in ("over", "histogram"))
    return TopPearson(*listed(best), *listed(child_best), (start, stop), tuple(thresholds), over, histogram)


def checked_range(parent: Sparse, top: int, parent_range: tuple[int, int] | None) -> tuple[int, int]:
    """The range of parent features to match. Raises `ValueError` as `top_pearson` does."""
    if top < 1:
        raise ValueError(f"top={top} keeps no match; use 1 or more")
    start, stop = (0, parent.width) if parent_range is None else parent_range
    if not 0 <= start <= stop <= parent.width:
        raise ValueError(f"parent_range={start, stop} is no range of {parent.width} features")
    return start, stop


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


def _placed(child: Sparse, stored: np.ndarray, stats: Stats, workers: int) -> _Child:
    """stored: int64 [d_child], entries of each feature."""
    constant = stats.scale == 0
    features = np.lexsort((-stored, constant))[: np.count_nonzero(stored)].astype(np.int32)
    vary = features[: np.count_nonzero(~constant[features])]
    of_feature = np.zeros(child.width, np.uint16 if child.width <= 1 << 16 else np.uint32)
    of_feature[features] = np.arange(len(features))
    places = np.empty(len(child.indices), of_feature.dtype)

    def place(a: int, b: int) -> None:
        np.take(of_feature, child.indices[a:b], out=places[a:b], mode="clip")

    in_ranges(place, len(places), len(places), threads=workers)
    return _Child(child.indptr, places, child.values, features, stats.mean[vary], stats.scale[vary])


class _NearZero(NamedTuple):
    """What tells r of a pair without common tokens."""

    places: np.ndarray  # int64: of the child's features that vary, largest size first; none: look at all pairs
    sizes: np.ndarray  # float64: their means over their norms, to which such an r is proportional


def _near_zero(child: _Child, thresholds: np.ndarray, bins: int) -> _NearZero:
    """Empty where such pairs have to be looked at: where r may be above 0, or is counted in a bin that 0 is in, too."""
    sizes = child.mean * child.scale
    places = np.argsort(-sizes, kind="stable")
    if not len(places) or sizes[places[-1]] <= 0 or bins % 2 or (len(thresholds) and thresholds.min() < 0):
        places = places[:0]
    return _NearZero(places, sizes[places])


def _chunks(features: np.ndarray, cost: np.ndarray, number: int) -> list[np.ndarray]:
    """The features, costliest first, cut into about `number` chunks of similar cost (products to add up)."""
    order = np.argsort(-cost, kind="stable")
    reached = np.cumsum(cost[order])
    number = min(len(features), number)
    cuts = np.searchsorted(reached, np.arange(1, number) * (reached[-1] / number)) + 1 if number else []
    return [chunk for chunk in np.split(features[order], cuts) if len(chunk)]


def empty_best(features: int, top: int) -> Best:
    return Best(np.full((features, top), -np.inf), np.full((features, top), -1, np.int32))


def listed(best: Best) -> tuple[np.ndarray, np.ndarray]:
    """(match, r) of the lists, r nan where there is no partner."""
    return best.match, np.where(best.match < 0, np.nan, best.r)


def merged(lists: Sequence[Best]) -> Best:
    """The best of several lists of the same features, in the order that one list of all would have."""
    top = lists[0].r.shape[1]
    r, match = np.concatenate([best.r for best in lists], 1), np.concatenate([best.match for best in lists], 1)
    order = np.lexsort((match, -r), axis=1)[:, :top]
    return Best(np.take_along_axis(r, order, 1), np.take_along_axis(match, order, 1))


def join(parts: Sequence[TopPearson]) -> TopPearson:
    """The result of one call, bit for bit, from calls on ranges of parent features that follow each other.

    Raises `ValueError` when the ranges, put in order, do not meet, or the parts differ in `top`, child or thresholds.
    """
    parts = sorted(parts, key=lambda part: part.parent_range)
    ranges = [part.parent_range for part in parts]
    if not parts or any(a[1] != b[0] for a, b in zip(ranges[:-1], ranges[1:], strict=True)):
        raise ValueError(f"parent ranges {ranges} do not follow each other; join ranges without gap or overlap")
    kinds = {(part.child_r.shape, part.thresholds, len(part.histogram)) for part in parts}
    if len(kinds) > 1:
        raise ValueError(f"parts differ in (child lists, thresholds, bins): {sorted(kinds)}; make them alike")
    child = merged([Best(np.where(part.child_match < 0, -np.inf, part.child_r), part.child_match) for part in parts])
    return TopPearson(
        np.concatenate([part.parent_match for part in parts]),
        np.concatenate([part.parent_r for part in parts]),
        *listed(child),
        (ranges[0][0], ranges[-1][1]),
        parts[0].thresholds,
        np.sum([part.pairs_over for part in parts], axis=0),
        np.sum([part.histogram for part in parts], axis=0),
    )


@compiled()
def add_products(rows, weights, indptr, places, values, products):
    """products[c] += sum over n of weights[n] * child[rows[n], c]; unsigned indices spare the test for wrapping."""
    products[:] = 0.0
    firings = np.uint64(len(rows))
    for n in range(firings):
        if n + _TWICE_AHEAD < firings:
            prefetch(indptr, np.int64(rows[n + _TWICE_AHEAD]))
        if n + _AHEAD < firings:
            soon = np.uint64(rows[n + _AHEAD])
            start, end = np.int64(indptr[soon]), np.int64(indptr[soon + _ONE])
            for k in range(start, end, _PLACES_PER_LINE):
                prefetch(places, k)
            for k in range(start, end, _VALUES_PER_LINE):
                prefetch(values, k)
            # Rows do not begin where lines do.
            prefetch(places, end - 1)
            prefetch(values, end - 1)
        token, weight = np.uint64(rows[n]), np.float64(weights[n])
        for k in range(np.uint64(indptr[token]), np.uint64(indptr[token + _ONE])):
            products[np.uint64(places[k])] += weight * values[k]


@compiled()
def _add_few(rows, weights, indptr, places, values, feature, stamp, touched, products):
    """Like `add_products`, without clearing all: those that are touched get the feature's stamp and begin at 0. Returns
    their number. Loads ahead as that one does; as a function of both, it would take half as long again."""
    n, firings = 0, np.uint64(len(rows))
    for f in range(firings):
        if f + _TWICE_AHEAD < firings:
            prefetch(indptr, np.int64(rows[f + _TWICE_AHEAD]))
        if f + _AHEAD < firings:
            soon = np.uint64(rows[f + _AHEAD])
            start, end = np.int64(indptr[soon]), np.int64(indptr[soon + _ONE])
            for k in range(start, end, _PLACES_PER_LINE):
                prefetch(places, k)
            for k in range(start, end, _VALUES_PER_LINE):
                prefetch(values, k)
            prefetch(places, end - 1)
            prefetch(values, end - 1)
        token, weight = np.uint64(rows[f]), np.float64(weights[f])
        for k in range(np.uint64(indptr[token]), np.uint64(indptr[token + _ONE])):
            c = np.uint64(places[k])
            # Written whether new or not, and overwritten by the next one if not: no branch to mispredict.
            touched[n], before = places[k], products[c]
            n += np.int64(stamp[c] != feature)
            products[c] = (before if stamp[c] == feature else 0.0) + weight * values[k]
            stamp[c] = feature
    return n


@compiled()
def insert(best_r, best, r, index):
    """Put (r, index) into a list sorted by falling r, then rising index, if it belongs there."""
    at = len(best_r) - 1
    if r < best_r[at] or (r == best_r[at] and index > best[at]):
        return
    while at > 0 and (r > best_r[at - 1] or (r == best_r[at - 1] and index < best[at - 1])):
        best_r[at], best[at] = best_r[at - 1], best[at - 1]
        at -= 1
    best_r[at], best[at] = r, index


@compiled()
def _to_r(products, tokens, mean, scale, child_mean, child_scale, worst, limit):
    """Turn a block of products into r in place; returns how many are worth a second look.

    The means are multiplied first, and so are the scales: swapping parent and child then gives the same bits.
    """
    near = 0
    for c in range(len(products)):
        r = (products[c] - tokens * (mean * child_mean[c])) * (scale * child_scale[c])
        r = min(1.0, max(-1.0, r))
        products[c] = r
        near += (r >= worst[c]) | (r >= limit)
    return near


@compiled()
def _count_bins(r, histogram):
    """Add a block of r to the histogram; the two bins around 0, where most r lie, are counted without a scatter."""
    bins = len(histogram)
    half, middle = bins / 2.0, bins // 2
    below, above = 0, 0
    for c in range(len(r)):
        at = np.int32((r[c] + 1.0) * half)
        below += at == middle - 1
        above += at == middle
    if below + above == len(r):
        histogram[middle - 1] += below
        histogram[middle] += above
        return
    for c in range(len(r)):
        histogram[min(bins - 1, np.int64((r[c] + 1.0) * half))] += 1


@compiled()
def _keep(parent, first, r, features, thresholds, lowest, best_r, best, thread):
    """Offer a block of r, from the child's place `first` on, to the lists of both sides; count those above thresholds,
    of which `lowest` is the lowest."""
    last = len(best_r) - 1
    child_best, worst = thread.child_best, thread.worst
    for c in range(len(r)):
        place = first + c
        if r[c] >= best_r[last]:
            insert(best_r, best, r[c], features[place])
        if r[c] >= worst[place]:
            insert(child_best.r[place], child_best.match[place], r[c], parent)
            worst[place] = child_best.r[place, last]
        if r[c] > lowest:
            for n in range(len(thresholds)):
                thread.over[n] += r[c] > thresholds[n]


@compiled()
def _match_touched(n, p, parent, child, stats, tokens, thresholds, lowest, best, near_zero, thread):
    """Match a parent feature with the n places that it touched, and with those whose r may yet be far from 0; False,
    and nothing is kept, where too few of them have an r of 0 or more to fill its list.

    p: its place in `stats` and `best`.
    """
    products, stamp, touched, found = thread.products, thread.stamp, thread.touched, thread.r
    mean, scale, last, vary = stats.mean[p], stats.scale[p], best.r.shape[1] - 1, len(child.mean)
    bins, middle, feature = len(thread.histogram), len(thread.histogram) // 2, np.int32(parent)
    reach = tokens * mean * scale
    for place in range(len(near_zero.sizes)):
        if reach * near_zero.sizes[place] * max(middle, 1) < _MOST_R:
            break
        c = near_zero.places[place]
        if stamp[c] != feature:
            stamp[c], touched[n], products[c] = feature, c, 0.0
            n += 1
    above, constant = 0, 0
    for t in range(n):
        c = touched[t]
        if c >= vary:
            constant, found[t] = constant + 1, -np.inf
            continue
        r = (products[c] - tokens * (mean * child.mean[c])) * (scale * child.scale[c])
        found[t] = min(1.0, max(-1.0, r))
        above += found[t] >= 0.0
    if above <= last:
        return False
    for t in range(n):
        r, c = found[t], touched[t]
        if r == -np.inf:
            continue
        if r >= best.r[p, last]:
            insert(best.r[p], best.match[p], r, child.features[c])
        if r >= thread.worst[c]:
            insert(thread.child_best.r[c], thread.child_best.match[c], r, parent)
            thread.worst[c] = thread.child_best.r[c, last]
        if r > lowest:
            for m in range(len(thresholds)):
                thread.over[m] += r > thresholds[m]
        if bins > 0:
            thread.histogram[min(bins - 1, np.int64((r + 1.0) * (bins / 2.0)))] += 1
    if bins > 0:
        thread.histogram[middle - 1] += vary - (n - constant)
    return True


@compiled()
def _list_all(children, columns, parent, child_stats, stats, tokens, start, stop, child_best):
    """Make the lists of some child features anew, from all parent features of the range. columns: of the child."""
    starts, rows, weights = columns
    products = np.empty(len(stats.mean))
    for c in children:
        firings = slice(starts[c], starts[c + 1])
        add_products(rows[firings], weights[firings], parent[0], parent[1], parent[2], products)
        child_best.r[c], child_best.match[c] = -np.inf, -1
        for p in range(start, stop):
            if stats.scale[p] > 0.0:
                r = (products[p] - tokens * (stats.mean[p] * child_stats.mean[c])) * (
                    stats.scale[p] * child_stats.scale[c]
                )
                insert(child_best.r[c], child_best.match[c], min(1.0, max(-1.0, r)), p)


@compiled()
def _match_features(features, first, columns, child, stats, tokens, thresholds, best, near_zero, few, thread):
    """Match each of the parent `features` with all of the child's that vary; `columns`, `stats` and `best` start at
    `first`. Returns whether one looked only at features that it shares tokens with.

    columns: (indptr, rows, values) by features. few: the most places that are looked at alone.
    """
    (starts, rows, weights), (indptr, places, values) = columns, child[:3]
    products, vary, wait, skipped = thread.products, len(child.mean), 0, False
    lowest = np.inf
    for threshold in thresholds:
        lowest = min(lowest, threshold)
    for feature in features:
        p, wait = feature - first, wait - 1
        firings, mean, scale = slice(starts[p], starts[p + 1]), stats.mean[p], stats.scale[p]
        if wait < 0 and len(near_zero.sizes) and tokens * mean * scale * near_zero.sizes[-1] > _LEAST_R:
            own, stamp = np.int32(feature), thread.stamp
            n = _add_few(rows[firings], weights[firings], indptr, places, values, own, stamp, thread.touched, products)
            if n > few:
                wait = _WAIT
            elif _match_touched(n, p, feature, child, stats, tokens, thresholds, lowest, best, near_zero, thread):
                skipped = True
                continue
            for c in range(len(products)):
                if stamp[c] != own:
                    products[c] = 0.0
        else:
            add_products(rows[firings], weights[firings], indptr, places, values, products)
        for start in range(0, vary, _BLOCK):
            block = slice(start, min(start + _BLOCK, vary))
            r, worst, limit = products[block], thread.worst[block], min(lowest, best.r[p, -1])
            near = _to_r(r, tokens, mean, scale, child.mean[block], child.scale[block], worst, limit)
            if near:
                _keep(feature, start, r, child.features, thresholds, lowest, best.r[p], best.match[p], thread)
            if len(thread.histogram):
                _count_bins(r, thread.histogram)
    return skipped
