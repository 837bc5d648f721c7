"""Weights rounded to few bits: to the nearest level of their own scale, no other tensors, or refused."""

from __future__ import annotations

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


def test_a_group_that_divides_no_row_is_refused_and_nothing_is_changed():
    model = tiny.tiny_model()
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    with pytest.raises(ValueError, match=r"group_size=7 does not divide the \d+ columns of .*weight; choose a divisor"):
        quantize(model, QuantizeConfig(bits=4, group_size=7))
    assert all(torch.equal(before[name], weight) for name, weight in model.named_parameters())
