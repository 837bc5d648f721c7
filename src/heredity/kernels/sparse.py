"""Compressed sparse rows, and how every kernel over them is compiled and shared out to threads."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection
from functools import lru_cache, partial
from itertools import count
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any, NamedTuple, TypeVar

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.caching import FunctionCache
from numba.extending import intrinsic

T = TypeVar("T")

WORTH_THREADS = 1 << 19  # elementary operations (some tenths of a millisecond) below which threads cost too much
CACHE_LINE = 16  # float32 that are loaded together
AHEAD = 2  # entries by which the loading of the rows they need runs ahead
# Liberties of floating-point arithmetic that let loops over float32 sums use vectors: NaN and infinity stay exact.
FAST = frozenset({"reassoc", "nsz", "contract"})


class Cache(FunctionCache):
    """numba's cache of a kernel, which only one process at a time adds to.

    Of two that add machine code for other types at once, numba would leave an index in which the types of one stand
    for the code of the other.
    """

    @property
    def filled(self) -> bool:
        """Whether it holds machine code for some types."""
        return bool(self._cache_file._load_index())

    def save_overload(self, sig: Any, data: Any) -> None:
        self._impl.locator.ensure_cache_path()
        with open(Path(self.cache_path, ".lock"), "a", encoding="ascii") as file:
            with contextlib.suppress(ImportError, OSError):  # no such locks on this system, or on this file system
                import fcntl

                fcntl.flock(file, fcntl.LOCK_EX)
            super().save_overload(sig, data)


def compiled(fastmath: Collection[str] = ()) -> Callable[[Callable[..., Any]], Any]:
    """Decorator of a kernel in numba's Python: compiled without the GIL, its machine code cached on disk.

    Where neither the package's folder nor a home nor `NUMBA_CACHE_DIR` is writable, every process compiles it anew.
    """

    def compile_kernel(function: Callable[..., Any]) -> Any:
        kernel: Any = numba.njit(function, nogil=True, fastmath=set(fastmath), error_model="numpy")
        with contextlib.suppress(RuntimeError):  # cannot cache function: no locator available
            kernel._cache = Cache(function)
        return kernel

    return compile_kernel


def _prefetch(typingctx: Any, array: Any, index: Any) -> Any:  # noqa: ARG001 (numba passes the context first)
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = signature.args[0]
        struct = context.make_array(kind)(context, builder, args[0])
        item = cgutils.get_item_pointer(context, builder, kind, struct, [args[1]], wraparound=False, boundscheck=False)
        byte, flag = ir.IntType(8).as_pointer(), ir.IntType(32)
        shape = ir.FunctionType(ir.VoidType(), [byte, flag, flag, flag])
        hint = builder.module.declare_intrinsic("llvm.prefetch", [byte], shape)
        # To be read, kept in every cache level, from the data cache.
        builder.call(hint, [builder.bitcast(item, byte), flag(0), flag(3), flag(1)])
        return context.get_dummy_value()

    return types.void(array, index), codegen


# prefetch(array, index) starts to load the cache line of `array[index]` (one-dimensional), in compiled code only. It
# never changes a result: the processor ignores an address beyond the end, and negative indices do not wrap.
prefetch: Any = intrinsic(_prefetch)


@compiled()
def load_ahead(flat, row, width):
    """Begin to load a row of a matrix of this width, given as its elements in one dimension."""
    for c in range(row * width, (row + 1) * width, CACHE_LINE):
        prefetch(flat, c)


def in_ranges(
    work: Callable[[int, int], T],
    n: int,
    operations: int,
    pieces_per_thread: int = 1,
    cost: np.ndarray | None = None,
    threads: int | None = None,
) -> list[T]:
    """What `work(start, stop)` returns on contiguous ranges that together cover [0, n), in threads without the GIL.

    operations: about how many elementary ones all of it takes. threads: by default torch's number, the calling one
    among them. Several pieces per thread even out ranges of unequal cost, and so does `cost`, rising [n + 1]: the cost
    of everything before i. A `work` that writes nothing but the entries of its range gives the same bits for any number
    of threads and pieces. What `work` raises is raised when all is done, that of the first range before others.
    """
    if threads is None:
        import torch  # takes a second to load

        threads = torch.get_num_threads()
    pieces = max(1, min(n, threads * pieces_per_thread))
    if pieces == 1 or operations < WORTH_THREADS:
        return [work(0, n)]
    edges = [n * i // pieces for i in range(pieces + 1)]
    if cost is not None:
        wanted = cost[0] + (cost[-1] - cost[0]) * np.arange(1, pieces) / pieces
        edges[1:-1] = np.searchsorted(cost, wanted).tolist()
    # Who wakes late finds less to do, or nothing, and is not waited for: waking takes as long as much of the work.
    numbers = count()
    of_others: SimpleQueue[tuple[int, Any, BaseException | None]] = SimpleQueue()

    def take(put: Callable[[tuple[int, Any, BaseException | None]], object]) -> None:
        while (number := next(numbers)) < pieces:
            try:
                put((number, work(edges[number], edges[number + 1]), None))
            except BaseException as error:
                put((number, None, error))

    _ask(partial(take, of_others.put), min(threads, pieces) - 1)
    done: list[tuple[int, Any, BaseException | None]] = []
    take(done.append)
    done += [of_others.get() for _ in range(pieces - len(done))]
    done.sort(key=lambda piece: piece[0])
    for _, _, error in done:
        if error is not None:
            raise error
    return [made for _, made, _ in done]


def _ask(call: Callable[[], None], threads: int) -> None:
    """Have so many other threads make this call, soon or later."""
    calls, started = _others(os.getpid())
    while len(started) < threads:
        started.append(Thread(target=_answer, args=(calls,), name="heredity-kernel", daemon=True))
        started[-1].start()
    for _ in range(threads):
        calls.put(call)


@lru_cache(maxsize=1)
def _others(process: int) -> tuple[SimpleQueue[Callable[[], None]], list[Thread]]:  # noqa: ARG001
    """What is asked of this process's other threads, and they."""
    # The process id is the key because a forked child inherits the queue but not its threads.
    return SimpleQueue(), []


