"""`heredity serve` under load for a long time: its memory stays flat, and no answer fails.

    python benchmarks/soak.py STUDY.toml [--minutes 30] [--threads 4]

Asks the server of a finished run (`runs/` beside the study) for random pages of the table, features, what they predict,
words, tokens, notes and texts, among them what it has to refuse, from several threads and a little slower than its
limit. Prints one JSON object: answers by status, those that failed, milliseconds, and MiB of the server's memory: after
the first tenth, at the end and at most, and the slope of a line through it in MiB an hour. Exit code 1 if an answer
failed, or if memory grew by more than a tenth after the first tenth of the time.
"""

from __future__ import annotations

import argparse
import json
import random
import string
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections import Counter
from pathlib import Path
from statistics import linear_regression, median, quantiles
from typing import Any

from serve import Client, started, stopped

RATE = 18.0  # questions a second, all threads together; the server takes 20


def question(rng: random.Random, models: dict[str, int]) -> tuple[str, dict[str, Any] | None, set[int]]:
    """A path, the body of a POST, and the statuses that answer it rightly."""
    model = rng.choice(list(models))
    name, word = f"{model}/{rng.randrange(models[model])}", "".join(rng.choices(string.ascii_lowercase, k=3))
    kinds: list[tuple[str, dict[str, Any], set[int]]] = [
        ("features", {"start": rng.randrange(200), "sort": rng.choice(["density", "max", "feature"])}, {200}),
        ("features", {"token": f" {word}", "sort": "share"}, {200}),
        ("features", {"words": word, "model": model, "least_density": rng.random() / 100}, {200}),
        ("feature", {"id": name}, {200}),
        ("feature", {"id": name}, {200}),
        ("logits", {"id": name}, {200}),
        ("notes", {}, {200}),
        ("choices", {}, {200}),
        ("feature", {"id": f"{model}/{10**6 + rng.randrange(10**6)}"}, {404}),
        ("features", {"size": 10**9}, {422}),
    ]
    if rng.random() < 0.15:
        text = " ".join("".join(rng.choices(string.printable, k=5)) for _ in range(rng.randrange(1, 40)))
        return "api/try", {"text": text}, {200, 503}  # one text at a time
    if rng.random() < 0.02:
        return "", None, {200}
    path, values, right = rng.choice(kinds)
    return f"api/{path}?{urllib.parse.urlencode(values)}", None, right


def load(
    client: Client, models: dict[str, int], until: float, threads: int
) -> tuple[Counter[int], list[str], list[float]]:
    """Ask until a time; statuses, what failed, and milliseconds."""
    statuses, failed, spent, lock = Counter[int](), list[str](), list[float](), threading.Lock()

    def ask(seed: int) -> None:
        rng = random.Random(seed)
        while time.monotonic() < until:
            path, body, right = question(rng, models)
            data = json.dumps(body).encode() if body else None
            request = urllib.request.Request(
                client.url + path, data, {"content-type": "application/json"} if body else {}
            )
            start = time.perf_counter()
            try:
                with urllib.request.urlopen(request, timeout=60) as answer:
                    status, content = answer.status, answer.read()
            except urllib.error.HTTPError as error:
                status, content = error.code, error.read()
            except OSError as error:
                status, content = 0, str(error).encode()
            with lock:
                spent.append(1e3 * (time.perf_counter() - start))
                statuses[status] += 1
                if status not in right:
                    failed.append(f"{path[:100]}: {status} {content[:200].decode(errors='replace')}")
            time.sleep(rng.uniform(0, 2 * threads / RATE))

    workers = [threading.Thread(target=ask, args=(seed,)) for seed in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return statuses, failed, spent


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("study", type=Path)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--threads", type=int, default=4)
    options = parser.parse_args()
    study = options.study.resolve()
    process, client, _ = started(study, study.parent / "runs")
    try:
        found = client.get("api/features", size=100)
        models = {model: found["total"] // len(own) for own in [client.get("api/choices")["models"]] for model in own}
        begun, seconds, held = time.monotonic(), 60 * options.minutes, list[tuple[float, float]]()
        ended = threading.Event()

        def watch() -> None:
            while not ended.wait(min(5.0, seconds / 100)):
                held.append((time.monotonic() - begun, client.memory()))

        watcher = threading.Thread(target=watch)
        watcher.start()
        statuses, failed, spent = load(client, models, begun + seconds, options.threads)
        ended.set()
        watcher.join()
        settled = [(at, mib) for at, mib in held if at > seconds / 10]
        slope = linear_regression(*zip(*settled, strict=True)).slope
        mib = {"settled": settled[0][1], "end": settled[-1][1], "most": max(mib for _, mib in held)}
        took = {"median": median(spent), "p99": quantiles(spent, n=100)[-1], "most": max(spent)}
        result = {"minutes": options.minutes, "answers": sum(statuses.values()), "statuses": dict(statuses)}
        result |= {"failed": len(failed), "first_failed": failed[:3]}
        result |= {"ms": {name: round(value, 1) for name, value in took.items()}}
        mib["an_hour"] = 3600 * slope
        print(json.dumps(result | {"mib": {name: round(value, 1) for name, value in mib.items()}}))
    finally:
        stopped(process)
    return int(bool(failed) or mib["end"] > 1.1 * mib["settled"])


if __name__ == "__main__":
    raise SystemExit(main())
