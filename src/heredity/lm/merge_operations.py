"""How tensors are combined: slerp, linear, task arithmetic, TIES and DARE. Tensors in, tensors out.

`t` always runs from the first tensor (t = 0) to the second (t = 1). Where the papers leave room the choices are those
of mergekit 0.1.5, and each function says which; a test compares them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

PARALLEL = 0.9995
"""Slerp falls back to linear interpolation where |cos| of the two tensors is above this (about 1.81 degrees)."""

_NO_DIRECTION = 1e-8  # norm up to which a tensor counts as zero
_CHUNK = 1 << 20  # elements turned into float64 at a time


class MergeError(ValueError):
    """These weights cannot be merged; the message names the tensor, what differs and the way out."""


def cosine(a: Tensor, b: Tensor) -> float:
    """Cosine of the angle between two tensors of one shape, flattened; sums in float64.

    A zero tensor has no direction: its cosine with anything else is 0 (as mergekit counts it), with another zero 1.
    """
    norm_a, norm_b = norm(a), norm(b)
    if norm_a <= _NO_DIRECTION or norm_b <= _NO_DIRECTION:
        return 1.0 if max(norm_a, norm_b) <= _NO_DIRECTION else 0.0
    return min(1.0, max(-1.0, _inner(a, b) / norm_a / norm_b))


def norm(a: Tensor) -> float:
    """Frobenius norm of a tensor, summed in float64."""
    return math.sqrt(_inner(a, a))


def slerp(a: Tensor, b: Tensor, t: float, cos: float | None = None) -> Tensor:
    """sin((1 − t)θ)/sin θ · a + sin(tθ)/sin θ · b, with θ the angle between a and b.

    Each tensor is one vector whatever its shape; θ comes from the normalized vectors and the weights apply to the
    raw ones, so that norms interpolate too. Near-parallel and near-opposite tensors (|cos| > 0.9995) are interpolated
    linearly. Computed in float32 (float64 for float64 input), returned in the dtype of `a`; t = 0 and t = 1 return
    the inputs bit for bit. `cos` is `cosine(a, b)` if the caller already has it.

    Source: Shoemake 1985; Horn & Elliott 2024, section 3.3; per whole tensor on raw weights as in mergekit.
    Raises `MergeError` for different shapes or t outside [0, 1].
    """
    check_t(t)
    _check_tensors([a, b])
    if t == 0:
        return a.clone()
    if t == 1:
        return b.to(a.dtype, copy=True)
    cos = cosine(a, b) if cos is None else cos
    x, y = a.to(_working(a)), b.to(_working(a))
    if abs(cos) > PARALLEL:
        return torch.lerp(x, y, t).to(a.dtype)
    theta = math.acos(cos)
    weight_a, weight_b = math.sin((1 - t) * theta) / math.sin(theta), math.sin(t * theta) / math.sin(theta)
    return (weight_a * x + weight_b * y).to(a.dtype)


def linear(tensors: Sequence[Tensor], weights: Sequence[float], *, normalize: bool = True) -> Tensor:
    """Σ wᵢ xᵢ / Σ wᵢ (without the division if `normalize` is off), in float32, in the dtype of the first tensor.

    Dividing by the sum is mergekit's default. A tensor of weight 0 is left out, so that weights (1, 0) return the
    first tensor bit for bit. Raises `MergeError` for different shapes, or weights that are not one a tensor, not
    finite, or sum to 0.
    """
    _check_tensors(tensors)
    check_weights(weights, len(tensors))
    total = sum(weights) if normalize else 1.0
    if total == 0:
        raise MergeError(f"weights={list(weights)} sum to 0; choose weights with another sum or turn normalize off")
    merged = None
    for tensor, weight in zip(tensors, weights, strict=True):
        if weight:
            term = tensor.to(_working(tensors[0])) * (weight / total)
            merged = term if merged is None else merged + term
    return torch.zeros_like(tensors[0]) if merged is None else merged.to(tensors[0].dtype)


def task_arithmetic(
    base: Tensor, tensors: Sequence[Tensor], weights: Sequence[float], *, normalize: bool = False
) -> Tensor:
    """base + Σ wᵢ (xᵢ − base); with `normalize` the sum is divided by Σ wᵢ (off by default, as in mergekit).

    Source: Ilharco et al. 2023, section 2. Raises `MergeError` as `linear` does.
    """
    return _add(base, _task_vectors(base, tensors), weights, consensus=False, normalize=normalize)


def ties(
    base: Tensor,
    tensors: Sequence[Tensor],
    weights: Sequence[float],
    density: float | Sequence[float],
    *,
    normalize: bool = True,
) -> Tensor:
    """Trim each task vector, elect a sign for each element, and average the vectors that agree with it.

    Trimming keeps the max(1, ⌊density · n⌋) elements of largest magnitude of a whole tensor (earlier elements first
    among equals) and does not rescale them. The elected sign is that of the sum of the weighted trimmed vectors, plus
    where it is 0. The mean is weighted: Σ wᵢ δᵢ / Σ wᵢ over the agreeing vectors; `normalize=False` leaves the division
    out. `density` is one number or one a tensor.

    Source: Yadav et al. 2023, algorithm 1; sign method "sum", weights and normalization as in mergekit.
    Raises `MergeError` as `linear` does, and for a density outside (0, 1].
    """
    kept = [_trim(v, d) for v, d in zip(_task_vectors(base, tensors), densities(density, len(tensors)), strict=True)]
    return _add(base, kept, weights, consensus=True, normalize=normalize)


def dare(
    base: Tensor,
    tensors: Sequence[Tensor],
    weights: Sequence[float],
    density: float | Sequence[float],
    generator: torch.Generator,
    sign_consensus: bool,
    *,
    normalize: bool = False,
) -> Tensor:
    """Keep each element of each task vector with probability `density`, divide it by `density`, and add the vectors.

    With `sign_consensus` only elements that agree with the elected sign are added (as in `ties`). The expectation
    without it is `task_arithmetic`. `normalize` is off by default, as in mergekit; its rescaling however is the
    paper's 1/density, where mergekit 0.1.5 restores the L1 norm of the whole tensor (the same for many elements).

    Source: Yu et al. 2024, section 3.2. Random numbers are drawn on the generator's device, so that a CPU generator
    gives the same merge on every device. Raises `MergeError` as `ties` does.
    """
    kept = []
    for vector, share in zip(_task_vectors(base, tensors), densities(density, len(tensors)), strict=True):
        drawn = torch.rand(vector.shape, generator=generator, device=generator.device) < share
        kept.append(vector * drawn.to(vector.device) / share)
    return _add(base, kept, weights, consensus=sign_consensus, normalize=normalize)


def _task_vectors(base: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    _check_tensors([base, *tensors])
    return [tensor.to(_working(base)) - base.to(_working(base)) for tensor in tensors]


def _trim(vector: Tensor, density: float) -> Tensor:
    if density == 1 or not vector.numel():
        return vector
    count = max(1, int(density * vector.numel()))
    order = vector.abs().reshape(-1).argsort(descending=True, stable=True)
    kept = torch.zeros_like(vector).reshape(-1)
    kept[order[:count]] = vector.reshape(-1)[order[:count]]
    return kept.reshape(vector.shape)


def _add(base: Tensor, vectors: list[Tensor], weights: Sequence[float], consensus: bool, normalize: bool) -> Tensor:
    """base plus the weighted sum of the vectors, of those only that have the elected sign under `consensus`."""
    check_weights(weights, len(vectors))
    weighted = [vector * weight for vector, weight in zip(vectors, weights, strict=True)]
    total: Tensor = sum(weighted[1:], start=weighted[0])
    divisor: Tensor | float = sum(weights)
    if consensus:
        elected = torch.where(total >= 0, 1.0, -1.0).to(total.dtype)
        agree = [(vector.sign() == elected).to(total.dtype) for vector in weighted]
        total = sum((v * a for v, a in zip(weighted, agree, strict=True)), start=torch.zeros_like(total))
        divisor = sum((a * w for a, w in zip(agree, weights, strict=True)), start=torch.zeros_like(total))
        divisor = torch.where(divisor == 0, 1.0, divisor)
    elif normalize and abs(divisor) < _NO_DIRECTION:
        raise MergeError(f"weights={list(weights)} sum to 0; choose weights with another sum or turn normalize off")
    return (base.to(total.dtype) + (total / divisor if normalize else total)).to(base.dtype)


def _working(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _inner(a: Tensor, b: Tensor) -> float:
    pieces = zip(a.reshape(-1).split(_CHUNK), b.reshape(-1).split(_CHUNK), strict=True)
    return float(sum(torch.dot(x.double(), y.double()) for x, y in pieces))


def check_t(t: float) -> None:
    """Raise `MergeError` unless t is in [0, 1]."""
    if not 0 <= t <= 1:
        raise MergeError(f"t={t} is outside [0, 1]; 0 is the first parent, 1 the second")


def check_weights(weights: Sequence[float], count: int) -> None:
    """Raise `MergeError` unless there is one finite weight for each of `count` tensors."""
    if len(weights) != count:
        raise MergeError(f"weights={list(weights)} are {len(weights)} for {count} parents; give one weight a parent")
    if not all(math.isfinite(weight) for weight in weights):
        raise MergeError(f"weights={list(weights)} are not all finite; give plain numbers")


def densities(density: float | Sequence[float], count: int) -> list[float]:
    """One density for each of `count` tensors; `MergeError` unless they are that many and in (0, 1]."""
    shares = [float(density)] * count if isinstance(density, int | float) else [float(share) for share in density]
    if len(shares) != count:
        raise MergeError(f"density={shares} are {len(shares)} for {count} parents; give one number, or one a parent")
    if not all(0 < share <= 1 for share in shares):
        raise MergeError(f"density={density} is outside (0, 1]; it is the share of each task vector that is kept")
    return shares


def _check_tensors(tensors: Sequence[Tensor]) -> None:
    if not tensors:
        raise MergeError("there is no tensor to merge; give at least one")
    for tensor in tensors:
        if not tensor.is_floating_point():
            raise MergeError(f"{tensor.dtype} tensors are not merged; copy them, or convert them to floating point")
        if tensor.shape != tensors[0].shape:
            shapes = f"{list(tensors[0].shape)} and {list(tensor.shape)}"
            raise MergeError(f"tensors of shapes {shapes} cannot be merged; merge models of one architecture")
