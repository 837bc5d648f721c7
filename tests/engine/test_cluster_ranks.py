"""Several workers of a cluster make a stage together and leave what one process leaves, also when one of them dies."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("ray", reason="needs ray (the extra `ray`)")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray
import ray.cluster_utils

from heredity.engine import cluster as engine
from heredity.engine import stage as local
from heredity.engine.cluster import Asked, Cluster, ClusterError
from heredity.engine.ranks import RankError
from heredity.engine.stage import Stage, Watcher, Work
from heredity.engine.store import Artifact, Store
from heredity.engine.workers import WorkerError

# Ray tells a port's socket and its own processes late; neither is a fault of what is tested.
pytestmark = [
    pytest.mark.ray,
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a file of tests

STORE = 100 << 20  # bytes of an object store


@pytest.fixture(scope="module")
def at() -> Iterator[Cluster]:
    """Two nodes on this machine, each of one processor."""
    built = ray.cluster_utils.Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "num_gpus": 0, "object_store_memory": STORE, "include_dashboard": False},
    )
    built.add_node(num_cpus=1, num_gpus=0, object_store_memory=STORE)
    ray.init(built.address, log_to_driver=False)
    with engine.cluster() as found:
        yield found
    ray.shutdown()
    built.shutdown()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "runs" / "study")


def adds(work: Work, dies: Callable[[int], None] = lambda _: None) -> None:
    """Forty steps of a sum, to which each rank adds its share, with a checkpoint after each; `dies` is called after the
    twentieth."""
    kept, ranks = work.folder / "checkpoint", work.ranks
    step, total = map(int, kept.read_text().split()) if kept.exists() else (0, 0)
    resumed = step
    while step < 40:
        shares, (first, stop) = np.zeros(6, np.int64), ranks.own(6)
        shares[first:stop] = step * np.arange(first, stop)
        ranks.fill(shares, ranks.edges(6))
        step, total = step + 1, total + int(shares.sum())
        if ranks.number == 0:
            kept.with_suffix(".new").write_text(f"{step} {total}")
            kept.with_suffix(".new").rename(kept)
            work.progress(step, 40)
        if step == 20:
            time.sleep(1.0)  # what the first has begun is told, and its checkpoint written
            dies(ranks.number)
    if ranks.number == 0:
        kept.unlink()
        Path(str(work.config["log"])).write_text(f"{resumed} {ranks.count}")
        (work.folder / "value").write_text(str(total))


def second_dies_once(work: Work) -> None:
    mark = Path(str(work.config["log"]) + ".died")

    def dies(number: int) -> None:
        if number == 1 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    adds(work, dies)


def second_dies(work: Work) -> None:
    if work.ranks.number == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    work.ranks.meet()


def second_raises(work: Work) -> None:
    if work.ranks.number == 1:
        raise ValueError("a file that the second does not see")
    work.ranks.meet()


def differ(work: Work) -> None:
    work.ranks.agree(work.ranks.number, "step 3")


def nodes(work: Work) -> None:
    names = [work.ranks.told(ray.get_runtime_context().get_node_id(), by=number) for number in (0, 1)]
    if work.ranks.number == 0:
        (work.folder / "value").write_text(str(len(set(names))))


class Told(Watcher):
    def __init__(self) -> None:
        self.agains: list[str] = []

    def again(self, stage: Stage) -> None:
        self.agains.append(stage.label)


def stage_of(make: Callable[[Work], None], log: Path) -> Stage:
    return Stage("sum", "all", {"log": str(log)}, {}, make, divided=True)


def made(make: Callable[[Work], None], store: Store, at: Cluster, count: int = 2, **more: Any) -> Artifact:
    stage = stage_of(make, store.root.parent / "log")
    return engine.run([stage], store, at, {stage.label: Asked(0.1, ranks=count)}, **more)[stage.label]


def test_two_workers_on_two_nodes_leave_what_one_process_leaves(at, store, tmp_path):
    artifact = made(adds, store, at)
    assert (tmp_path / "runs/log").read_text() == "0 2"
    here = local.run([stage_of(adds, tmp_path / "log")], Store(tmp_path / "here"))["sum/all"]
    assert (artifact / "value").read_text() == (here / "value").read_text()
    assert [path.name for path in store.root.glob("sum/*/*")] and not list(store.root.glob("sum/.partial*"))
    assert (made(nodes, Store(tmp_path / "nodes"), at) / "value").read_text() == "2"


def test_a_rank_whose_worker_is_killed_has_the_stage_go_on_from_its_checkpoint(at, store, tmp_path):
    watcher = Told()
    artifact = made(second_dies_once, store, at, watcher=watcher)
    assert watcher.agains == ["sum/all"]
    assert (tmp_path / "runs/log").read_text() == "20 2"
    here = local.run([stage_of(adds, tmp_path / "log")], Store(tmp_path / "here"))["sum/all"]
    assert (artifact / "value").read_text() == (here / "value").read_text()


def test_a_rank_that_always_dies_and_one_that_raises_are_named(at, store, monkeypatch):
    monkeypatch.setattr(engine, "RETRIES", 1)
    with pytest.raises(WorkerError, match="^sum/all: its worker died 2 times .*goes on from here$"):
        made(second_dies, store, at)
    with pytest.raises(ValueError, match="^a file that the second does not see\nsum/all$"):
        made(second_raises, store, at)
    with pytest.raises(RankError, match="^step 3: the processes have come to different numbers"):
        made(differ, store, at)
    assert (made(adds, store, at) / "value").exists()  # what they asked for is free again


def test_more_workers_than_there_is_room_for_and_gpus_are_refused_before_anything_begins(at, store):
    with pytest.raises(ClusterError, match=r"^sum/all: --train-workers 3: the cluster has room for 2 of 1 processors "):
        made(adds, store, at, count=3)
    with_gpu = [{**node, "Resources": node["Resources"] | {"GPU": 1.0}} for node in at.nodes]
    with pytest.raises(ClusterError, match=r"^sum/all: --train-workers 2 divides trainings among processors, and "):
        made(adds, store, at._replace(nodes=tuple(with_gpu)))
    assert store.folders() == []
