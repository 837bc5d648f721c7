"""One gradient step of an SAE in float32, with gradients written out by hand.

With x̄ = x − b_dec, or x − mean − b_dec where the encoder subtracts the mean of the data as well (Horn & Elliott 2024,
equation 1), f the activations and n tokens of width d_in (sums over tokens and elements):

    loss       = Σ (x̂ − x)² / (n d_in) + λ Σ f / n                      (jumprelu: λ L0 in place of λ Σ f / n)
    G          = ∂loss/∂x̂     = 2 (x̂ − x) / (n d_in)
    H          = ∂loss/∂pre   = (G W_decᵀ + λ / n) where f > 0, else 0     (jumprelu: without λ)
    ∂loss/∂W_dec = fᵀ G        ∂loss/∂W_enc = x̄ᵀ H        ∂loss/∂b_enc = Σ H
    ∂loss/∂b_dec = Σ G − W_enc Σ H      (a product with a vector: x̄ᵀ's gradient is never formed)

jumprelu (Rajamanoharan et al. 2024, 2407.14435): f = z where the pre-activation z exceeds the feature's θ > 0, else 0.
Neither the jump nor L0 has a useful derivative by θ, so the paper's estimate takes its place (its equations 11 and 12,
rectangle kernel): with ε the width of the window,

    ∂loss/∂θ = − (1 / ε) Σ (θ G·W_dec + λ / n)    over entries with |z − θ| < ε / 2

The penalty has no derivative by z. What is trained is log θ, which keeps θ above 0.

`dense_step` is the plain form on any device; `sparse_step` does the same with work proportional to the active entries,
in compiled loops on a CPU (kernels.step), and on a GPU in Triton (`fused_step`, kernels.triton_step) or, where that is
missing, in torch operations (`entry_step`, kernels.torch_forms).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from heredity.engine.ranks import ALONE, Ranks
from heredity.kernels import step as kernels
from heredity.kernels.encode import keep_largest
from heredity.kernels.step import BETAS, EPSILON
from heredity.kernels.torch_forms import (
    active_entries,
    dense_encode,
    dots,
    has_triton,
    key_starts,
    largest_entries,
    linear,
    sums,
)
from heredity.sae import divided
from heredity.sae.model import Activation

NAMES = ("w_enc", "b_enc", "w_dec", "b_dec", "log_threshold")

BANDWIDTH = 0.1  # ε of jumprelu in the normalized space, where pre-activations of a unit direction deviate by about 1

# The sparse step is taken when less than this share of the features is active on a token. Measured on a CPU: at
# 512 -> 4096 it takes 0.3 of the dense step's time at a share of 0.02 and as much at 0.16; at 1024 -> 16384 it takes
# 0.14 of it at 0.002, 0.43 at 0.02, and as much at 0.07, because the rows gathered no longer fit the cache.
SPARSE_BELOW = 0.08
# Estimated from bandwidth, not measured: rows are gathered four times per entry, and at 1024 -> 16384 that takes as
# long as the dense step's products at a share of about 0.02.
SPARSE_BELOW_ON_GPU = 0.02


@dataclass
class Weights:
    """Trained tensors, float32, changed in place. All are row-major by feature."""

    w_enc: Tensor  # [d_sae, d_in], the transpose of W_enc
    b_enc: Tensor  # [d_sae]
    w_dec: Tensor  # [d_sae, d_in]
    b_dec: Tensor  # [d_in]
    log_threshold: Tensor = field(default_factory=lambda: torch.zeros(0))  # jumprelu: [d_sae], log θ; others: [0]

    @classmethod
    def zeros_like(cls, other: Weights) -> Weights:
        """Zeros of the shapes and the device of `other`."""
        return cls(*(torch.zeros_like(getattr(other, name)) for name in NAMES))


class Outcome(NamedTuple):
    """Figures of a step's batch before the weights change."""

    mse: float  # mean squared error over elements
    l1: float  # mean over tokens of Σ f
    l0: float  # mean over tokens of the number of active features
    fired: Tensor  # bool [d_sae]: features active on at least one token
    least: float  # smallest positive activation; nan when there is none
    seen: torch.cuda.Event | None = None  # on a GPU: when `fired` is known, if that is before the weights change


class Rule(NamedTuple):
    """How activations are chosen in training."""

    activation: Activation
    k: int = 0  # active features per token (topk, batchtopk)
    l1: float = 0.0  # λ of Σ f (relu)
    threshold: float = 0.0  # batchtopk: running threshold, a hint where the selection will cut; 0 when unknown
    l0: float = 0.0  # λ of L0 (jumprelu)


