"""Work shared among processes gives what one process gives, says what went wrong, and leaves nobody behind."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from heredity.engine.workers import Here, Job, Processes, WorkerError, shards


def opened(log: Path, number: int) -> int:
    """Something to open; leaves a line for every time it is."""
    with log.open("a") as file:
        file.write(f"{number} {os.getpid()}\n")
    return number


def plus(number: int, unit: int) -> int:
    time.sleep(0.01 * (unit % 3))  # so that later units are done before earlier ones
    return number + unit


def settings(number: int, unit: int) -> tuple[int, str | None]:
    import torch

    return torch.get_num_threads(), os.environ.get("OMP_WAIT_POLICY")


def fails(number: int, unit: int) -> int:
    if unit == 3:
        raise ValueError("unit 3 is bad")
    return unit


class Choosy(Exception):
    """Cannot be made again from its message, as a process that receives it would."""

    def __init__(self, first: str, second: int) -> None:
        super().__init__(first)


def fails_oddly(number: int, unit: int) -> int:
    if unit == 1:
        raise SystemExit(0)
    raise Choosy("unit is odd", 2)


def dies(number: int, unit: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return unit


def sleeps(path: str, unit: int) -> int:
    Path(f"{path} {unit}").touch()
    time.sleep(300)
    return unit


def test_results_come_in_the_order_of_the_units_and_each_process_opens_a_job_once(tmp_path):
    for count in (1, 2, 3):
        log = tmp_path / str(count)
        with shards(count) as workers:
            job: Job[int] = workers.job(partial(opened, log, 100))
            assert list(job.map(plus, range(13))) == [100 + unit for unit in range(13)]
            assert list(job.map(plus, range(2))) == [100, 101]
            assert list(workers.job(partial(opened, log, 7)).map(plus, iter([1, 2]))) == [8, 9]
        lines = log.read_text().splitlines()
        assert len(lines) == len(set(lines)) and len(lines) <= 2 * count


def test_threads_are_divided_and_wait_without_spinning_and_units_are_drawn_only_a_little_ahead():
    import torch

    drawn: list[int] = []
    with Processes(2) as workers:
        found = set(workers.job(partial(int, 0)).map(settings, range(4)))
        results = workers.job(partial(int, 0)).map(plus, (drawn.append(unit) or unit for unit in range(50)))
        assert next(results) == 0
        assert len(drawn) <= 4
    assert found == {(max(1, torch.get_num_threads() // 2), "PASSIVE")}


@pytest.mark.parametrize("count", [1, 2])
def test_an_error_of_a_unit_is_raised_here(count):
    with pytest.raises(ValueError, match="unit 3 is bad"), shards(count) as workers:
        list(workers.job(partial(int, 0)).map(fails, range(6)))


def test_an_error_that_cannot_be_sent_is_told_in_words_and_a_request_to_exit_ends_nobody():
    with Processes(1) as workers:
        for unit, words in (
            (1, r"a worker process failed: SystemExit\(0\)"),
            (2, "a worker process failed: .*unit is odd"),
        ):
            with pytest.raises(WorkerError, match=words):
                list(workers.job(partial(int, 0)).map(fails_oddly, [unit]))


def test_a_process_that_is_killed_is_named_and_none_is_left():
    with pytest.raises(WorkerError, match="one of 2 worker processes was killed.*run with fewer workers"):  # noqa: SIM117
        with Processes(2) as workers:
            list(workers.job(partial(int, 0)).map(dies, range(2)))
    assert multiprocessing.active_children() == []


def test_one_worker_is_this_process_and_fewer_are_refused():
    with shards(1) as workers:
        assert isinstance(workers, Here)
    with pytest.raises(ValueError, match="workers=0: at least one"), shards(0):
        pass


SCRIPT = """
import sys
from functools import partial
sys.path.insert(0, sys.argv[1])
import test_workers
from heredity.engine.workers import Processes
if __name__ == "__main__":
    with Processes(2) as workers:
        list(workers.job(partial(str, sys.argv[2])).map(test_workers.sleeps, range(4)))
"""


@pytest.mark.parametrize(
    "end", [signal.SIGINT, signal.SIGKILL], ids=["interrupted by Ctrl-C", "killed without a chance to say so"]
)
def test_workers_end_when_the_run_does(tmp_path, end):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), str(Path(__file__).parent), str(tmp_path / "at work")]
    # A shell that runs the tests in the background hands down that Ctrl-C is to be ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
    signal.signal(signal.SIGINT, before)
    wait_for(lambda: len(list(tmp_path.glob("at work*"))) == 2)
    process.send_signal(end)
    process.wait(timeout=60)
    wait_for(lambda: not members(process.pid))


def members(session: int) -> list[int]:
    """Living processes of a session."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(int(folder.name))
    return found


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
