"""One gradient step of an SAE in float32, with gradients written out by hand.

With x̄ = x − b_dec, f the activations and n tokens of width d_in (sums over tokens and elements):

    loss       = Σ (x̂ − x)² / (n d_in) + λ Σ f / n
    G          = ∂loss/∂x̂     = 2 (x̂ − x) / (n d_in)
    H          = ∂loss/∂pre   = (G W_decᵀ + λ / n) where f > 0, else 0
    ∂loss/∂W_dec = fᵀ G        ∂loss/∂W_enc = x̄ᵀ H        ∂loss/∂b_enc = Σ H
    ∂loss/∂b_dec = Σ G − W_enc Σ H      (a product with a vector: x̄ᵀ's gradient is never formed)

`dense_gradients` and `adam_rows` are the plain reference on any device; `sparse_step` does the same on a CPU with
work proportional to the active entries (kernels.sparse_step). All weights are row-major by feature, [d_sae, d_in].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from heredity.kernels import sparse_step as kernels
from heredity.kernels.encode import Csr, dense_encode, keep_largest, linear, sparse_encode
from heredity.sae.model import Activation

BETAS = (0.9, 0.9999)
"""Adam's decay rates (Horn & Elliott 2024, appendix B)."""

EPSILON = 1e-12
"""Adam's ε. Gradients of a mean over d_in elements are of order 1 / (n d_in); the usual 1e-8 would hold back features
that fire on few tokens."""

SPARSE_BELOW = 0.13
"""The sparse step is taken when less than this share of the features is active on a token. Measured on a CPU, 512 ->
4096: it takes 0.3 of the dense step's time at a share of 0.02, 0.7 at 0.1, as much at 0.16, 1.3 times it at 0.2."""

NAMES = ("w_enc", "b_enc", "w_dec", "b_dec")


@dataclass
class Weights:
    """Trained tensors, float32, changed in place."""

    w_enc: Tensor
    """[d_sae, d_in], the transpose of W_enc."""
    b_enc: Tensor
    """[d_sae]."""
    w_dec: Tensor
    """[d_sae, d_in]."""
    b_dec: Tensor
    """[d_in]."""

    @classmethod
    def zeros_like(cls, other: Weights) -> Weights:
        """Zeros of the shapes and the device of `other`."""
        return cls(*(torch.zeros_like(getattr(other, name)) for name in NAMES))


class Gradients(NamedTuple):
    """Derivatives of the loss, shaped like `Weights`."""

    w_enc: Tensor
    b_enc: Tensor
    w_dec: Tensor
    b_dec: Tensor


class Outcome(NamedTuple):
    """What a step saw before it changed the weights."""

    mse: float
    """Mean squared error over elements."""
    l1: float
    """Mean over tokens of Σ f."""
    l0: float
    """Mean over tokens of the number of active features."""
    fired: Tensor
    """bool [d_sae]: features active on at least one token."""
    least: float
    """Smallest positive activation; nan when there is none."""


class Rule(NamedTuple):
    """How activations are chosen in training."""

    activation: Activation
    k: int
    """Active features a token (topk, batchtopk); 0 for relu."""
    l1: float
    """λ; 0 for topk and batchtopk."""
    threshold: float = 0.0
    """batchtopk: running threshold, a hint where the selection will cut; 0 when unknown."""


def activate(pre_acts: Tensor, rule: Rule) -> Tensor:
    """Training activations [n, d_sae]: batchtopk keeps the k · n largest of the batch."""
    if rule.activation == "batchtopk":
        acts = pre_acts.relu()
        top = acts.flatten().topk(rule.k * len(acts))
        return torch.zeros_like(acts).view(-1).scatter_(0, top.indices, top.values).view_as(acts)
    return dense_encode(pre_acts, rule.k if rule.activation == "topk" else None, None)


