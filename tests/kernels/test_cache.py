"""Machine code on disk, which several processes add to."""

from __future__ import annotations

import os
import subprocess
import sys

_KERNEL = """
import time
from numba.core.caching import IndexDataCacheFile
from heredity.kernels.sparse import compiled

read = IndexDataCacheFile._load_index

def read_slowly(self):
    entries = read(self)
    time.sleep(0.3)
    return entries

IndexDataCacheFile._load_index = read_slowly  # so that all read before one writes, unless they wait for each other

@compiled()
def twice(x):
    return x + x
"""
_USE = """
import sys, time
import numpy as np
from kernel_of_test import twice

kind = sys.argv[1]
print(flush=True)
sys.stdin.readline()
print(twice(np.arange(4).astype(kind)).dtype, sum(twice.stats.cache_hits.values()))
"""
KINDS = ("float32", "float64", "int32", "int64", "uint16", "complex64")


def test_processes_that_compile_for_other_types_at_once_keep_every_type(tmp_path):
    (tmp_path / "kernel_of_test.py").write_text(_KERNEL)
    given = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": str(tmp_path)}

    def use() -> list[str]:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": given}
        made = [subprocess.Popen([sys.executable, "-c", _USE, kind], **pipes) for kind in KINDS]  # type: ignore[call-overload]
        for process in made:
            process.stdout.readline()  # all are ready before one compiles
        for process in made:
            process.stdin.write("\n")
            process.stdin.flush()
        return [process.communicate()[0].strip() for process in made]

    assert use() == [f"{kind} 0" for kind in KINDS]
    assert use() == [f"{kind} 1" for kind in KINDS]
