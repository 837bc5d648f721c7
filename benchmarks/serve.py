"""`heredity serve` on a study of 4 models x 16,384 features: time to build the database, to start, and to answer.

    python benchmarks/serve.py FOLDER [--requests N] [--models N] [--features N] [--make]

The models are tiny and little trained, their SAEs as wide as real ones: what answers cost depends on the number of
features, firings and tokens. The run is made in FOLDER where it is not there yet, and the server is a process of its
own, asked over HTTP, one request after another, and then by CLIENTS at once. Prints one JSON object: seconds, and
milliseconds by kind of answer.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median, quantiles
from typing import Any, NamedTuple

import numpy as np

STUDY = """
seed = 0
hook_point = "blocks.0.mlp.hook_post"
[tokenizer]
vocab_size = 4096
[corpus]
english = {{ source = "installed:python-english", share = 0.5, max_bytes = 2_000_000 }}
python = {{ source = "installed:python-stdlib", share = 0.5, max_bytes = 2_000_000 }}
cpp = {{ source = "installed:cpp-headers", max_bytes = 2_000_000 }}
stories = {{ source = "generated:stories", max_bytes = 2_000_000 }}
[model.base.train]
corpora = ["english", "python"]
d_model = 32
d_mlp = 32
n_layers = 1
n_heads = 4
tokens = 100_000
batch_size = 8
context_size = 128
{models}[sae]
activation = "topk"
k = 32
expansion = {expansion}
tokens = {tokens}
context_size = 128
batch_blocks = 8
instruments = "independent"
evaluation_tokens = 4_000
[lineage]
tokens = {tokens}
[verdicts]
tokens = 4_000
examine = 0
[references]
sham = false
edit = false
[evaluation]
tokens = 4_000
[report]
tokens = 100_000
features = 3
[explain]
features = 100
"""
CHILD = """[model.{name}]
parent = "base"
corpora = ["{corpus}"]
tokens = 30_000
batch_size = 8
context_size = 128
"""
MERGE = """[model.both]
merge = { parents = ["cpp", "stories"], t = 0.5 }
"""
D_MLP = 32
NOT_RUN = ("verdicts", "lost_features", "newness", "directions")
"""Stages whose rows are drawn: at this width they take hours, and what is asked of them is to be looked up."""


class Size(NamedTuple):
    """How large a study is."""

    models: int
    features: int  # of each

    @property
    def names(self) -> list[str]:
        """A base, its children, and a merge of the first two of them."""
        more = [f"{('cpp', 'stories')[at % 2]}{at // 2 + 1}" for at in range(2, self.models - 2)]
        return ["base", "cpp", "stories", *more, "both"]

    def study(self) -> str:
        """The study file. Wider SAEs are trained on fewer tokens, as what is measured does not depend on them."""
        children = (CHILD.format(name=name, corpus=name.rstrip("0123456789")) for name in self.names[1:-1])
        tokens = 60_000 * 16_384 // max(self.features, 16_384)
        models = "".join(children) + MERGE
        return STUDY.format(expansion=self.features // D_MLP, tokens=tokens, models=models)


def make(folder: Path, size: Size) -> Path:
    """Write and run the study, as far as that is not done; returns the study file."""
    from heredity.analyses import Pipeline
    from heredity.engine.store import Store
    from heredity.study import load_study

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "wide.toml"
    path.write_text(size.study())
    pipeline, store = Pipeline(load_study(str(path))), Store(folder / "runs" / "wide")
    with store.lock():
        for label, stage in pipeline.stages.items():
            if stage.kind in NOT_RUN and store.find(stage.kind, stage.name, stage.key) is None:
                keys = {role: source.key for role, source in stage.sources()}
                with store.writing(stage.kind, stage.name, stage.key, stage.config, keys) as work:
                    draw(pipeline, label, work, size.features)
    command = [sys.executable, "-m", "heredity", "run", str(path), "--runs", str(folder / "runs")]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return path


def draw(pipeline: Any, label: str, folder: Path, features: int) -> None:
    """Rows of a stage that is not run: verdicts of every feature, of all else none."""
    from heredity.analyses import write_tables

    analysis, item, _ = pipeline.items[label]
    names = {table.name: [name for name in table.schema.names if name not in item] for table in analysis.tables}
    rows: dict[str, Any] = {name: [] for name in names}
    if analysis.kind == "verdicts":
        # Columns of arrays: as a dict for each of a million features, drawing would take longer than all that is run.
        rng, size = np.random.default_rng([*label.encode()]), 2 * features
        drawn = ("stability", "match_r", "map_r", "direction", "transmission", "p_lost")
        words = [[*fates, "changed", "undecided", "unstable"] for fates in (("kept", "lost"), ("inherited", "new"))]
        rows["evidence"] = dict.fromkeys(names["evidence"], [None] * size) | {name: rng.random(size) for name in drawn}
        rows["evidence"] |= {
            "end": np.repeat(["parent", "child"], features),
            "feature": np.tile(np.arange(features), 2),
            "verdict": np.concatenate([rng.choice(fates, features) for fates in words]),
            "firings": rng.integers(4_000, size=size),
            "owned": np.ones(size, bool),
            "strength": np.full(size, 0.9),
        }
        counts = {"live": features, "stable": 10_000}
        counts |= {"kept": 5_000, "changed": 3_000, "lost": 1_000, "undecided": 1_000}
        known = {"corpora": "", "identical": False, "same_activations": False, "scale": 1.0, "pairs": 0}
        for name, share in (("kept_share", 0.5), ("lost_share", 0.1)):
            known |= {name: share, f"{name}_low": share - 0.02, f"{name}_high": share + 0.02}
        rows["verdicts"] = [counts | known | {"end": end, "tokens": 4_000} for end in ("parent", "child")]
    write_tables(analysis.tables, rows, folder, item)


CLIENTS = 8


class Client:
    """Asks a server, one request after another."""

    def __init__(self, url: str, process: int) -> None:
        self.url, self.process = url, process

    def used(self) -> float:
        """Milliseconds of processor time that the server has taken so far."""
        fields = Path(f"/proc/{self.process}/stat").read_text().rpartition(")")[2].split()
        return 1e3 * sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")

    def memory(self) -> float:
        """MiB of the server that are in memory."""
        lines = Path(f"/proc/{self.process}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) / 1024

    def read(self, path: str, **values: Any) -> bytes:
        """An answer as it comes."""
        with urllib.request.urlopen(f"{self.url}{path}?{urllib.parse.urlencode(values)}") as answer:
            return answer.read()

    def get(self, path: str, **values: Any) -> Any:
        """The JSON of an answer."""
        return json.loads(self.read(path, **values))

    def timed(self, path: str, asked: list[dict[str, Any]]) -> dict[str, float]:
        """Milliseconds of an answer to each question, which come no faster than the server takes them; `cpu_ms`: the
        server's processor time of one, in the mean, which other work on the machine disturbs least."""
        spent, before = [], self.used()
        for values in asked:
            time.sleep(0.05)
            start = time.perf_counter()
            self.read(path, **values)
            spent.append(1e3 * (time.perf_counter() - start))
        cpu = (self.used() - before) / len(spent)
        times = {"median_ms": median(spent), "p90_ms": quantiles(spent, n=10)[-1], "cpu_ms": cpu}
        return {"n": len(spent)} | {name: round(value, 1) for name, value in times.items()}

    def crowded(self, path: str, asked: list[dict[str, Any]]) -> dict[str, float]:
        """Milliseconds of an answer when CLIENTS ask at once, in rounds that are no more than the server takes."""

        def one(values: dict[str, Any]) -> float:
            start = time.perf_counter()
            self.read(path, **values)
            return 1e3 * (time.perf_counter() - start)

        spent = list[float]()
        with ThreadPoolExecutor(CLIENTS) as crowd:
            for first in range(0, len(asked), CLIENTS):
                spent += crowd.map(one, asked[first : first + CLIENTS])
                time.sleep(0.05 * CLIENTS)
        times = {"median_ms": median(spent), "p90_ms": quantiles(spent, n=10)[-1]}
        return {"n": len(spent)} | {name: round(value, 1) for name, value in times.items()}


