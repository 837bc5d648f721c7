"""Floating-point operations are those that torch counts, and a saving is read off two curves."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from heredity.sae.evaluate import quality
from heredity.sae.model import new_sae
from heredity.sae.train import Step, start
from heredity.stitch.savings import Curve, dense_flops, fold_flops, reached, refit_flops, saving_row, sparse_flops


def test_dense_operations_are_those_torch_counts():
    """f = topk(x W_e), x̂ = f W_d (Chen et al. 2025, eq. 4-5), with torch's own gradients."""
    x, w_e, w_d = torch.randn(24, 12), nn.Parameter(torch.randn(12, 40)), nn.Parameter(torch.randn(40, 12))
    with FlopCounterMode(display=False) as counter:
        top = (x @ w_e).relu().topk(4, dim=-1)
        acts = torch.zeros(24, 40).scatter(-1, top.indices, top.values)
        (acts @ w_d - x).square().mean().backward()
    assert counter.get_total_flops() == dense_flops(12, 40, 24)


def test_the_papers_own_figures_come_out():
    """Table 3: 32k features, 120k steps of 4096 vectors; the larger model's is 1.2e17, the smaller's 8.2e16."""
    assert dense_flops(768, 32768, 120_000 * 4096) == pytest.approx(1.24e17, rel=0.01)
    assert dense_flops(512, 32768, 120_000 * 4096) == pytest.approx(8.2e16, rel=0.01)


def test_sparse_operations_are_one_dense_product_and_four_of_active_entries():
    d_in, d_sae, k, n = 12, 40, 4, 24
    with FlopCounterMode(display=False) as counter:
        torch.randn(n, d_in) @ torch.randn(d_in, d_sae)
        for _ in range(4):  # reconstruction, gradients of activations, decoder and encoder: k rows a vector
            torch.randn(n, 1, k) @ torch.randn(n, k, d_in)
    assert counter.get_total_flops() == sparse_flops(d_in, d_sae, k, n)
    assert sparse_flops(d_in, d_sae, d_sae, n) == dense_flops(d_in, d_sae, n), "all active: five products"


def test_starts_cost_what_their_products_do():
    with FlopCounterMode(display=False) as counter:
        torch.randn(20, 12) @ torch.randn(12, 40)
        torch.randn(40, 12) @ torch.randn(12, 20)
    assert counter.get_total_flops() == fold_flops(12, 20, 40)
    bias, decoder = (refit_flops(12, 40, 4.0, 100, decoder) for decoder in (False, True))
    assert bias == 2 * 12 * 40 * 100 and decoder - bias == pytest.approx(2 * 4 * 16 * 100 + 64000 / 3 + 2 * 12 * 1600)


def test_a_level_is_reached_between_points_on_a_logarithmic_axis():
    costs, values = [0.0, 1.0, 100.0, 1e4], [0.1, 0.5, 0.7, 0.6]
    assert reached(costs, values, 0.6) == pytest.approx(10.0)
    assert reached(costs, values, 0.55) == pytest.approx(math.sqrt(10))
    assert reached(costs, values, 0.7) == 100.0
    assert reached(costs, values, 0.3) == pytest.approx(0.5), "linear after a point without cost"
    assert reached(costs, values, 0.05) == 0.0, "there from the start"
    assert reached(costs, values, 0.71) is None
    assert reached(costs, [float("nan"), 0.1, None, 0.9], 0.5) == pytest.approx(100.0)


def curve(values: list[float]) -> list[dict[str, float | None]]:
    return [
        {"flops": 10.0**i if i else 0, "seconds": i + 1, "explained_variance": value} for i, value in enumerate(values)
    ]


def test_a_saving_is_read_off_two_curves_and_is_none_where_one_never_gets_there():
    random, arm, half = curve([0.0, 0.2, 0.4, 0.8]), curve([0.3, 0.5, 0.6, 0.7]), 10**2.5
    row, seconds = saving_row(arm, random, 0.6, (10.0, 1.0), (100.0, 2.0)), 3 * (4 / 3) ** 0.5
    expected = {"flops": 100, "random_flops": half, "saved_flops": 1 - 110 / half}
    expected |= {"saved_flops_with_source": 1 - 210 / half, "seconds": 3, "random_seconds": seconds}
    assert row == pytest.approx(
        expected | {"saved_seconds": 1 - 4 / seconds, "saved_seconds_with_source": 1 - 6 / seconds}
    )
    free = (0.0, 0.0)
    assert saving_row(arm, random, 0.6, free, (1e4, 0.0))["saved_flops_with_source"] < -30  # type: ignore[operator]
    assert saving_row(arm, arm, 0.2, free, free)["saved_flops"] is None, "there at no cost"
    for begun, level, missing in (
        (arm, 0.75, {"flops"}),
        (arm, 0.9, {"flops", "random_flops"}),
        (curve([0.9, 0.95]), 0.9, {"random_flops"}),
    ):
        row = saving_row(begun, random, level, free, free)
        assert row["saved_flops"] is None
        assert {name for name in ("flops", "random_flops") if row[name] is None} == missing


def test_a_curve_goes_on_from_the_step_of_the_checkpoint(tmp_path: Path):
    generator = torch.Generator().manual_seed(0)
    sae, x = new_sae(6, 12, "topk", 2, generator), torch.randn(200, 6, generator=generator)

    def states(first: int, last: int):
        state = start(sae, lambda _: x, {"steps": 40}, continued=True)
        for step in range(first, last + 1):
            state.rows = [Step(i, 1.0, 1.0, 1.0, 2.0, 0, None, None, 0) for i in range(1, step + 1)]
            yield state

    def watched(first: int, last: int) -> Curve:
        curve = Curve(tmp_path, 200, 40, new_sae(6, 12, "topk", 2), x)
        for state in states(first, last):
            curve(state)
        return curve

    before = watched(0, 25).rows
    assert before[0]["vectors"] == before[0]["flops"] == 0 and before[3]["flops"] == dense_flops(6, 12, 600)
    assert before[3]["explained_variance"] == pytest.approx(quality(sae, [x]).explained_variance, rel=1e-4)
    again = watched(20, 40)  # killed after step 25, with a checkpoint of step 20
    kept = [row for row in before if row["step"] <= 20]
    assert again.rows[: len(kept)] == kept and again.rows[-1]["step"] == 40
    seconds = [row["seconds"] for row in again.rows]
    assert seconds == sorted(seconds) and (tmp_path / "clock").stat().st_size == 8 * 41
    again.forget()
    assert list(tmp_path.iterdir()) == []
