"""Kernels that are compiled while a run does other things."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from heredity.analyses import ahead
from heredity.kernels import processors


class Started:
    """A process that was not started."""

    def __init__(self, command: list[str], env: dict[str, str], **_: object) -> None:
        self.command, self.env = command, env

    def kill(self) -> None:
        """At the end of the tests."""

    def poll(self) -> None:
        return None


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Started]:
    made: list[Started] = []
    monkeypatch.setattr(subprocess, "Popen", lambda *words, **more: made.append(Started(*words, **more)) or made[-1])
    monkeypatch.setattr(processors, "_giving_way", [])
    monkeypatch.setattr(ahead, "processors", lambda: 2)
    return made


def test_a_process_of_one_thread_compiles_what_is_missing(started: list[Started], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ahead, "_missing", lambda: True)
    assert ahead.compile_ahead() is started[0]
    assert started[0].command == [sys.executable, "-P", "-m", "heredity.analyses.ahead"]
    assert started[0].env == os.environ | {"OMP_NUM_THREADS": "1"}
    assert processors._giving_way == started


def test_none_is_started_where_all_is_compiled_or_one_processor_does_everything(
    started: list[Started], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(ahead, "_missing", lambda: False)
    assert ahead.compile_ahead() is None
    monkeypatch.setattr(ahead, "_missing", lambda: True)
    monkeypatch.setattr(ahead, "processors", lambda: 1)
    assert ahead.compile_ahead() is None
    assert started == []


@pytest.mark.parametrize(
    ("before", "missing"),
    [
        ("", True),
        # Neither the package's folder nor a home nor the variable's can be written.
        ("import numba.core.caching as c; c.FunctionCache._impl_class._locator_classes = []; ", False),
    ],
)
def test_kernels_are_missing_from_an_empty_cache_but_not_where_none_can_be(tmp_path, before, missing):
    script = before + "from heredity.analyses import ahead; print(ahead._missing())"
    given = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    said = subprocess.run([sys.executable, "-c", script], env=given, capture_output=True, text=True)
    assert said.stdout == f"{missing}\n", said.stderr


def test_what_is_compiled_is_what_a_study_needs():
    from heredity.kernels import assign, grouped, pairs, pearson, sparse, step

    ahead.compile_kernels()
    for kernel in (
        step._errors, step._update, step._adam, pearson._match_features, pairs._match_common, pairs._cover_greedily,
        pairs._offer, pairs._add_pairs, assign.assign, grouped.add_products, grouped.count_above, sparse._moments,
    ):  # fmt: skip
        assert kernel.signatures, kernel.py_func.__name__
    assert not ahead._missing()


def test_a_run_goes_on_where_no_process_can_be_started(started: list[Started], monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object, **__: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(ahead, "_missing", lambda: True)
    monkeypatch.setattr(subprocess, "Popen", refuse)
    assert ahead.compile_ahead() is None


_KILLED = """
import os, signal, time
from heredity.analyses import ahead

ahead.processors = lambda: 2
process = ahead.compile_ahead()
while os.sched_getscheduler(process.pid) != os.SCHED_IDLE:
    time.sleep(0.05)
print(process.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def runs(process: int) -> bool:
    """Whether it does; one that ended may wait for a parent to ask."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")
def test_the_process_ends_with_a_run_that_is_killed(tmp_path):
    given = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    said = subprocess.run([sys.executable, "-c", _KILLED], env=given, capture_output=True, text=True, timeout=60)
    assert said.returncode == -9, said.stderr
    deadline = time.monotonic() + 10
    while runs(int(said.stdout)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not runs(int(said.stdout))


def test_a_process_that_gives_way_takes_no_processor(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    monkeypatch.setattr(os, "getloadavg", lambda: (2.0, 2.0, 2.0), raising=False)
    monkeypatch.setattr(processors.Path, "read_text", lambda _: "2.0 2.0 2.0 2/300 4711\n")
    monkeypatch.setattr(processors, "_giving_way", [])
    assert processors.free_processors() == 1
    processors.gives_way(Started([], {}))  # type: ignore[arg-type]
    assert processors.free_processors() == 2
