"""Merges in memory: slerp, linear, task arithmetic and TIES. State dicts in, a state dict and a report out.

`t` always runs from the first parent (t = 0) to the second (t = 1). Where the papers leave room, the choices are those
of mergekit 0.1.5; each function states them, and a test compares the weights tensor by tensor. Every other method is
mergekit's: `heredity.lm.recipe`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import reduce
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Method = Literal["slerp", "linear", "task_arithmetic", "ties"]

_TAKES = {
    "slerp": "exactly two parents and t, between 0 (first parent) and 1 (second), and neither weights nor base",
    "linear": "either exactly two parents and t, or at least two and one weight per parent, and no base",
    "task_arithmetic": "one weight per parent, no t, and a base, the model that its parents descend from",
    "ties": "one weight per parent, no t, and a base, the model that its parents descend from",
}
PARALLEL = 0.9995  # |cos| of two tensors above which slerp interpolates linearly (about 1.81 degrees)
_NO_DIRECTION = 1e-8  # norm up to which a tensor counts as zero
_CHUNK = 1 << 20  # elements converted to float64 at a time


class MergeError(ValueError):
    """Weights that cannot be merged; the message names the tensor, the difference and the way out."""


class TensorReport(NamedTuple):
    """What merging did to one tensor; with one parent, the base takes the place of the second."""

    name: str  # key in the state dict; of tied tensors, the first name in alphabetical order
    angle_degrees: float  # between the first two parents' tensors, flattened
    cosine: float  # of that angle; 0 if one of them is zero, 1 if both are
    method: str  # the merge's method, `linear` where slerp fell back to it, `copied` for integers and booleans
    norm_ratio: float
    """‖merged‖ over the parents' norms averaged with the weights of the merge: (1 − t)‖a‖ + t‖b‖ for slerp and linear,
    their plain mean for all other methods; 1 when both are zero, nan when only the denominator is."""
    norm_a: float  # Frobenius norm of the first parent's tensor
    norm_b: float  # Frobenius norm of the second parent's tensor


def merge_states(
    states: Sequence[Mapping[str, Tensor]],
    method: Method,
    t: float | None = None,
    weights: Sequence[float] | None = None,
    density: float | Sequence[float] = 0.5,
    base: Mapping[str, Tensor] | None = None,
    *,
    normalize: bool | None = None,
) -> tuple[dict[str, Tensor], list[TensorReport]]:
    """Merge whole state dicts, tensor by tensor; return the child's and one report per distinct tensor.

    slerp takes two states and `t`; linear takes two and `t`, or any number and `weights`; the task-vector methods take
    `base` and `weights`, TIES also `density`. `normalize` divides by the sum of the weights; None is the default of the
    method (linear and TIES do, task arithmetic does not). Tensors are merged in float32 and returned in the first
    parent's dtype. Integer and boolean tensors must be equal and are copied. Tensors that share their storage in the
    parents share it in the child.

    Raises `MergeError`, naming the tensor, for keys, shapes, dtypes or ties that differ, unequal integers, and weights
    that are not finite; and for arguments that the method does not take.
    """
    _check_arguments(method, len(states), t, weights, base)
    everyone = {f"parent {i}": state for i, state in enumerate(states, start=1)}
    everyone |= {"base": base} if base is not None else {}
    tied = _check_states(everyone)
    mix = (1 - t, t) if t is not None else tuple(weights or ())
    options = {} if normalize is None else {"normalize": normalize}
    shares = [1 / len(states)] * len(states)
    if method in ("slerp", "linear"):
        total = sum(mix) if t is None and normalize is not False else 1.0
        shares = [weight / total for weight in mix] if total else [math.nan] * len(mix)
    merged: dict[str, Tensor] = {}
    reports = []
    for name in sorted(set(states[0]) - set(tied)):
        labeled, used = {label: state[name] for label, state in everyone.items()}, str(method)
        a, b, *_ = tensors = list(labeled.values())
        parents, start = tensors[: len(states)], tensors[-1]
        with _naming(name):
            cos = cosine(a, b)
            if not a.is_floating_point():
                result, used = a.clone(), "copied"
            elif method == "slerp":
                result, used = slerp(a, b, mix[1], cos), "linear" if abs(cos) > PARALLEL else "slerp"
            elif method == "linear":
                result = linear(parents, mix, **options)
            elif method == "task_arithmetic":
                result = task_arithmetic(start, parents, mix, **options)
            else:
                result = ties(start, parents, mix, density, **options)
            reports.append(_report(name, result, labeled, cos, used, shares))
        merged[name] = result
    return {name: merged[tied.get(name, name)] for name in states[0]}, reports


def compare_states(
    merged: Mapping[str, Tensor],
    states: Sequence[Mapping[str, Tensor]],
    method: str,
    base: Mapping[str, Tensor] | None = None,
) -> list[TensorReport]:
    """Reports on a child merged elsewhere, one per distinct tensor that has one shape in the child and all models.

    Empty unless there are two models to compare, the base counted. Raises `MergeError` for weights that are not finite.
    """
    everyone = [*states, base] if base is not None else list(states)
    shares, reports = [1 / max(1, len(states))] * len(states), []
    for name in sorted(set(merged) - set(_ties(merged))):
        tensors = [state[name] for state in everyone if name in state and state[name].shape == merged[name].shape]
        if len(tensors) == len(everyone) > 1:
            labeled = {f"model {i}": tensor for i, tensor in enumerate(tensors, start=1)}
            with _naming(name):
                reports.append(_report(name, merged[name], labeled, cosine(*tensors[:2]), method, shares))
    return reports


def cosine(a: Tensor, b: Tensor) -> float:
    """Cosine of the angle between two tensors of one shape, flattened; sums in float64.

    A zero tensor has no direction: its cosine with anything else is 0 (as in mergekit), with another zero 1.
    """
    norm_a, norm_b = _norm(a), _norm(b)
    if norm_a <= _NO_DIRECTION or norm_b <= _NO_DIRECTION:
        return 1.0 if max(norm_a, norm_b) <= _NO_DIRECTION else 0.0
    return min(1.0, max(-1.0, _inner(a, b) / norm_a / norm_b))


def slerp(a: Tensor, b: Tensor, t: float, cos: float | None = None) -> Tensor:
    """sin((1 − t)θ)/sin θ · a + sin(tθ)/sin θ · b, with θ the angle between a and b.

    Each tensor is one vector whatever its shape; θ comes from the normalized vectors and the weights apply to the
    raw ones, so that norms interpolate too. Near-parallel and near-opposite tensors (|cos| > 0.9995) are interpolated
    linearly. Computed in float32 (float64 for float64 input), returned in the dtype of `a`; t = 0 and t = 1 return
    the inputs bit for bit. `cos` is `cosine(a, b)` if the caller already has it.

    Source: Shoemake 1985; Horn & Elliott 2024, section 3.3; per whole tensor on raw weights as in mergekit.
    Raises `MergeError` for different shapes or t outside [0, 1].
    """
    _check_t(t)
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
    first tensor bit for bit. Raises `MergeError` for different shapes, and weights that are not one per tensor, not
    finite, or sum to 0.
    """
    _check_tensors(tensors)
    _check_weights(weights, len(tensors), normalize)
    total, kind = sum(weights) if normalize else 1.0, _working(tensors[0])
    terms = [x.to(kind) * (weight / total) for x, weight in zip(tensors, weights, strict=True) if weight]
    return reduce(torch.add, terms).to(tensors[0].dtype) if terms else torch.zeros_like(tensors[0])


