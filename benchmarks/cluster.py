"""What a Ray cluster gains and costs: encoding and matching by one process and by workers, and the engine's overhead.

    OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1 python benchmarks/cluster.py [--quick] [--json]

Every worker has one thread and one processor. Encoding is a random language model that a random SAE reads, matching two
random dictionaries; all ways must give the same bits. The overhead is the start of a cluster on this machine, and
stages and units that do nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import ray

from heredity.engine import cluster as engine
from heredity.engine import stage as local
from heredity.engine.ray_shards import RayShards, _RayJob
from heredity.engine.stage import Stage, Work
from heredity.engine.store import Store
from heredity.engine.workers import Here, Job, Shards
from heredity.features.acts import FeatureActs
from heredity.features.collect import Reader, collected
from heredity.features.match_by import correlate_by
from heredity.text.tokens import BlockSampler, PackedTokens

VOCABULARY, CONTEXT = 512, 128


class Sizes(NamedTuple):
    """What is done."""

    encoded: int  # tokens
    d_in: int
    d_sae: int
    matched: int  # tokens
    features: int  # of each end; a power of two
    l0: int
    empty: int  # stages and units that do nothing


FULL = Sizes(49_152, 512, 8_192, 150_000, 8_192, 64, 8)
QUICK = Sizes(4_096, 64, 512, 20_000, 1_024, 16, 5)


class Cut(NamedTuple):
    """Workers of a cluster of this many processors; a job is cut for one worker too, which an engine would not do."""

    shards: RayShards

    @property
    def apart(self) -> int:
        return max(2, self.shards.slots)

    def job(self, opened: Any) -> Job[Any]:
        return _RayJob(self.shards, opened)


def reader(sizes: Sizes) -> Reader:
    import torch

    from heredity.lm.load import mistral_config, new_model
    from heredity.sae.model import new_sae
    from heredity.study import ArchitectureConfig

    shape = ArchitectureConfig(d_model=sizes.d_in, d_mlp=sizes.d_in, n_layers=1, n_heads=4)
    model = new_model(mistral_config(shape, VOCABULARY, CONTEXT, 0), 0).eval()
    sae = new_sae(sizes.d_in, sizes.d_sae, "topk", 32, torch.Generator().manual_seed(0))
    return Reader(model, "blocks.0.hook_resid_post", [sae])


def encoding(shards: Shards, sizes: Sizes) -> tuple[np.ndarray, ...]:
    tokens = np.random.default_rng(0).integers(VOCABULARY, size=sizes.encoded, dtype=np.int64)
    packed = PackedTokens(tokens, np.array([0, tokens.size], np.int64))
    sampler = BlockSampler({"text": packed}, CONTEXT, seed=0)
    (acts,) = collected(shards.job(partial(reader, sizes)), sampler, sizes.encoded)
    return acts.indptr, acts.indices, acts.values


def acts(sizes: Sizes, seed: int) -> FeatureActs:
    """As many distinct features on every token, spread evenly."""
    rng = np.random.default_rng(seed)
    starts = rng.integers(sizes.features, size=(sizes.matched, 1))
    steps = 2 * rng.integers(sizes.features // 2, size=(sizes.matched, 1)) + 1  # odd, so that none comes twice
    indices = np.sort((starts + steps * np.arange(sizes.l0)) % sizes.features).astype(np.int32).ravel()
    values = rng.gamma(2.0, size=indices.size).astype(np.float32) + 0.01
    return FeatureActs(np.arange(0, indices.size + 1, sizes.l0), indices, values, sizes.features)


def matching(shards: Shards, ends: tuple[FeatureActs, FeatureActs], least: int) -> tuple[Any, ...]:
    return tuple(correlate_by(shards, *ends, 5, least=least))


def nothing(_: Work) -> None: ...


def warmed(_: int, unit: int) -> int:
    """Load and compile all that is timed, for long enough that every worker gets one of as many units."""
    start, little = time.monotonic(), (acts(QUICK, 0), acts(QUICK, 1))
    encoding(Here(), QUICK), matching(Here(), little, 1_000)
    time.sleep(max(0.0, 20 + start - time.monotonic()))
    return unit


def same(one: Any, other: Any) -> bool:
    return all(np.array_equal(a, b, equal_nan=np.asarray(a).dtype.kind == "f") for a, b in zip(one, other, strict=True))


def seconds(work: Any) -> tuple[float, Any]:
    start = time.perf_counter()
    result = work()
    return round(time.perf_counter() - start, 3), result


@contextmanager
def processors(count: int) -> Iterator[None]:
    """This process and what it starts on so many processors."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:count])
    yield
    os.sched_setaffinity(0, before)


