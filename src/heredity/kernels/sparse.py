"""Compressed sparse rows: the checks and the transposition that every sparse kernel relies on.

A matrix of `rows` x `width` is three arrays: `indptr` int64 [rows + 1], `indices` int32 [nnz] and `values`
float32 [nnz]; row t holds the entries `indptr[t]:indptr[t + 1]`, in any order.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numba
import numpy as np


class Sparse(NamedTuple):
    """A sparse matrix by rows."""

    indptr: np.ndarray
    """int64 [rows + 1]: where each row starts; the last entry is nnz."""
    indices: np.ndarray
    """int32 [nnz]: the column of each entry."""
    values: np.ndarray
    """float32 [nnz]."""
    width: int
    """Number of columns."""


class Fault(NamedTuple):
    """The first entry that makes a sparse matrix invalid."""

    kind: str
    """What is wrong, in words."""
    row: int
    """Row of the entry."""
    entry: int
    """Position of the entry in `indices` and `values`."""


_FAULTS = ("", "the row ends before it starts", "a column out of range", "a value that is not finite",
           "a stored zero", "a column that occurs twice in the row")  # fmt: skip


@numba.njit(nogil=True, cache=True)
def _first_fault(indptr, indices, values, width):  # noqa: ANN001, ANN202 (typed by numba)
    seen = np.full(width, -1, np.int64)
    for row in range(len(indptr) - 1):
        if indptr[row + 1] < indptr[row] or indptr[row + 1] > len(indices):
            return 1, row, indptr[row]
        for k in range(indptr[row], indptr[row + 1]):
            column = indices[k]
            if column < 0 or column >= width:
                return 2, row, k
            if not np.isfinite(values[k]):
                return 3, row, k
            if values[k] == 0:
                return 4, row, k
            if seen[column] == row:
                return 5, row, k
            seen[column] = row
    return 0, 0, 0


def first_fault(matrix: Sparse) -> Fault | None:
    """The first invalid entry: column out of range or repeated in its row, value zero or not finite, rows not rising.

    `indptr` must start at 0 and end at nnz; that is the caller's to check.
    """
    code, row, entry = _first_fault(matrix.indptr, matrix.indices, matrix.values, matrix.width)
    return Fault(_FAULTS[code], int(row), int(entry)) if code else None


@numba.njit(nogil=True, cache=True)
def _count(indices, first, counts):  # noqa: ANN001, ANN202 (typed by numba)
    """Entries of each column from `first` on; unsigned, columns before it are far beyond the last one."""
    width = np.uint64(len(counts))
    for column in indices:
        at = np.uint64(np.int64(column) - first)
        if at < width:
            counts[at] += 1


@numba.njit(nogil=True, cache=True)
def _place(start, stop, indptr, indices, values, first, cursor, rows, moved):  # noqa: ANN001, ANN202
    """Move the entries of rows start to stop to their columns, each to the place that its column's cursor names."""
    width = np.uint64(len(cursor))
    for row in range(start, stop):
        for k in range(indptr[row], indptr[row + 1]):
            column = np.uint64(np.int64(indices[k]) - first)
            if column < width:
                at = cursor[column]
                cursor[column] = at + 1
                rows[at] = row
                moved[at] = values[k]


def stored(matrix: Sparse) -> np.ndarray:
    """Entries of each column, int64 [width]."""
    counts = np.zeros(matrix.width, np.int64)
    _count(matrix.indices, 0, counts)
    return counts


def transpose(matrix: Sparse, first: int = 0, stop: int | None = None, workers: int = 1) -> Sparse:
    """The entries of columns first to stop (default all) by columns.

    Row c of the result lists the rows in which column first + c is stored, in rising order. Each of the `workers`
    (threads) takes the same number of entries; the result does not depend on their number.
    Raises `ValueError` for 2^31 rows or more, which an int32 row number cannot hold.
    """
    rows = len(matrix.indptr) - 1
    if rows >= 2**31:
        raise ValueError(f"{rows} rows do not fit 32-bit row numbers; transpose fewer than 2^31 rows at a time")
    width = (matrix.width if stop is None else stop) - first
    edges = np.searchsorted(matrix.indptr, np.linspace(0, matrix.indptr[-1], workers + 1).astype(np.int64))
    edges[-1] = rows
    counts = np.zeros((workers, width), np.int64)

    def count(part: int) -> None:
        own = slice(matrix.indptr[edges[part]], matrix.indptr[edges[part + 1]])
        _count(matrix.indices[own], first, counts[part])

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(count, range(workers)))
        indptr = np.concatenate([[0], np.cumsum(counts.sum(0))])
        # Where each part of the rows begins in each column: behind the entries of the parts before it.
        cursors = indptr[:-1] + np.cumsum(counts, axis=0) - counts
        placed, moved = np.empty(indptr[-1], np.int32), np.empty(indptr[-1], np.float32)

        def place(part: int) -> None:
            _place(edges[part], edges[part + 1], *matrix[:3], first, cursors[part], placed, moved)

        list(pool.map(place, range(workers)))
    return Sparse(indptr, placed, moved, rows)


@numba.njit(nogil=True, cache=True)
def _moments(indices, values, width, rows):  # noqa: ANN001, ANN202 (typed by numba)
    count = np.zeros(width, np.int64)
    total = np.zeros(width, np.float64)
    low = np.full(width, np.inf)
    high = np.full(width, -np.inf)
    for k in range(len(indices)):
        column, value = indices[k], np.float64(values[k])
        count[column] += 1
        total[column] += value
        low[column] = min(low[column], value)
        high[column] = max(high[column], value)
    mean = total / rows
    square = (rows - count) * mean * mean
    for k in range(len(indices)):
        difference = values[k] - mean[indices[k]]
        square[indices[k]] += difference * difference
    for column in range(width):
        if count[column] < rows:
            low[column], high[column] = min(low[column], 0.0), max(high[column], 0.0)
        # Rounding leaves a constant column a small sum of squares; its extremes say exactly that it is constant.
        if low[column] >= high[column]:
            square[column] = 0.0
    return count, total, square


class Moments(NamedTuple):
    """Sums over all rows of each column, entries that are not stored counted as zeros."""

    stored: np.ndarray
    """int64 [width]: entries that are stored."""
    total: np.ndarray
    """float64 [width]: sum of values."""
    square: np.ndarray
    """float64 [width]: sum of squared deviations from the column's mean; exactly 0 for a constant column only."""


def moments(matrix: Sparse) -> Moments:
    """Count, sum and centered sum of squares of each column, in float64 and in two passes."""
    rows = max(len(matrix.indptr) - 1, 1)
    return Moments(*_moments(matrix.indices, matrix.values, matrix.width, rows))
