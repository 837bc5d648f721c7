"""Which screen to encode with, by what products take on this machine; the environment can force one.

A processor's instructions do not tell: with the same flags, bfloat16 products take half of float32's time on one
machine and more than float32's on another. Nothing but the time depends on the choice: `encode` decides every
candidate by the same float32 sums.
"""

from __future__ import annotations

import contextlib
import os
import time
import timeit
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple, get_args

import numpy as np
import torch

from heredity.kernels.candidates import LANES, sum_pre_acts
from heredity.kernels.screens import IN_TILES, WIDEST_INT8, Kind, Screen, make_screen, products
from heredity.kernels.sparse import in_ranges
from heredity.kernels.squares import HAS_SQUARES
from heredity.kernels.squares import ROWS as OF_SQUARES
from heredity.kernels.tiles import TOKENS, largest_of_groups, make_tiles, packed
from heredity.kernels.words import HAS_FOURS

FORCE = "HEREDITY_SCREEN"  # environment variable: one of `Kind`; workers inherit it
ROWS, FEATURES = 96, 1024  # rows of the products that are timed, and features, or more where they would be small:
SIZE = 1 << 25  # multiplications from which what a call costs besides hardly counts
# Features of those that are not hopeless, whose products have left the nearest cache by then, and how many
# multiplications they may take.
LARGE, LARGE_SIZE = 1 << 14, 1 << 28
DECIDED = 8  # rows whose candidates are timed, every other feature
# Calls of a product before the clock runs, fewest that are timed, and seconds that all are repeated for, in turns. Time
# is that of the calling thread, which works as long as torch's others do, and the fastest call counts: beside other
# work a call waits for processors as long as it takes, and clocks of all threads are not of the moment.
WARM_UP, REPEATS, BUDGET = 2, 5, 0.01
HOPELESS = 4  # a product that takes this many times float32's is not repeated
WORTH = 0.9  # share of the next exacter product's time below which a screen is taken


class Costs(NamedTuple):
    """Seconds of a processor per multiplication and addition, with one look at what is written of the products;
    infinite where there is no such product."""

    amx: float
    int8: float
    bf16: float
    int16: float
    float32: float
    dot: float  # of a candidate that is decided


def screens(d_in: int, d_sae: int) -> tuple[Kind, ...]:
    """Screens to encode with, the fastest and roughest first; the next one is for too many candidates.

    One alone where `HEREDITY_SCREEN` names it. Raises ValueError for another name and for a product that is missing.
    """
    costs = costs_of(d_in, d_sae)
    forced = os.environ.get(FORCE)
    if forced:
        kind = next((kind for kind in get_args(Kind) if kind == forced), None)
        if kind is None:
            raise ValueError(f"{FORCE}={forced} is not known; choose one of {', '.join(get_args(Kind))}")
        if getattr(costs, kind) == np.inf:
            raise ValueError(f"{FORCE}={forced}: no such product of {d_in} inputs here; choose float32 or unset it")
        return (kind,)
    chosen: tuple[Kind, ...] = ("float32",)
    for kind in ("int16", "bf16", "int8", "amx"):
        if getattr(costs, kind) < WORTH * getattr(costs, chosen[0]):
            # The two of 8 bits leave the same candidates.
            chosen = (kind, *(other for other in chosen if {kind, other} != {"amx", "int8"}))
    return chosen


def exacter(kind: Kind, d_in: int, d_sae: int) -> tuple[Kind, ...]:
    """The screens that may follow this one, none where it is the last or the only one."""
    kinds = screens(d_in, d_sae)
    return kinds[kinds.index(kind) + 1 :] if kind in kinds else ()


def pays(other: Kind, kind: Kind, spurious: float, d_in: int, d_sae: int) -> bool:
    """Whether to change to an exacter screen where `kind` leaves this share of the features to be decided in vain."""
    costs = costs_of(d_in, d_sae)
    return spurious * costs.dot > getattr(costs, other) - getattr(costs, kind)


