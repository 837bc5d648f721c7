"""The weights of a child from the state dicts of its parents.

Pure: state dicts in, a state dict and a report out. The maths of one tensor is in `combine`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from heredity.lm.merge_operations import (
    PARALLEL,
    MergeError,
    check_t,
    check_weights,
    cosine,
    dare,
    densities,
    linear,
    norm,
    slerp,
    task_arithmetic,
    ties,
)

__all__ = [
    "PARALLEL",
    "MergeError",
    "Method",
    "TensorReport",
    "TensorSettings",
    "cosine",
    "dare",
    "linear",
    "merge_states",
    "norm",
    "slerp",
    "task_arithmetic",
    "ties",
]

Method = Literal["slerp", "linear", "task_arithmetic", "ties", "dare_linear", "dare_ties"]


class TensorReport(NamedTuple):
    """What merging did to one tensor."""

    name: str
    """Key in the state dict; of tied tensors, the first name in alphabetical order."""
    angle_degrees: float
    """Angle between the first two parents' tensors, flattened (the parent's and the base's if there is one parent)."""
    cosine: float
    """Cosine of that angle; 0 if one of them is zero, 1 if both are."""
    method: str
    """`slerp`, `linear` (also where slerp fell back to it), `copied` (integers and booleans), or the task-vector
    method by its own name."""
    norm_ratio: float
    """‖merged‖ over the parents' norms averaged with the weights of the merge: (1 − t)‖a‖ + t‖b‖ for slerp and linear,
    their plain mean for the task-vector methods; 1 when both are zero, nan when only the denominator is."""
    norm_a: float
    """Frobenius norm of the first parent's tensor."""
    norm_b: float
    """Frobenius norm of the second parent's tensor (the base's if there is one parent)."""


class TensorSettings(NamedTuple):
    """How one tensor is merged."""

    t: float | None = None
    """Position between two parents (slerp, linear)."""
    weights: tuple[float, ...] | None = None
    """One weight a parent (linear and the task-vector methods)."""
    density: float | tuple[float, ...] = 0.5
    """Share of a task vector that is kept (TIES, DARE), for all parents or one each."""
    normalize: bool | None = None
    """Divide by the sum of the weights; None is the method's own default (linear and TIES do, the others do not)."""


def merge_states(
    states: Sequence[Mapping[str, Tensor]],
    method: Method,
    t: float | None = None,
    weights: Sequence[float] | None = None,
    density: float | Sequence[float] = 0.5,
    base: Mapping[str, Tensor] | None = None,
    seed: int = 0,
    settings: Callable[[str], TensorSettings] | None = None,
) -> tuple[dict[str, Tensor], list[TensorReport]]:
    """Merge whole state dicts, tensor by tensor; returns the child's and one report for each distinct tensor.

    slerp takes two states and `t`; linear takes two and `t`, or any number and `weights`; the task-vector methods take
    `base` and `weights`. `settings`, if given, decides for each tensor by its name instead of t, weights and density.
    Tensors are merged in float32 and returned in the first parent's dtype. Integer and boolean tensors must be equal
    and are copied. Tensors that share their storage in the parents share it in the child. DARE draws from `seed` and
    the tensor's name, so the result does not depend on the order of keys.

    Raises `MergeError`, naming the tensor, for keys, shapes, dtypes or ties that differ, unequal integers, and weights
    that are not finite; and for settings that the method does not take.
    """
    fixed = TensorSettings(t, _tuple(weights), density if isinstance(density, int | float) else tuple(density))
    _check_settings(method, len(states), fixed if settings is None else None, base)
    labels = [f"parent {i}" for i in range(1, len(states) + 1)] + (["base"] if base is not None else [])
    everyone = [*states, base] if base is not None else list(states)
    tied = _check_states(everyone, labels)
    merged: dict[str, Tensor] = {}
    reports = []
    for name in sorted(states[0]):
        if name in tied:
            continue
        tensors = [state[name] for state in everyone]
        chosen = fixed if settings is None else settings(name)
        generator = torch.Generator().manual_seed(_seed_of(seed, name))
        try:
            merged[name], report = _merge_tensor(name, tensors, labels, method, chosen, generator)
        except MergeError as error:
            raise MergeError(f"{name}: {error}") from None
        reports.append(report)
    return {name: merged[tied.get(name, name)] for name in states[0]}, reports


def _merge_tensor(
    name: str,
    tensors: list[Tensor],
    labels: list[str],
    method: Method,
    settings: TensorSettings,
    generator: torch.Generator,
) -> tuple[Tensor, TensorReport]:
    norms = [norm(tensor) for tensor in tensors]
    for label, size in zip(labels, norms, strict=True):
        if not math.isfinite(size):
            raise MergeError(f"NaN or infinity in {label}; merge models with finite weights")
    has_base = labels[-1] == "base"
    parents = len(tensors) - has_base
    cos = cosine(tensors[0], tensors[1])
    used: str = method
    if not tensors[0].is_floating_point():
        result, used = tensors[0].clone(), "copied"
    elif method == "slerp":
        assert settings.t is not None
        result = slerp(tensors[0], tensors[1], settings.t, cos)
        used = "linear" if abs(cos) > PARALLEL else "slerp"
    else:
        result = _combine(tensors[:parents], tensors[-1] if has_base else None, method, settings, generator)
    size = norm(result)
    if not math.isfinite(size):
        raise MergeError(f"overflows {result.dtype} when merged; convert the models to float32")
    expected = sum(w * n for w, n in zip(_shares(method, settings, parents), norms[:parents], strict=True))
    ratio = size / expected if expected else (1.0 if not size else math.nan)
    return result, TensorReport(name, math.degrees(math.acos(cos)), cos, used, ratio, norms[0], norms[1])


