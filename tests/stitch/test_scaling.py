"""A power law that was planted is found, and its interval holds it as often as it says."""

from __future__ import annotations

import numpy as np
import pytest

from heredity.stitch.scaling import fit_scaling, frontier

A, BETA = 41.2, 0.16
COSTS = np.geomspace(1e12, 1e15, 12)


def test_the_planted_law_is_found():
    fit = fit_scaling(COSTS, A * COSTS**-BETA, seed=0)
    assert fit is not None and fit.r2 == pytest.approx(1) and fit.points == 12 and fit.costs == (1e12, 1e15)
    assert (fit.a, fit.beta) == pytest.approx((A, BETA)) and fit.beta_interval == pytest.approx((BETA, BETA))
    assert fit_scaling(COSTS[:3], COSTS[:3], seed=0) is None


def test_intervals_hold_the_planted_law():
    held = []
    for seed in range(200):
        noise = np.exp(np.random.default_rng(seed).normal(0, 0.05, len(COSTS)))
        fit = fit_scaling(COSTS, A * COSTS**-BETA * noise, seed, draws=300)
        assert fit is not None and fit.beta == pytest.approx(BETA, abs=0.04)
        ends = (fit.a_interval, A), (fit.beta_interval, BETA)
        held.append([low <= truth <= high for (low, high), truth in ends])
    assert (np.mean(held, 0) > 0.85).all() and (np.mean(held, 0) < 0.99).all()


def test_the_frontier_of_several_widths_is_the_least_loss_at_each_cost():
    """Narrow ones lead first and level off, wide ones come later: together they follow one law."""
    grid = np.geomspace(1e10, 1e15, 60)
    law = A * grid**-BETA
    narrow, wide = np.where(grid < 1e13, law, 2 * law), np.where(grid < 1e13, 2 * law, law)
    costs, losses = frontier([(grid, narrow), (grid, wide)], start=1e-4)
    assert losses == pytest.approx(A * costs**-BETA) and len(costs) == (grid >= 1e11).sum()
    fit = fit_scaling(costs, losses, seed=0)
    assert fit is not None and fit.beta == pytest.approx(BETA)
    alone, _ = frontier([(np.append(0.0, grid), np.append(1.0, narrow))])
    assert alone[0] >= 0.05 * 1e15 and len(alone) == (grid >= 0.05e15).sum()
    short, _ = frontier([(grid[:30], law[:30]), (grid, 2 * law)], start=0.0)
    # The training that ended early keeps its loss, which the other one takes 2^(1 / beta) times its cost to reach.
    gap = grid[29] * 2 ** (1 / BETA)
    assert not ((short > 1.001 * grid[29]) & (short < 0.999 * gap)).any() and (short > gap).sum() == (grid > gap).sum()
    assert frontier([(grid, np.full(60, np.nan))])[0].size == 0
