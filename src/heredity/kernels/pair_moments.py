"""Sums over groups of tokens that give Pearson's r of listed pairs of features on any combination of the groups."""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np

from heredity.kernels.sparse import Sparse


class PairMoments(NamedTuple):
    """Sums over the tokens of each group, entries that are not stored counted as zeros; all float64."""

    tokens: np.ndarray
    """[groups]: token positions."""
    x: np.ndarray
    """[groups, d_parent]: sums of parent activations."""
    xx: np.ndarray
    """[groups, d_parent]: of their squares, not centered."""
    y: np.ndarray
    """[groups, d_child]: sums of child activations."""
    yy: np.ndarray
    """[groups, d_child]: of their squares."""
    xy: np.ndarray
    """[groups, d_parent, top]: of the products of each parent feature with its candidates; 0 where there is none."""
    candidates: np.ndarray
    """int32 [d_parent, top]: child features; -1 where there is none."""


def pair_moments(parent: Sparse, child: Sparse, candidates: np.ndarray, group: np.ndarray, groups: int) -> PairMoments:
    """Moments of each parent column with its candidate child columns, over each group of rows.

    Both matrices have the rows of one token sample. candidates: int [d_parent, top], child columns, -1 for none.
    group: int [rows], in [0, groups); neither is checked. One walk through both: a row of the child is laid out, the
    candidates of each entry of the parent's row are looked up in it, and it is cleared again.
    """
    # One dtype each, so that one compiled version serves all callers.
    group, candidates = np.ascontiguousarray(group, np.int32), np.ascontiguousarray(candidates, np.int32)
    x, xx = np.zeros((2, groups, parent.width))
    y, yy = np.zeros((2, groups, child.width))
    xy = np.zeros((groups, *candidates.shape))
    # Group by group, the sums being added to stay in the processor's cache.
    order = np.argsort(group, kind="stable")
    _add_own(*parent[:3], order, group, x, xx)
    _add_own(*child[:3], order, group, y, yy)
    _add_pairs(*parent[:3], *child[:3], candidates, order, group, np.zeros(child.width), xy)
    return PairMoments(np.bincount(group, minlength=groups).astype(np.float64), x, xx, y, yy, xy, candidates)


@numba.njit(nogil=True, cache=True)
def _add_own(indptr, indices, values, order, group, total, square):  # noqa: ANN001, ANN202 (typed by numba)
    for token in order:
        g = group[token]
        for k in range(indptr[token], indptr[token + 1]):
            value = np.float64(values[k])
            total[g, indices[k]] += value
            square[g, indices[k]] += value * value


@numba.njit(nogil=True, cache=True)
def _add_pairs(
    indptr, indices, values, child_indptr, child_indices, child_values, candidates, order, group, row, products
):  # noqa: ANN001, ANN202
    """`row` float64 [d_child] is all zeros before and after."""
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