def _combine(
    tensors: list[Tensor], base: Tensor | None, method: Method, settings: TensorSettings, generator: torch.Generator
) -> Tensor:
    t, weights, density, wish = settings
    if method == "linear":
        if weights is None:
            assert t is not None
            check_t(t)
            weights = (1 - t, t)
        return linear(tensors, weights, normalize=wish is not False)
    assert base is not None and weights is not None
    if method == "task_arithmetic":
        return task_arithmetic(base, tensors, weights, normalize=wish is True)
    if method == "ties":
        return ties(base, tensors, weights, density, normalize=wish is not False)
    return dare(base, tensors, weights, density, generator, method == "dare_ties", normalize=wish is True)


def _shares(method: Method, settings: TensorSettings, parents: int) -> list[float]:
    """Weights with which the parents' norms are averaged for the norm ratio."""
    if method == "slerp" or (method == "linear" and settings.weights is None):
        return [1 - (settings.t or 0.0), settings.t or 0.0]
    if method == "linear" and settings.weights is not None:
        total = sum(settings.weights) if settings.normalize is not False else 1.0
        return [weight / total for weight in settings.weights]
    return [1 / parents] * parents


def _seed_of(seed: int, name: str) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed} {name}".encode(), digest_size=7).digest())


def _tuple(values: Sequence[float] | None) -> tuple[float, ...] | None:
    return None if values is None else tuple(values)


def _check_settings(method: str, parents: int, settings: TensorSettings | None, base: object) -> None:
    """Whether the method exists and takes this many parents, this base and (unless tensors have their own) settings."""
    if method not in get_args(Method):
        raise MergeError(f"method={method!r} is unknown; choose one of {', '.join(get_args(Method))}")
    between = method in ("slerp", "linear")
    if parents < (2 if between else 1) or (method == "slerp" and parents > 2):
        wanted = "exactly two parents" if method == "slerp" else f"at least {2 if between else 1}"
        raise MergeError(f"{method} takes {wanted}, not {parents}; change the parents or the method")
    if between and base is not None:
        raise MergeError(f"{method} takes no base; leave base out or use a task-vector method")
    if not between and base is None:
        raise MergeError(f"{method} needs base, the model its parents descend from; give one")
    if settings is None:
        return
    t, weights, density, _ = settings
    if method == "slerp" and (t is None or weights is not None):
        raise MergeError("slerp takes t and no weights; give t between 0 (first parent) and 1 (second)")
    if method == "linear" and (t is None) == (weights is None):
        raise MergeError("linear takes either t or weights; give one of the two")
    if method == "linear" and t is not None and parents > 2:
        raise MergeError(f"linear with t takes exactly two parents, not {parents}; give weights, one a parent")
    if not between and (weights is None or t is not None):
        raise MergeError(f"{method} takes weights, one a parent, and no t; give weights")
    if t is not None:
        check_t(t)
    if weights is not None:
        check_weights(weights, parents)
    densities(density, parents)


def _check_states(states: Sequence[Mapping[str, Tensor]], labels: Sequence[str]) -> dict[str, str]:
    """Refuse state dicts that do not fit each other; returns each tied name with the name it is tied to."""
    first, tied = states[0], _ties(states[0])
    for state, label in zip(states[1:], labels[1:], strict=True):
        for here, there, owner, other in ((first, state, labels[0], label), (state, first, label, labels[0])):
            extra = sorted(set(here) - set(there))
            if extra:
                names = ", ".join(extra[:3]) + (f" and {len(extra) - 3} more" if len(extra) > 3 else "")
                raise MergeError(
                    f"{names} is in {owner} but not in {other}; merge models of one architecture "
                    "(both with tied embeddings or both without)"
                )
        for name in sorted(first):
            _check_pair(name, first[name], state[name], labels[0], label)
        theirs = _ties(state)
        for name in sorted(set(tied.items()) ^ set(theirs.items())):
            owner, other = (labels[0], label) if name[0] in tied else (label, labels[0])
            raise MergeError(
                f"{name[0]} shares its storage with {name[1]} in {owner} but not in {other}; tie both or untie both"
            )
    return tied


def _check_pair(name: str, a: Tensor, b: Tensor, label_a: str, label_b: str) -> None:
    if a.shape != b.shape:
        raise MergeError(
            f"{name} is {list(a.shape)} in {label_a} but {list(b.shape)} in {label_b}; "
            "merge models of one architecture and one vocabulary"
        )
    if a.is_floating_point() != b.is_floating_point():
        raise MergeError(f"{name} is {a.dtype} in {label_a} but {b.dtype} in {label_b}; convert one of the models")
    if not a.is_floating_point() and not torch.equal(a, b):
        raise MergeError(
            f"{name} holds {a.dtype} values that differ between {label_a} and {label_b}; "
            "such a buffer is copied, not merged: make them equal"
        )


def _ties(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Names of tensors that are the same memory as another, with the (alphabetically first) name of that one."""
    seen: dict[tuple, str] = {}
    tied = {}
    for name in sorted(state):
        tensor = state[name]
        if tensor.numel():
            key = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
            if seen.setdefault(key, name) != name:
                tied[name] = seen[key]
    return tied
