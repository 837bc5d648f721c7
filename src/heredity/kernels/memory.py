"""How this process holds on to memory."""

from __future__ import annotations

import ctypes
import platform

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


def keep_large_buffers() -> bool:
    """Let this process keep the memory of large buffers between steps; whether that could be arranged.

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
