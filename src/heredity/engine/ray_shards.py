"""Units of work shared among the nodes of a Ray cluster; see `workers`, whose protocol this is."""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, TypeVar

import ray  # pyright: ignore[reportMissingImports] - an extra
from ray.exceptions import RayError, RayTaskError  # pyright: ignore[reportMissingImports]

from heredity.engine.stage import Stage, inputs_of
from heredity.engine.store import Artifact, Store
from heredity.engine.workers import AHEAD, Here, Job, WorkerError, unit_of
from heredity.errors import reason, short

S = TypeVar("S")
U = TypeVar("U")
R = TypeVar("R")

RETRIES = 3  # of a task whose worker or node died
GPU_SHARE = 0.5  # of a GPU that a stage takes, and that a unit does: one of each fits on every GPU
_PATIENCE = 20.0  # seconds that all wait for one unit, at least, before another worker is given the same
_SLOW = 4.0  # times what a unit takes on average, at least
_FAN = 4  # results that one task joins


class RayShards:
    """Workers of a cluster, as seen from the worker that makes a stage."""

    def __init__(self, stage: Stage, store: Store, threads: int, slots: int, gpu: bool = False) -> None:
        """threads: processors of a unit. slots: units that run at once, which bounds how many are under way."""
        self.stage, self.store, self.threads, self.slots, self.gpu = stage, store, threads, slots, gpu

    @property
    def apart(self) -> int:
        return 1 if self.gpu else self.slots

    def job(self, opened: Callable[[], S]) -> Job[S]:
        if self.slots < 2:
            return Here().job(opened)
        if self.store.shared is not None:
            opened = partial(_beside_inputs, self.stage, self.store, opened)
        return _RayJob(self, opened)


@dataclass
class _Unit:
    refs: list[Any]  # of its result; a second where it was given to two workers
    unit: Any


class _RayJob(Job[S]):
    def __init__(self, shards: RayShards, opened: Callable[[], S]) -> None:
        self._window = AHEAD * shards.slots
        self._number = uuid.uuid4().hex
        self._opened = opened
        asks = {"num_cpus": shards.threads, "num_gpus": GPU_SHARE if shards.gpu else 0}
        self._task = _unit.options(**asks, max_retries=RETRIES, scheduling_strategy="SPREAD")  # pyright: ignore[reportFunctionMemberAccess]
        self._join = _joined.options(num_cpus=shards.threads, max_retries=RETRIES)  # pyright: ignore[reportFunctionMemberAccess]
        self._threads = shards.threads

    def map(self, work: Callable[[S, U], R], units: Iterable[U]) -> Iterator[R]:
        job, rest, waiting = ray.put((self._opened, work)), iter(units), deque[_Unit]()
        start, ended = time.monotonic(), 0
        try:
            while True:
                for unit in itertools.islice(rest, self._window - len(waiting)):
                    waiting.append(_Unit([self._task.remote(self._threads, self._number, job, unit)], unit))
                if not waiting:
                    return
                average = (time.monotonic() - start) * self._window / (AHEAD * max(ended, 1))
                result = self._first(waiting, job, max(_PATIENCE, _SLOW * average))
                ended += 1
                yield result
        finally:
            _cancel(ref for unit in waiting for ref in unit.refs)

    def _first(self, waiting: deque[_Unit], job: Any, patience: float) -> R:  # pyright: ignore[reportInvalidTypeVarUse]
        """The result of the first unit that waits; one that all others have long been waiting for is done twice, and
        whoever ends first is believed, since both do the same."""
        first, stuck = waiting[0], None
        while not (ended := ray.wait(first.refs, num_returns=1, timeout=1.0)[0]):
            others = [one.refs[0] for one in itertools.islice(waiting, 1, None)]
            if len(first.refs) > 1 or not others or ray.wait(others, num_returns=len(others), timeout=0)[1]:
                continue
            stuck = stuck or time.monotonic()
            if time.monotonic() - stuck > patience:
                first.refs.append(self._task.remote(self._threads, self._number, job, first.unit))
        with _own_errors():
            result = ray.get(ended[0])
        waiting.popleft()
        _cancel((ref for ref in first.refs if ref is not ended[0]), force=True)  # it may hang for good
        return result

    def reduce(self, work: Callable[[S, U], R], units: Iterable[U], join: Callable[[list[R]], R]) -> R:
        """Join neighbours in a tree of tasks; only the last result comes to this process."""
        job, levels = ray.put((self._opened, work)), list[list[Any]]()
        running: list[Any] = []
        for unit in units:
            if len(running) >= self._window:
                _, running = ray.wait(running, num_returns=1)
            ref = self._task.remote(self._threads, self._number, job, unit)
            running.append(ref)
            for level in itertools.count():
                if level == len(levels):
                    levels.append([])
                levels[level].append(ref)
                if len(levels[level]) < _FAN:
                    break
                ref, levels[level] = self._join.remote(self._threads, join, *levels[level]), []
        left = [ref for level in reversed(levels) for ref in level]  # on a higher level are earlier units
        with _own_errors():
            return ray.get(self._join.remote(self._threads, join, *left))


@ray.remote
def _unit(threads: int, number: str, job: tuple[Callable[[], Any], Callable[[Any, Any], Any]], unit: Any) -> Any:
    begin(threads)
    return unit_of(number, job[0], job[1], unit)


@ray.remote
def _joined(threads: int, join: Callable[[list[Any]], Any], *parts: Any) -> Any:
    begin(threads)
    return join(list(parts))


def _beside_inputs(stage: Stage, store: Store, opened: Callable[[], S]) -> S:
    """Open a job where its stage's inputs may not have been fetched yet."""
    for role in inputs_of(stage, store).values():
        for artifact in [role] if isinstance(role, Artifact) else role.values():
            _ = artifact / "."
    return opened()


@contextlib.contextmanager
def _own_errors() -> Iterator[None]:
    """The error of a unit as it was raised there."""
    try:
        yield
    except RayTaskError as error:
        if isinstance(error.cause, Exception):
            raise error.cause from None
        raise
    except RayError as error:
        died = f"a worker died {RETRIES + 1} times at the same work ({short(reason(error))})"
        raise WorkerError(f"{died}; where memory ran out, use a larger node or fewer workers") from error


def _cancel(refs: Iterable[Any], force: bool = False) -> None:
    for ref in refs:
        with contextlib.suppress(RayError, ValueError):
            ray.cancel(ref, force=force)


@cache
def begin(threads: int) -> None:
    """Set up a worker of so many threads, once."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ[name] = str(threads)
    if "torch" in sys.modules:  # it has read the environment
        sys.modules["torch"].set_num_threads(threads)


@cache
def _opened(root: Any) -> Store:
    return Store(root)


def here(store: Store) -> Store:
    """The store of this process, which remembers what it has verified."""
    return _opened(store.root)
