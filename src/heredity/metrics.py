"""Quality of reconstructions, pooled over tokens and never averaged over batches; every sum in float64."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

_CHUNK = 1 << 22  # elements converted to float64 at a time


class Reconstruction(NamedTuple):
    """How well x_hat reproduces x."""

    fvu: float  # fraction of variance unexplained, ‖x − x̂‖² / ‖x − mean x‖²; nan if x is constant
    explained_variance: float  # 1 − fvu
    mse: float  # mean squared error over all elements
    tokens: int  # vectors seen
    deviation: float  # ‖x − mean x‖²


class Variance:
    """Reconstruction of a stream of vectors: `update` many times, `result` once; memory of one vector.

    Means and squared deviations of the batches are merged exactly (Chan et al. 1983), so the mean is that of all
    tokens and a large mean costs no precision.
    """

    def __init__(self) -> None:
        self._tokens, self._error = 0, 0.0
        self._mean = self._deviation = torch.zeros(0)

    def update(self, x: Tensor, x_hat: Tensor) -> Variance:
        """Add vectors x and their reconstructions, both [..., d_in]; return the accumulator.

        Raises `ValueError` for tensors of different shapes or another width than before.
        """
        if x.shape != x_hat.shape or x.ndim < 1:
            raise ValueError(f"x is {list(x.shape)} and x_hat {list(x_hat.shape)}; both must be [..., d_in]")
        width = x.shape[-1]
        if self._tokens and len(self._mean) != width:
            raise ValueError(f"x is {width} wide after batches of {len(self._mean)}; use one per hook point")
        rows = max(1, _CHUNK // max(1, width))
        pieces = zip(x.reshape(-1, width).split(rows), x_hat.reshape(-1, width).split(rows), strict=True)
        for part, part_hat in ((part.double(), part_hat.double()) for part, part_hat in pieces if len(part)):
            n, mean = len(part), part.mean(0)
            if not self._tokens:
                self._mean, self._deviation = torch.zeros_like(mean), torch.zeros_like(mean)
            shift, total = mean - self._mean, self._tokens + n
            deviation = (part - mean).square().sum(0)
            self._deviation = self._deviation + deviation + shift.square() * (self._tokens * n / total)
            self._mean = self._mean + shift * (n / total)
            self._tokens = total
            # torch splits the sum of a whole tensor among its threads; a column's sum has the same bits for any number.
            self._error += float((part - part_hat).square().sum(0).sum())
        return self

    def result(self) -> Reconstruction:
        """Reconstruction of all vectors so far; `ValueError` if there were none."""
        if not self._tokens:
            raise ValueError("no vectors were given; call update at least once")
        variance = float(self._deviation.sum())
        fvu = self._error / variance if variance > 0 else math.nan
        return Reconstruction(fvu, 1 - fvu, self._error / (self._tokens * len(self._mean)), self._tokens, variance)


def ce_loss_recovered(ce_clean: float, ce_sae: float, ce_zero: float) -> float:
    """(CE_zero − CE_sae) / (CE_zero − CE_clean): 1 if splicing in the SAE costs nothing, 0 if as much as zeros do.

    Cross-entropies (nats per token) of the unchanged model, with the SAE's reconstruction at the hook point, and with
    zeros there. nan if zero ablation makes no difference.
    """
    return (ce_zero - ce_sae) / (ce_zero - ce_clean) if ce_zero != ce_clean else math.nan
