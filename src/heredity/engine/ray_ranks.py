"""A divided stage made by several workers of a Ray cluster, which are the ranks of `ranks`.

Plain tasks in a placement group, which Ray grants whole or not at all. Ray Train's TorchTrainer would do the same with
more around it: a group of torch's, which other libraries then see, where `ranks` has one that they do not; a folder of
results and checkpoints beside the store; and a count of failures beside that of stages.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ray  # pyright: ignore[reportMissingImports] - an extra
from ray.exceptions import RayTaskError  # pyright: ignore[reportMissingImports]
from ray.util import (  # pyright: ignore[reportMissingImports]
    get_current_placement_group,
    get_node_ip_address,
    placement_group,
    remove_placement_group,
)
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy  # pyright: ignore[reportMissingImports]

from heredity.engine.ranks import ALONE, RankError, Ranks, hosted, joined, together
from heredity.engine.ray_shards import begin, here
from heredity.engine.stage import Stage, follow
from heredity.engine.store import Store

_SILENT = 60.0  # seconds that a lost rank leaves its first to hear of it from the connection


def room(count: int, asks: Mapping[str, float]) -> Any:
    """A placement group for so many ranks, each with what it asks for, on as many nodes as there are."""
    return placement_group([{"CPU": asks["num_cpus"], "memory": asks["memory"]}] * count, strategy="SPREAD")


def release(group: Any) -> None:
    """Give back the room of ranks, if there was one."""
    if group is not None:
        remove_placement_group(group)


def rank(group: Any, number: int) -> dict[str, Any]:
    """Options of the task that is a rank: where it works."""
    return {"scheduling_strategy": PlacementGroupSchedulingStrategy(group, number)}


@contextlib.contextmanager
def first_of(count: int, stage: Stage, store: Store, threads: int) -> Iterator[Ranks]:
    """The ranks of a stage, in the task that is the first of them; the others begin here, in the same placement group.

    What ended another rank is raised here: its own error, or Ray's where its worker is lost.
    """
    if count == 1:
        yield ALONE
        return
    address, group, ended = get_node_ip_address(), get_current_placement_group(), threading.Event()
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.create_server((address, 0), family=family, backlog=count)
    meeting = listener.getsockname()[:2]
    others = []
    for number in range(1, count):
        name = f"rank {number} of {stage.label}"
        task = _rank.options(num_cpus=threads, max_retries=0, name=name, **rank(group, number))  # pyright: ignore[reportFunctionMemberAccess]
        others.append(task.remote(stage, store, threads, number, count, meeting))
    threading.Thread(target=_end_with, args=(others, ended), daemon=True).start()
    try:
        with together(hosted(listener), 0, count, address) as ranks:
            yield ranks
    except RankError:
        for other in others:
            _raise_end(other)
        raise
    finally:
        ended.set()


@ray.remote
def _rank(stage: Stage, store: Store, threads: int, number: int, count: int, meeting: tuple[str, int]) -> None:
    """A rank of a stage that is not its first, in a worker."""
    begin(threads)
    with together(joined(*meeting), number, count, get_node_ip_address()) as ranks:
        follow([stage], here(store), ranks)


def _raise_end(other: Any) -> None:
    """Raise what ended a rank, unless that is that it has lost one."""
    try:
        ray.get(other)
    except RayTaskError as error:
        if isinstance(error.cause, Exception) and not isinstance(error.cause, RankError):
            raise error.cause from None


def _end_with(others: Sequence[Any], ended: threading.Event) -> None:
    """End this worker, for Ray to begin the stage again, where another one is lost and the connection to it says
    nothing: Gloo would wait half an hour for a host that was cut off."""
    ray.wait(list(others), num_returns=1)
    if not ended.wait(_SILENT):
        os._exit(1)
