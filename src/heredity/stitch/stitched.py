"""A model whose front half is another's: what the next-token prediction loses on the way through a map.

Chen et al. 2025 (arXiv 2506.06609), section 3.1 and table 1.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from heredity.lm.evaluate import Quality
from heredity.lm.hooks import capture, replaced
from heredity.lm.loss import arithmetic, chunk_rows
from heredity.stitch.affine import Affine
from heredity.study import Precision


def stitched_loss(
    front_model: nn.Module,
    front_hook: str,
    through: Callable[[Tensor], Tensor],
    back_model: nn.Module,
    back_hook: str,
    blocks: np.ndarray,
    special: Collection[int] = (),
    precision: Precision = "float32",
) -> Quality:
    """Prediction of the back model with through(the front model's activation) in place of its own.

    front_hook, back_hook: one hook point in each model; everything below the back model's is overwritten, provided that
    all of the residual stream passes there. through: float32 [tokens, d_front] -> [tokens, d_back], an `Affine` or
    several, one after the other. blocks: tokens [n, context], of a tokenizer both models use. special: tokens that are
    not counted where they are to be predicted; both models still read them. Both models run on their own devices in
    evaluation mode; the map works in float32 whatever the `precision` of the models' products.

    `tokens` counts what was predicted. Raises ValueError for blocks that hold nothing to predict, tokens that a model
    does not know, and a map to another width than the back model's.
    """
    counted = _counted(blocks, special, (front_model, back_model))
    device, front_device = (next(model.parameters()).device for model in (back_model, front_model))
    known = back_model.get_input_embeddings().num_embeddings  # type: ignore[operator]
    step = max(1, chunk_rows(known, device) // blocks.shape[1])
    total, hits, training = 0.0, np.zeros(len(blocks), np.int64), back_model.training
    back_model.eval()
    try:
        for start in range(0, len(blocks), step):
            ids = torch.from_numpy(np.ascontiguousarray(blocks[start : start + step], np.int64))
            keep = torch.from_numpy(counted[start : start + step]).to(device)
            with arithmetic(front_device, precision):
                front = capture(front_model, front_hook, ids.to(front_device))
            with torch.no_grad():
                x = through(front.flatten(0, 1)).view(*ids.shape, -1).to(device)
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

    source: Quality
    """A as it is."""
    target: Quality
    """B as it is."""
    up: Quality
    """Front of A, up, back of B."""
    down: Quality
    """Front of B, down, back of A."""
    source_round_trip: Quality
    """Front of A, up, down, back of A."""
    target_round_trip: Quality
    """Front of B, down, up, back of B."""

    @property
    def increases(self) -> dict[str, float]:
        """Rise of the cross-entropy of the four ways as a share of that of the model whose back half predicts."""
        own = {"up": self.target, "down": self.source, "source_round_trip": self.source}
        own["target_round_trip"] = self.target
        return {way: getattr(self, way).ce_loss / model.ce_loss - 1 for way, model in own.items()}


def stitched_losses(
    source: tuple[nn.Module, str],
    target: tuple[nn.Module, str],
    up: Affine,
    down: Affine,
    blocks: np.ndarray,
    special: Collection[int] = (),
    precision: Precision = "float32",
) -> StitchedLosses:
    """Both models and all four ways, on the same tokens, counted alike. Raises as `stitched_loss` does.

    source, target: model and hook point. up and down lie where the models do, which then are on one device.
    """

    def loss(front: tuple[nn.Module, str], through: Callable[[Tensor], Tensor], back: tuple[nn.Module, str]) -> Quality:
        return stitched_loss(*front, through, *back, blocks, special, precision)

    return StitchedLosses(
        source=loss(source, lambda x: x, source),
        target=loss(target, lambda x: x, target),
        up=loss(source, up, target),
        down=loss(target, down, source),
        source_round_trip=loss(source, lambda x: down(up(x)), source),
        target_round_trip=loss(target, lambda x: up(down(x)), target),
    )


def _counted(blocks: np.ndarray, special: Collection[int], models: tuple[nn.Module, ...]) -> np.ndarray:
    """bool [n, context - 1]: whether the prediction of a token counts."""
    if blocks.ndim != 2 or len(blocks) < 1 or blocks.shape[1] < 2:
        raise ValueError(f"blocks of shape {list(blocks.shape)} hold nothing to predict; give at least 1 x 2 tokens")
    known = min(model.get_input_embeddings().num_embeddings for model in models)  # type: ignore[operator]
    if int(blocks.max()) >= known or int(blocks.min()) < 0:
        raise ValueError(
            f"blocks hold token {int(blocks.max())}, one of the models knows {known}; they must share a tokenizer"
        )
    counted = ~np.isin(blocks[:, 1:], list(special))
    if not counted.any():
        raise ValueError("all tokens to predict are special ones; give blocks with other tokens, or fewer special ones")
    return counted