def _answer(calls: SimpleQueue[Callable[[], None]]) -> None:
    while True:
        calls.get()()


class Sparse(NamedTuple):
    """A sparse matrix [rows, width]; row t holds the entries indptr[t] to indptr[t + 1], in any order."""

    indptr: np.ndarray  # int64 [rows + 1]: where each row starts; the last entry is nnz
    indices: np.ndarray  # int32 [nnz]: the column of each entry
    values: np.ndarray  # float32 [nnz]
    width: int


class Fault(NamedTuple):
    """The first entry that makes a sparse matrix invalid."""

    kind: str  # what is wrong, in words
    row: int
    entry: int  # position in `indices` and `values`


_FAULTS = ("", "the row ends before it starts", "a column out of range", "a value that is not finite",
           "a stored zero", "a column that occurs twice in the row")  # fmt: skip


def first_fault(matrix: Sparse) -> Fault | None:
    """The first invalid entry; that `indptr` starts at 0 and ends at nnz is the caller's to check."""
    code, row, entry = _first_fault(*matrix)
    return Fault(_FAULTS[code], int(row), int(entry)) if code else None


@compiled()
def _first_fault(indptr, indices, values, width):
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


def starts_of(counts: np.ndarray) -> np.ndarray:
    """int64 [n + 1]: where each of n stretches with these counts starts, and where the last one ends."""
    starts = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=starts[1:])
    return starts


def stored(matrix: Sparse) -> np.ndarray:
    """Entries of each column, int64 [width]."""
    counts = np.zeros(matrix.width, np.int64)
    _count(matrix.indices, 0, counts)
    return counts


def transpose(matrix: Sparse, first: int = 0, stop: int | None = None, workers: int = 1) -> Sparse:
    """The entries of columns first to stop (default all) by columns, in `workers` threads.

    Row c of the result lists the rows in which column first + c is stored, in rising order. Raises `ValueError` for
    2^31 rows or more.
    """
    rows = len(matrix.indptr) - 1
    if rows >= 2**31:
        raise ValueError(f"{rows} rows do not fit 32-bit row numbers; transpose fewer than 2^31 rows at a time")
    width = (matrix.width if stop is None else stop) - first
    edges = np.searchsorted(matrix.indptr, np.linspace(0, matrix.indptr[-1], workers + 1).astype(np.int64))
    edges[-1] = rows
    entries, counts = matrix.indptr[edges], np.zeros((workers, width), np.int64)

    def count(a: int, b: int) -> None:
        for part in range(a, b):
            _count(matrix.indices[entries[part] : entries[part + 1]], first, counts[part])

    in_ranges(count, workers, entries[-1], threads=workers)
    indptr = starts_of(counts.sum(0))
    # Where each part of the rows begins in each column: behind the entries of the parts before it.
    cursors = indptr[:-1] + np.cumsum(counts, axis=0) - counts
    placed, moved = np.empty(indptr[-1], np.int32), np.empty(indptr[-1], matrix.values.dtype)

    def place(a: int, b: int) -> None:
        for part in range(a, b):
            _place(edges[part], edges[part + 1], *matrix[:3], first, cursors[part], placed, moved)

    in_ranges(place, workers, entries[-1], threads=workers)
    return Sparse(indptr, placed, moved, rows)


@compiled()
def _count(indices, first, counts):
    """Entries of each column from `first` on; unsigned, columns before it are far beyond the last one."""
    width = np.uint64(len(counts))
    for column in indices:
        at = np.uint64(np.int64(column) - first)
        if at < width:
            counts[at] += 1


@compiled()
def _place(start, stop, indptr, indices, values, first, cursor, rows, moved):
    width = np.uint64(len(cursor))
    for row in range(start, stop):
        for k in range(indptr[row], indptr[row + 1]):
            column = np.uint64(np.int64(indices[k]) - first)
            if column < width:
                at = cursor[column]
                cursor[column] = at + 1
                rows[at] = row
                moved[at] = values[k]


class Moments(NamedTuple):
    """Sums over all rows of each column, entries that are not stored counted as zeros."""

    stored: np.ndarray  # int64 [width]: stored entries
    total: np.ndarray  # float64 [width]: sum of values
    square: np.ndarray  # float64 [width]: of deviations from the column's mean; exactly 0 for a constant column only


def moments(matrix: Sparse) -> Moments:
    """Count, sum and centered sum of squares of each column, in float64 and in two passes."""
    return Moments(*_moments(matrix.indices, matrix.values, matrix.width, max(len(matrix.indptr) - 1, 1)))


@compiled()
def _moments(indices, values, width, rows):
    count, total = np.zeros(width, np.int64), np.zeros(width, np.float64)
    low, high = np.full(width, np.inf), np.full(width, -np.inf)
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
