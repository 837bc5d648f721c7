"""Which screen to encode with, by what products take on this machine; the environment can force one.

A processor's instructions do not tell: with the same flags, bfloat16 products take half of float32's time on one
machine and more than float32's on another. Nothing but the time depends on the choice: `encode` decides every
candidate by the same float32 sums.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple, get_args

import numpy as np
import torch

from heredity.kernels.candidates import sum_pre_acts
from heredity.kernels.screens import WIDEST_INT8, Kind, Screen, make_screen, products

FORCE = "HEREDITY_SCREEN"  # environment variable: one of `Kind`; workers inherit it
ROWS, FEATURES = 64, 1024  # most rows and features of the products that are timed
DECIDED = 8  # rows whose candidates are timed, every other feature
CHECKED = 16  # rows of both sides of an int8 product that is compared with float64's
# Calls of a product before the clock runs, fewest that are timed, and seconds that they are repeated for. The fastest
# one counts: other work on the machine can only slow a call down.
WARM_UP, REPEATS, BUDGET = 2, 3, 0.003
HOPELESS = 4  # a product that takes this many times float32's is not repeated
WORTH = 0.9  # share of the next exacter product's time below which a screen is taken


class Costs(NamedTuple):
    """Seconds per multiplication and addition; infinite where there is no such product."""

    int8: float
    bf16: float
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
    for kind in ("bf16", "int8"):
        if getattr(costs, kind) < WORTH * getattr(costs, chosen[0]):
            chosen = (kind, *chosen)
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
    return _measured(d_in, min(d_sae, FEATURES), torch.get_num_threads())


def measured_table(d_in: int, d_sae: int) -> list[dict[str, Any]]:
    """A row for each product: billions of operations per second, None where there is none; whether it is taken."""
    costs, chosen = costs_of(d_in, d_sae), screens(d_in, d_sae)
    return [
        {
            "d_in": d_in,
            "d_sae": d_sae,
            "threads": torch.get_num_threads(),
            "product": kind,
            "gflops": None if getattr(costs, kind) == np.inf else 2e-9 / getattr(costs, kind),
            "taken": "first" if kind == chosen[0] else "for many candidates" if kind in chosen else "no",
        }
        for kind in get_args(Kind)
    ]


@lru_cache(maxsize=64)
def _measured(d_in: int, features: int, threads: int) -> Costs:  # noqa: ARG001 - costs differ by threads
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(n, d_in, generator=generator) for n in (ROWS, features))
    exact = _seconds("float32", x, weight, np.inf)
    seconds = {kind: _seconds(kind, x, weight, HOPELESS * exact) for kind in ("int8", "bf16")}
    every_other = np.arange(0, features, 2, dtype=np.int32)
    starts, listed = np.arange(DECIDED + 1) * len(every_other), np.tile(every_other, DECIDED)
    values = np.empty(len(listed), np.float32)
    encoder = x[:DECIDED].numpy(), weight.numpy(), np.zeros(features, np.float32)

    def decide() -> None:
        values[:] = np.nan
        sum_pre_acts(*encoder, starts, listed, values)

    dot = _fastest(decide, np.inf) / (d_in * len(listed))
    size = ROWS * features * d_in
    return Costs(seconds["int8"] / size, seconds["bf16"] / size, exact / size, dot)


def _seconds(kind: Kind, x: torch.Tensor, weight: torch.Tensor, hopeless: float) -> float:
    """Of a product; infinite where there is none, or none that is right."""
    if kind == "int8" and x.shape[1] > WIDEST_INT8:
        return np.inf
    # Torch has products that are missing in a build or on a processor: it raises one of these.
    with contextlib.suppress(RuntimeError, AttributeError, NotImplementedError):
        sides = make_screen(x, kind), make_screen(weight, kind)
        # `torch._int_mm` is no public function, and wrong for a d_in of 1 in some versions.
        if kind == "int8" and not _is_exact(*(side._replace(rows=side.rows[:CHECKED]) for side in sides)):
            return np.inf
        return _fastest(lambda: products(*sides), hopeless)
    return np.inf


def _is_exact(x: Screen, weight: Screen) -> bool:
    return np.array_equal(products(x, weight), (x.rows.double() @ weight.rows.double().T).numpy())


def _fastest(call: Callable[[], object], hopeless: float) -> float:
    """Seconds of the fastest of some calls; of the first few when these take longer than `hopeless`."""
    for _ in range(WARM_UP):  # compiles, and builds oneDNN's primitive
        call()
    fastest, end, calls = np.inf, time.perf_counter() + BUDGET, 0
    while calls < REPEATS or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        fastest = min(fastest, time.perf_counter() - start)
        calls += 1
        if calls >= REPEATS and fastest > hopeless:
            break
    return fastest
