"""Threads for compiled kernels: contiguous ranges, each worked on by one thread that does not hold the GIL."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np
import torch


@lru_cache(maxsize=4)
def _pool(process: int, threads: int) -> ThreadPoolExecutor:  # noqa: ARG001
    # The process id is part of the key because a forked child inherits the pool but not its threads.
    return ThreadPoolExecutor(threads, thread_name_prefix="heredity-kernel")


WORTH_THREADS = 1 << 19
"""Elementary operations (some tenths of a millisecond) below which handing work to threads costs more than it saves."""


def in_ranges(
    work: Callable[[int, int], None],
    n: int,
    operations: int,
    pieces_per_thread: int = 1,
    cost: np.ndarray | None = None,
) -> None:
    """Call `work(start, stop)` over contiguous ranges that together cover [0, n), on torch's number of threads.

    `operations` is about how many elementary operations all of it takes. The ranges depend on the arguments and the
    number of threads only, so a `work` that writes nothing but the entries of its own range gives the same bits
    whichever thread takes which range. Several pieces a thread even out ranges of unequal cost, and so does `cost`,
    rising [n + 1]: the cost of all that comes before i.
    """
    threads = torch.get_num_threads()
    pieces = max(1, min(n, threads * pieces_per_thread))
    if pieces == 1 or threads == 1 or operations < WORTH_THREADS:
        work(0, n)
        return
    edges = [n * i // pieces for i in range(pieces + 1)]
    if cost is not None:
        wanted = cost[0] + (cost[-1] - cost[0]) * np.arange(1, pieces) / pieces
        edges[1:-1] = np.searchsorted(cost, wanted).tolist()
    futures = [_pool(os.getpid(), threads).submit(work, a, b) for a, b in zip(edges[:-1], edges[1:], strict=True)]
    for future in futures:
        future.result()
