"""Independent units of work, done in this process or shared among several on one machine.

A unit is the same whoever does it, and results come back in the order of the units, so numbers do not depend on how
many processes there are. Torch is imported in functions only: a new process first sets how its threads wait.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import pickle
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import cache
from types import TracebackType
from typing import Any, Generic, Protocol, TypeVar

from heredity.errors import short
from heredity.kernels.processors import processors

S = TypeVar("S")
U = TypeVar("U")
R = TypeVar("R")

Progress = Callable[[int, int], None]

AHEAD = 2  # units that wait per process, so that none is idle while results are consumed


class WorkerError(ValueError):
    """A worker process died without an error of its own."""


class Job(Generic[S]):
    """Units of work that all need the result of `opened`, such as a model; opened at the first unit, once."""

    def __init__(self, opened: Callable[[], S]) -> None:
        self._open = cache(opened)

    def map(self, work: Callable[[S, U], R], units: Iterable[U]) -> Iterator[R]:
        """work(opened, unit) of every unit, in order. The first error of a unit is raised here."""
        for unit in units:
            yield work(self._open(), unit)

    def reduce(self, work: Callable[[S, U], R], units: Iterable[U], join: Callable[[list[R]], R]) -> R:
        """join(results of every unit, in order). Where it is joined in parts, it is by neighbours: join(join(a, b), c)
        must have the bits of join(a, b, c)."""
        return join(list(self.map(work, units)))


class Shards(Protocol):
    """Who does the units of a job."""

    @property
    def apart(self) -> int:
        """Workers that do not share this process's memory and threads: how many parts to cut what threads do here."""
        ...

    def job(self, opened: Callable[[], S]) -> Job[S]:
        """A job. What it opens and the functions it maps must be importable by name (or `functools.partial` of such)
        where workers are processes."""
        ...


class Here:
    """All work in this process."""

    apart = 1

    def job(self, opened: Callable[[], S]) -> Job[S]:
        return Job(opened)


class Processes:
    """A pool of processes that share this machine: its threads divided among them, its GPUs dealt out in turn.

    They start at the first unit and end with the `with` block; on an error or an interrupt they are killed.
    """

    apart = 1  # what threads do well here, threads do

    def __init__(self, count: int) -> None:
        """`count` processes; ValueError below 1."""
        if count < 1:
            raise ValueError(f"workers={count}: at least one process must do the work")
        self.count = count
        self._numbers = itertools.count(1)
        self._pool: ProcessPoolExecutor | None = None
        self._others: set[int | None] = set()

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self._pool is None:
            return
        for process in multiprocessing.active_children():
            if kind is not None and process.pid not in self._others:
                process.terminate()
        self._pool.shutdown(cancel_futures=True)
        self._pool = None

    def job(self, opened: Callable[[], S]) -> Job[S]:
        """As `Here.job`; opened by each process at its first unit, and dropped at its first unit of the next job."""
        return _SharedJob(self, next(self._numbers), opened)

    def submit(self, work: Callable[..., R], *arguments: object) -> Future[R]:
        """Start one call; the processes begin with the first."""
        if self._pool is None:
            import torch

            self._others = {process.pid for process in multiprocessing.active_children()}
            context = multiprocessing.get_context("spawn")
            threads = max(1, torch.get_num_threads() // self.count)
            self._pool = ProcessPoolExecutor(self.count, context, _begin, (threads, context.Value("i", 0)))
        return self._pool.submit(work, *arguments)


class _SharedJob(Job[S]):
    def __init__(self, processes: Processes, number: int, opened: Callable[[], S]) -> None:
        self._processes, self._number, self._opened = processes, number, opened

    def map(self, work: Callable[[S, U], R], units: Iterable[U]) -> Iterator[R]:
        waiting: deque[Future[R]] = deque()
        rest = iter(units)
        try:
            while True:
                for unit in itertools.islice(rest, AHEAD * self._processes.count - len(waiting)):
                    waiting.append(self._processes.submit(unit_of, self._number, self._opened, work, unit))
                if not waiting:
                    return
                yield waiting.popleft().result()
        except BrokenProcessPool as error:
            killed = f"one of {self._processes.count} worker processes was killed, perhaps for want of memory"
            raise WorkerError(f"{killed}; run with fewer workers") from error


@contextlib.contextmanager
def shards(workers: int) -> Iterator[Shards]:
    """This process for one worker, a pool of processes for more, but no more than one per processor.

    Raises ValueError for fewer than one.
    """
    workers = min(workers, processors())
    if workers == 1:
        yield Here()
        return
    with Processes(workers) as processes:
        yield processes


_current: tuple[Any, Any] = (0, None)  # of a worker process: the job it has open, and what that opened


def unit_of(number: Any, opened: Callable[[], S], work: Callable[[S, U], R], unit: U) -> R:
    """One unit of a job, known by its number, in a worker process; its error is one that can be sent."""
    try:
        return _done(number, opened, work, unit)
    except BaseException as error:
        if (sent := _sendable(error)) is error:
            raise
        raise sent from error


def _done(number: Any, opened: Callable[[], S], work: Callable[[S, U], R], unit: U) -> R:
    global _current
    if _current[0] != number:
        _current = (0, None)  # the last job's models are freed before the next one's are loaded
        _current = (number, opened())
    return work(_current[1], unit)


def _sendable(error: BaseException) -> BaseException:
    """The error itself where it arrives whole at another process, or else its words: one that cannot be read there
    would look like the end of this process, and a request to exit is none to the process that asked for the unit."""
    with contextlib.suppress(Exception):
        if not isinstance(error, SystemExit) and type(pickle.loads(pickle.dumps(error))) is type(error):
            return error
    return WorkerError(f"a worker process failed: {short(error)}")


def _begin(threads: int, turns: Any) -> None:
    """Set up a worker process."""
    # Ctrl-C reaches every process of the terminal; the one that drew the progress bar ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # Threads that spin while they wait take the processor from the other workers. OpenMP reads this when it loads.
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    os.environ["OMP_NUM_THREADS"] = str(threads)
    import torch

    torch.set_num_threads(threads)
    if torch.cuda.is_available():
        with turns.get_lock():
            turn, turns.value = turns.value, turns.value + 1
        torch.cuda.set_device(turn % torch.cuda.device_count())


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