def task_arithmetic(
    base: Tensor, tensors: Sequence[Tensor], weights: Sequence[float], *, normalize: bool = False
) -> Tensor:
    """base + Σ wᵢ (xᵢ − base); with `normalize` the sum is divided by Σ wᵢ (off by default, as in mergekit).

    Source: Ilharco et al. 2023, section 2. Raises `MergeError` as `linear` does.
    """
    _check_weights(weights, len(tensors), normalize)
    total = _task_vectors(base, tensors, weights).sum(0)
    return (base.to(total.dtype) + (total / sum(weights) if normalize else total)).to(base.dtype)


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
    out. `density` is one number or one per tensor.

    Source: Yadav et al. 2023, algorithm 1; sign method "sum", weights and normalization as in mergekit.
    Raises `MergeError` as `linear` does, and for a density outside (0, 1].
    """
    _check_weights(weights, len(tensors), divide=False)
    weighted = _task_vectors(base, tensors, weights, _densities(density, len(tensors)))
    elected = torch.where(weighted.sum(0) >= 0, 1.0, -1.0)
    agree = (weighted.sign() == elected).to(weighted.dtype)
    total = (weighted * agree).sum(0)
    if normalize:
        divisor = torch.tensordot(agree.new_tensor(weights), agree, dims=1)
        total = total / torch.where(divisor == 0, 1.0, divisor)
    return (base.to(total.dtype) + total).to(base.dtype)


def _task_vectors(
    base: Tensor, tensors: Sequence[Tensor], weights: Sequence[float], densities: Sequence[float] = ()
) -> Tensor:
    """wᵢ (xᵢ − base), each trimmed to its density first, [tensors, *shape]."""
    _check_tensors([base, *tensors])
    vectors = [(tensor.to(_working(base)) - base.to(_working(base))).contiguous() for tensor in tensors]
    for vector, density in zip(vectors, densities, strict=bool(densities)):
        if density < 1 and (flat := vector.view(-1)).numel():
            flat[flat.abs().argsort(descending=True, stable=True)[max(1, int(density * flat.numel())) :]] = 0
    return torch.stack([vector * weight for vector, weight in zip(vectors, weights, strict=True)])


@contextmanager
def _naming(tensor: str) -> Iterator[None]:
    try:
        yield
    except MergeError as error:
        raise MergeError(f"{tensor}: {error}") from None


def _working(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _inner(a: Tensor, b: Tensor) -> float:
    pieces = zip(a.reshape(-1).split(_CHUNK), b.reshape(-1).split(_CHUNK), strict=True)
    return float(sum(torch.dot(x.double(), y.double()) for x, y in pieces))


def _norm(a: Tensor) -> float:
    return math.sqrt(_inner(a, a))


def _report(
    name: str, merged: Tensor, tensors: Mapping[str, Tensor], cos: float, method: str, shares: Sequence[float]
) -> TensorReport:
    """`tensors` are the parents', then the base's; `shares` the weights with which the parents' norms are averaged."""
    norms, size = [_norm(tensor) for tensor in tensors.values()], _norm(merged)
    for label, parent in zip(tensors, norms, strict=True):
        if not math.isfinite(parent):
            raise MergeError(f"NaN or infinity in {label}; merge models with finite weights")
    if not math.isfinite(size):
        raise MergeError(f"overflows {merged.dtype} when merged; convert the models to float32")
    expected = sum(share * parent for share, parent in zip(shares, norms, strict=False))
    ratio = size / expected if expected else (1.0 if not size else math.nan)
    return TensorReport(name, math.degrees(math.acos(cos)), cos, method, ratio, norms[0], norms[1])


