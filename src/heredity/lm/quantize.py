"""Weights rounded to few bits and back: what a quantized child computes, in a form that every tool reads."""

from __future__ import annotations

from typing import Any

import torch


def quantize(model: Any, bits: int, group_size: int | None = None) -> None:
    """Round every matrix of a model to `bits` bits in place: symmetric, to nearest, one scale per `group_size`
    neighboring weights of a row, or per row. Vectors (norms, biases) and the types of tensors stay.

    Raises ValueError, before anything is changed, for a group size that does not divide the rows of a matrix.
    """
    matrices = [(name, weight) for name, weight in model.named_parameters() if weight.dim() == 2]
    for name, weight in matrices:
        if group_size and weight.shape[1] % group_size:
            raise ValueError(
                f"group_size={group_size} does not divide the {weight.shape[1]} columns of {name}; choose a divisor, "
                "or leave it out for one scale per row"
            )
    levels = 2 ** (bits - 1) - 1
    with torch.no_grad():
        for _, weight in matrices:
            groups = weight.float().reshape(len(weight), -1, group_size or weight.shape[1])
            scale = groups.abs().amax(-1, keepdim=True).clamp(min=1e-12) / levels
            weight.copy_(((groups / scale).round().clamp(-levels, levels) * scale).reshape(weight.shape))
