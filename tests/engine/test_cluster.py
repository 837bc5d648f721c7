"""A Ray cluster gives what one process gives, also when workers and nodes die; what cannot work is said before it
begins."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
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
from heredity.engine.ray_shards import RayShards
from heredity.engine.stage import Stage, Watcher, Work
from heredity.engine.store import Store
from heredity.engine.workers import Here, Processes, WorkerError
from heredity.features.acts import FeatureActs
from heredity.features.correlate import correlate
from heredity.features.match_by import correlate_by

# Ray tells a port's socket and its own processes late; neither is a fault of what is tested.
pytestmark = [
    pytest.mark.ray,
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a file of tests

STORE = 100 << 20  # bytes of an object store


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    """Two nodes on this machine, each of one processor and half of a declared GPU pair."""
    built = ray.cluster_utils.Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "num_gpus": 1, "object_store_memory": STORE, "include_dashboard": False},
    )
    built.add_node(num_cpus=1, object_store_memory=STORE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", built.address)
        ray.init(built.address, log_to_driver=False)
        yield built
        ray.shutdown()
        built.shutdown()


@pytest.fixture
def at(nodes: Any) -> Iterator[Cluster]:
    with engine.cluster() as found:
        yield found


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "runs" / "study")


def shards(store: Store, slots: int = 2, gpu: bool = False) -> RayShards:
    return RayShards(Stage("kind", "name", {}, {}, print), store, 1, slots, gpu)


def opened(path: Path, value: int) -> int:
    with path.open("a") as file:
        file.write(f"{os.getpid()}\n")
    return value


def plus(value: int, unit: int) -> int:
    time.sleep(0.01 * (unit % 3))
    return value + unit


def fails(value: int, unit: int) -> int:
    if unit == 3:
        raise ValueError("unit 3 is bad")
    return unit


def dies_once(path: Path, unit: int) -> int:
    """Kills its worker where it comes to unit 3 for the first time."""
    if unit == 3 and not path.exists():
        path.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return unit


def dies(value: int, unit: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return unit


def text(value: int, unit: int) -> str:
    return f"{unit} "


def test_results_come_in_the_order_of_the_units_and_each_process_opens_a_job_once(nodes, store, tmp_path):
    log = tmp_path / "log"
    job = shards(store).job(partial(opened, log, 100))
    assert list(job.map(plus, range(23))) == [100 + unit for unit in range(23)]
    assert len(log.read_text().splitlines()) == len(set(log.read_text().splitlines()))
    assert isinstance(shards(store, slots=1).job(int), type(Here().job(int)))


def test_units_are_drawn_only_a_little_ahead(nodes, store):
    drawn: list[int] = []
    results = shards(store).job(partial(int, 0)).map(plus, (drawn.append(unit) or unit for unit in range(50)))
    assert next(results) == 0 and len(drawn) <= 4
    results.close()


@pytest.mark.parametrize("count", [1, 3, 4, 5, 16, 17, 70])
def test_a_tree_joins_neighbors_in_order(nodes, store, count):
    whole = "".join(f"{unit} " for unit in range(count))
    assert shards(store).job(partial(int, 0)).reduce(text, range(count), "".join) == whole
    assert Here().job(partial(int, 0)).reduce(text, range(count), "".join) == whole


def test_an_error_of_a_unit_is_raised_here(nodes, store):
    with pytest.raises(ValueError, match="^unit 3 is bad$"):
        list(shards(store).job(partial(int, 0)).map(fails, range(6)))


def test_a_worker_that_dies_is_replaced_and_one_that_always_dies_is_named(nodes, store, tmp_path, monkeypatch):
    job = shards(store).job(partial(Path, tmp_path / "died"))
    assert list(job.map(dies_once, range(8))) == list(range(8))
    monkeypatch.setattr("heredity.engine.ray_shards.RETRIES", 1)
    with pytest.raises(WorkerError, match="^a worker died 2 times at the same work .*fewer workers$"):
        list(shards(store).job(partial(int, 0)).map(dies, range(1)))


def stuck_once(path: Path, unit: int) -> int:
    if unit == 0 and not path.exists():
        path.touch()
        time.sleep(600)
    return unit


def test_a_unit_that_all_wait_for_is_given_to_another_worker(nodes, store, tmp_path, monkeypatch):
    monkeypatch.setattr("heredity.engine.ray_shards._PATIENCE", 1.0)
    start = time.monotonic()
    job = shards(store).job(partial(Path, tmp_path / "stuck"))
    assert list(job.map(stuck_once, range(6))) == list(range(6))
    assert time.monotonic() - start < 120


def acts(tokens: int, d_sae: int, l0: int, seed: int) -> FeatureActs:
    rng = np.random.default_rng(seed)
    indices = np.concatenate([rng.choice(d_sae, l0, replace=False) for _ in range(tokens)]).astype(np.int32)
    values = rng.gamma(2.0, size=tokens * l0).astype(np.float32) + 0.01
    return FeatureActs(np.arange(0, tokens * l0 + 1, l0), indices, values, d_sae)


def test_matching_has_the_same_bits_by_any_number_of_workers(nodes, store):
    parent, child = acts(3_000, 150, 12, 0), acts(3_000, 170, 12, 1)
    whole = correlate(parent, child, 3)
    for slots in (2, 3, 7):
        found = correlate_by(shards(store, slots), parent, child, 3, least=2_000)
        for one, other in zip(whole, found, strict=True):
            assert np.array_equal(one, other, equal_nan=np.asarray(one).dtype.kind == "f")
    with Processes(2) as processes:
        assert np.array_equal(correlate_by(processes, parent, child, 3, least=2_000).parent_match, whole.parent_match)


# -- stages ------------------------------------------------------------------------------------------------------


def makes(work: Work) -> None:
    read = [str((one / "value").read_text()) for one in work.inputs.values()]
    total = sum(work.shards.job(partial(int, len(read))).map(plus, range(6)))
    (work.folder / "value").write_text(f"{work.config['n']} {total} {' '.join(read)}")


def makes_and_dies(work: Work) -> None:
    """Leaves a checkpoint, and then its process dies; the next one goes on from there."""
    if not (work.folder / "checkpoint").exists():
        (work.folder / "checkpoint").write_text("half")
        time.sleep(1)  # what it has begun is told
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(2)
    makes(work)


def always_dies(work: Work) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def raises(work: Work) -> None:
    raise ValueError("a bad setting")


def stages(second: Any = makes) -> list[Stage]:
    first = Stage("a", "one", {"n": 1}, {}, makes)
    left, right = (Stage("b", name, {"n": 2}, {"a": first}, make) for name, make in (("l", second), ("r", makes)))
    return [first, left, right, Stage("c", "last", {"n": 3}, {"l": left, "r": right}, makes)]


def run(work: list[Stage], store: Store, at: Cluster, gpu: bool = False, **more: Any) -> dict[str, str]:
    asked = {stage.label: Asked(0.1, gpu) for stage in work}
    return {label: (one / "value").read_text() for label, one in engine.run(work, store, at, asked, **more).items()}


class Told(Watcher):
    def __init__(self) -> None:
        self.ends: list[str] = []

        self.agains: list[str] = []

    def again(self, stage: Stage) -> None:
        self.agains.append(stage.label)

    def end(self, stage: Stage, seconds: float, cached: bool) -> None:
        self.ends.append(f"{stage.label} {cached}")


def test_stages_on_a_cluster_leave_what_one_process_leaves(at, store, tmp_path):
    told = Told()
    done = run(stages(), store, at, watcher=told)
    here = local.run(stages(), Store(tmp_path / "here"))
    assert done == {label: (one / "value").read_text() for label, one in here.items()}
    assert told.ends[0] == "a/one False" and told.ends[-1] == "c/last False" and len(told.ends) == 4
    again = Told()
    assert run(stages(), store, at, watcher=again, until="b") == {k: v for k, v in done.items() if k != "c/last"}
    assert again.ends == ["a/one True", "b/l True", "b/r True"]


def test_stages_that_take_a_gpu_leave_a_share_for_their_units(at, store):
    assert at.gpus == 1 and len(run(stages(), store, at, gpu=True)) == 4


def test_a_stage_whose_worker_dies_goes_on_from_its_checkpoint(at, store, tmp_path):
    told = Told()
    done = run(stages(makes_and_dies), store, at, watcher=told)
    assert told.agains == ["b/l"]
    here = local.run(stages(), Store(tmp_path / "here"))
    assert done == {label: (one / "value").read_text() for label, one in here.items()}
    assert (store.find("b", "l", stages()[1].key) / "checkpoint").read_text() == "half"


def test_a_stage_that_always_dies_and_one_that_raises_are_named(at, store, monkeypatch):
    monkeypatch.setattr(engine, "RETRIES", 1)
    with pytest.raises(WorkerError, match="^b/l: its worker died 2 times .*goes on from here$"):
        run(stages(always_dies), store, at)
    with pytest.raises(ValueError, match="^a bad setting\nb/l$"):  # the stage is a note of the error
        run(stages(raises), store, at)
    assert len(run(stages(), store, at)) == 4


def test_a_stage_that_fits_no_node_is_refused_before_anything_begins(at, store):
    asked = {stage.label: Asked(0.1) for stage in stages()} | {"c/last": Asked(5_000.0)}
    with pytest.raises(ClusterError, match=r"^c/last: needs about 5000.0 GiB of memory, and no node offers more than"):
        engine.run(stages(), store, at, asked)
    assert store.folders() == []


def test_a_stage_that_fits_no_node_any_more_is_named(at, store, monkeypatch):
    monkeypatch.setattr(engine, "_LOOK", 1.0)
    larger = [{**node, "Resources": node["Resources"] | {"memory": 2.0**50}} for node in at.nodes]  # and then lost
    asked = {stage.label: Asked(0.1) for stage in stages()} | {"b/r": Asked(5_000.0)}
    with pytest.raises(ClusterError, match=r"^b/r: needs about 5000.0 GiB of memory, and no node offers more than"):
        engine.run(stages(), store, at._replace(nodes=tuple(larger)), asked)


def test_what_has_most_after_it_begins_first():
    asked = {"a/one": Asked(0.1, seconds=1), "b/l": Asked(0.1, seconds=2), "b/r": Asked(0.1, seconds=3)}
    rest = engine._rest(stages(), asked | {"c/last": Asked(0.1, seconds=10)})
    assert rest == {"a/one": 14, "b/l": 12, "b/r": 13, "c/last": 10}


def apart(code: str) -> subprocess.CompletedProcess[str]:
    """Run code in a process that knows no cluster."""
    environment = os.environ | {"RAY_ADDRESS": ""}
    code = f"from heredity.engine.cluster import cluster\n{code}"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)


def test_a_cluster_that_does_not_answer_is_named():
    done = apart("with cluster('127.0.0.1:1'): pass")
    assert "ClusterError: --address 127.0.0.1:1: no Ray cluster answers" in done.stderr


def test_a_cluster_that_wants_a_token_is_told_from_one_that_does_not_answer():
    """Ray says so in what caused its error alone; what it says is recorded here."""
    refused = """
