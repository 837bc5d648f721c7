"""Weights rounded to few bits: to the nearest level of their own scale, no other tensors, or refused."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import pytest
import torch

import tiny
from heredity.lm.quantize import quantize
from heredity.study import QuantizeConfig


@pytest.mark.parametrize(("bits", "group_size"), [(8, None), (4, None), (4, 8), (2, 16)])
def test_matrices_are_rounded_group_by_group_and_nothing_else(bits, group_size):
    model = tiny.tiny_model()
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    quantize(model, QuantizeConfig(bits=bits, group_size=group_size))
    levels = 2 ** (bits - 1) - 1
    for name, weight in model.named_parameters():
        old, new = before[name].numpy(), weight.detach().numpy()
        if old.ndim == 1:
            assert np.array_equal(old, new), name
            continue
        width = group_size or old.shape[1]
        for row, made in zip(old[:3], new[:3], strict=True):  # plain arithmetic, a group at a time
            for start in range(0, len(row), width):
                group = row[start : start + width]
                scale = np.abs(group).max() / levels
                assert np.allclose(made[start : start + width], np.round(group / scale) * scale, atol=1e-6), name
        assert np.abs(new - old).max() <= np.abs(old).max() / levels / 2 + 1e-6


@pytest.mark.parametrize("method", ["minmax", "nf4"])
def test_other_levels_are_the_nearest_of_their_group(method):
    model = tiny.tiny_model()
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    quantize(model, QuantizeConfig(bits=4, method=method, group_size=16, embeddings=False))
    assert torch.equal(model.lm_head.weight, before["lm_head.weight"])
    for name, weight in model.named_parameters():
        if "proj" not in name:
            assert torch.equal(weight, before[name]), name
            continue
        old, new = (one.detach().numpy().reshape(-1, 16) for one in (before[name], weight))
        for group, made in zip(old[:20], new[:20], strict=True):
            if method == "minmax":
                levels = np.linspace(group.min(), group.max(), 16)
            else:  # quantiles of a normal distribution, symmetric at the ends, with a zero (Dettmers et al. 2023)
                ends = [NormalDist().inv_cdf(p) for p in (*np.linspace(0.9677083, 0.5, 9)[:-1],)]
                low = [-NormalDist().inv_cdf(p) for p in np.linspace(0.9677083, 0.5, 8)[:-1]]
                levels = np.sort([*ends, *low, 0]) / max(ends) * np.abs(group).max()
            nearest = levels[np.abs(group[:, None] - levels).argmin(1)]
            assert np.allclose(made, nearest, atol=2e-6), name


def test_a_group_that_divides_no_row_is_refused_and_nothing_is_changed():
    model = tiny.tiny_model()
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    with pytest.raises(ValueError, match=r"group_size=7 does not divide the \d+ columns of .*weight; choose a divisor"):
        quantize(model, QuantizeConfig(bits=4, group_size=7))
    assert all(torch.equal(before[name], weight) for name, weight in model.named_parameters())