def dense_step(
    weights: Weights,
    first: Weights,
    second: Weights,
    ages: Tensor,
    x: Tensor,
    rule: Rule,
    lr: float,
    step: int,
    target: Tensor | None = None,
) -> Outcome:
    """One step on centered inputs x̄ [n, d_in], on any device; `first` and `second` are Adam's moments.

    ages: int32 [d_sae], steps since a feature's moments were zero, this one included; step: the same for b_dec.
    target: x − b_dec [n, d_in], contiguous as x̄, which the decoder's sum is compared with; by default x̄ itself.
    """
    n, d_in = x.shape
    pre_acts, log_threshold = linear(x, weights.w_enc, weights.b_enc), weights.log_threshold
    acts = _activate(pre_acts, rule, log_threshold)
    error = linear(acts, weights.w_dec.T) - (x if target is None else target)
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
    if rule.activation == "jumprelu":
        features, flat = torch.arange(len(weights.b_enc), device=x.device).repeat(n), pre_acts.flatten()
        jump = _jump(flat, features, log_threshold)
        jump = jump._replace(near=jump.near & (flat > 0))
        log_threshold = _threshold_gradient(jump, features, act_grad.flatten(), rule.l0 / n, len(log_threshold))
    pre_grad = act_grad.add_(rule.l1 / n).mul_(active)
    b_enc, b_dec = pre_grad.sum(0), output_grad.sum(0, dtype=torch.float64)
    # `linear` multiplies by a transpose; on a CPU it is the faster product.
    w_enc, w_dec = linear(pre_grad.T, x.T), linear(acts.T, output_grad.T)
    b_dec = _center_gradient(b_dec, b_enc, weights.w_enc)
    if x.device.type == "cpu":
        for name, grad in (("w_enc", w_enc), ("w_dec", w_dec)):
            rows = _rows(name, weights, first, second)
            kernels.adam_rows(rows, grad.contiguous().numpy(), lr, ages.numpy(), unit_norm=name == "w_dec")
    gradients = Weights(w_enc, b_enc, w_dec, b_dec, log_threshold)
    _update((weights, first, second), gradients, ages, lr, step, matrices=x.device.type != "cpu")
    return outcome


def sparse_step(
    weights: Weights,
    first: Weights,
    second: Weights,
    ages: Tensor,
    x: Tensor,
    rule: Rule,
    lr: float,
    step: int,
    target: Tensor | None = None,
    ranks: Ranks = ALONE,
) -> Outcome:
    """The same step as `dense_step` for few active features; float32, x contiguous. ranks: share its work, on a CPU."""
    if x.device.type != "cpu":
        take = fused_step if has_triton(x.device) else entry_step
        return take(weights, first, second, ages, x, rule, lr, step, target)
    target = x if target is None else target
    n, d_sae, log_threshold = len(x), len(weights.w_enc), weights.log_threshold
    acts = training_acts(weights, x, rule, ranks=ranks)
    features, jump = torch.from_numpy(acts.indices), None
    if rule.activation == "jumprelu":
        jump = _jump(torch.from_numpy(acts.values), features, log_threshold)
        acts = acts._replace(values=jump.acts.numpy())
    errors = divided.errors(ranks, acts, target.numpy(), weights.w_dec.numpy(), rule.l1 / n)
    if jump is not None:
        act_grad = torch.from_numpy(errors.act_grad)
        log_threshold = _threshold_gradient(jump, features, act_grad, rule.l0 / n, d_sae)
        act_grad *= jump.active
    enc, dec = (_rows(name, weights, first, second) for name in ("w_enc", "w_dec"))
    biases = kernels.update_features(acts, errors, x.numpy(), enc, dec, lr, ages.numpy())
    b_enc, b_dec = map(torch.from_numpy, biases)
    gradients = Weights(weights.w_enc, b_enc, weights.w_dec, b_dec, log_threshold)
    _update((weights, first, second), gradients, ages, lr, step, matrices=False)
    figures = kernels.figures(acts)
    return Outcome(
        mse=float(errors.squared.sum()) / x.numel(),
        l1=figures.l1 / n,
        l0=figures.active / n,
        fired=torch.from_numpy(figures.fired),
        least=figures.least,
    )


