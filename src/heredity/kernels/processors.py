"""Processors and memory of this process. Quick to import: neither numpy nor torch is loaded."""

from __future__ import annotations

import ctypes
import os
import platform

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


def processors() -> int:
    """Processors that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def default_workers() -> int:
    """Threads to use: `NUMBA_NUM_THREADS` if set, else the processors this process may run on."""
    if "NUMBA_NUM_THREADS" in os.environ:
        return max(1, int(os.environ["NUMBA_NUM_THREADS"]))
    return processors()


def keep_large_buffers() -> bool:
    """Let this process keep the memory of large buffers between steps; returns whether that could be arranged.

    glibc gives every large buffer back to the kernel when it is freed, and page faults on getting it anew take up to
    half of a training step on a CPU. Raising malloc's mmap and trim thresholds stops that, for the whole process and
    for good. Nothing happens with another C library.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    # Older versions of glibc refuse thresholds above 32 MiB.
    raised = any(libc.mallopt(_M_MMAP_THRESHOLD, size) for size in (2**30, 2**25))
    return bool(raised and libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))
