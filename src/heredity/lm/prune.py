"""Weights set to zero: what a pruned child computes, in a form that every tool reads."""

from __future__ import annotations

from typing import Any

import torch

from heredity.lm.matrices import matrices
from heredity.study import PruneConfig


def prune(model: Any, config: PruneConfig, seed: int | None = None) -> None:
    """Set a share of every matrix, or of every row of it, to zero in place: the weights of the smallest absolute value
    (Han et al. 2015), or with a seed as many at random. Biases and norms stay."""
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, weight in matrices(model, config.embeddings):
            score = weight.abs() if generator is None else torch.rand(weight.shape, generator=generator)
            score = score.reshape(len(weight) if config.per == "row" else 1, -1)
            count = round(config.share * score.shape[1])
            smallest = score.topk(count, dim=1, largest=False, sorted=False).indices
            gone = torch.zeros_like(score, dtype=torch.bool).scatter_(1, smallest, True)
            weight.masked_fill_(gone.reshape(weight.shape), 0)