def overhead(at: engine.Cluster, shards: Shards, sizes: Sizes, folder: Path) -> dict[str, float]:
    """Seconds of a stage that does nothing, here and on the cluster, and of a unit that does nothing, workers begun."""
    stages, before = list[Stage](), {}
    for number in range(sizes.empty):
        stages.append(Stage("empty", str(number), {"n": number}, before, nothing))
        before = {"before": stages[-1]}  # in a row
    here, _ = seconds(lambda: local.run(stages, Store(folder / f"here-{at.slots}")))
    asked = {stage.label: engine.Asked(0.01) for stage in stages}
    there, _ = seconds(lambda: engine.run(stages, Store(folder / f"ray-{at.slots}"), at, asked))
    units, _ = seconds(lambda: list(shards.job(partial(int, 0)).map(int.__add__, range(20 * sizes.empty))))
    return {
        "stage_here": round(here / sizes.empty, 4),
        "stage_ray": round(there / sizes.empty, 4),
        "unit_ray": round(units / (20 * sizes.empty), 4),
    }


def measure(sizes: Sizes, folder: Path) -> dict[str, Any]:
    ends = acts(sizes, 0), acts(sizes, 1)
    least = sizes.matched * sizes.l0**2 // 8  # multiply-adds: eight ranges
    report: dict[str, Any] = {"sizes": sizes._asdict(), "processors": len(os.sched_getaffinity(0))}

    def both(shards: Shards, slots: int) -> tuple[dict[str, float], Any]:
        list(shards.job(partial(int, 0)).map(warmed, range(slots)))
        print("warm", file=sys.stderr)
        encoded, found = seconds(lambda: encoding(shards, sizes))
        matched, matches = seconds(lambda: matching(shards, ends, least))
        return {"encoding": encoded, "matching": matched}, (found, matches)

    report["one process"], expected = both(Here(), 1)
    print("one process", report["one process"], file=sys.stderr)
    for workers in (1, 2):
        with processors(workers):
            start = time.perf_counter()
            with engine.cluster(workers=workers) as at:
                begun = round(time.perf_counter() - start, 3)
                shards = Cut(RayShards(Stage("k", "n", {}, {}, print), Store(folder / "none"), 1, at.slots))
                assert at.threads == 1 and at.slots == workers
                times, found = both(shards, at.slots)
                assert all(same(one, other) for one, other in zip(expected, found, strict=True)), "other bits"
                put, ref = seconds(lambda: ray.put(ends))
                report[f"{workers} workers"] = {
                    "start": begun,
                    **times,
                    **overhead(at, shards, sizes, folder),
                    "put": put,
                    "put_mib": round(sum(one.indices.nbytes + one.values.nbytes for one in ends) / 2**20),
                }
                del ref
                print(f"{workers} workers", report[f"{workers} workers"], file=sys.stderr)
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny shapes, to see that it works")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    options = parser.parse_args()
    if any(os.environ.get(name) != "1" for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS")):
        parser.error("set OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1: numpy, torch and numba read it as they are loaded")
    with tempfile.TemporaryDirectory() as folder:
        report = measure(QUICK if options.quick else FULL, Path(folder))
    if options.json:
        print(json.dumps(report))
        return
    for name, values in report.items():
        print(name, *(f"{key}={value}" for key, value in values.items()) if isinstance(values, dict) else (values,))


if __name__ == "__main__":
    main()
