"""Compiled loops over groups of tokens: products of features with vectors, and counts on resampled groups."""

from __future__ import annotations

import numpy as np

from heredity.kernels.sparse import AHEAD, compiled, load_ahead


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
