"""Matching the features of two SAEs: `heredity.correlate` against the dense way in torch, its memory and its growth.

    python benchmarks/bench_correlate.py [--quick] [--json] [--write] [--pairs N]

The acts fire like those of SAEs: few features often, most rarely; half of the child's features are noisy copies of the
parent's. They lie in files. Ours matches all tokens; the dense way, float32 throughout, does a slice of the tokens, and
its time for the products (not that for what follows them) is scaled to all. The floor is one multiplication and
addition for each pair of features and token on which both fire, at the speed that the same loop has when everything is
in the cache; both in processor time, all threads together, which other work on the machine disturbs least.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numba
import numpy as np
from paired import Benchmark, in_turn, main, peak_of, ratio, rounded, spread, version

from heredity.features.acts import FeatureActs
from heredity.features.correlate import Matches, correlate
from heredity.kernels.pearson import add_products
from heredity.kernels.processors import default_workers

TOP = 5
COPIED, KEPT = 0.5, 0.85
"""Share of the child's features that copy one of the parent's; share of its firings that a copy repeats."""


class Case(NamedTuple):
    """Shape of an edge."""

    tokens: int
    d_parent: int
    d_child: int
    l0: int


class Sizes(NamedTuple):
    """What a run measures."""

    main: Case
    slice: int
    large: Case
    curve_l0: tuple[Case, ...]
    pairs: int


FULL = Sizes(
    main=Case(3_000_000, 16384, 16384, 30),
    slice=2048,
    large=Case(1_000_000, 131072, 131072, 30),
    curve_l0=tuple(Case(400_000, 16384, 16384, l0) for l0 in (15, 30, 60, 120)),
    pairs=3,
)
QUICK = Sizes(
    main=Case(200_000, 4096, 4096, 30),
    slice=2048,
    large=Case(20_000, 16384, 16384, 30),
    curve_l0=tuple(Case(50_000, 4096, 4096, l0) for l0 in (15, 30, 60)),
    pairs=3,
)


@numba.njit(cache=True)
def _side(rng, count, table, given, given_values, out, values, at, seen, token):  # noqa: ANN001, ANN202
    """One token of one end: what is given, then drawn features until there are `count`; returns the next position."""
    start = at
    for n in range(len(given)):
        if seen[given[n]] != token:
            seen[given[n]] = token
            out[at], values[at] = given[n], given_values[n]
            at += 1
    for _ in range(4 * count):
        if at - start >= count:
            break
        feature = table[rng.integers(0, len(table))]
        if seen[feature] != token:
            seen[feature] = token
            out[at], values[at] = feature, np.exp(0.5 * rng.standard_normal())
            at += 1
    return at


@numba.njit(cache=True)
def _edge(rng, tokens, l0, tables, copy_of, kept, room):  # noqa: ANN001, ANN202 (typed by numba)
    """Both ends of an edge as (indptr, indices, values); a token has between l0 / 2 and 3 l0 / 2 features."""
    starts = np.zeros((2, tokens + 1), np.int64)
    out, values = np.empty((2, room), np.int32), np.empty((2, room), np.float32)
    seen = np.full((2, max(len(copy_of), tables[1].max() + 1)), -1, np.int64)
    copies, copy_values = np.empty(2 * l0, np.int32), np.empty(2 * l0, np.float32)
    for token in range(tokens):
        p, c = starts[0, token], starts[1, token]
        count = rng.integers(l0 - l0 // 2, l0 + l0 // 2 + 1)
        end = _side(rng, count, tables[0], copies[:0], copy_values[:0], out[0], values[0], p, seen[0], token)
        found = 0
        for k in range(p, end):
            copy = copy_of[out[0, k]]
            if copy >= 0 and rng.random() < kept:
                copies[found], copy_values[found] = copy, values[0, k] * (0.8 + 0.4 * rng.random())
                found += 1
        count = rng.integers(l0 - l0 // 2, l0 + l0 // 2 + 1)
        given, strength = copies[:found], copy_values[:found]
        starts[0, token + 1] = end
        starts[1, token + 1] = _side(rng, count, tables[1], given, strength, out[1], values[1], c, seen[1], token)
    return starts, out, values


def _firing(d: int, rng: np.random.Generator) -> np.ndarray:
    """Features, each as often as it fires: the share falls like one over the rank, but for the first twenty."""
    share = np.cumsum(1 / (np.arange(d) + 20.0))
    drawn = np.searchsorted(share, (np.arange(1 << 20) + 0.5) / (1 << 20) * share[-1])
    return rng.permutation(d)[drawn].astype(np.int32)


def make(case: Case, folder: Path) -> None:
    """Write the acts of both ends of an edge."""
    rng = np.random.default_rng(0)
    copy_of = np.full(case.d_parent, -1, np.int32)
    copies = int(COPIED * min(case.d_parent, case.d_child))
    copy_of[rng.choice(case.d_parent, copies, replace=False)] = rng.choice(case.d_child, copies, replace=False)
    tables = (_firing(case.d_parent, rng), _firing(case.d_child, rng))
    room = int(case.tokens * case.l0 * 1.15) + 4 * case.l0
    starts, out, values = _edge(rng, case.tokens, case.l0, tables, copy_of, KEPT, room)
    for side, (name, d_sae) in enumerate((("parent", case.d_parent), ("child", case.d_child))):
        n = starts[side, -1]
        FeatureActs(starts[side], out[side, :n], values[side, :n], d_sae).save(folder / f"{name}.safetensors")


def load(folder: Path) -> tuple[FeatureActs, FeatureActs]:
    """What `make` wrote."""
    return FeatureActs.load(folder / "parent.safetensors"), FeatureActs.load(folder / "child.safetensors")


def multiply_adds(parent: FeatureActs, child: FeatureActs) -> int:
    """Pairs of features and tokens on which both fire."""
    return int((np.diff(parent.indptr) * np.diff(child.indptr)).sum())


def seconds_of(call: Callable[[], object]) -> dict[str, float]:
    """Seconds on the clock and of processor time."""
    wall, processor = time.perf_counter(), time.process_time()
    call()
    return {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - processor}


def job(name: str, options: argparse.Namespace) -> None:  # noqa: ARG001 (what a benchmark's jobs get)
    """`make` or `correlate`, the case and the folder as JSON; the job writes its times into the folder."""
    kind, case, folder = json.loads(name)
    if kind == "make":
        make(Case(*case), Path(folder))
        return
    taken = seconds_of(lambda: correlate(*load(Path(folder)), TOP))
    (Path(folder) / "times.json").write_text(json.dumps(taken))


def measured(case: Case, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Make the files of a case and match them once, each in a fresh process: time, load included, and peak memory."""
    folder.mkdir()
    peak_of(json.dumps(["make", case, str(folder)]), options)
    peak = peak_of(json.dumps(["correlate", case, str(folder)]), options)
    times = json.loads((folder / "times.json").read_text())
    return {**case._asdict(), **{key: rounded(value) for key, value in times.items()}, "peak_rss_gib": peak}


