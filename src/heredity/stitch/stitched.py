"""Next-token prediction of a model whose front half is another's, through a map (Chen et al. 2025, table 1)."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from heredity.lm.evaluate import Quality, arithmetic, chunk_rows
from heredity.lm.hooks import capture, replaced
from heredity.stitch.affine import Affine
from heredity.study import Precision

Place = tuple[nn.Module, str]  # a model, which runs on its own device in evaluation mode, and a hook point


def stitched_loss(
    front: Place,
    through: Callable[[Tensor], Tensor],
    back: Place,
    blocks: np.ndarray,
    special: Collection[int] = (),
    precision: Precision = "float32",
) -> Quality:
    """Prediction of the back model with through(the front model's activation) in place of its own.

    back: all of the model's residual stream must pass the hook point, so that everything below is overwritten.
    through: float32 [tokens, d_front] -> [tokens, d_back]. blocks: tokens [n, context] of a tokenizer both models use.
    special: tokens that are read, but whose prediction is not counted. Raises ValueError for blocks without anything to
    predict, tokens that a model does not know, and a map to another width than the back model's.
    """
    (front_model, front_hook), (back_model, back_hook) = front, back
    sizes = [model.get_input_embeddings().num_embeddings for model in (back_model, front_model)]  # type: ignore[operator]
    if int(blocks.max()) >= min(sizes) or int(blocks.min()) < 0:
        raise ValueError(f"blocks hold token {blocks.max()} of {min(sizes)} known; both models must share a tokenizer")
    counted = ~np.isin(blocks[:, 1:], list(special))  # [n, context - 1]
    if not counted.any():
        raise ValueError(f"blocks {list(blocks.shape)} hold nothing to predict but special tokens; give other tokens")
    device, front_device = (next(model.parameters()).device for model in (back_model, front_model))
    step = max(1, chunk_rows(sizes[0], device) // blocks.shape[1])
    total, hits, training = 0.0, np.zeros(len(blocks), np.int64), back_model.training
    back_model.eval()
    try:
        for start in range(0, len(blocks), step):
            ids = torch.from_numpy(np.ascontiguousarray(blocks[start : start + step], np.int64))
            keep = torch.from_numpy(counted[start : start + step]).to(device)
            with arithmetic(front_device, precision):
                before = capture(front_model, front_hook, ids.to(front_device))
            with torch.no_grad():
                x = through(before.flatten(0, 1)).view(*ids.shape, -1).to(device)
                with replaced(back_model, back_hook, lambda _, x=x: x), arithmetic(device, precision):
                    logits = back_model(input_ids=ids.to(device), use_cache=False).logits[:, :-1]
            logits, labels = logits.flatten(0, 1).float(), ids[:, 1:].flatten().to(device)
            ce = nn.functional.cross_entropy(logits, labels, reduction="none")
            total += float(ce[keep.flatten()].sum(dtype=torch.float64))
            right = (logits.argmax(-1) == labels).view(keep.shape) & keep
            hits[start : start + step] = right.sum(1).cpu().numpy()
    finally:
        back_model.train(training)
    tokens = int(counted.sum())
    return Quality(total / tokens, int(hits.sum()) / tokens, tokens, hits)


class StitchedLosses(NamedTuple):
    """The two models, and the four ways through the maps (table 1). A is the source, B the target."""

    source: Quality  # A unchanged
    target: Quality  # B unchanged
    up: Quality  # front of A, up, back of B
    down: Quality  # front of B, down, back of A
    source_round_trip: Quality  # front of A, up, down, back of A
    target_round_trip: Quality  # front of B, down, up, back of B

    @property
    def increases(self) -> dict[str, float]:
        """Rise of the cross-entropy of the four ways as a share of that of the model whose back half predicts."""
        source, target, *ways = (quality.ce_loss for quality in self)
        backs = (target, source, source, target)
        return {way: loss / back - 1 for way, loss, back in zip(self._fields[2:], ways, backs, strict=True)}


def stitched_losses(
    source: Place,
    target: Place,
    up: Affine,
    down: Affine,
    blocks: np.ndarray,
    special: Collection[int] = (),
    precision: Precision = "float32",
) -> StitchedLosses:
    """Both models and all four ways, on the same tokens and one device. Raises as `stitched_loss` does."""
    ways: list[tuple[Place, Callable[[Tensor], Tensor], Place]] = [
        (source, lambda x: x, source),
        (target, lambda x: x, target),
        (source, up, target),
        (target, down, source),
        (source, lambda x: down(up(x)), source),
        (target, lambda x: up(down(x)), target),
    ]
    return StitchedLosses(*(stitched_loss(*way, blocks, special, precision) for way in ways))
