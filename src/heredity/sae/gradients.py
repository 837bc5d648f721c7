"""What is trained and how activations are chosen in training: the plain definitions behind every kind of step.

With x̄ = x − b_dec, f the activations and n tokens of width d_in (sums over tokens and elements):

    loss       = Σ (x̂ − x)² / (n d_in) + λ Σ f / n                      (jumprelu: λ L0 in place of λ Σ f / n)
    G          = ∂loss/∂x̂     = 2 (x̂ − x) / (n d_in)
    H          = ∂loss/∂pre   = (G W_decᵀ + λ / n) where f > 0, else 0     (jumprelu: without λ)
    ∂loss/∂W_dec = fᵀ G        ∂loss/∂W_enc = x̄ᵀ H        ∂loss/∂b_enc = Σ H
    ∂loss/∂b_dec = Σ G − W_enc Σ H      (a product with a vector: x̄ᵀ's gradient is never formed)

`dense_gradients` is the reference on any device. The threshold of a jumprelu SAE has its own module, `jump`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from heredity.kernels.encode import Csr, keep_largest, sparse_encode
from heredity.kernels.torch_forms import Entries, active_entries, dense_encode, largest_entries, linear
from heredity.sae.jumprelu import jump, lowest, threshold_gradient
from heredity.sae.model import Activation

NAMES = ("w_enc", "b_enc", "w_dec", "b_dec", "log_threshold")


@dataclass
class Weights:
    """Trained tensors, float32, changed in place. All are row-major by feature."""

    w_enc: Tensor
    """[d_sae, d_in], the transpose of W_enc."""
    b_enc: Tensor
    """[d_sae]."""
    w_dec: Tensor
    """[d_sae, d_in]."""
    b_dec: Tensor
    """[d_in]."""
    log_threshold: Tensor = field(default_factory=lambda: torch.zeros(0))
    """jumprelu: [d_sae], log θ; other activations: [0]."""

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
    log_threshold: Tensor


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
    k: int = 0
    """Active features a token (topk, batchtopk); 0 otherwise."""
    l1: float = 0.0
    """λ of Σ f (relu); 0 otherwise."""
    threshold: float = 0.0
    """batchtopk: running threshold, a hint where the selection will cut; 0 when unknown."""
    l0: float = 0.0
    """λ of L0 (jumprelu); 0 otherwise."""


def activate(pre_acts: Tensor, rule: Rule, log_threshold: Tensor) -> Tensor:
    """Training activations [n, d_sae]: batchtopk keeps the k · n largest of the batch."""
    if rule.activation == "batchtopk":
        acts = pre_acts.relu()
        top = acts.flatten().topk(rule.k * len(acts))
        return torch.zeros_like(acts).view(-1).scatter_(0, top.indices, top.values).view_as(acts)
    threshold = log_threshold.exp() if rule.activation == "jumprelu" else None
    return dense_encode(pre_acts, rule.k if rule.activation == "topk" else None, threshold)


def dense_gradients(weights: Weights, x: Tensor, rule: Rule) -> tuple[Gradients, Outcome]:
    """Gradients of the loss for centered inputs x [n, d_in]."""
    n, d_in = x.shape
    pre_acts = linear(x, weights.w_enc, weights.b_enc)
    acts = activate(pre_acts, rule, weights.log_threshold)
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
    act_grad = linear(output_grad, weights.w_dec)
    log_threshold = weights.log_threshold
    if rule.activation == "jumprelu":
        features = torch.arange(len(weights.b_enc), device=x.device).repeat(n)
        found = jump(pre_acts.flatten(), features, log_threshold)
        found = found._replace(near=found.near & (pre_acts.flatten() > 0))
        log_threshold = threshold_gradient(found, features, act_grad.flatten(), rule.l0 / n, len(log_threshold))
    pre_grad = act_grad.add_(rule.l1 / n).mul_(active)
    b_enc = pre_grad.sum(0)
    # `linear` multiplies by a transpose; on a CPU it is the faster product.
    gradients = Gradients(
        w_enc=linear(pre_grad.T, x.T),
        b_enc=b_enc,
        w_dec=linear(acts.T, output_grad.T),
        b_dec=center_gradient(output_grad.sum(0, dtype=torch.float64), b_enc, weights.w_enc),
        log_threshold=log_threshold,
    )
    return gradients, outcome


def center_gradient(output_grad_sum: Tensor, b_enc: Tensor, w_enc: Tensor) -> Tensor:
    """Gradient of b_dec, float32 [d_in]: Σ G − W_enc Σ H, in float64 because the two nearly cancel.

    output_grad_sum: Σ G, float64 [d_in]; b_enc: Σ H, [d_sae]; w_enc: [d_sae, d_in].
    """
    return (output_grad_sum - b_enc.double() @ w_enc.double()).float()


def training_acts(weights: Weights, x: Tensor, rule: Rule) -> Csr:
    """The activations of `activate` as CSR arrays, for centered inputs x [n, d_in].

    jumprelu: pre-activations down to the lower end of the window around each threshold (see `jump`).
    """
    w_enc, b_enc = weights.w_enc, weights.b_enc
    if rule.activation == "jumprelu":
        return sparse_encode(x, w_enc, b_enc, threshold=lowest(weights.log_threshold))
    if rule.activation != "batchtopk":
        return sparse_encode(x, w_enc, b_enc, rule.k if rule.activation == "topk" else None)
    count = rule.k * len(x)
    # Somewhat below the place where the last batch was cut; when that was still too high, everything positive.
    acts = sparse_encode(x, w_enc, b_enc, threshold=0.8 * _cut(weights, x, rule))
    if len(acts.values) < count:
        acts = sparse_encode(x, w_enc, b_enc)
    return keep_largest(acts, count)


def training_entries(weights: Weights, x: Tensor, rule: Rule) -> Entries:
    """The same as `Entries`, on any device."""
    w_enc, b_enc = weights.w_enc, weights.b_enc
    if rule.activation == "jumprelu":
        return active_entries(x, w_enc, b_enc, None, lowest(weights.log_threshold))
    if rule.activation != "batchtopk":
        return active_entries(x, w_enc, b_enc, rule.k if rule.activation == "topk" else None, None)
    acts = active_entries(x, w_enc, b_enc, None, 0.8 * _cut(weights, x, rule))
    if len(acts.values) < rule.k * len(x):
        acts = active_entries(x, w_enc, b_enc, None, None)
    return largest_entries(acts, rule.k * len(x))


def training_errors(weights: Weights, x: Tensor, rule: Rule) -> Tensor:
    """Loss of each token, float32 [n], for centered inputs x [n, d_in]."""
    losses = []
    for part in x.split(1024):
        acts = activate(linear(part, weights.w_enc, weights.b_enc), rule, weights.log_threshold)
        error = linear(acts, weights.w_dec.T) - part
        losses.append(error.square().mean(1) + rule.l1 * acts.sum(1) + rule.l0 * (acts > 0).sum(1))
    return torch.cat(losses)


def _cut(weights: Weights, x: Tensor, rule: Rule) -> Tensor:
    """About the least activation that batchtopk will keep: where it cut before, or where it would on a few tokens."""
    if rule.threshold:
        return x.new_tensor(rule.threshold)
    pre_acts = linear(x[:64], weights.w_enc, weights.b_enc).relu_()
    return pre_acts.flatten().topk(rule.k * len(pre_acts)).values[-1]