import ray
def init(*_, **__):
    try:
        raise RuntimeError("RPC error: InvalidAuthToken: Authentication token is missing or incorrect")
    except RuntimeError as error:
        raise ConnectionError("Failed to connect to Ray cluster at 10.0.0.1:6379") from error
ray.init = init
with cluster("10.0.0.1:6379"): pass
"""
    done = apart(refused)
    assert "--address 10.0.0.1:6379: the cluster asks for a token; set RAY_AUTH_MODE=token, and" in done.stderr


def test_a_cluster_of_this_machine_listens_on_loopback_alone():
    done = apart("with cluster() as at: print([one['NodeManagerAddress'] for one in at.nodes], at.threads)")
    assert done.stdout.startswith("['127.0.0.1']"), done.stderr


def slow(work: Work) -> None:
    (work.folder / f"began-{ray.get_runtime_context().get_node_id()}").touch()
    time.sleep(15)
    for path in work.folder.glob("began-*"):
        path.unlink()
    makes(work)


def test_a_lost_node_loses_no_stage(nodes, store, tmp_path):
    """Runs last: the cluster has one node less then."""
    import threading

    extra = nodes.add_node(num_cpus=2, object_store_memory=STORE)
    work = [Stage("b", str(n), {"n": n}, {}, slow) for n in range(4)]
    with engine.cluster() as at:
        assert len(at.nodes) == 3

        def kill() -> None:
            deadline = time.monotonic() + 200
            while time.monotonic() < deadline:
                if list(store.root.glob(f"b/.partial-*/began-{extra.node_id}")):
                    nodes.remove_node(extra, allow_graceful=False)
                    lost.append(extra.node_id)
                    return
                time.sleep(0.2)

        lost: list[str] = []
        thread = threading.Thread(target=kill)
        thread.start()
        done = run(work, store, at)
        thread.join()
    assert lost
    here = local.run([Stage("b", str(n), {"n": n}, {}, makes) for n in range(4)], Store(tmp_path / "here"))
    assert done == {label: (one / "value").read_text() for label, one in here.items()}
