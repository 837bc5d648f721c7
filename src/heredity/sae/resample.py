"""Dead features get a new life at inputs that the SAE reconstructs badly."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from heredity.sae.checkpoint import TrainingState
from heredity.sae.gradients import Rule, training_errors

POOL_BATCHES = 8
"""Most batches that new directions are picked from; fewer in a short training, so that they stay a twentieth of it."""

ENCODER_NORM = 0.2
"""Norm of a new encoder row relative to the mean of the living ones."""


OWN_SHARE = 0.5
"""relu, jumprelu: a new feature fires above this share of what it feels at its own input. The source's 0 lets every new
feature fire on about half of all inputs; where hundreds are dead at once, L0 rose tenfold and the training did not
recover. A feature that fires where inputs point its way is what is wanted."""


def resample(
    state: TrainingState, dead: Tensor, batches: Callable[[int], Tensor], rule: Rule, every: int, seed: int
) -> int:
    """Give dead features [d_sae] (bool) the direction of badly reconstructed inputs; returns how many.

    As in Bricken et al. 2023 ("Neuron resampling"): inputs of the latest batches are picked with a probability
    proportional to the square of their loss, each at most once; the decoder row becomes the picked input with unit
    norm, the encoder row the same direction with 0.2 times the mean norm of the living encoder rows, b_enc becomes 0
    (relu, jumprelu: see `OWN_SHARE`), and Adam forgets the feature. The input is taken centered (x − b_dec), which is
    what features have to add up to; the source's activations have nearly no mean.
    """
    alive = ~dead
    count = min(POOL_BATCHES, max(1, every // 20), state.step)
    if not bool(dead.any()) or not bool(alive.any()):
        return 0
    x = torch.cat([batches(i).to(dead.device, torch.float32) for i in range(state.step - count, state.step)])
    x = (x * state.scale).sub_(state.weights.b_dec)
    loss = training_errors(state.weights, x, rule)
    chance = (loss.double() ** 2).cpu().numpy()
    features = dead.nonzero().flatten()
    features = features[: int((chance > 0).sum())]
    if len(features) == 0:
        return 0
    generator = np.random.default_rng([seed, state.step])
    picked = generator.choice(len(chance), size=len(features), replace=False, p=chance / chance.sum())
    directions = x[torch.from_numpy(picked).to(x.device)]
    directions = directions / directions.norm(dim=1, keepdim=True).clamp_min(1e-30)
    norm = ENCODER_NORM * state.weights.w_enc[alive].norm(dim=1).mean()
    state.weights.w_dec[features] = directions
    state.weights.w_enc[features] = directions * norm
    own = x[torch.from_numpy(picked).to(x.device)].norm(dim=1) * norm  # what a new feature feels at its own input
    state.weights.b_enc[features] = -OWN_SHARE * own if rule.activation == "relu" else 0
    if rule.activation == "jumprelu":
        state.weights.log_threshold[features] = (OWN_SHARE * own).log()
    for moments in (state.first, state.second):
        for name in ("w_enc", "w_dec", "b_enc", "log_threshold"):
            if len(getattr(moments, name)):
                getattr(moments, name)[features] = 0
    state.ages[features] = 0
    state.last_fired[features] = state.step
    return len(features)
