"""Runs a study on a Ray cluster: stages that do not need each other side by side, the units of a stage by every node.

Ray places, queues and retries; the store holds the results. A stage whose worker or node dies begins again on another
one, from what the dead one had left in the store.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import ray  # pyright: ignore[reportMissingImports] - an extra
from ray._private import ray_constants  # pyright: ignore[reportMissingImports]
from ray.exceptions import RayError, RayTaskError  # pyright: ignore[reportMissingImports]
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # pyright: ignore[reportMissingImports]

from heredity import __version__
from heredity.engine import ray_ranks
from heredity.engine.ray_shards import GPU_SHARE, RETRIES, RayShards, begin, here
from heredity.engine.stage import Stage, Watcher, made, up_to
from heredity.engine.store import Artifact, Store
from heredity.engine.workers import Here, WorkerError
from heredity.errors import reason, short
from heredity.kernels.processors import processors

_OBJECT_STORE = 2**28  # bytes per worker of a cluster that this process starts; more goes to the disk
_TURN, _LOOK = 0.5, 10.0  # seconds between looks at progress, and at the nodes
_SEEN = ".cluster"


class ClusterError(ValueError):
    """The cluster cannot do what a study asks; the message names the stage or node and the way out."""


class Asked(NamedTuple):
    """What a stage asks of a node."""

    gib: float  # memory at most
    gpu: bool = False  # where the cluster has one
    seconds: float = 1.0  # estimate of its time
    ranks: int = 1  # workers that make it together, each of which asks for all of the above


class Cluster(NamedTuple):
    """Nodes that work, as they were at the start."""

    nodes: tuple[Mapping[str, Any], ...]  # as Ray describes them
    workers: int  # tasks that share the smallest node

    @property
    def threads(self) -> int:
        """Processors of a task."""
        return max(1, int(min(_resource(node, "CPU") for node in self.nodes)) // self.workers)

    @property
    def slots(self) -> int:
        """Tasks that run at once."""
        return sum(int(_resource(node, "CPU")) // self.threads for node in self.nodes)

    @property
    def gpus(self) -> int:
        return int(sum(_resource(node, "GPU") for node in self.nodes))

    def check(self, asked: Mapping[str, Asked]) -> None:
        """Raise ClusterError for the first stage that fits no node, by its estimate and what the nodes offer."""
        most = max((_resource(node, "memory") for node in self.nodes), default=0.0) / 2**30
        for label, one in asked.items():
            if one.gib > most:
                raise ClusterError(
                    f"{label}: needs about {one.gib:.1f} GiB of memory, and no node offers more than {most:.1f} GiB to "
                    "tasks; use narrower SAEs or fewer tokens (`heredity check` estimates both), add a larger node, or "
                    "let one offer more (`ray start --memory BYTES`)"
                )
            if one.ranks > 1:
                self._check_ranks(label, one)

    def _check_ranks(self, label: str, one: Asked) -> None:
        if self.gpus:
            raise ClusterError(
                f"{label}: --train-workers {one.ranks} divides trainings among processors, and the cluster has GPUs; "
                "leave it out, or start the nodes with `ray start --num-gpus 0`"
            )
        each, memory = self.threads, max(one.gib * 2**30, 1.0)
        fit = [min(_resource(node, "CPU") // each, _resource(node, "memory") // memory) for node in self.nodes]
        if (room := int(sum(fit))) < one.ranks:
            raise ClusterError(
                f"{label}: --train-workers {one.ranks}: the cluster has room for {room} of {each} processors and "
                f"{one.gib:.1f} GiB of memory each; ask for no more, add nodes, or cut nodes into more tasks with "
                "--workers"
            )


def _resource(node: Mapping[str, Any], name: str) -> float:
    return float(node["Resources"].get(name, 0.0))


def _nodes() -> tuple[Mapping[str, Any], ...]:
    """Nodes that offer processors now."""
    return tuple(node for node in ray.nodes() if node["Alive"] and _resource(node, "CPU") >= 1)


@contextlib.contextmanager
def cluster(address: str | None = None, workers: int = 1) -> Iterator[Cluster]:
    """A Ray cluster: the one at an address (`auto`, `ray://host:10001`, or of the environment's RAY_ADDRESS), or one
    started on this machine for as long as the block is open.

    workers: tasks that share a node, its processors divided among them. Raises ClusterError where none answers.
    """
    # Neither statistics nor a dashboard leaves this machine; threads that wait do not spin.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("RAY_task_oom_retries", str(RETRIES))  # else without end where Ray ends one for its memory
    address = address or os.environ.get("RAY_ADDRESS")
    mine, terminated = not ray.is_initialized(), signal.getsignal(signal.SIGTERM)
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if mine and address:
        os.environ.setdefault("RAY_gcs_server_port_wait_time_s", "1")  # tries, of 40 s each; by default 20
        try:
            ray.init(address, **quiet)
        except (RayError, OSError, RuntimeError, ValueError) as error:
            if _wants_token(error):
                way_out = "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or ~/.ray/auth_token to the cluster's token"
                raise ClusterError(f"--address {address}: the cluster asks for a token; {way_out}") from error
            way_out = "start one with `ray start --head`, or leave --address out to use this machine alone"
            raise ClusterError(f"--address {address}: no Ray cluster answers ({reason(error)}); {way_out}") from error
    elif mine:
        workers = min(workers, processors())
        on_loopback()
        ray.init(
            "local",  # else what an earlier cluster left would be looked for
            num_cpus=processors(),
            object_store_memory=_OBJECT_STORE * workers,
            include_dashboard=False,
            **quiet,
        )
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, terminated)  # Ray takes the signal for itself
    try:
        nodes = _nodes()
        if not nodes:
            raise ClusterError(f"--address {address}: no node of the cluster offers processors; start one that does")
        yield Cluster(nodes, workers)
    finally:
        if mine:
            ray.shutdown()


def _wants_token(error: BaseException | None) -> bool:
    """Whether a cluster refused for want of its token, which Ray says in what caused the error alone."""
    while error is not None:
        if "InvalidAuthToken" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def on_loopback() -> None:
    """Have the cluster of this machine listen on loopback alone. Ray does so where it takes no part in clusters, as on
    macOS, and has no argument for it: it puts the machine's outer address in the place of 127.0.0.1."""
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # of its processes
    ray_constants.ENABLE_RAY_CLUSTER = False


def run(
    stages: Sequence[Stage],
    store: Store,
    at: Cluster,
    asked: Mapping[str, Asked],
    watcher: Watcher | None = None,
    until: str | None = None,
) -> dict[str, Artifact]:
    """As `stage.run`, on a cluster. asked: of each stage, by label.

    Raises ClusterError before anything begins for a stage that fits no node and for a node that does not see the store,
    and WorkerError for a stage whose worker died again and again.
    """
    stages, watcher = up_to(stages, until), watcher or Watcher()
    with store.lock():
        found = {stage.label: store.find(stage.kind, stage.name, stage.key) for stage in stages}
        at.check({stage.label: asked[stage.label] for stage in stages if found[stage.label] is None})
        for stage in stages:
            if found[stage.label] is not None:
                watcher.start(stage)
                watcher.end(stage, 0.0, True)
        left = [stage for stage in stages if found[stage.label] is None]
        if left:
            _same_everywhere(store, at)
            _work(left, store, at, asked, watcher)
    made_all = {stage.label: store.find(stage.kind, stage.name, stage.key) for stage in stages}
    return {label: artifact for label, artifact in made_all.items() if artifact is not None}


def _work(left: list[Stage], store: Store, at: Cluster, asked: Mapping[str, Asked], watcher: Watcher) -> None:
    """Make stages, inputs before what is made from them. Raises ClusterError where one fits no node any more."""
    board = _Board.options(num_cpus=0, max_restarts=-1).remote()  # pyright: ignore[reportAttributeAccessIssue]
    rest, undone = _rest(left, asked), {stage.label for stage in left}
    todo = sorted(left, key=lambda stage: -rest[stage.label])
    running: dict[Any, Stage] = {}
    groups: dict[Any, Any] = {}
    begun: dict[str, int] = {}  # of each stage that the watcher knows: how often a worker has begun it
    looked = time.monotonic()
    try:
        while undone:
            if time.monotonic() - looked > _LOOK:
                looked = time.monotonic()
                at._replace(nodes=_nodes()).check({label: asked[label] for label in undone})
            on_gpus = sum(asked[stage.label].gpu for stage in running.values())
            for stage in list(todo):
                if any(source.label in undone for _, source in stage.sources()):
                    continue
                gpu = bool(asked[stage.label].gpu and at.gpus)
                if gpu and on_gpus >= at.gpus:  # the other half of every GPU is for units
                    continue
                on_gpus += gpu
                one, group = _handed(stage, asked[stage.label], store, board, at)
                running[one], groups[one] = stage, group
                todo.remove(stage)
            ended, _ = ray.wait(list(running), num_returns=1, timeout=_TURN)
            _show(board, {stage.label: stage for stage in running.values()}, begun, watcher)
            for one in ended:
                stage = running.pop(one)
                ray_ranks.release(groups.pop(one))
                seconds = _ended(stage, one)
                if stage.label not in begun:
                    watcher.start(stage)
                watcher.end(stage, seconds, False)
                undone.remove(stage.label)
    except BaseException:
        for one in running:
            ray.cancel(one)
        with contextlib.suppress(RayError):
            if running:
                ray.wait(list(running), num_returns=len(running), timeout=30)  # stages keep what they have come to
        raise
    finally:
        for group in groups.values():
            ray_ranks.release(group)


def _handed(stage: Stage, one: Asked, store: Store, board: Any, at: Cluster) -> tuple[Any, Any]:
    """A stage as it is handed to Ray, and the placement group of its ranks if it has several."""
    asks: dict[str, Any] = {"num_cpus": at.threads, "memory": int(one.gib * 2**30)}
    gpu, group = bool(one.gpu and at.gpus), None
    if one.ranks > 1:
        group = ray_ranks.room(one.ranks, asks)
        asks |= ray_ranks.rank(group, 0) | {"retry_exceptions": [RayError]}  # of another rank's worker
    elif gpu:
        asks["num_gpus"] = GPU_SHARE
    task = _stage.options(**asks, max_retries=RETRIES, name=stage.label)  # pyright: ignore[reportFunctionMemberAccess]
    return task.remote(stage, store, board, at.threads, at.slots, gpu, one.ranks), group


def _rest(stages: Sequence[Stage], asked: Mapping[str, Asked]) -> dict[str, float]:
    """Seconds, as estimated, from the start of each stage to the end of the longest chain that waits for it: what has
    most after it begins first. Inputs come before what is made from them."""
    rest = {stage.label: asked[stage.label].seconds for stage in stages}
    for stage in reversed(stages):
        for _, source in stage.sources():
            if source.label in rest:
                after = asked[source.label].seconds + rest[stage.label]
                rest[source.label] = max(rest[source.label], after)
    return rest


def _ended(stage: Stage, one: Any) -> float:
    """Seconds that a stage took; its error, if that is how it ended."""
    try:
        return ray.get(one)
    except RayError as failed:
        error = failed.cause if isinstance(failed, RayTaskError) else failed
        if not isinstance(error, RayError):  # which may be of another rank's worker
            error.add_note(stage.label)
            raise error from None
        died = f"its worker died {RETRIES + 1} times ({short(reason(error))})"
        way_out = "where memory ran out, use a larger node or fewer workers; the same command goes on from here"
        raise WorkerError(f"{stage.label}: {died}; {way_out}") from error


def _show(board: Any, running: Mapping[str, Stage], begun: dict[str, int], watcher: Watcher) -> None:
    """Hand on what the stages have told of their progress."""
    try:
        told: Any = ray.get(board.told.remote(), timeout=10)
    except RayError:
        return  # its node is lost; it starts anew on another
    for label, (times, done, total) in told.items():
        if label not in running:
            continue
        if label not in begun:
            watcher.start(running[label])
        elif times > begun[label]:
            watcher.again(running[label])
        begun[label] = max(times, begun.get(label, 0))
        if total:
            watcher.progress(running[label], done, total)


def _same_everywhere(store: Store, at: Cluster) -> None:
    """Raise ClusterError for a node that does not see the store, or runs another version of this package."""
    token = uuid.uuid4().hex
    (store.root / _SEEN).write_text(token, encoding="utf-8")
    store.share(_SEEN)
    probes = {}
    for node in at.nodes:
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        probes[_probe.options(num_cpus=0, scheduling_strategy=there).remote(store)] = node["NodeManagerAddress"]  # pyright: ignore[reportFunctionMemberAccess]
    try:
        for one, address in probes.items():
            try:
                seen, version = ray.get(one)
            except RayTaskError as error:
                raise ClusterError(
                    f"node {address}: cannot work ({reason(error.cause)}); install heredity there"
                ) from None
            except RayError:
                continue  # it died meanwhile
            if version != __version__:
                raise ClusterError(
                    f"node {address}: has heredity {version}, here is {__version__}; install one version"
                )
            if seen != token:
                raise ClusterError(
                    f"node {address}: does not see {store.root}; keep results in a folder that all nodes share, at one "
                    "path, or on shared storage: --runs s3://bucket/prefix"
                )
    finally:
        (store.root / _SEEN).unlink(missing_ok=True)


@ray.remote(max_retries=RETRIES)
def _probe(store: Store) -> tuple[str, str]:
    path = store.file(_SEEN)
    return path.read_text(encoding="utf-8") if path.exists() else "", __version__


@ray.remote
class _Board:
    """How far stages have come."""

    def __init__(self) -> None:
        self._told: dict[str, tuple[int, int, int]] = {}

    def begin(self, label: str) -> None:
        times, done, total = self._told.get(label, (0, 0, 0))
        self._told[label] = times + 1, done, total

    def tell(self, label: str, done: int, total: int) -> None:
        self._told[label] = self._told.get(label, (0, 0, 0))[0], done, total

    def told(self) -> dict[str, tuple[int, int, int]]:
        """By label: how often a worker began it, how much is done, of how much."""
        return self._told


class _Teller(Watcher):
    """Tells the board, at most once a turn."""

    def __init__(self, board: Any) -> None:
        self._board, self._last = board, 0.0

    def progress(self, stage: Stage, done: int, total: int) -> None:
        if time.monotonic() - self._last > _TURN:
            self._last = time.monotonic()
            self._board.tell.remote(stage.label, done, total)


@ray.remote
def _stage(stage: Stage, store: Store, board: Any, threads: int, slots: int, gpu: bool, count: int) -> float:
    """One stage, in a worker, or in the first of several; its seconds."""
    start = time.monotonic()
    board.begin.remote(stage.label)
    begin(threads)
    # Several have the room of their group alone: units would wait for the end of the stage that waits for them.
    shards = RayShards(stage, store, threads, slots, gpu) if count == 1 else Here()
    with ray_ranks.first_of(count, stage, store, threads) as ranks:
        made(stage, here(store), _Teller(board), shards, ranks)
    return time.monotonic() - start
