"""Aligned activations of two models at several hook points, from one forward pass of each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from heredity.lm.activations import blocks_at_once
from heredity.lm.hooks import HookPointError, replaced
from heredity.lm.loss import arithmetic
from heredity.study import Precision


class Points(NamedTuple):
    """A model, and where to read it."""

    model: nn.Module
    """Decoder of Hugging Face."""
    hook_points: Sequence[str]
    """Each once, in any order."""


class _Stop(Exception):
    """Leaves a forward pass once every point was seen."""


def aligned(
    a: Points, b: Points, blocks: np.ndarray, masked: Sequence[int] = (), precision: Precision = "float32"
) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """Activations of both models on the same token blocks [n, context], as chunks of float32 [tokens, d] a point.

    masked: ids of tokens left out of both, such as special ones (Chen et al. 2025, arXiv 2506.06609, appendix A).
    Each model runs on its own device in evaluation mode, and no further than its last point; activations come back on
    that of A. Raises HookPointError for an unknown point or one that the forward pass never comes by.
    """
    device = next(a.model.parameters()).device
    step = blocks_at_once(blocks.shape[1])
    for start in range(0, len(blocks), step):
        some = np.ascontiguousarray(blocks[start : start + step], np.int64)
        kept = torch.from_numpy(~np.isin(some.ravel(), masked)).to(device)
        sides = (_captured(points, torch.from_numpy(some), precision) for points in (a, b))
        of_a, of_b = ([x.to(device).flatten(0, 1)[kept] for x in side] for side in sides)
        yield of_a, of_b


def _captured(points: Points, ids: Tensor, precision: Precision) -> list[Tensor]:
    """Activations [batch, context, d] at each point, float32."""
    model, seen = points.model, dict[str, Tensor]()
    device = next(model.parameters()).device

    def watch(hook_point: str, x: Tensor) -> Tensor:
        seen[hook_point] = x.float()
        if len(seen) == len(points.hook_points):
            raise _Stop
        return x

    training = model.training
    model.eval()
    try:
        with ExitStack() as stack:
            for name in points.hook_points:
                stack.enter_context(replaced(model, name, lambda x, name=name: watch(name, x)))
            with torch.no_grad(), arithmetic(device, precision):
                model(input_ids=ids.to(device), use_cache=False)
    except _Stop:
        return [seen[name] for name in points.hook_points]
    finally:
        model.train(training)
    missing = [name for name in points.hook_points if name not in seen]
    raise HookPointError(f"hook_points {missing}: the forward pass of {type(model).__name__} never comes by them")