def started(study: str | Path, runs: Path) -> tuple[subprocess.Popen[str], Client, dict[str, float]]:
    """A server, a client of it, and the seconds until it first answered: by the clock, and of processor time."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "heredity", "serve", str(study), "--runs", str(runs), "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if " at http://" in line:
            client = Client(line.split(" at ")[1].split()[0], process.pid)
            client.get("api/choices")
            seconds = {"s": time.perf_counter() - start, "cpu_s": client.used() / 1e3}
            return process, client, {name: round(value, 2) for name, value in seconds.items()}
    raise SystemExit(f"the server ended: {process.wait()}")


def stopped(process: subprocess.Popen[str]) -> None:
    """End a server."""
    process.terminate()
    process.wait(timeout=60)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--requests", type=int, default=100, help="of each kind")
    parser.add_argument("--models", type=int, default=4, help="4 or more")
    parser.add_argument("--features", type=int, default=16_384, help=f"of each model, a multiple of {D_MLP}")
    parser.add_argument("--make", action="store_true", help="make the run and no more")
    options = parser.parse_args()
    size = Size(options.models, options.features)
    path = make(options.folder, size)
    if options.make:
        return
    file = path.parent / "runs" / "wide" / "explorer.sqlite"
    file.unlink(missing_ok=True)
    process, _, build = started(path, path.parent / "runs")
    stopped(process)
    process, client, start = started(path, path.parent / "runs")
    try:
        answers = measured(client, options.requests, size)
    finally:
        stopped(process)
    database = {"database_mb": file.stat().st_size >> 20}
    print(json.dumps({"build_and_start": build, "start": start} | database | answers))


def measured(client: Client, requests: int, size: Size) -> dict[str, Any]:
    """Milliseconds of every kind of answer; the first of a feature waits for what all of them share, and is apart."""
    rng = random.Random(0)
    first = time.perf_counter()
    client.get("api/feature", id="base/0")
    ready = time.perf_counter() - first
    models, twice = size.names, 2 * requests  # for one client, and for all of them
    for model in models:
        client.get("api/logits", id=f"{model}/0")  # loads it
    table = client.get("api/features", size=100)
    live = [{"id": f"{row['model']}/{row['feature']}"} for row in table["rows"]]
    tokens = [{"token": row["top_token"], "sort": "share"} for row in table["rows"] if row["top_token"]]
    sorts = ["density", "simulation", "max", "feature"]
    ids, others, predicted, explained = (
        [{"id": f"{rng.choice(models)}/{rng.randrange(size.features)}"} for _ in range(twice)] for _ in range(4)
    )
    kinds: dict[str, tuple[str, list[dict[str, Any]]]] = {
        "feature": ("api/feature", ids),
        "feature, the most frequent": ("api/feature", live),
        "explanation": ("api/explanation", explained),
        "explanation, the most frequent": ("api/explanation", live),
        "family": ("api/family", others),
        "logits, model loaded": ("api/logits", predicted),
        "page of the table": (
            "api/features",
            [{"sort": rng.choice(sorts), "start": 50 * rng.randrange(1_000)} for _ in range(twice)],
        ),
        "filtered by verdict": (
            "api/features",
            [{"verdict": "kept", "edge": "base->cpp", "model": "base", "start": 50 * at} for at in range(requests)] * 2,
        ),
        "by class and density": ("api/features", [{"class": "mixed", "least_density": 0.001}] * twice),
        "by token": ("api/features", tokens),
        "by words": ("api/features", [{"words": word} for word in ("fires", "on", "the", "in", "a")] * 8),
        "columns": ("api/columns", [{}] * 32),
        "choices": ("api/choices", [{}] * twice),
        "notes": ("api/notes", [{}] * twice),
    }
    answers = {}
    for kind, (path, asked) in kinds.items():
        half = len(asked) // 2
        answers[kind] = {"alone": client.timed(path, asked[:half])}
        answers[kind][f"{CLIENTS} clients"] = client.crowded(path, asked[half:])
    found = {"features": table["total"], "first_feature_s": round(ready, 2), "memory_mb": round(client.memory())}
    return found | {"answers": answers}


if __name__ == "__main__":
    main()
