"""The threshold of a JumpReLU SAE, learned through a window around it (Rajamanoharan et al. 2024, 2407.14435).

f = z where the pre-activation z exceeds the feature's θ > 0, else 0; loss = mse + λ L0. Neither the jump nor L0 has a
useful derivative by θ, so the paper's estimate takes its place (its equations 11 and 12, rectangle kernel): with ε the
width of the window, G the derivative of the loss by x̂ and n tokens,

    ∂loss/∂θ = − (1 / ε) Σ (θ G·W_dec + λ / n)    over entries with |z − θ| < ε / 2

The penalty has no derivative by z. What is trained is log θ, which keeps θ above 0.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

BANDWIDTH = 0.1
"""ε in the normalized space, where pre-activations of a unit direction have a standard deviation of about 1."""


class Jump(NamedTuple):
    """Entries around and above the threshold."""

    acts: Tensor
    """float32 [nnz]: z where active, else 0."""
    active: Tensor
    """bool [nnz]: z > θ."""
    near: Tensor
    """bool [nnz]: |z − θ| < ε / 2."""
    threshold: Tensor
    """float32 [nnz]: θ of each entry's feature."""


def lowest(log_threshold: Tensor) -> Tensor:
    """[d_sae]: pre-activations above this matter to the loss or to the threshold."""
    return (log_threshold.exp() - BANDWIDTH / 2).clamp(min=0)


def jump(pre_acts: Tensor, features: Tensor, log_threshold: Tensor) -> Jump:
    """Look at entries with pre-activations [nnz] of features [nnz]."""
    threshold = log_threshold.exp()[features]
    active = pre_acts > threshold
    near = (pre_acts - threshold).abs() < BANDWIDTH / 2
    return Jump(torch.where(active, pre_acts, torch.zeros_like(pre_acts)), active, near, threshold)


def threshold_gradient(found: Jump, features: Tensor, act_grad: Tensor, l0_per_entry: float, d_sae: int) -> Tensor:
    """Derivative of the loss by log θ, float32 [d_sae].

    act_grad: [nnz], the derivative of the reconstruction error by an activation, G·W_dec; l0_per_entry: λ / n.
    """
    threshold = found.threshold
    by_log = -(threshold / BANDWIDTH) * (threshold * act_grad + l0_per_entry) * found.near
    return by_log.new_zeros(d_sae).index_add_(0, features.long(), by_log)
