"""Quality of an SAE on held-out activations, and what splicing it into its model costs."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from heredity import metrics
from heredity.lm.evaluate import evaluate
from heredity.lm.hooks import replaced
from heredity.sae.model import SAE
from heredity.study import Precision

if TYPE_CHECKING:
    from heredity.features.acts import FeatureActs

ROWS = 4096  # vectors encoded at a time
MASSIVE = 10.0  # median norms above which a vector is massive, and would own the variance of all


class SAEQuality(NamedTuple):
    """Figures pooled over all tokens, in float64."""

    l0: float  # mean number of active features per token
    mse: float  # mean squared error over elements, in the units of x
    explained_variance: float  # 1 − ‖x − x̂‖² / ‖x − mean x‖²; nan if x is constant
    dead_share: float  # features that never fired
    ultra_low_share: float  # that fired, but on less than one token in a million (Bricken et al. 2023) or than 3 tokens
    density: np.ndarray  # float64 [d_sae]: share of tokens on which a feature is active
    tokens: int  # vectors seen
    explained_variance_ordinary: float  # of vectors that are not massive
    explained_variance_token: float  # median over these of 1 − ‖x − x̂‖² / ‖x − m‖², m the mean of their first batch
    massive: np.ndarray  # bool [tokens]: more than `MASSIVE` median norms of the batch it came in
    massive_variance: float  # share of ‖x − mean x‖² that they own; nan if x is constant


def quality(sae: SAE, batches: Iterable[Tensor], acts: FeatureActs | None = None) -> SAEQuality:
    """Figures of the SAE on batches [n, d_in]. acts: of all of them, where they are encoded already. Raises ValueError
    for none, another width, NaN or infinity."""
    pooled, ordinary, fired = metrics.Variance(), metrics.Variance(), np.zeros(sae.d_sae, np.int64)
    device, mean, massive, token, seen = sae.W_dec.device, torch.empty(0), list[Tensor](), list[Tensor](), 0
    for batch in batches:
        if batch.dim() != 2 or batch.shape[1] != sae.d_in:
            raise ValueError(f"x is {list(batch.shape)}, the SAE reads [n, {sae.d_in}]; check the hook point")
        norms = batch.float().norm(dim=1)
        massive.append((norms > MASSIVE * norms.median()).cpu())
        if not token:
            mean = batch.cpu()[~massive[0]].double().mean(0)
        for x, large in zip(batch.to(device, torch.float32).split(ROWS), massive[-1].split(ROWS), strict=True):
            if acts is None:
                indptr, indices, values = sae.encode_sparse(x)
            else:  # copied, because torch takes no arrays that must not be written to
                indptr, indices, values = (part.copy() for part in acts.rows(seen, seen + len(x)).sparse[:3])
            seen += len(x)
            fired += np.bincount(indices, minlength=sae.d_sae)
            x, x_hat = x.cpu(), (sae.decode_sparse(indptr, indices, values) + sae.bypass(x)).cpu()
            pooled.update(x, x_hat)
            x, x_hat = (x, x_hat) if not large.any() else (x[~large], x_hat[~large])
            ordinary.update(x, x_hat)
            token.append(1 - (x - x_hat).double().square().sum(1) / (x.double() - mean).square().sum(1))
    figures, rest = pooled.result(), ordinary.result()
    tokens, least = figures.tokens, max(1e-6 * figures.tokens, 3)
    dead, ultra_low = float((fired == 0).mean()), float(((fired > 0) & (fired < least)).mean())
    return SAEQuality(
        float(fired.sum()) / tokens,
        figures.mse,
        figures.explained_variance,
        dead,
        ultra_low,
        fired / tokens,
        tokens,
        rest.explained_variance,
        float(torch.cat(token).nanmedian()),
        torch.cat(massive).numpy(),
        1 - rest.deviation / figures.deviation if figures.deviation else math.nan,
    )


def spliced_losses(
    model: nn.Module, hook_point: str, sae: SAE, blocks: np.ndarray, precision: Precision = "float32"
) -> tuple[float, float, float]:
    """Mean next-token cross-entropy of a model: unchanged, with the SAE's reconstruction, and with zeros.

    In nats per token on token blocks [n, context]. The SAE works in float32 whatever the `precision` of the model.
    """
    clean, zero = bare_losses(model, hook_point, blocks, precision)
    return clean, spliced_loss(model, hook_point, sae, blocks, precision), zero


def bare_losses(
    model: nn.Module, hook_point: str, blocks: np.ndarray, precision: Precision = "float32"
) -> tuple[float, float]:
    """The two of `spliced_losses` that no SAE enters: of the model unchanged, and with zeros."""
    clean = evaluate(model, blocks, precision=precision).ce_loss
    with replaced(model, hook_point, torch.zeros_like):
        return clean, evaluate(model, blocks, precision=precision).ce_loss


def spliced_loss(
    model: nn.Module, hook_point: str, sae: SAE, blocks: np.ndarray, precision: Precision = "float32"
) -> float:
    """The one of `spliced_losses` with the SAE's reconstruction."""

    def reconstructed(x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            flat = x.reshape(-1, x.shape[-1]).float()
            x_hat = torch.cat([sae.reconstruct(part) for part in flat.split(ROWS)])
        return x_hat.view(x.shape)

    with replaced(model, hook_point, reconstructed):
        return evaluate(model, blocks, precision=precision).ce_loss


def ce_loss_recovered(
    model: nn.Module, hook_point: str, sae: SAE, blocks: np.ndarray, precision: Precision = "float32"
) -> float:
    """(CE_zero − CE_sae) / (CE_zero − CE_clean) of `spliced_losses`; see `metrics.ce_loss_recovered`."""
    return metrics.ce_loss_recovered(*spliced_losses(model, hook_point, sae, blocks, precision))