class Dense:
    """The dense way: blocks of tokens as float32 matrices, their product added up, then r and its best both ways."""

    def __init__(self, parent: FeatureActs, child: FeatureActs, block: int = 512) -> None:
        self.parent, self.child, self.block = parent, child, block
        self.scalable: list[float] = []
        """Seconds of the products in each run; they grow with the tokens, the rest does not."""
        self.best: Any = None
        """r of the best partners of each parent feature, float32 [d_parent, top]."""

    def run(self) -> None:
        """All of it."""
        import torch

        start = time.perf_counter()
        sums = torch.zeros(self.parent.d_sae, self.child.d_sae)
        moments = [torch.zeros(2, acts.d_sae) for acts in (self.parent, self.child)]
        for at in range(0, self.parent.tokens, self.block):
            sides = [torch.from_numpy(acts.rows(at, at + self.block).dense()) for acts in (self.parent, self.child)]
            for moment, side in zip(moments, sides, strict=True):
                moment += torch.stack([side.sum(0), side.square().sum(0)])
            sums.addmm_(sides[0].T, sides[1])
        self.scalable.append(time.perf_counter() - start)
        means = [moment[0] / self.parent.tokens for moment in moments]
        scales = [
            (moment[1] - self.parent.tokens * mean.square()).rsqrt()
            for moment, mean in zip(moments, means, strict=True)
        ]
        sums.addmm_(means[0][:, None], means[1][None], alpha=-self.parent.tokens)
        sums.mul_(scales[0][:, None]).mul_(scales[1]).nan_to_num_(-2, -2, -2)
        self.best = torch.topk(sums, TOP, 1).values.numpy()
        torch.topk(sums, TOP, 0)


def agreement(dense: Dense, ours: Matches) -> float:
    """Largest difference of the r of the best partners."""
    both = np.isfinite(ours.parent_r) & (dense.best >= -1.5)
    return float(np.abs(ours.parent_r - dense.best)[both].max())


