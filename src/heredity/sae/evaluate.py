"""Quality of an SAE on held-out activations, and what splicing it into its model costs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from heredity import metrics
from heredity.lm.evaluate import evaluate
from heredity.lm.hooks import replaced
from heredity.sae.model import SAE
from heredity.study import Precision

ROWS = 4096  # vectors encoded at a time


class SAEQuality(NamedTuple):
    """Figures pooled over all tokens, in float64."""

    l0: float  # mean number of active features per token
    mse: float  # mean squared error over elements, in the units of x
    explained_variance: float  # 1 − ‖x − x̂‖² / ‖x − mean x‖²; nan if x is constant
    dead_share: float  # features that never fired
    ultra_low_share: float  # that fired, but on less than one token in a million (Bricken et al. 2023) or than 3 tokens
    density: np.ndarray  # float64 [d_sae]: share of tokens on which a feature is active
    tokens: int  # vectors seen


def quality(sae: SAE, batches: Iterable[Tensor]) -> SAEQuality:
    """Figures of the SAE on batches [n, d_in]. Raises ValueError for none, another width, NaN or infinity."""
    variance, fired = metrics.Variance(), np.zeros(sae.d_sae, np.int64)
    device = sae.W_dec.device
    for batch in batches:
        if batch.dim() != 2 or batch.shape[1] != sae.d_in:
            raise ValueError(f"x is {list(batch.shape)}, the SAE reads [n, {sae.d_in}]; check the hook point")
        for x in batch.to(device, torch.float32).split(ROWS):
            indptr, indices, values = sae.encode_sparse(x)
            fired += np.bincount(indices, minlength=sae.d_sae)
            x_hat = sae.decode_sparse(indptr, indices, values) + sae.bypass(x)
            variance.update(x.cpu(), x_hat.cpu())
    figures = variance.result()
    tokens, least = figures.tokens, max(1e-6 * figures.tokens, 3)
    dead, ultra_low = float((fired == 0).mean()), float(((fired > 0) & (fired < least)).mean())
    l0 = float(fired.sum()) / tokens
    return SAEQuality(l0, figures.mse, figures.explained_variance, dead, ultra_low, fired / tokens, tokens)


def spliced_losses(
    model: nn.Module, hook_point: str, sae: SAE, blocks: np.ndarray, precision: Precision = "float32"
) -> tuple[float, float, float]:
    """Mean next-token cross-entropy of a model: unchanged, with the SAE's reconstruction, and with zeros.

    In nats per token on token blocks [n, context]. The SAE works in float32 whatever the `precision` of the model.
    """

    def reconstructed(x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            flat = x.reshape(-1, x.shape[-1]).float()
            x_hat = torch.cat([sae.reconstruct(part) for part in flat.split(ROWS)])
        return x_hat.view(x.shape)

    losses = [evaluate(model, blocks, precision=precision).ce_loss]
    for replacement in (reconstructed, torch.zeros_like):
        with replaced(model, hook_point, replacement):
            losses.append(evaluate(model, blocks, precision=precision).ce_loss)
    return losses[0], losses[1], losses[2]


def ce_loss_recovered(
    model: nn.Module, hook_point: str, sae: SAE, blocks: np.ndarray, precision: Precision = "float32"
) -> float:
    """(CE_zero − CE_sae) / (CE_zero − CE_clean) of `spliced_losses`; see `metrics.ce_loss_recovered`."""
    return metrics.ce_loss_recovered(*spliced_losses(model, hook_point, sae, blocks, precision))