def _check_arguments(method: str, parents: int, t: float | None, weights: Sequence[float] | None, base: object) -> None:
    if method not in _TAKES:
        raise MergeError(f"method={method!r} is unknown; choose one of {', '.join(_TAKES)}, or merge with mergekit")
    between = parents == 2 and t is not None and weights is None
    weighted = parents > 0 and t is None and weights is not None
    if method in ("slerp", "linear"):
        fits = base is None and (between or (method == "linear" and weighted and parents > 1))
    else:
        fits = base is not None and weighted
    if not fits:
        given = f"{parents} parents, t={t}, weights={weights} and {'no' if base is None else 'a'} base"
        raise MergeError(f"{method} takes {_TAKES[method]}; given are {given}")
    if t is not None:
        _check_t(t)


def _check_t(t: float) -> None:
    if not 0 <= t <= 1:
        raise MergeError(f"t={t} is outside [0, 1]; 0 is the first parent, 1 the second")


def _check_weights(weights: Sequence[float], count: int, divide: bool) -> None:
    if len(weights) != count:
        raise MergeError(f"weights={list(weights)} are {len(weights)} for {count} parents; give one weight per parent")
    if not all(math.isfinite(weight) for weight in weights):
        raise MergeError(f"weights={list(weights)} are not all finite; give plain numbers")
    if divide and abs(sum(weights)) < _NO_DIRECTION:
        raise MergeError(f"weights={list(weights)} sum to 0; choose weights with another sum or turn normalize off")


