"""How many processors there are; apart from everything that takes long to import."""

from __future__ import annotations

import os


def processors() -> int:
    """Processors that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
