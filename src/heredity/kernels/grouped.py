"""Compiled loops over tokens and groups of them: products of features with vectors, and counts on resampled groups."""

from __future__ import annotations

import numpy as np

from heredity.kernels.sparse import AHEAD, compiled, load_ahead

COLUMNS = 64


@compiled()
def add_products(starts, rows, values, group, x, mean, products, first, last):
    """Add the values of features first to last times (x - mean) to `products`, float64 [groups, features, d].

    starts, rows, values: by features, as `sparse.transpose` gives. group: int32 [tokens]. x: [tokens, d], contiguous.
    mean: float64 [d].
    """
    flat, d, end = x.reshape(-1), x.shape[1], starts[-1]
    for i in range(first, last):
        for k in range(starts[i], starts[i + 1]):
            if k + AHEAD < end:
                load_ahead(flat, rows[k + AHEAD], d)
            token, value, g = rows[k], np.float64(values[k]), group[rows[k]]
            for c in range(d):
                products[g, i, c] += value * (np.float64(x[token, c]) - mean[c])


@compiled()
def products_of(indptr, indices, values, x, mean, products, columns, first, last):
    """Write features times (x - mean), summed over tokens, to `products`, float64 [features, d]: blocks first to last
    of so many columns, so that their sums stay in the cache.

    indptr, indices, values: features by tokens, in compressed rows. x: [tokens, d]. mean: float64 [d].
    """
    sums, left = np.empty((len(products), columns)), np.empty(columns)
    for block in range(first, last):
        start = block * columns
        width = min(columns, x.shape[1] - start)
        sums[:] = 0.0
        left[:] = 0.0
        for token in range(len(x)):
            for c in range(width):
                left[c] = np.float64(x[token, start + c]) - mean[start + c]
            for k in range(indptr[token], indptr[token + 1]):
                i, value = np.uint64(indices[k]), np.float64(values[k])
                for c in range(columns):
                    sums[i, c] += value * left[c]
        for i in range(len(products)):
            for c in range(width):
                products[i, start + c] = sums[i, c]


@compiled()
def scores_of(indptr, indices, values, bounds, x, shift, rows, mean, scores, columns, first, last):
    """Write what features have in common with what `rows` leave of x, summed over the tokens of a group: features less
    their mean times (x - shift - features @ rows), float32 [groups, features, d].

    indptr, indices, values: features by tokens, in compressed rows. bounds: int64 [groups + 1], of the tokens of each
    group. x: [tokens, d]. shift: float64 [d]. rows: float64 [features, d]. mean: float64 [features].
    first, last: of groups times blocks of so many columns, so that their sums stay in the cache.
    """
    features, d = rows.shape
    some, sums = np.zeros((features, columns)), np.empty((features, columns))
    left, total, made = np.empty(columns), np.empty(columns), -1
    for number in range(first, last):
        block, group = number // (len(bounds) - 1), number % (len(bounds) - 1)
        start = block * columns
        width = min(columns, d - start)
        if block != made:
            for i in range(features):
                for c in range(width):
                    some[i, c] = rows[i, start + c]
            made = block
        sums[:] = 0.0
        total[:] = 0.0
        for token in range(bounds[group], bounds[group + 1]):
            left[:] = 0.0
            for k in range(indptr[token], indptr[token + 1]):
                i, value = np.uint64(indices[k]), np.float64(values[k])
                for c in range(columns):
                    left[c] += value * some[i, c]
            for c in range(width):
                left[c] = np.float64(x[token, start + c]) - shift[start + c] - left[c]
                total[c] += left[c]
            for k in range(indptr[token], indptr[token + 1]):
                i, value = np.uint64(indices[k]), np.float64(values[k])
                for c in range(columns):
                    sums[i, c] += value * left[c]
        for i in range(features):
            for c in range(width):
                scores[group, i, start + c] = np.float32(sums[i, c] - mean[i] * total[c])


@compiled()
def count_above(center, moved, scale, cuts, by_resample, first, last):
    """Of resamples first to last, count features whose largest `center + scale * moved` exceeds each of the cuts.

    center: float64 [top, features]; moved: float64 [top, resamples, features]. by_resample: int64 [resamples, cuts],
    written: features. Returns the resamples, int32 [cuts, features].
    """
    top, _, features = moved.shape
    best, by_feature = np.empty(features), np.zeros((len(cuts), features), np.int32)
    for b in range(first, last):
        for j in range(features):
            best[j] = center[0, j] + scale * moved[0, b, j]
        for c in range(1, top):
            for j in range(features):
                best[j] = max(best[j], center[c, j] + scale * moved[c, b, j])
        for n in range(len(cuts)):
            count = 0
            for j in range(features):
                above = best[j] > cuts[n]
                by_feature[n, j] += above
                count += above
            by_resample[b, n] = count
    return by_feature
