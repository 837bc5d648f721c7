"""One gradient step of an SAE in float32, with gradients written out by hand (see `rules` for the loss).

`dense_step` is the plain form on any device; `sparse_step` does the same with work proportional to the active entries,
in compiled loops on a CPU (kernels.step) and in torch operations on a GPU (`entry_step`, kernels.torch_forms).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from heredity.kernels import step as kernels
from heredity.kernels.encode import Csr
from heredity.kernels.torch_forms import entry_gradients
from heredity.sae.gradients import (
    Gradients,
    Outcome,
    Rule,
    Weights,
    center_gradient,
    dense_gradients,
    training_acts,
    training_entries,
)
from heredity.sae.jumprelu import jump, threshold_gradient

BETAS = (0.9, 0.9999)
"""Adam's decay rates (Horn & Elliott 2024, appendix B)."""

EPSILON = 1e-12
"""Adam's ε. Gradients of a mean over d_in elements are of order 1 / (n d_in); the usual 1e-8 would hold back features
that fire on few tokens."""

SPARSE_BELOW = 0.08
"""The sparse step is taken when less than this share of the features is active on a token. Measured on a CPU: at
512 -> 4096 it takes 0.3 of the dense step's time at a share of 0.02 and as much at 0.16; at 1024 -> 16384 it takes
0.14 of it at 0.002, 0.43 at 0.02, and as much at 0.07. There the rows gathered no longer fit the cache."""

SPARSE_BELOW_ON_GPU = 0.02
"""The same on a GPU, reckoned from bandwidth and not measured: rows are gathered four times for an entry, and at
1024 -> 16384 that takes as long as the dense step's products at a share of about 0.02."""


def adam_rows(
    weight: Tensor, first: Tensor, second: Tensor, grad: Tensor, ages: Tensor, lr: float, unit_norm: bool
) -> None:
    """Adam in place on rows [d_sae, ...], with a step count for each row (`ages`, int [d_sae]).

    With unit_norm, the part of the gradient along a row is removed before the step and the row is normalized after it
    (Bricken et al. 2023).
    """
    beta1, beta2 = BETAS
    if unit_norm:
        grad = grad - (grad * weight).sum(1, keepdim=True) * weight
    ages = ages.double().view(-1, *[1] * (weight.dim() - 1))
    first.mul_(beta1).add_(grad, alpha=1 - beta1)
    second.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
    rate = (lr / (1 - beta1**ages)).float()
    correction = (1 / (1 - beta2**ages)).float()
    weight.sub_(rate * first / ((second * correction).sqrt_() + EPSILON))
    if unit_norm:
        weight.div_(weight.norm(dim=1, keepdim=True).clamp_min(1e-30))


def dense_step(
    weights: Weights, first: Weights, second: Weights, ages: Tensor, x: Tensor, rule: Rule, lr: float, step: int
) -> Outcome:
    """One step on centered inputs x [n, d_in], on any device; `first` and `second` are Adam's moments.

    ages: int32 [d_sae], steps since a feature's moments were zero, this one included; step: the same for b_dec.
    """
    gradients, outcome = dense_gradients(weights, x, rule)
    if x.device.type == "cpu":
        rates = kernels.Rates(lr, *BETAS, EPSILON, ages.numpy())
        for name in ("w_enc", "w_dec"):
            grad = getattr(gradients, name).contiguous().numpy()
            kernels.adam_rows(_rows(name, weights, first, second), grad, rates, unit_norm=name == "w_dec")
    else:
        adam_rows(weights.w_enc, first.w_enc, second.w_enc, gradients.w_enc, ages, lr, unit_norm=False)
        adam_rows(weights.w_dec, first.w_dec, second.w_dec, gradients.w_dec, ages, lr, unit_norm=True)
    _update_vectors(weights, first, second, gradients, ages, lr, step)
    return outcome


def sparse_step(
    weights: Weights, first: Weights, second: Weights, ages: Tensor, x: Tensor, rule: Rule, lr: float, step: int
) -> Outcome:
    """The same step as `dense_step` for few active features; float32, x contiguous."""
    if x.device.type != "cpu":
        return entry_step(weights, first, second, ages, x, rule, lr, step)
    acts, made, log_threshold = sparse_errors(weights, x, rule)
    given = x.numpy()
    columns = kernels.to_columns(acts, len(weights.w_enc))
    b_enc = kernels.bias_gradient(columns, made)
    b_dec = kernels.center_gradient(made, b_enc, weights.w_enc.numpy())
    kernels.update_features(
        columns,
        acts,
        made,
        given,
        _rows("w_enc", weights, first, second),
        _rows("w_dec", weights, first, second),
        kernels.Rates(lr, *BETAS, EPSILON, ages.numpy()),
    )
    biases = torch.from_numpy(b_enc), torch.from_numpy(b_dec)
    gradients = Gradients(weights.w_enc, biases[0], weights.w_dec, biases[1], log_threshold)
    _update_vectors(weights, first, second, gradients, ages, lr, step)
    # A jumprelu feature's entries below its threshold are there, with a value of 0.
    active = acts.values > 0
    return Outcome(
        mse=float(made.squared.sum()) / x.numel(),
        l1=float(acts.values.sum(dtype=np.float64)) / len(x),
        l0=float(active.sum()) / len(x),
        fired=torch.from_numpy(np.bincount(acts.indices[active], minlength=len(weights.w_enc)) > 0),
        least=float(acts.values[active].min()) if active.any() else float("nan"),
    )