def fused_step(
    weights: Weights,
    first: Weights,
    second: Weights,
    ages: Tensor,
    x: Tensor,
    rule: Rule,
    lr: float,
    step: int,
    target: Tensor | None = None,
) -> Outcome:
    """`sparse_step` in Triton; a batch that its kernels have no room for goes to `dense_step`."""
    from heredity.kernels.triton_step import Kind, Numbers, Parts, take_step  # optional, see `has_triton`

    n, k = len(x), rule.k if rule.activation == "topk" else None
    of_batch = rule.k * n if rule.activation == "batchtopk" else 0
    kind = Kind(k, of_batch, BANDWIDTH if rule.activation == "jumprelu" else 0.0)
    floor = 0.8 * (rule.threshold or float(_batch_cut(weights, x, rule))) if of_batch else 0.0
    numbers = Numbers(lr, rule.l1 / n, rule.l0 / n, step, floor)
    parts = Parts(*(tuple(getattr(of, name) for of in (weights, first, second)) for name in NAMES))  # type: ignore[arg-type]
    figures = take_step(parts, ages, x, x if target is None else target, kind, numbers)
    if figures is None:
        return dense_step(weights, first, second, ages, x, rule, lr, step, target)
    least = figures.least if figures.active else float("nan")
    means = figures.squared / x.numel(), figures.total / n, figures.active / n
    return Outcome(*means, figures.fired, least, figures.seen)


def entry_step(
    weights: Weights,
    first: Weights,
    second: Weights,
    ages: Tensor,
    x: Tensor,
    rule: Rule,
    lr: float,
    step: int,
    target: Tensor | None = None,
) -> Outcome:
    """`sparse_step` in torch operations that suit a GPU; it runs on any device."""
    n, d_sae, log_threshold = len(x), len(weights.w_enc), weights.log_threshold
    tokens, features, values = training_acts(weights, x, rule, compiled=False)
    jump = _jump(values, features, log_threshold) if rule.activation == "jumprelu" else None
    values = values if jump is None else jump.acts
    error = sums(key_starts(tokens, n), features, weights.w_dec, values) - (x if target is None else target)
    squared = float(error.square().sum(dtype=torch.float64))
    output_grad = error.mul_(2 / x.numel())
    act_grad = dots(output_grad, weights.w_dec, tokens, features) + rule.l1 / n
    if jump is not None:
        log_threshold = _threshold_gradient(jump, features, act_grad, rule.l0 / n, d_sae)
        act_grad = act_grad * jump.active
    order = features.argsort(stable=True)
    by_feature = key_starts(features[order], d_sae), tokens[order]
    b_enc = torch.zeros_like(weights.b_enc).index_add_(0, features, act_grad)
    b_dec = _center_gradient(output_grad.sum(0, dtype=torch.float64), b_enc, weights.w_enc)
    w_enc, w_dec = sums(*by_feature, x, act_grad[order]), sums(*by_feature, output_grad, values[order])
    gradients = Weights(w_enc, b_enc, w_dec, b_dec, log_threshold)
    _update((weights, first, second), gradients, ages, lr, step, matrices=True)
    return _outcome(squared, values, features, x, d_sae)


def _outcome(squared: float, values: Tensor, features: Tensor, x: Tensor, d_sae: int) -> Outcome:
    """Figures from sparse activations, in which entries of jumprelu below the threshold have a value of 0."""
    active = values > 0
    kept = values[active]
    return Outcome(
        mse=squared / x.numel(),
        l1=float(values.cpu().numpy().sum(dtype=np.float64)) / len(x),
        l0=len(kept) / len(x),
        fired=torch.bincount(features[active], minlength=d_sae) > 0,
        least=float(kept.min()) if len(kept) else float("nan"),
    )


def training_errors(weights: Weights, x: Tensor, rule: Rule, target: Tensor | None = None) -> Tensor:
    """Loss of each token, float32 [n], for centered inputs x and target [n, d_in] as in `dense_step`."""
    losses = []
    for part, aim in zip(x.split(1024), (x if target is None else target).split(1024), strict=True):
        acts = _activate(linear(part, weights.w_enc, weights.b_enc), rule, weights.log_threshold)
        error = linear(acts, weights.w_dec.T) - aim
        losses.append(error.square().mean(1) + rule.l1 * acts.sum(1) + rule.l0 * (acts > 0).sum(1))
    return torch.cat(losses)


def _activate(pre_acts: Tensor, rule: Rule, log_threshold: Tensor) -> Tensor:
    """Training activations [n, d_sae]: batchtopk keeps the k · n largest of the batch."""
    if rule.activation == "batchtopk":
        acts = pre_acts.relu()
        top = acts.flatten().topk(rule.k * len(acts))
        return torch.zeros_like(acts).view(-1).scatter_(0, top.indices, top.values).view_as(acts)
    threshold = log_threshold.exp() if rule.activation == "jumprelu" else None
    return dense_encode(pre_acts, rule.k if rule.activation == "topk" else None, threshold)