def dense_gradients(weights: Weights, x: Tensor, rule: Rule) -> tuple[Gradients, Outcome]:
    """Gradients of the loss for centered inputs x [n, d_in]."""
    n, d_in = x.shape
    acts = activate(linear(x, weights.w_enc, weights.b_enc), rule)
    error = linear(acts, weights.w_dec.T) - x
    active = acts > 0
    outcome = Outcome(
        mse=float(error.square().sum(dtype=torch.float64)) / (n * d_in),
        l1=float(acts.sum(dtype=torch.float64)) / n,
        l0=float(active.sum()) / n,
        fired=active.any(0),
        least=float(acts[active].min()) if rule.activation == "batchtopk" and bool(active.any()) else float("nan"),
    )
    output_grad = error.mul_(2 / (n * d_in))
    pre_grad = linear(output_grad, weights.w_dec).add_(rule.l1 / n).mul_(active)
    b_enc = pre_grad.sum(0)
    gradients = Gradients(
        w_enc=pre_grad.T @ x,
        b_enc=b_enc,
        w_dec=acts.T @ output_grad,
        b_dec=output_grad.sum(0) - b_enc @ weights.w_enc,
    )
    return gradients, outcome


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
    _update_biases(weights, first, second, gradients.b_enc, gradients.b_dec, ages, lr, step)
    return outcome


def sparse_step(
    weights: Weights, first: Weights, second: Weights, ages: Tensor, x: Tensor, rule: Rule, lr: float, step: int
) -> Outcome:
    """The same step as `dense_step` for few active features; CPU, float32, x contiguous."""
    acts = training_acts(weights, x, rule)
    given, n = x.numpy(), len(x)
    made = kernels.errors(acts, given, weights.w_dec.numpy(), rule.l1 / n)
    columns = kernels.to_columns(acts, len(weights.w_enc))
    b_enc = torch.from_numpy(kernels.bias_gradient(columns, made))
    b_dec = torch.from_numpy(made.output_grad).sum(0) - b_enc @ weights.w_enc
    kernels.update_features(
        columns,
        acts,
        made,
        given,
        _rows("w_enc", weights, first, second),
        _rows("w_dec", weights, first, second),
        kernels.Rates(lr, *BETAS, EPSILON, ages.numpy()),
    )
    _update_biases(weights, first, second, b_enc, b_dec, ages, lr, step)
    return Outcome(
        mse=float(made.squared.sum()) / x.numel(),
        l1=float(acts.values.sum(dtype=np.float64)) / n,
        l0=len(acts.values) / n,
        fired=torch.from_numpy(np.diff(columns.indptr) > 0),
        least=float(acts.values.min()) if len(acts.values) else float("nan"),
    )


def training_acts(weights: Weights, x: Tensor, rule: Rule) -> Csr:
    """The activations of `activate` as CSR arrays, for centered inputs x [n, d_in]."""
    if rule.activation != "batchtopk":
        return sparse_encode(x, weights.w_enc, weights.b_enc, rule.k if rule.activation == "topk" else None)
    count = rule.k * len(x)
    hint = rule.threshold or _sampled_threshold(weights, x[:64], rule.k)
    # Somewhat below the place where the last batch was cut; when that was still too high, everything positive.
    acts = sparse_encode(x, weights.w_enc, weights.b_enc, threshold=torch.tensor(0.8 * hint))
    if len(acts.values) < count:
        acts = sparse_encode(x, weights.w_enc, weights.b_enc)
    return keep_largest(acts, count)


def training_errors(weights: Weights, x: Tensor, rule: Rule) -> Tensor:
    """Loss of each token, float32 [n], for centered inputs x [n, d_in]."""
    losses = []
    for part in x.split(1024):
        acts = activate(linear(part, weights.w_enc, weights.b_enc), rule)
        error = linear(acts, weights.w_dec.T) - part
        losses.append(error.square().mean(1) + rule.l1 * acts.sum(1))
    return torch.cat(losses)


def _sampled_threshold(weights: Weights, x: Tensor, k: int) -> float:
    pre_acts = linear(x, weights.w_enc, weights.b_enc).relu_()
    return float(pre_acts.flatten().topk(k * len(x)).values[-1])


def _rows(name: str, weights: Weights, first: Weights, second: Weights) -> kernels.AdamRows:
    return kernels.AdamRows(*(getattr(tensors, name).numpy() for tensors in (weights, first, second)))


def _update_biases(
    weights: Weights,
    first: Weights,
    second: Weights,
    b_enc: Tensor,
    b_dec: Tensor,
    ages: Tensor,
    lr: float,
    step: int,
) -> None:
    adam_rows(weights.b_enc, first.b_enc, second.b_enc, b_enc, ages, lr, unit_norm=False)
    all_ages = torch.full((len(b_dec),), step, dtype=torch.int32, device=b_dec.device)
    adam_rows(weights.b_dec, first.b_dec, second.b_dec, b_dec, all_ages, lr, unit_norm=False)