def in_cache_rate(case: Case, workers: int) -> float:
    """Multiply-adds in a second of processor time, on all threads, where child rows and products stay in the cache."""
    rng = np.random.default_rng(0)
    rows, repeats, rounds = 256, 64, 40
    indptr = np.arange(rows + 1) * case.l0
    table = _firing(case.d_child, rng)
    columns = table[rng.integers(0, len(table), rows * case.l0)].astype(np.uint16)
    values = rng.random(rows * case.l0, np.float32)
    walked = np.tile(np.arange(rows, dtype=np.int32), repeats)
    weights = np.ones(len(walked), np.float32)

    def work(_: int) -> None:
        products = np.empty(case.d_child)
        for _ in range(rounds):
            add_products(walked, weights, indptr, columns, values, products)

    work(0)
    start = time.process_time()
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(work, range(workers)))
    return workers * rounds * repeats * rows * case.l0 / (time.process_time() - start)


def row(parent: FeatureActs, child: FeatureActs) -> dict[str, float]:
    """One point of a curve. Processor time is what other work on the machine disturbs least."""
    times = seconds_of(lambda: correlate(parent, child, TOP))
    work = multiply_adds(parent, child)
    return {
        "tokens": parent.tokens,
        "l0": rounded((parent.l0 + child.l0) / 2),
        "multiply_adds": work,
        **{key: rounded(value) for key, value in times.items()},
    }


def growing(points: list[dict[str, float]], fixed: float) -> list[dict[str, float]]:
    """The points with processor nanoseconds for each multiply-add, the time that no token costs left out."""
    return [
        {**point, "cpu_ns_each": rounded((point["cpu_seconds"] - fixed) / point["multiply_adds"] * 1e9)}
        for point in points
    ]


def curves(sizes: Sizes, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Time by tokens, and by L0: flat nanoseconds for each multiply-add mean linear in tokens and in L0 squared."""
    parent, child = load(folder / "main")
    few = [acts.rows(0, 1000) for acts in (parent, child)]
    correlate(*few, TOP)
    fixed = seconds_of(lambda: correlate(*few, TOP))["cpu_seconds"]
    by_tokens, by_l0 = [], []
    for tokens in (parent.tokens // share for share in (8, 4, 2, 1)):
        by_tokens.append(row(*(acts.rows(0, tokens) for acts in (parent, child))))
    for case in sizes.curve_l0:
        own = folder / f"l0-{case.l0}"
        own.mkdir()
        peak_of(json.dumps(["make", case, str(own)]), options)
        by_l0.append(row(*load(own)))
    return {
        "cpu_seconds_without_tokens": rounded(fixed),
        "curve_by_tokens": growing(by_tokens, fixed),
        "curve_by_l0": growing(by_l0, fixed),
    }


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """The report."""
    sizes = QUICK if options.quick else FULL
    case, workers = sizes.main, default_workers()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        alone = measured(case, folder / "main", options)
        large = measured(sizes.large, folder / "large", options)
        parent, child = load(folder / "main")
        cut = [acts.rows(0, sizes.slice) for acts in (parent, child)]
        dense, agreed = Dense(*cut), correlate(*cut, TOP)
        seconds = in_turn(
            {"dense": dense.run, "ours": lambda: correlate(parent, child, TOP)}, options.pairs or sizes.pairs, 0
        )
        times = case.tokens / sizes.slice
        scaled = [whole + (times - 1) * part for whole, part in zip(seconds["dense"], dense.scalable, strict=True)]
        rate = in_cache_rate(case, workers)
        floor = multiply_adds(parent, child) / rate
        curve = curves(sizes, folder, options)
    return {
        "peer": "dense torch",
        "peer_version": version("torch"),
        "ratio": ratio(scaled, seconds["ours"]),
        "ratio_is": f"dense, the products of {sizes.slice} tokens scaled to {case.tokens}, over ours on all of them",
        "peer_seconds_slice": spread(seconds["dense"]),
        "peer_seconds_scaled": spread(scaled),
        "ours": spread(seconds["ours"]),
        "floor_cpu_seconds": rounded(floor),
        "floor_ratio": rounded(alone["cpu_seconds"] / floor),
        "floor_is": f"multiply-adds / {rate:.3g} a processor second of the same loop in the cache, {workers} threads",
        "agree": agreement(dense, agreed),
        **alone,
        **curve,
        "large": large,
    }


if __name__ == "__main__":
    title = "Matching features: sparse, streamed Pearson against dense torch"
    sys.exit(main(Benchmark("correlate", title, measure, job)))
