"""Processors and memory of this process. Quick to import: neither numpy nor torch is loaded."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import math
import os
import platform
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import subprocess

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_MUCH = 3 * 2**29  # bytes of a process; looking for cycles takes half a second
_SPINS, _TICKS = "10000", "16"  # some tens of microseconds: rounds of a loop; the power of 2 of the clock's ticks
_giving_way: list[subprocess.Popen[bytes]] = []  # processes of this one that run on what is left idle
_shared = 0  # threads that this process would have alone; 0 unless `share_processors` took fewer


def processors() -> int:
    """Processors that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def free_processors() -> int:
    """Processors that this process may run on and others leave free; at least 1.

    Busy are as many as the load of the last minute, but on Linux no more than what else runs right now: so neither work
    that has just ended nor the threads of this process, which wait for the caller, count, nor what `gives_way`.
    """
    busy = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    with contextlib.suppress(OSError):
        running = int(Path("/proc/loadavg").read_text().split()[3].split("/")[0])
        busy = min(busy, max(0, running - 1 - sum(process.poll() is None for process in _giving_way)))
    return max(1, min(processors(), (os.cpu_count() or 1) - round(busy)))


def gives_way(process: subprocess.Popen[bytes]) -> None:
    """Say of a process of this one that it runs on what is left idle, so that its processor counts as free."""
    _giving_way.append(process)


def default_workers() -> int:
    """Threads to use: `NUMBA_NUM_THREADS` if set, else one per free processor."""
    return max(1, int(os.environ.get("NUMBA_NUM_THREADS") or free_processors()))


def share_processors() -> None:
    """Leave processors to others: threads that wait soon sleep, torch's and NumPy's, and torch has one per free core.

    For the start of a program: OpenMP and OpenBLAS read the environment when they load. Variables that are set stay.
    `retake_processors` takes more when others have left.
    """
    global _shared
    if "OMP_WAIT_POLICY" not in os.environ:
        # GNU's OpenMP spins for a millisecond by default, on a core that the next threads need, and not at all with
        # this policy, so that each small product wakes its threads anew: in between small models train fastest.
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        os.environ.setdefault("GOMP_SPINCOUNT", _SPINS)
    # OpenBLAS, of which NumPy and SciPy have one each, spins for tens of milliseconds after every product.
    os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", _TICKS)
    if (free := free_processors()) < processors() and "MKL_NUM_THREADS" not in os.environ:
        # Torch takes one thread per core, not one per hardware thread.
        siblings = Path("/sys/devices/system/cpu").glob("cpu[0-9]*/topology/thread_siblings_list")
        cores = min(len({path.read_text() for path in siblings}) or processors(), processors())
        if "OMP_NUM_THREADS" not in os.environ:
            os.environ["OMP_NUM_THREADS"], _shared = str(min(free, cores)), cores


def retake_processors() -> None:
    """Take up processors that `share_processors` left to others and that are free by now; none are given back.

    For the start of every longer piece of work: a run of hours would otherwise stay with the threads that the minute
    of its start left it.
    """
    most = min(free_processors(), _shared)
    if most <= int(os.environ.get("OMP_NUM_THREADS") or most):
        return
    os.environ["OMP_NUM_THREADS"] = str(most)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(most)


def keep_large_buffers() -> bool:
    """Let this process keep the memory of large buffers between steps; returns whether that could be arranged.

    glibc returns every freed large buffer to the kernel, and page faults on getting it anew take up to half of a
    training step on a CPU. Higher mmap and trim thresholds stop that, for the whole process and for good.
    """
    if (libc := _glibc()) is None:
        return False
    # Older versions of glibc refuse thresholds above 32 MiB.
    raised = any(libc.mallopt(_M_MMAP_THRESHOLD, size) for size in (2**30, 2**25))
    return bool(raised and libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))


def return_freed_memory() -> None:
    """Give the kernel back what this process has freed, which `keep_large_buffers` keeps.

    For the end of a piece of work, so that what the next one takes is not added to it. Where much is left, cycles of
    objects are broken too: a trainer and its optimizer hold each other, and Python comes to them late.
    """
    if (libc := _glibc()) is None:
        return
    libc.malloc_trim(0)
    with contextlib.suppress(OSError, ValueError):
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        if pages * os.sysconf("SC_PAGE_SIZE") > _MUCH:
            gc.collect()
            libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None


def free_memory() -> float:
    """Bytes that this process may still take: what the system says is available, less where a control group allows
    less; infinite where the system says nothing."""
    free = math.inf
    with contextlib.suppress(OSError, ValueError), open("/proc/meminfo", encoding="ascii") as file:
        free = next(1024.0 * int(line.split()[1]) for line in file if line.startswith("MemAvailable:"))
    for group, most, used in (
        ("/sys/fs/cgroup", "memory.max", "memory.current"),
        ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        with contextlib.suppress(OSError, ValueError):  # no limit reads as `max`
            free = min(free, int(Path(group, most).read_text()) - int(Path(group, used).read_text()))
    return free
