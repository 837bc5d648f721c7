"""Compiled loops of encoding: the candidates that a screen leaves, their pre-activations, and the k largest of them.

Loops over whole rows are written so that they become vector instructions: comparisons are counted in int32, and the
largest of several numbers is found through the bits of floats, which are ordered as the floats are.
"""

from __future__ import annotations

from functools import reduce

import numpy as np
from numba import types
from numba.extending import overload

from heredity.kernels.masks import BLOCK, above, larger, lowest
from heredity.kernels.screens import IN_TILES, Screen, float_of, widen
from heredity.kernels.sparse import AHEAD, FAST, compiled, load_ahead
from heredity.kernels.tiles import LARGEST_GROUP, LOWEST, VECTORS, in_a_group, largest_of_groups
from heredity.kernels.words import LANES as TILE_LANES
from heredity.kernels.words import dots

LANES = 16  # features of a group, of which the largest stands for all
GROUPS_PER_ACTIVE = 16  # of k active features, below which too many groups hold one to look into them singly
COARSE = 8  # groups of integer products whose largest is looked at first
LEFT_TO_VECTORS = 4  # a share 1/4 of groups left, from which looking at all features at once is faster


def _number(product):
    """The float32 of one of `screens.products`; in compiled code only."""
    raise NotImplementedError


@overload(_number, inline="always")
def _number_of(product):
    if product == types.uint16:
        return lambda product: widen(product)
    return lambda product: np.float32(product)


@compiled({"contract"})
def _upper(products, scale, reach, slack, rel, w_scale, w_norm, w_rounding, base, sizes, bounds):
    """Upper bounds of how far the pre-activations of a token lie above the floor, float32 [d_sae].

    base: bias less floor; sizes: the sum of both without their signs, of which `base` may be off by its rounding.
    """
    for j in range(len(products)):
        p = scale * w_scale[j] * _number(products[j])
        error = rel * (abs(p) + abs(base[j]) + sizes[j]) + slack * w_norm[j] + reach * w_rounding[j]
        bounds[j] = p + base[j] + error


@compiled({"contract"})
def _middle(products, scale, w_scale, base, middle):
    for j in range(len(products)):
        middle[j] = scale * w_scale[j] * _number(products[j]) + base[j]


@compiled({"contract"})
def _shifted(bias, x, weight, base):
    """Write bias + x @ weight, for the few columns that are multiplied in float32."""
    for j in range(len(base)):
        base[j] = bias[j]
    for c in range(len(x)):
        row = weight[c]
        for j in range(len(base)):
            base[j] += x[c] * row[j]


@compiled({"contract"})
def _group_maxima(products, scale, w_scale, base, maxima):
    """What the screen finds largest in each group of pre-activations: the entries `len(maxima)` apart."""
    stride = len(maxima)
    for b in range(stride):
        maxima[b] = scale * w_scale[b] * _number(products[b]) + base[b]
    for start in range(stride, len(products), stride):
        part, factors, added = products[start : start + stride], w_scale[start:], base[start:]
        for b in range(len(part)):
            maxima[b] = larger(maxima[b], scale * factors[b] * _number(part[b]) + added[b])


@compiled({"contract"})
def _largest_of_groups(row, maxima):
    """The largest of each group of the entries of a row."""
    stride = len(maxima)
    for b in range(stride):
        maxima[b] = row[b]
    for start in range(stride, len(row), stride):
        part = row[start : start + stride]
        for b in range(len(part)):
            maxima[b] = larger(maxima[b], part[b])


@compiled({"contract"})
def _group_bounds(maxima, by_norm, by_rounding, rel, groups, bounds):
    """Upper bounds of what `_upper` finds in each group, float32 [groups]."""
    for b in range(len(maxima)):
        bounds[b] = maxima[b] + by_norm * groups[0, b] + by_rounding * groups[1, b] + rel * groups[2, b]


