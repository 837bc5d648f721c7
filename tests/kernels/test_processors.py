"""Threads follow the processors that are free, and waiting ones sleep."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from heredity.engine.stage import Stage, run
from heredity.engine.store import Store
from heredity.kernels import processors as processors_of_this
from heredity.kernels.processors import default_workers, free_processors, processors, share_processors

VARIABLES = (
    "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OPENBLAS_THREAD_TIMEOUT", "OMP_NUM_THREADS", "MKL_NUM_THREADS",
    "NUMBA_NUM_THREADS",
)  # fmt: skip


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch):
    """Sets the processors of the machine, those of this process, the load of a minute and what runs right now."""
    for name in VARIABLES:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)

    def pretend(count: int, allowed: int, load: float, running: int) -> None:
        monkeypatch.setattr(os, "cpu_count", lambda: count)
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(allowed)), raising=False)
        monkeypatch.setattr(os, "getloadavg", lambda: (load, load, load), raising=False)
        monkeypatch.setattr(Path, "read_text", lambda _: f"{load} {load} {load} {running}/300 4711\n")
        monkeypatch.setattr(Path, "glob", lambda *_: [])

    return pretend


@pytest.mark.parametrize(
    ("count", "allowed", "load", "running", "free"),
    [
        (8, 8, 0.2, 1, 8),
        (8, 8, 3.0, 4, 5),
        (8, 8, 30.0, 41, 1),
        (8, 8, 6.0, 1, 8),  # work that has just ended
        (8, 8, 0.0, 9, 8),  # a moment's crowd
        (64, 4, 50.0, 51, 4),  # others have 60 processors of their own
        (64, 4, 62.0, 63, 2),
    ],
)
def test_processors_are_free_unless_busy_for_a_minute_and_now(machine, count, allowed, load, running, free):
    machine(count, allowed, load, running)
    assert (free_processors(), processors()) == (free, allowed)
    assert default_workers() == free


@pytest.mark.parametrize(("running", "threads"), [(1, None), (3, "2")])
def test_threads_of_torch_and_numpy_sleep_while_they_wait_and_leave_busy_cores_alone(
    machine, monkeypatch, running, threads
):
    machine(4, 4, float(running), running)
    monkeypatch.setattr(processors_of_this, "_shared", 0)
    share_processors()
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE" and int(os.environ["GOMP_SPINCOUNT"]) <= 10_000
    assert int(os.environ["OPENBLAS_THREAD_TIMEOUT"]) < 20
    assert os.environ.get("OMP_NUM_THREADS") == threads
    assert processors_of_this._shared == (4 if threads else 0)


def test_a_run_begun_beside_others_takes_their_processors_when_they_have_gone(monkeypatch, tmp_path: Path):
    """Stages of hours do not stay with the threads that the minute of the start left them, unless it is set by hand."""
    before, found, free = torch.get_num_threads(), [], iter((1, 3, 2, 4))
    stages = [Stage("k", str(i), {}, {}, lambda _: found.append(torch.get_num_threads())) for i in range(4)]
    monkeypatch.setattr(processors_of_this, "free_processors", lambda: next(free))
    monkeypatch.setattr(processors_of_this, "_shared", 4)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    try:
        torch.set_num_threads(1)
        run(stages[:3], Store(tmp_path))
        monkeypatch.setattr(processors_of_this, "_shared", 0)
        run(stages, Store(tmp_path))
        assert found == [1, 3, 3, 3]
    finally:
        torch.set_num_threads(before)


def test_variables_that_are_set_stay(machine, monkeypatch: pytest.MonkeyPatch):
    machine(4, 4, 3.0, 4)
    given = dict(zip(VARIABLES, ("ACTIVE", "7000", "28", "4", "3", "7"), strict=True))
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    share_processors()
    assert {name: os.environ[name] for name in VARIABLES} == given
    assert default_workers() == 7
    monkeypatch.delenv("GOMP_SPINCOUNT")
    share_processors()
    assert "GOMP_SPINCOUNT" not in os.environ  # the policy that is set by hand stays whole


COMMAND_LINE = """
import os, sys
from heredity import cli
cli.app = lambda: print(os.environ.get("OMP_WAIT_POLICY"), "torch" in sys.modules)
cli.main()
"""
COUNTING = "import sys, heredity.kernels.processors; print({'numpy', 'numba', 'torch'} & set(sys.modules))"


@pytest.mark.parametrize(("code", "said"), [(COMMAND_LINE, "PASSIVE False\n"), (COUNTING, "set()\n")])
def test_the_command_line_sets_them_before_torch_loads_and_counting_loads_nothing_large(code, said):
    environment = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert made.stdout == said, made.stderr