def training_acts(weights: Weights, x: Tensor, rule: Rule, compiled: bool = True, ranks: Ranks = ALONE) -> Any:
    """Sparse training activations for centered inputs x [n, d_in], as `Sparse` or, not compiled, as `Entries`.

    jumprelu: pre-activations down to the lower end of the window around each threshold.
    """
    encode: Callable[..., Any] = partial(divided.encode, ranks) if compiled else active_entries
    given = (x, weights.w_enc, weights.b_enc)
    if rule.activation == "jumprelu":
        return encode(*given, None, (weights.log_threshold.exp() - BANDWIDTH / 2).clamp(min=0))
    if rule.activation != "batchtopk":
        return encode(*given, rule.k if rule.activation == "topk" else None, None)
    acts: Any = encode(*given, None, 0.8 * _batch_cut(weights, x, rule))
    if len(acts.values) < rule.k * len(x):  # still too high
        acts = encode(*given, None, None)
    return keep_largest(acts, rule.k * len(x)) if compiled else largest_entries(acts, rule.k * len(x))


def _batch_cut(weights: Weights, x: Tensor, rule: Rule) -> Tensor:
    """About where batchtopk will cut: where the batch before was cut, or a few tokens would be."""
    if rule.threshold:
        return x.new_tensor(rule.threshold)
    pre_acts = linear(x[:64], weights.w_enc, weights.b_enc).relu_()
    return pre_acts.flatten().topk(rule.k * len(pre_acts)).values[-1]


class _Jump(NamedTuple):
    """jumprelu's entries around and above the threshold."""

    acts: Tensor  # float32 [nnz]: z where active, else 0
    active: Tensor  # bool [nnz]: z > θ
    near: Tensor  # bool [nnz]: |z − θ| < ε / 2
    threshold: Tensor  # float32 [nnz]: θ of each entry's feature


def _jump(pre_acts: Tensor, features: Tensor, log_threshold: Tensor) -> _Jump:
    threshold = log_threshold.exp()[features]
    active, near = pre_acts > threshold, (pre_acts - threshold).abs() < BANDWIDTH / 2
    return _Jump(torch.where(active, pre_acts, 0.0), active, near, threshold)


def _threshold_gradient(jump: _Jump, features: Tensor, act_grad: Tensor, l0_per_entry: float, d_sae: int) -> Tensor:
    """Derivative of the loss by log θ, float32 [d_sae].

    act_grad: [nnz], the derivative of the reconstruction error by an activation, G·W_dec; l0_per_entry: λ / n.
    """
    by_log = -(jump.threshold / BANDWIDTH) * (jump.threshold * act_grad + l0_per_entry) * jump.near
    return by_log.new_zeros(d_sae).index_add_(0, features.long(), by_log)


def _center_gradient(output_grad_sum: Tensor, b_enc: Tensor, w_enc: Tensor) -> Tensor:
    """Gradient of b_dec, float32 [d_in]: Σ G [d_in] − W_enc Σ H [d_sae], in float64 because the two nearly cancel."""
    return (output_grad_sum - b_enc.double() @ w_enc.double()).float()


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


def _rows(name: str, *tensors: Weights) -> kernels.AdamRows:
    weight, first, second = (getattr(of, name).numpy() for of in tensors)
    return weight, first, second


def _update(
    trained: tuple[Weights, Weights, Weights], gradients: Weights, ages: Tensor, lr: float, step: int, matrices: bool
) -> None:
    """Adam on the weights and their two moments; without the matrices where compiled loops have updated those."""
    for name in NAMES if matrices else ("b_enc", "log_threshold", "b_dec"):
        weight, first, second, grad = (getattr(of, name) for of in (*trained, gradients))
        row_ages = ages
        if name == "b_dec":  # one row
            weight, first, second, grad = (each.view(1, -1) for each in (weight, first, second, grad))
            row_ages = ages.new_full((1,), step)
        if not weight.numel():
            continue
        if matrices:
            adam_rows(weight, first, second, grad, row_ages, lr, unit_norm=name == "w_dec")
        else:
            rows, moment, square, made = (e.reshape(len(e), -1).numpy() for e in (weight, first, second, grad))
            kernels.adam_rows((rows, moment, square), made, lr, row_ages.numpy(), unit_norm=False)