def sparse_errors(weights: Weights, x: Tensor, rule: Rule) -> tuple[Csr, kernels.Errors, Tensor]:
    """Active entries of centered x, what follows from them, and the gradient of log_threshold; on a CPU."""
    acts, l1 = training_acts(weights, x, rule), rule.l1 / len(x)
    if rule.activation != "jumprelu":
        return acts, kernels.errors(acts, x.numpy(), weights.w_dec.numpy(), l1), weights.log_threshold
    features = torch.from_numpy(acts.indices)
    found = jump(torch.from_numpy(acts.values), features, weights.log_threshold)
    acts = acts._replace(values=found.acts.numpy())
    made = kernels.errors(acts, x.numpy(), weights.w_dec.numpy(), l1)
    act_grad = torch.from_numpy(made.act_grad)
    log_threshold = threshold_gradient(found, features, act_grad, rule.l0 / len(x), len(weights.w_enc))
    act_grad *= found.active
    return acts, made, log_threshold


def entry_step(
    weights: Weights, first: Weights, second: Weights, ages: Tensor, x: Tensor, rule: Rule, lr: float, step: int
) -> Outcome:
    """`sparse_step` in torch operations that suit a GPU; it runs on any device."""
    gradients, outcome = sparse_gradients(weights, x, rule)
    adam_rows(weights.w_enc, first.w_enc, second.w_enc, gradients.w_enc, ages, lr, unit_norm=False)
    adam_rows(weights.w_dec, first.w_dec, second.w_dec, gradients.w_dec, ages, lr, unit_norm=True)
    _update_vectors(weights, first, second, gradients, ages, lr, step)
    return outcome


def sparse_gradients(weights: Weights, x: Tensor, rule: Rule) -> tuple[Gradients, Outcome]:
    """`dense_gradients` with work proportional to the active entries, in torch operations."""
    n = len(x)
    acts, found = training_entries(weights, x, rule), None
    if rule.activation == "jumprelu":
        found = jump(acts.values, acts.features, weights.log_threshold)
        acts = acts._replace(values=found.acts)
    made = entry_gradients(acts, x, weights.w_dec, rule.l1 / n, None if found is None else found.active)
    log_threshold = weights.log_threshold
    if found is not None:
        log_threshold = threshold_gradient(found, acts.features, made.act_grad, rule.l0 / n, len(log_threshold))
    b_dec = center_gradient(made.output_grad_sum, made.b_enc, weights.w_enc)
    active = acts.values > 0
    kept = acts.values[active]
    outcome = Outcome(
        mse=float(made.squared) / x.numel(),
        l1=float(kept.sum(dtype=torch.float64)) / n,
        l0=len(kept) / n,
        fired=torch.bincount(acts.features[active], minlength=len(weights.w_enc)) > 0,
        least=float(kept.min()) if len(kept) else float("nan"),
    )
    return Gradients(made.w_enc, made.b_enc, made.w_dec, b_dec, log_threshold), outcome


def _rows(name: str, weights: Weights, first: Weights, second: Weights) -> kernels.AdamRows:
    return kernels.AdamRows(*(getattr(tensors, name).numpy() for tensors in (weights, first, second)))


def _update_vectors(
    weights: Weights, first: Weights, second: Weights, gradients: Gradients, ages: Tensor, lr: float, step: int
) -> None:
    """Adam on everything that is not a matrix."""
    adam_rows(weights.b_enc, first.b_enc, second.b_enc, gradients.b_enc, ages, lr, unit_norm=False)
    if len(weights.log_threshold):
        cut, moments = weights.log_threshold, (first.log_threshold, second.log_threshold)
        adam_rows(cut, *moments, gradients.log_threshold, ages, lr, unit_norm=False)
    all_ages = torch.full((len(weights.b_dec),), step, dtype=torch.int32, device=weights.b_dec.device)
    adam_rows(weights.b_dec, first.b_dec, second.b_dec, gradients.b_dec, all_ages, lr, unit_norm=False)