def groups_of(screen: Screen, sizes: np.ndarray) -> np.ndarray:
    """Of each group of features the largest norm, rounding, and of `sizes` [d_sae]; float32 [3, groups].

    A group are features that lie `groups` apart, or, of a screen of integers, those that follow one another in its
    tiles.
    """
    d_sae, consecutive = len(sizes), screen.kind in IN_TILES
    size = in_a_group(d_sae) if consecutive else LANES
    whole = size * TILE_LANES if consecutive else size
    filled = np.zeros((3, -(-d_sae // whole) * whole), np.float32)
    filled[:, :d_sae] = screen.norm, screen.rounding, sizes
    shape, axis = ((3, -1, size), 2) if consecutive else ((3, size, -1), 1)
    return reduce(np.maximum, np.moveaxis(filled.reshape(shape), axis, 0))


@compiled()
def _mark(marks, j):
    marks[j // BLOCK] |= np.uint64(1) << np.uint64(j % BLOCK)


@compiled()
def _marked(marks, features):
    """Write the numbers of the bits that are set, rising, and clear them; return how many."""
    n = 0
    for block in range(len(marks)):
        mask = marks[block]
        marks[block] = 0
        while mask:
            features[n] = block * BLOCK + lowest(mask)
            n += 1
            mask &= mask - np.uint64(1)
    return n


@compiled()
def candidates_of(
    products, scale, reach, slack, apart, x, counts, rel, w_scale, w_norm, w_rounding, w_apart, groups, weight, bias,
    plain, sizes, k, limit
):  # fmt: skip
    """Features that may be active on each row, rising, int32 [nnz], and what is known of their pre-activations.

    products: [n, d_sae]; scale, reach, slack: float32 [n]; apart [n, m] and w_apart [m, d_sae]: columns that `products`
    leaves out; groups: `groups_of`; plain and sizes: bias less floor, which is 0 with k, and the sum of both without
    their signs, float32 [d_sae]. counts: int64 [n], written; -1 for more than `limit` candidates. Pre-activations:
    float32 [nnz], nan where they are still to be summed.

    One pass over a row finds the largest of each group. Groups whose bound is below the cut hold no candidate, and
    unless many are left, only their features are looked at one by one.
    """
    n, d_sae = products.shape
    stride = groups.shape[1]
    maxima, group_bounds, near = (
        np.empty(stride, np.float32),
        np.empty(stride, np.float32),
        np.empty(stride + 1, np.int32),
    )
    bounds, shifted, base, cut = np.empty(d_sae, np.float32), np.empty(d_sae, np.float32), plain, np.float32(0)
    first, exact = np.empty(d_sae + 1, np.int32), np.empty(d_sae, np.float32)
    few = stride < GROUPS_PER_ACTIVE * k
    marks = np.zeros((d_sae + BLOCK - 1) // BLOCK, np.uint64)
    features, at = np.empty(n * limit + d_sae + 1, np.int32), 0
    values = np.empty(n * limit, np.float32)
    for i in range(n):
        if not reach[i] + slack[i] < np.inf:
            # A norm beyond the largest float32 bounds nothing: every feature is decided.
            counts[i] = d_sae if d_sae <= limit else -1
            for j in range(max(counts[i], 0)):
                features[at], values[at] = j, np.nan
                at += 1
            continue
        row, known, own = products[i], 0, np.float32(0)
        if len(w_apart) > 0:
            base = shifted
            _shifted(plain, apart[i], w_apart, base)
            for c in range(len(w_apart)):
                own += abs(apart[i, c])
        if few:
            _middle(row, scale[i], w_scale, base, bounds)
            _largest_of_groups(bounds, maxima)
        else:
            _group_maxima(row, scale[i], w_scale, base, maxima)
        if k > 0:
            # k of those that the screen puts first exceed this cut: what cannot reach it is not among the k largest.
            roughly = bisect(maxima if stride >= k else bounds, k, k + k // 4, 16)
            if few:
                known = collect(bounds, roughly, first)
            else:
                for g in range(collect(maxima, roughly, near)):
                    for j in range(near[g], d_sae, stride):
                        if scale[i] * w_scale[j] * _number(row[j]) + base[j] > roughly:
                            _mark(marks, j)
                known = _marked(marks, first)
            exact[:known] = np.nan
            _sum_row(x, i, weight, bias, first, 0, known, exact)
            cut = below_largest(exact[:known], k)
        if not few:
            # Twice `rel`: once for the products, and for the rounding of these bounds.
            by_norm, by_rounding = slack[i] + 2 * rel * (reach[i] + own), reach[i] * (1 + 2 * rel)
            _group_bounds(maxima, by_norm, by_rounding, 4 * rel, groups, group_bounds)
        left = stride if few else collect(group_bounds, cut, near)
        if left * LEFT_TO_VECTORS > stride:
            _upper(row, scale[i], reach[i], slack[i], rel, w_scale, w_norm, w_rounding, base, sizes, bounds)
            found = collect(bounds, cut, features[at:])
        else:
            for g in range(left):
                b = near[g]
                above_others = group_bounds[b] - maxima[b]
                for j in range(b, d_sae, stride):
                    p = scale[i] * w_scale[j] * _number(row[j])
                    if p + base[j] + above_others > cut:
                        error = (
                            rel * (abs(p) + abs(base[j]) + sizes[j]) + slack[i] * w_norm[j] + reach[i] * w_rounding[j]
                        )
                        if p + base[j] + error > cut:
                            _mark(marks, j)
            found = _marked(marks, features[at:])
        counts[i] = found
        if found > limit:
            counts[i] = -1
            continue
        c, values[at : at + found] = 0, np.nan
        for p in range(at, at + found if known else at):
            while c < known and first[c] < features[p]:
                c += 1
            if c < known and first[c] == features[p]:
                values[p] = exact[c]
        at += found
    return features[:at].copy(), values[:at].copy()


@compiled(FAST)
def _dot(x, i, weight, j):
    # Indexed in both dimensions, because a view of a row is counted, which takes as long as half the sum.
    total = np.float32(0)
    for c in range(x.shape[1]):
        total += x[i, c] * weight[j, c]
    return total


@compiled()
def _sum_row(x, i, weight, bias, features, start, stop, values):
    """x[i]·weight[f] + bias[f] of features start to stop whose value is nan, in place.

    The one place that pre-activations of candidates come from.
    """
    flat, d_in = weight.reshape(-1), x.shape[1]
    for p in range(start, stop):
        if p + AHEAD < stop:
            load_ahead(flat, features[p + AHEAD], d_in)
        if values[p] != values[p]:
            values[p] = _dot(x, i, weight, features[p]) + bias[features[p]]


@compiled()
def sum_pre_acts(x, weight, bias, starts, features, values):
    """Pre-activations of the entries starts[i] to starts[i + 1] of each row i of x [n, d_in], where they are nan."""
    for i in range(len(x)):
        _sum_row(x, i, weight, bias, features, starts[i], starts[i + 1], values)


@compiled()
def _member(act):
    """Which feature of its group one of `largest_of_groups` is of."""
    return np.int64(np.float32(act).view(np.uint32) & np.uint32(LARGEST_GROUP - 1))


@compiled()
def _left_in_groups(
    maxima, seconds, rows, scale, reach, slack, own, x, found, size, w_rows, rel, w_scale, w_apart, groups, weight,
    bias, plain, k, limit
):  # fmt: skip
    """As `candidates_of`, from the two largest that a screen finds in each group of features that follow one another.

    maxima, seconds: `largest_of_groups`, float32 [n, at least groups]; rows and w_rows: what was multiplied, int8 or
    int16 [n, d_in], [d_sae, d_in]; size: features of a group. The products of a group in which more than one may be
    active are made once more, one by one. found: int64 [n], written: how many; -1 where there is no room for more than
    `limit` a row, and where products may overflow. Returns features, what is known of their pre-activations, and int64
    [n + 1] where each row's start.
    """
    n, number, (d_sae, d_in) = len(maxima), groups.shape[1], w_rows.shape
    coarse, cut, weights = np.empty(number // COARSE, np.float32), np.float32(0), weight.reshape(-1)
    # Groups that may hold a candidate; those at the top, and their first features, known exactly.
    near, top, sums = np.empty(number + 1, np.int32), np.empty(number + 1, np.int32), np.empty(size, np.int32)
    first, exact = np.empty(number, np.int32), np.empty(number, np.float32)
    starts = np.zeros(n + 1, np.int64)
    room = n * limit + size  # of which a group that reaches beyond the last feature may need some
    features, values = np.empty(room, np.int32), np.empty(room, np.float32)
    norm, rounding, others = groups[0].max(), groups[1].max(), groups[2].max()
    largest_sum = np.float32(2.0**31) * w_scale.max()
    for i in range(n):
        row, multiplied, known = maxima[i, :number], np.float32(0), 0
        for c in range(own.shape[1]):
            multiplied += abs(own[i, c])
        if k > 0:
            # The first features of at least k groups: what cannot reach the k-th of them is not among the k largest.
            some = row
            if len(coarse) >= GROUPS_PER_ACTIVE * k:
                _largest_of_groups(row, coarse)
                some = coarse
            known = collect(row, bisect(some, k, k + k // 4, 16), top)
            for g in range(known):
                first[g] = top[g] * size + _member(row[top[g]])
                load_ahead(weights, first[g], d_in)
            exact[:known] = np.nan
            _sum_row(x, i, weight, bias, first, 0, known, exact)
            cut = below_largest(exact[:known], k)
        # Four times `rel`: for the products, twice for their last bits, and for the rounding of these bounds.
        most, by_others = reach[i] + multiplied, np.float32(6) * rel
        by_norm, by_rounding = slack[i] + np.float32(4) * rel * most, reach[i] * (np.float32(1) + np.float32(2) * rel)
        surely_below = cut - by_norm * norm - by_rounding * rounding - by_others * others
        has_room = most * norm + others < -LOWEST and largest_sum < -LOWEST
        at, t = starts[i], 0
        for g in range(collect(row, surely_below, near) if has_room else 0):
            b = near[g]
            above = by_norm * groups[0, b] + by_rounding * groups[1, b] + by_others * groups[2, b]
            if not row[b] + above > cut:
                continue
            has_room = at + size <= room
            if not has_room:
                break
            while t < known and top[t] < b:
                t += 1
            best = b * size + _member(row[b])
            value = exact[t] if t < known and top[t] == b else np.float32(np.nan)
            if not seconds[i, b] + above > cut:
                features[at], values[at] = best, value
                at += 1
                continue
            of_group = sums[: min(size, d_sae - b * size)]
            if size > VECTORS:
                dots(rows, i, w_rows, b * size, of_group)
            for p in range(len(of_group)):
                j = b * size + p
                base = plain[j]
                for c in range(own.shape[1]):
                    base += own[i, c] * w_apart[c, j]
                act = scale[i] * (w_scale[j] * np.float32(of_group[p])) + base  # as tiles multiply: steps may be tiny
                features[at], values[at] = j, value if j == best else np.float32(np.nan)
                at += np.int64(size == VECTORS or j == best or act + above > cut)
        found[i] = at - starts[i] if has_room else -1
        starts[i + 1] = at if has_room else starts[i]
    return features[: starts[n]].copy(), values[: starts[n]].copy(), starts


@compiled()
def active_in_groups(
    rows, scale, reach, slack, own, x, found, counts, tiles, w_rows, rel, w_scale, w_apart, groups, weight, bias, plain,
    floor, k, limit
):  # fmt: skip
    """`active_of` for a screen of integers: what they are in place of their products. tiles: `Tiles` of w_rows."""
    size = tiles[0].shape[1] * VECTORS
    maxima, seconds = largest_of_groups(rows, scale, own, tiles)
    features, values, starts = _left_in_groups(
        maxima[: len(rows)], seconds, rows, scale, reach, slack, own, x, found, size, w_rows, rel, w_scale, w_apart,
        groups, weight, bias, plain, k, limit
    )  # fmt: skip
    sum_pre_acts(x, weight, bias, starts, features, values)
    return active_among(starts, features, values, floor, k, counts)


@compiled()
def active_of(
    products, scale, reach, slack, apart, x, found, counts, rel, w_scale, w_norm, w_rounding, w_apart, groups, weight,
    bias, plain, sizes, floor, k, limit
):  # fmt: skip
    """Active features of each row, rising, int32 [nnz], and their activations, float32 [nnz].

    found: int64 [n], written: candidates, -1 for more than `limit`. counts: int64 [n], written: active features. The
    others as of `candidates_of`; floor: float32 [d_sae], of no use with k.
    """
    features, values = candidates_of(
        products, scale, reach, slack, apart, x, found, rel, w_scale, w_norm, w_rounding, w_apart, groups, weight, bias,
        plain, sizes, k, limit
    )  # fmt: skip
    starts = np.zeros(len(found) + 1, np.int64)
    for i in range(len(found)):
        starts[i + 1] = starts[i] + max(found[i], 0)
    sum_pre_acts(x, weight, bias, starts, features, values)
    return active_among(starts, features, values, floor, k, counts)


@compiled()
def active_among(starts, features, values, floor, k, counts):
    """Of the candidates of each row those above `floor` [d_sae], or, k > 0, the k largest positive; counts [n] written.

    starts [n + 1], features, values: as of `sum_pre_acts`. Returns features and values of the active ones.
    """
    n, at = len(counts), 0
    most = starts[n] - starts[0] + 1
    kept, acts = np.empty(most, np.int32), np.empty(most, np.float32)
    for i in range(n):
        a, b, before = starts[i], starts[i + 1], at
        if k > 0:
            at += keep_largest_of(features[a:b], values[a:b], k, kept[at:], acts[at:])
        else:
            for p in range(a, b):
                # Written whether active or not, and overwritten by the next one if not: no branch to mispredict.
                kept[at], acts[at] = features[p], values[p]
                at += np.int64(values[p] > floor[features[p]])
        counts[i] = at - before
    return kept[:at].copy(), acts[:at].copy()


@compiled()
def collect(row, cut, features):
    """Write the positions where row > cut, rising; return their number. features: int32 [d_sae + 1]."""
    n, whole = 0, len(row) - len(row) % BLOCK
    for block in range(0, whole, BLOCK):
        mask = above(row, block, cut)
        while mask:
            features[n] = block + lowest(mask)
            n += 1
            mask &= mask - np.uint64(1)
    for j in range(whole, len(row)):
        # Written whether above or not, and overwritten by the next one if not.
        features[n] = j
        n += np.int64(row[j] > cut)
    return n


@compiled()
def below_largest(values, k):
    """A cut just below the k-th largest of the values; 0 when fewer than k are positive."""
    cut = bisect(values, k, k, 200)
    least = np.float32(np.inf)
    for value in values:
        if cut < value < least:
            least = value
    return max(cut, least * np.float32(1 - 2.0**-22)) if len(values) >= k and cut > 0 else cut


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


@compiled()
def largest_positive(values):
    """The largest of contiguous float32, or 0: as integers, in which every positive float exceeds the negative ones."""
    most = np.int32(0)
    for bits in values.view(np.int32):
        most = max(most, bits)
    return float_of(most)


@compiled({*FAST, "nnan"})
def bisect(values, least, most, rounds):
    """A cut >= 0 that `least` to `most` values exceed, if `rounds` suffice; 0 when fewer than `least` are positive."""
    low, high = np.float32(0), largest_positive(values)
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
