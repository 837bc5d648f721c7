"""The sweep on planted accuracy curves: a model whose only weight is t, judged by a formula."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from heredity.lm.evaluate import Quality
from heredity.lm.merge import MergeError, merge_states
from heredity.lm.sweep import Bench, Sweep, crossing, sweep

CTX = 101


class Position(nn.Module):
    """One weight: 0 in the first parent, 1 in the second, so that their linear merge at t is t."""

    def __init__(self, t: float) -> None:
        super().__init__()
        self.t = nn.Parameter(torch.tensor([t], dtype=torch.float64))


FIRST, SECOND = Position(0.0).state_dict(), Position(1.0).state_dict()
Curve = Callable[[float], float]


def planted(first: Curve, second: Curve, seen: list[float] | None = None, noise: float = 0.0):
    """An `evaluate` whose accuracy on blocks of 0 follows `first` and on blocks of 1 `second`."""

    def evaluate(model: Position, blocks: np.ndarray, batch_size: int, precision: str) -> Quality:
        assert (batch_size, precision) == (32, "float32")
        t = float(model.t.detach())
        if seen is not None:
            seen.append(t)
        share = (first, second)[int(blocks[0, 0])](t)
        wobble = noise * np.random.default_rng(int(blocks[0, 0])).standard_normal(len(blocks))
        hits = (share + wobble - wobble.mean()) * (CTX - 1)
        return Quality(-math.log(share), share, len(blocks) * (CTX - 1), hits)

    return evaluate


def blocks(n: int = 50) -> dict[str, dict[str, np.ndarray]]:
    return {"lua": {"lua": np.zeros((n, CTX), np.int64)}, "stories": {"stories": np.ones((n, CTX), np.int64)}}


def swept(
    first: Curve, second: Curve, n: int = 50, noise: float = 0.0, seen: list[float] | None = None, **more
) -> Sweep:
    judge = planted(first, second, seen, noise)
    settings = {"points": 11, "tolerance": 0.005, "precision": "float32", "seed": 0, "adaptive": False} | more
    return sweep(Position(0.5), FIRST, SECOND, "linear", blocks(n), evaluate=judge, **settings)


def falling(t: float) -> float:
    return 0.5 - 0.3 * t**2


def rising(t: float) -> float:
    return 0.2 + 0.4 * t**2


def test_the_planted_crossing_is_found_within_the_tolerance():
    truth = math.sqrt(0.3 / 0.7)
    for tolerance in (0.01, 0.001, 0.3):
        found = swept(falling, rising, tolerance=tolerance)
        assert found.crossed
        assert found.t == pytest.approx(truth, abs=tolerance)
        at = next(point for point in found.points if point.t == found.t)
        assert at.accuracy["lua"] == pytest.approx(falling(found.t))
        assert at.accuracy["stories"] == pytest.approx(rising(found.t))
    assert (found.first, found.second) == ("lua", "stories")


def test_the_grid_includes_both_parents_no_t_is_evaluated_twice_and_the_model_ends_at_the_equilibrium():
    seen: list[float] = []
    calls: list[tuple[int, int]] = []
    model, judge = Position(0.5), planted(falling, rising, seen)
    follow = {"precision": "float32", "progress": lambda *call: calls.append(call)}
    found = sweep(model, FIRST, SECOND, "linear", blocks(), points=5, evaluate=judge, **follow)
    assert float(model.t.detach()) == pytest.approx(found.t, abs=1e-12), "the model ends at the equilibrium"
    assert calls == sorted(calls) and calls[-1][0] == calls[-1][1] and len({total for _, total in calls}) == 1
    positions = [point.t for point in found.points]
    assert positions == sorted(set(positions))
    assert {0.0, 0.25, 0.5, 0.75, 1.0} <= set(positions)
    assert len(seen) == 2 * len(positions)
    assert found.points[0].accuracy == {"lua": 0.5, "stories": 0.2}
    assert found.points[-1].ce_loss["lua"] == pytest.approx(-math.log(0.2))


@pytest.mark.parametrize(
    ("first", "second", "t", "crossed"),
    [
        (lambda t: 0.75 - t / 2, lambda t: 0.25 + t / 2, 0.5, True),  # on the grid: no bisection
        (lambda t: 0.6 + (t - 0.7) ** 2, lambda t: 0.5, 0.7, False),  # never: where they differ least
        (lambda t: 0.5 + (t - 0.12) * (t - 0.43) * (t - 0.88), lambda t: 0.5, 0.43, True),  # nearest the middle
    ],
)
def test_the_equilibrium_is_the_crossing_nearest_the_middle_or_the_smallest_difference(first, second, t, crossed):
    found = swept(first, second)
    assert found.crossed == crossed and found.t == pytest.approx(t, abs=0.005)
    assert (len(found.points) == 11) == (t in (0.5, 0.7))


@pytest.mark.parametrize("points", [3, 11, 21, 101])
@pytest.mark.parametrize(
    ("first", "second", "few"),
    [
        (falling, rising, True),
        (lambda t: 0.75 - t / 2, lambda t: 0.25 + t / 2, True),  # crosses at a point measured first
        (lambda t: 0.5 - 0.3 * math.tanh(9 * (t - 0.62)), lambda t: 0.5, True),
        (lambda t: 0.5 + (t - 0.12) * (t - 0.43) * (t - 0.88), lambda t: 0.5, False),  # crosses three times
        (lambda t: 0.6 + (t - 0.7) ** 2, lambda t: 0.5, False),  # never: all is measured
    ],
)
@pytest.mark.parametrize("noise", [0.0, 0.2])
def test_leaving_out_points_of_the_grid_changes_neither_t_nor_its_interval(first, second, few, noise, points):
    """noise: of blocks, each the same at every t."""
    whole, found = (
        swept(first, second, 200, noise, points=points, tolerance=1.0, adaptive=adaptive) for adaptive in (False, True)
    )
    assert (found.t, found.crossed, found.interval) == (whole.t, whole.crossed, whole.interval)
    assert {point.t for point in found.points} <= {point.t for point in whole.points}
    assert len(found.points) <= 11 or points == 101 or not few


@pytest.mark.parametrize(
    ("positions", "differences", "t", "crossed"),
    [
        ([0, 0.5, 1], [3, 1, -1], 0.75, True),
        ([0, 0.5, 1], [-3, -1, 1], 0.75, True),
        ([0, 0.4, 0.6, 1], [1, 0, 0, -1], 0.4, True),
        ([0, 0.2, 0.8, 1], [2, -1, -1, 2], pytest.approx(2 / 15), True),
        ([0, 0.4, 1], [0, 2, 1], 0, True),
        ([0, 0.4, 1], [3, 2, 1], 1, False),
        ([0, 0.4, 0.6, 1], [3, 2, 2, 3], 0.4, False),
    ],
)
def test_crossing_is_read_off_a_piecewise_linear_curve(positions, differences, t, crossed):
    assert crossing(positions, differences) == (t, crossed)


def test_intervals_hold_the_estimates_and_narrow_with_more_blocks():
    wide, narrow, again, other = (
        swept(falling, rising, n=n, noise=0.1, seed=seed) for n, seed in ((25, 0), (2500, 0), (25, 0), (25, 1))
    )
    assert wide == again and wide.interval != other.interval and wide.t == other.t
    truth = math.sqrt(0.3 / 0.7)
    for found in (wide, narrow):
        assert found.interval[0] < truth < found.interval[1]
        for point in found.points:
            for parent in ("lua", "stories"):
                low, high = point.interval[parent]
                assert low < point.accuracy[parent] < high
    assert narrow.interval[1] - narrow.interval[0] < 0.2 * (wide.interval[1] - wide.interval[0])
    low, high = wide.points[0].interval["lua"]
    assert high - low == pytest.approx(2 * 1.96 * 0.1 / math.sqrt(25), rel=0.35)


def test_the_equilibrium_interval_follows_from_noise_and_slope():
    found = swept(lambda t: 0.75 - t / 2, lambda t: 0.25 + t / 2, n=400, noise=0.1)
    error = math.sqrt(2) * 0.1 / math.sqrt(400)  # of a difference of slope 1
    assert found.interval[1] - found.interval[0] == pytest.approx(2 * 1.96 * error, rel=0.2)


def test_corpora_of_a_parent_are_pooled_by_their_tokens():
    mixed = blocks(10)
    mixed["lua"] = {"lua": np.zeros((30, CTX), np.int64), "more": np.ones((10, CTX), np.int64)}
    judge = planted(lambda t: 0.8, lambda t: 0.4)  # noqa: ARG005
    found = sweep(Position(0), FIRST, SECOND, "linear", mixed, 2, 0.1, "float32", evaluate=judge)
    assert found.points[0].accuracy == {"lua": pytest.approx(0.7), "stories": pytest.approx(0.4)}
    assert found.points[0].ce_loss["lua"] == pytest.approx(-0.75 * math.log(0.8) - 0.25 * math.log(0.4))


class Tied(nn.Module):
    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embed = nn.Embedding(7, 4)
        self.norm = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight


@pytest.mark.parametrize("method", ["slerp", "linear"])
@pytest.mark.parametrize("from_file", [False, True])
def test_a_blend_in_memory_equals_the_merged_state(method: str, from_file: bool):
    a, b, model = Tied(1).state_dict(), Tied(2).state_dict(), Tied(3)
    if from_file:  # a file holds a tied tensor once
        for each in (a, b):
            del each["head.weight"]
    bench = Bench(model, a, b, method, {})  # pyright: ignore[reportArgumentType]
    for t in (0.3, 0.0, 0.8):
        bench.into(t)
        merged, _ = merge_states([a, b], method, t)  # pyright: ignore[reportArgumentType]
        assert all(torch.equal(model.state_dict()[name], merged[name]) for name in merged)
        assert model.head.weight is model.embed.weight


def test_states_that_do_not_fit_the_model_are_refused():
    a, b = Tied(1).state_dict(), Tied(2).state_dict()
    with pytest.raises(MergeError, match="extra is in the parents but not"):
        Bench(Tied(3), a | {"extra": torch.zeros(2)}, b | {"extra": torch.zeros(2)}, "slerp", {})
    fewer = [{name: each for name, each in state.items() if name != "norm.bias"} for state in (a, b)]
    with pytest.raises(MergeError, match="norm.bias is in the model but not"):
        Bench(Tied(3), *fewer, "slerp", {})
    narrow = {name: each[..., :2] if name == "norm.bias" else each for name, each in a.items()}
    with pytest.raises(MergeError, match=r"norm.bias is \[4\] in the model but \[2\] in the parents"):
        Bench(Tied(3), narrow, dict(narrow), "slerp", {})


@pytest.mark.parametrize(
    ("method", "corpora", "more", "message"),
    [
        ("linear", {"python": {}}, {}, r"between two parents, not 3 \(lua, stories, python\)"),
        ("ties", {}, {}, "ties has no t to sweep"),
        ("linear", {"lua": {"lua": np.zeros((0, CTX), np.int64)}}, {}, "parent lua has no validation blocks"),
        ("linear", {}, {"points": 1}, "points=1"),
    ],
)
def test_methods_and_parents_without_an_equilibrium_are_refused(method, corpora, more, message):
    with pytest.raises(MergeError, match=message):
        sweep(Position(0), FIRST, SECOND, method, blocks() | corpora, **more)