def _densities(density: float | Sequence[float], count: int) -> Sequence[float]:
    """One density for each of `count` tensors."""
    densities = [density] * count if isinstance(density, int | float) else density
    if len(densities) != count:
        raise MergeError(f"density={densities} are {len(densities)} for {count} parents; give one, or one per parent")
    if not all(0 < share <= 1 for share in densities):
        raise MergeError(f"density={density} is outside (0, 1], the share of each task vector that is kept")
    return densities


def _check_tensors(tensors: Sequence[Tensor]) -> None:
    for tensor in tensors:
        if not tensor.is_floating_point():
            raise MergeError(f"{tensor.dtype} tensors are not merged; copy them, or convert them to floating point")
        if tensor.shape != tensors[0].shape:
            shapes = f"{list(tensors[0].shape)} and {list(tensor.shape)}"
            raise MergeError(f"tensors of shapes {shapes} cannot be merged; merge models of one architecture")


def _check_states(everyone: Mapping[str, Mapping[str, Tensor]]) -> dict[str, str]:
    """Refuse state dicts that do not fit each other; return each tied name with the name it is tied to."""
    (here, first), *others = everyone.items()
    tied = _ties(first)
    for there, state in others:
        for name in sorted(first.keys() ^ state.keys()):
            pair = (here, there) if name in first else (there, here)
            raise MergeError(
                f"{name} is in {' but not in '.join(pair)}; merge models of one architecture (both with tied "
                "embeddings or both without)"
            )
        for name in sorted(first):
            a, b = first[name], state[name]
            if a.shape != b.shape:
                shapes = f"{list(a.shape)} in {here} but {list(b.shape)} in {there}"
                raise MergeError(f"{name} is {shapes}; merge models of one architecture and one vocabulary")
            if a.is_floating_point() != b.is_floating_point():
                raise MergeError(f"{name} is {a.dtype} in {here} but {b.dtype} in {there}; convert one of the models")
            if not a.is_floating_point() and not torch.equal(a, b):
                raise MergeError(
                    f"{name} holds {a.dtype} values that differ between {here} and {there}; such a buffer is copied, "
                    "not merged: make them equal"
                )
        for name, other in sorted(set(tied.items()) ^ set(_ties(state).items())):
            pair = (here, there) if name in tied else (there, here)
            raise MergeError(
                f"{name} shares its storage with {other} in {' but not in '.join(pair)}; tie both or untie both"
            )
    return tied


def _ties(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Names of tensors that share their memory with another, each with the alphabetically first name of that one."""
    seen: dict[tuple, str] = {}
    tied = {}
    for name in sorted(state):
        tensor = state[name]
        key = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if tensor.numel() and seen.setdefault(key, name) != name:
            tied[name] = seen[key]
    return tied