def costs_of(d_in: int, d_sae: int) -> Costs:
    """Costs for an encoder of this shape; measured once per process, shape and number of torch's threads."""
    large = min(LARGE, LARGE_SIZE // (ROWS * max(d_in, 1)))
    return _measured(d_in, min(d_sae, max(_small(d_in), large)), torch.get_num_threads())


def _small(d_in: int) -> int:
    """Features of the products that tell which kinds are hopeless."""
    return max(FEATURES, SIZE // (ROWS * max(d_in, 1)))


def measured_table(d_in: int, d_sae: int) -> list[dict[str, Any]]:
    """A row for each product: billions of operations per second, None where there is none; whether it is taken."""
    costs, chosen = costs_of(d_in, d_sae), screens(d_in, d_sae)
    return [
        {
            "d_in": d_in,
            "d_sae": d_sae,
            "threads": torch.get_num_threads(),
            "product": kind,
            "gflops": None if getattr(costs, kind) == np.inf else 2e-9 / getattr(costs, kind) * torch.get_num_threads(),
            "taken": "first" if kind == chosen[0] else "for many candidates" if kind in chosen else "no",
        }
        for kind in get_args(Kind)
    ]


@lru_cache(maxsize=64)
def _measured(d_in: int, features: int, threads: int) -> Costs:
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(n, d_in, generator=generator) for n in (ROWS, features))
    kinds: list[Kind] = list(get_args(Kind))
    seconds: dict[Kind, float] = dict.fromkeys(kinds, np.inf)
    for some in sorted({min(features, _small(d_in)), features}):
        calls: dict[Kind, Callable[[], object]] = {}
        for kind in kinds:
            call = _looked_at(kind, x, weight[:some])
            calls |= {kind: call} if call else {}
        found = _fastest(calls)
        kinds = [kind for kind in found if found[kind] <= HOPELESS * found["float32"]]
        seconds |= {
            kind: taken * (1 if kind in IN_TILES else threads) / (ROWS * some * d_in) for kind, taken in found.items()
        }
    every_other = np.arange(0, min(features, _small(d_in)), 2, dtype=np.int32)
    starts, listed = np.arange(DECIDED + 1) * len(every_other), np.tile(every_other, DECIDED)
    values = np.empty(len(listed), np.float32)
    encoder = x[:DECIDED].numpy(), weight.numpy(), np.zeros(features, np.float32)

    def decide() -> None:
        values[:] = np.nan
        sum_pre_acts(*encoder, starts, listed, values)

    decide()
    dot = min(timeit.repeat(decide, timer=time.thread_time, number=1, repeat=REPEATS)) / (d_in * len(listed))
    return Costs(**seconds, dot=dot)


def _looked_at(kind: Kind, x: torch.Tensor, weight: torch.Tensor) -> Callable[[], object] | None:
    """A product that has run, and a look at what it wrote; None where there is none, or surely no fast one."""
    if kind in ("amx", "int8") and x.shape[1] > WIDEST_INT8:
        return None
    if (kind == "int8" and not HAS_FOURS) or (kind == "amx" and not HAS_SQUARES):
        return None
    # Torch has products that are missing in a build or on a processor: it raises one of these.
    with contextlib.suppress(RuntimeError, AttributeError, NotImplementedError):
        call = product_of(make_screen(x, kind), make_screen(weight, kind), threads=1)
        looked = call if kind in IN_TILES else lambda: _look(call())
        for _ in range(WARM_UP):  # compiles, and builds oneDNN's primitive
            looked()
        return looked
    return None


def _look(made: Any) -> np.ndarray:
    return made[:, : made.shape[1] // LANES * LANES].reshape(len(made), LANES, -1).max(1)


def product_of(x: Screen, weight: Screen, threads: int | None = None) -> Callable[[], Any]:
    """The product of two screens of one kind, to be called: what encoding cannot do without. threads: of tiles."""
    if x.kind not in IN_TILES:
        return partial(products, x, weight)
    n, none, in_squares = len(x.rows), np.empty((0, len(weight.scale)), np.float32), x.kind == "amx"
    of_weight = packed(weight.rows.numpy(), in_squares), weight.scale, np.zeros(len(weight.scale), np.float32)
    tiles, height = make_tiles(*of_weight, none, in_squares), OF_SQUARES if in_squares else TOKENS
    rows, own = x.rows.numpy(), np.empty((n, 0), np.float32)

    def some(a: int, b: int) -> np.ndarray:
        part = slice(a * height, b * height)
        return largest_of_groups(rows[part], x.scale[part], own[part], tiles)

    return lambda: in_ranges(some, -(-n // height), n * tiles.rows.size, threads=threads)


def _fastest(calls: dict[Kind, Callable[[], object]]) -> dict[Kind, float]:
    """The calling thread's seconds of the fastest call of each kind."""
    seconds, end, rounds = dict.fromkeys(calls, np.inf), time.perf_counter() + BUDGET, 0
    while rounds < REPEATS or time.perf_counter() < end:
        for kind, call in calls.items():
            if not rounds or seconds[kind] <= HOPELESS * seconds["float32"]:
                start = time.thread_time()
                call()
                seconds[kind] = min(seconds[kind], time.thread_time() - start)
        rounds += 1
    return seconds
