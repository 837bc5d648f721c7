"""Weights rounded to few bits and back: what a quantized child computes, in a form that every tool reads."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from heredity.lm.matrices import matrices
from heredity.study import QuantizeConfig

# Levels of the 4-bit NormalFloat: quantiles of a normal distribution (Dettmers et al. 2023, appendix E).
_NF4 = (-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635)
_NF4 += (-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725)
_NF4 += (0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0)


def quantize(model: Any, config: QuantizeConfig) -> None:
    """Round every matrix of a model in place, to the nearest level of its group: `group_size` neighboring weights of a
    row, or a row. Vectors (norms, biases) and the types of tensors stay.

    Raises ValueError, before anything is changed, for a group size that does not divide the rows of a matrix.
    """
    refuse_group_size(model, config)
    size = config.group_size
    with torch.no_grad():
        for _, weight in matrices(model, config.embeddings):
            groups = weight.float().reshape(len(weight), -1, size or weight.shape[1])
            weight.copy_(_rounded(groups, config).reshape(weight.shape))


def refuse_group_size(model: Any, config: QuantizeConfig) -> None:
    """Raise ValueError for a group size that does not divide the rows of a matrix. The model needs shapes alone."""
    size = config.group_size or 1
    for name, weight in matrices(model, config.embeddings):
        if weight.shape[1] % size:
            raise ValueError(
                f"group_size={size} does not divide the {weight.shape[1]} columns of {name}; choose a divisor, "
                "or leave it out for one scale per row"
            )


def _rounded(groups: Tensor, config: QuantizeConfig) -> Tensor:
    """Weights [rows, groups, size] at the levels of their groups."""
    low, high = groups.aminmax(dim=-1, keepdim=True)
    if config.method == "minmax":
        scale = (high - low).clamp(min=1e-12) / (2**config.bits - 1)
        return low + ((groups - low) / scale).round() * scale
    largest = torch.maximum(low.abs(), high.abs()).clamp(min=1e-12)
    if config.method == "nf4":
        levels = torch.tensor(_NF4, device=groups.device)
        return levels[torch.bucketize(groups / largest, (levels[1:] + levels[:-1]) / 2)] * largest
    most = 2 ** (config.bits - 1) - 1
    scale = largest / most
    return (groups / scale).round().clamp(-most, most) * scale
