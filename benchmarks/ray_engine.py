"""What the cluster engine costs and gains on one machine: encoding and matching here, and by 1 and 2 Ray workers.

    python benchmarks/ray_engine.py [--tokens 100000] [--matched 80000] [--features 8192] [--json FILE]

Every worker has one thread, and so has this process. `overhead` is what the engine takes for itself: starting a
cluster, the first unit of a worker (it loads torch), a unit and a stage that do nothing.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch

from heredity.engine import cluster as engine
from heredity.engine.cluster import Asked, Cluster
from heredity.engine.ray_shards import RayShards
from heredity.engine.stage import Stage, Work
from heredity.engine.store import Store
from heredity.engine.workers import Here, Shards
from heredity.features.acts import FeatureActs
from heredity.features.match_by import correlate_by
from heredity.sae.model import SAE, new_sae

D_IN, L0 = 256, 32


def sae(d_sae: int) -> SAE:
    return new_sae(D_IN, d_sae, "topk", L0, torch.Generator().manual_seed(0))


def vectors(unit: tuple[int, int]) -> torch.Tensor:
    """What a model would give for one unit of work: number of the unit and its tokens."""
    return torch.randn(unit[1], D_IN, generator=torch.Generator().manual_seed(unit[0]))


def encoded(one: SAE, unit: tuple[int, int]) -> FeatureActs:
    return FeatureActs(*one.encode_sparse(vectors(unit)), one.d_sae)


def nothing(_: int, unit: int) -> int:
    return unit


def does_nothing(work: Work) -> None:
    (work.folder / "value").write_text("")


def clocked(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def measured(shards: Shards, d_sae: int, tokens: int, matched: int) -> tuple[dict[str, float], list[Any]]:
    """Seconds of encoding and of matching, and what they gave."""
    step = 4096
    units = [(number, step) for number in range(-(-tokens // step))]
    job = shards.job(partial(sae, d_sae))
    list(job.map(encoded, units[:4]))  # workers have started
    encoding, parts = clocked(lambda: list(job.map(encoded, units)))
    parent = FeatureActs.concatenate(parts[: matched // step])
    child = FeatureActs.concatenate(parts[1 : matched // step + 1])
    correlate_by(shards, parent, child, least=1 << 20)  # kernels are compiled
    matching, matches = clocked(lambda: correlate_by(shards, parent, child, least=1 << 26))
    return {"encoding": encoding, "matching": matching}, [parent, matches]


def overhead(workers: int) -> dict[str, float]:
    """Seconds of the engine itself, in a cluster that runs."""
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder) / "runs" / "study")
        stage = Stage("kind", "name", {}, {}, does_nothing)
        job = RayShards(stage, store, 1, max(2, workers)).job(partial(int, 0))
        first, _ = clocked(lambda: list(job.map(nothing, range(1))))
        units, _ = clocked(lambda: list(job.map(nothing, range(400))))
        stages = [Stage("kind", str(number), {}, {}, does_nothing) for number in range(20)]
        asked = {one.label: Asked(0.01) for one in stages}
        at = Cluster(tuple(ray.nodes()), workers)
        engine.run(stages[:1], store, at, asked)
        made, _ = clocked(lambda: engine.run(stages, store, at, asked))
    return {"first unit": first, "unit": units / 400, "stage": made / 19}


def same(one: Any, other: Any) -> bool:
    ours, theirs = one[1], other[1]
    return np.array_equal(one[0].values, other[0].values) and all(
        np.array_equal(a, b, equal_nan=np.asarray(a).dtype.kind == "f") for a, b in zip(ours, theirs, strict=True)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=100_000)
    parser.add_argument("--matched", type=int, default=80_000)
    parser.add_argument("--features", type=int, default=8192)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    torch.set_num_threads(1)
    sizes = options.features, options.tokens, options.matched
    rows: list[dict[str, Any]] = []
    seconds, here = measured(Here(), *sizes)
    rows.append({"workers": "here"} | seconds)
    engine.on_loopback()
    for workers in (1, 2):
        start, _ = clocked(
            lambda n=workers: ray.init(
                "local",
                num_cpus=n,
                object_store_memory=200 << 20,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        )
        costs = overhead(workers)
        stage, store = Stage("kind", "name", {}, {}, does_nothing), Store(Path("unused"))
        seconds, there = measured(RayShards(stage, store, 1, max(2, workers)), *sizes)
        rows.append({"workers": f"ray {workers}"} | seconds | {"start": start} | costs | {"same": same(here, there)})
        ray.shutdown()
    columns = list(dict.fromkeys(name for row in rows for name in row))
    print("| " + " | ".join(columns) + " |\n|" + " --- |" * len(columns))
    for row in rows:
        cells = (f"{row[c]:.4g}" if isinstance(row.get(c), float) else str(row.get(c, "")) for c in columns)
        print("| " + " | ".join(cells) + " |")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
