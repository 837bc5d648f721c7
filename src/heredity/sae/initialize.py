"""The first state of a training: scale, center, and encoder biases or thresholds that suit the data."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from heredity.kernels.torch_forms import linear
from heredity.sae.checkpoint import TrainingState
from heredity.sae.gradients import Weights
from heredity.sae.model import SAE

FIRST_BATCHES = 4
"""Batches that the scale and the center are measured on."""

START_L0 = 1.5
"""relu, jumprelu: L0 of a fresh SAE relative to the upper end of the wanted range. Starting near the goal spares the
hundreds of dense steps from L0 = d_sae / 2 down, and the overshoot of the penalty's coefficient on the way."""


LEAST_THRESHOLD = 0.01
"""jumprelu: least θ of a fresh SAE in the normalized space; its logarithm is trained."""


def start(sae: SAE, batches: Callable[[int], Tensor], identity: dict[str, Any], continued: bool) -> TrainingState:
    """State before the first step; see `train` for the arguments. Raises ValueError as `train` does."""
    device = sae.W_dec.device
    norms = sae.W_dec.norm(dim=1)
    if not bool(((norms - 1).abs() < 1e-3).all()):
        raise ValueError(
            f"decoder rows have norms from {float(norms.min()):.3g} to {float(norms.max()):.3g} instead of 1; "
            "move the norms into the encoder first (SAE.unit_norm)"
        )
    count = min(FIRST_BATCHES, int(identity["steps"]))
    x = torch.cat([batches(i).to(device, torch.float32) for i in range(count)])
    scale = normalizing_scale(x)
    weights = Weights(sae.W_enc.T.contiguous(), sae.b_enc * scale, sae.W_dec.detach().clone(), sae.b_dec * scale)
    if sae.activation == "jumprelu" and sae.threshold is not None:
        weights.log_threshold = (sae.threshold * scale).clamp_min(LEAST_THRESHOLD).log()
    if not continued:
        x = x * scale
        weights.b_dec = geometric_median(x)
        if sae.activation == "relu":
            share = min(0.5, START_L0 * identity["l0"][1] / sae.d_sae)
            weights.b_enc = -_quantiles(x - weights.b_dec, weights.w_enc, share)
        if sae.activation == "jumprelu":
            share = min(0.5, START_L0 * identity["l0"][1] / sae.d_sae)
            cuts = _quantiles(x - weights.b_dec, weights.w_enc, share)
            weights.log_threshold = cuts.clamp_min(LEAST_THRESHOLD).log()
    threshold = float(sae.threshold) * scale if sae.activation == "batchtopk" and sae.threshold is not None else 0.0
    return TrainingState(
        identity=identity,
        scale=scale,
        weights=weights,
        first=Weights.zeros_like(weights),
        second=Weights.zeros_like(weights),
        ages=torch.zeros(sae.d_sae, dtype=torch.int32, device=device),
        last_fired=torch.zeros(sae.d_sae, dtype=torch.int64, device=device),
        log_l1=None,
        l1_error=math.nan,
        l1_sum=0.0,
        threshold=threshold,
        l0=math.nan,
        rows=[],
    )


def normalizing_scale(x: Tensor) -> float:
    """The c for which the mean of ‖c x − mean‖² is d_in; x [n, d_in].

    Raises ValueError when x is constant or not finite.
    """
    variance = float(x.var(dim=0, correction=0).sum(dtype=torch.float64)) / x.shape[1]
    if not math.isfinite(variance):
        raise ValueError("the first batches hold NaN or infinite activations; find the model or token that makes them")
    if variance <= 0:
        raise ValueError("the first batches are constant: nothing to learn; check the hook point")
    return 1 / math.sqrt(variance)


def geometric_median(x: Tensor, rounds: int = 100, tolerance: float = 1e-5) -> Tensor:
    """The point [d_in] with the least sum of distances to the rows of x [n, d_in] (Weiszfeld 1937).

    Stops when a round moves it by less than `tolerance` times the mean distance.
    """
    point = x.mean(0)
    for _ in range(rounds):
        distance = (x - point).norm(dim=1)
        weight = 1 / distance.clamp_min(1e-8 * float(distance.mean()) + 1e-30)
        moved = (weight @ x) / weight.sum()
        if float((moved - point).norm()) < tolerance * float(distance.mean()):
            return moved
        point = moved
    return point


def _quantiles(x: Tensor, w_enc: Tensor, share: float) -> Tensor:
    """[d_sae]: what x w_encᵀ exceeds on a share of the tokens, feature by feature in chunks."""
    count = max(1, round(share * len(x)))
    rows = max(1, (1 << 24) // len(x))
    return torch.cat([linear(part, x).topk(count, dim=1).values[:, -1] for part in w_enc.split(rows)])
