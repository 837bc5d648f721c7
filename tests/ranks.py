"""Processes that are started together as a launcher starts them, on free ports of this machine."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import heredity

SOURCE = str(Path(heredity.__file__).parent.parent)


def launched(words: list[str], count: int, folder: Path) -> list[subprocess.Popen[str]]:
    """`python WORDS` in so many ranks of one thread each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    more = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    more |= {"PYTHONPATH": SOURCE, "HF_HUB_OFFLINE": "1", "GLOO_SOCKET_IFNAME": "lo"}
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL}
    return [
        subprocess.Popen(
            [sys.executable, *words], cwd=folder, env=kept | more | {"RANK": str(rank)}, text=True, **pipes
        )
        for rank in range(count)
    ]


def ended(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str, str]]:
    """Exit code, stdout and stderr of each."""
    found = []
    try:
        for process in processes:
            out, err = process.communicate(timeout=1500)
            found.append((process.returncode, out, err))
    finally:
        for process in processes:
            process.kill()
    return found
