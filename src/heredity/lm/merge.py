"""Our own merges: slerp, linear, task arithmetic and TIES, of state dicts or of tensors in files, a stretch at a time.

`t` always runs from the first parent (t = 0) to the second (t = 1). Where the papers leave room, the choices are those
of mergekit 0.1.5; each function states them, and a test compares the weights tensor by tensor. Every other method is
mergekit's: `heredity.lm.recipe`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import reduce
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from heredity.lm.weights import STRETCH, FileTensor, same, stretch

Method = Literal["slerp", "linear", "task_arithmetic", "ties"]

_TAKES = {
    "slerp": "exactly two parents and t, between 0 (first parent) and 1 (second), and neither weights nor base",
    "linear": "either exactly two parents and t, or at least two and one weight per parent, and no base",
    "task_arithmetic": "one weight per parent, no t, and a base, the model that its parents descend from",
    "ties": "one weight per parent, no t, and a base, the model that its parents descend from",
}
PARALLEL = 0.9995  # |cos| of two tensors above which slerp interpolates linearly (about 1.81 degrees)
_NO_DIRECTION = 1e-8  # norm up to which a tensor counts as zero


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


class Mixing(NamedTuple):
    """How tensors are combined; the arguments of `merge_states`."""

    method: Method
    parents: int
    t: float | None = None
    weights: Sequence[float] | None = None
    density: float | Sequence[float] = 0.5
    normalize: bool | None = None

    @property
    def mix(self) -> tuple[float, ...]:
        """One weight per parent."""
        return (1 - self.t, self.t) if self.t is not None else tuple(self.weights or ())

    @property
    def shares(self) -> list[float]:
        """Weights with which the parents' norms are averaged."""
        if self.method not in ("slerp", "linear"):
            return [1 / self.parents] * self.parents
        total = sum(self.mix) if self.t is None and self.normalize is not False else 1.0
        return [weight / total for weight in self.mix] if total else [math.nan] * len(self.mix)


class Rows(NamedTuple):
    """A tensor of which not all models have all rows, as of vocabularies with added or padded tokens. In elements."""

    counts: Sequence[int]  # how many of the first elements of each model's tensor mean something
    size: int  # elements of the child's tensor
    filler: int  # the model that gives those that none of them has: padding


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
    mixing = Mixing(method, len(states), t, weights, density, normalize)
    check_arguments(mixing, base is not None)
    everyone = {f"parent {i}": state for i, state in enumerate(states, start=1)}
    everyone |= {"base": base} if base is not None else {}
    tied = check_states(everyone)
    merged: dict[str, Tensor] = {}
    reports = []
    for name in sorted(set(states[0]) - set(tied)):
        pieces: list[Tensor] = []
        reports.append(
            merge_tensor(name, {label: state[name] for label, state in everyone.items()}, mixing, pieces.append)
        )
        like = states[0][name]
        merged[name] = torch.cat(pieces).reshape(like.shape) if pieces else torch.empty_like(like)
    return {name: merged[tied.get(name, name)] for name in states[0]}, reports


def merge_tensor(
    name: str,
    tensors: Mapping[str, Tensor | FileTensor],
    mixing: Mixing,
    put: Callable[[Tensor], object],
    rows: Rows | None = None,
) -> TensorReport:
    """Merge one tensor of all models, a stretch at a time; `put` takes the child's, flat and in order.

    tensors: the parents' and then the base's, by the labels that messages use, of one shape unless `rows` says what
    each has. A row that only some have is the linear mean of those parents' (with the weights of the merge), or else
    the base's; angle and norms are those of the rows that all have. Errors as in `merge_states`.
    """
    everyone = list(tensors.values())
    rows = rows or Rows([everyone[0].numel()] * len(everyone), everyone[0].numel(), 0)
    shared, parents = min(rows.counts), everyone[: mixing.parents]
    with _naming(name):
        norms, cos = _geometry(everyone, shared)
        for label, norm in zip(tensors, norms, strict=True):
            if not math.isfinite(norm):
                raise MergeError(f"NaN or infinity in {label}; merge models with finite weights")
        used = str(mixing.method)
        if not everyone[0].is_floating_point():
            used = "copied"
        elif used == "slerp" and abs(cos) > PARALLEL:
            used = "linear"
        total = 0.0
        for piece in _merged(everyone, mixing, cos, shared, used):
            total += float(torch.dot(piece.double(), piece.double()))
            put(piece)
        if not math.isfinite(total):
            raise MergeError(f"overflows {everyone[0].dtype} when merged; convert the models to float32")
        ends = sorted({shared, *(min(count, rows.size) for count in rows.counts)})
        for first, last in pairwise(ends):
            having = [i for i, count in enumerate(rows.counts) if count >= last]
            some = [i for i in having if i < len(parents) and mixing.mix[i]] or having[:1]
            weights = [mixing.mix[i] if i < len(parents) and mixing.mix[i] else 1.0 for i in some]
            for start, end in _stretches(first, last):
                put(linear([stretch(everyone[i], start, end) for i in some], weights).to(everyone[0].dtype))
        for start, end in _stretches(ends[-1], rows.size):
            put(stretch(everyone[rows.filler], start, end).to(everyone[0].dtype))
    return _report(name, math.sqrt(total), norms, cos, used, mixing.shares)


def _merged(
    everyone: Sequence[Tensor | FileTensor], mixing: Mixing, cos: float, size: int, used: str
) -> Iterator[Tensor]:
    """The first `size` elements of the child, flat, in stretches."""
    options: dict[str, Any] = {} if mixing.normalize is None else {"normalize": mixing.normalize}
    trims = []
    if mixing.method == "ties" and used != "copied":
        densities = _densities(mixing.density, mixing.parents)
        pairs = zip(everyone[: mixing.parents], densities, strict=True)
        trims = [_Trim(everyone[-1], parent, size, density) for parent, density in pairs]
    for start, end in _stretches(0, size):
        pieces = [stretch(one, start, end) for one in everyone]
        parents, base = pieces[: mixing.parents], pieces[-1]
        if used == "copied":
            yield pieces[0].clone()
        elif mixing.method == "slerp":
            yield slerp(parents[0], parents[1], mixing.mix[1], cos)
        elif mixing.method == "linear":
            yield linear(parents, mixing.mix, **options)
        elif mixing.method == "task_arithmetic":
            yield task_arithmetic(base, parents, mixing.mix, **options)
        else:
            yield _ties(base, parents, mixing.mix, trims, **options)


def compare_states(
    merged: Mapping[str, Tensor | FileTensor],
    states: Sequence[Mapping[str, Tensor | FileTensor]],
    method: str,
    base: Mapping[str, Tensor | FileTensor] | None = None,
) -> list[TensorReport]:
    """Reports on a child merged elsewhere, one per distinct tensor that has one shape in the child and all models.

    Empty unless there are two models to compare, the base counted. Raises `MergeError` for weights that are not finite.
    """
    everyone = [*states, base] if base is not None else list(states)
    shares, reports = [1 / max(1, len(states))] * len(states), []
    for name in sorted(set(merged) - set(_shared(merged))):
        tensors = [state[name] for state in everyone if name in state and state[name].shape == merged[name].shape]
        if len(tensors) == len(everyone) > 1:
            with _naming(name):
                norms, cos = _geometry(tensors)
                (size, *_), _ = _geometry([merged[name]])
                for place, norm in enumerate(norms, start=1):
                    if not math.isfinite(norm):
                        raise MergeError(f"NaN or infinity in model {place}; merge models with finite weights")
                if not math.isfinite(size):
                    raise MergeError(f"overflows {merged[name].dtype} when merged; convert the models to float32")
            reports.append(_report(name, size, norms, cos, method, shares))
    return reports


def cosine(a: Tensor, b: Tensor) -> float:
    """Cosine of the angle between two tensors of one shape, flattened; sums in float64.

    A zero tensor has no direction: its cosine with anything else is 0 (as in mergekit), with another zero 1.
    """
    return _geometry([a, b])[1]


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
    _check_tensors([base, *tensors])
    densities = zip(tensors, _densities(density, len(tensors)), strict=True)
    trims = [_Trim(base, tensor, base.numel(), share) for tensor, share in densities]
    return _ties(base, tensors, weights, trims, normalize=normalize)


def _ties(
    base: Tensor, tensors: Sequence[Tensor], weights: Sequence[float], trims: Sequence[_Trim], *, normalize: bool = True
) -> Tensor:
    """`ties` of one stretch, the densities' cuts found already; stretches must come in order."""
    _check_weights(weights, len(tensors), divide=False)
    weighted = _task_vectors(base, tensors, weights, trims)
    elected = torch.where(weighted.sum(0) >= 0, 1.0, -1.0)
    agree = (weighted.sign() == elected).to(weighted.dtype)
    total = (weighted * agree).sum(0)
    if normalize:
        divisor = torch.tensordot(agree.new_tensor(weights), agree, dims=1)
        total = total / torch.where(divisor == 0, 1.0, divisor)
    return (base.to(total.dtype) + total).to(base.dtype)


def _task_vectors(
    base: Tensor, tensors: Sequence[Tensor], weights: Sequence[float], trims: Sequence[_Trim] = ()
) -> Tensor:
    """wᵢ (xᵢ − base), each trimmed first, [tensors, *shape]."""
    _check_tensors([base, *tensors])
    vectors = [_difference(base, tensor) for tensor in tensors]
    for vector, trim in zip(vectors, trims, strict=bool(trims)):
        trim.apply(vector.view(-1))
    return torch.stack([vector * weight for vector, weight in zip(vectors, weights, strict=True)])


def _difference(base: Tensor, tensor: Tensor) -> Tensor:
    return (tensor.to(_working(base)) - base.to(_working(base))).contiguous()


class _Trim:
    """Keeps the largest elements of one task vector: the cut is found over the whole of it, and applied in stretches.

    Magnitudes are ordered as the bits of floating-point numbers are, so that counts of 16 bits at a time find the cut
    without a copy of the vector.
    """

    def __init__(self, base: Tensor | FileTensor, tensor: Tensor | FileTensor, size: int, density: float) -> None:
        keep = max(1, int(density * size))
        self._cut, self._left = -1, 0  # the least magnitude that is kept, as bits; how many equal to it are
        if density >= 1 or not size:
            return
        above, cut, bits = 0, 0, 64 if _working(base) == torch.float64 else 32
        for shift in range(bits - 16, -1, -16):
            counts = torch.zeros(1 << 16, dtype=torch.int64)
            for start, end in _stretches(0, size):
                magnitudes = _bits(_difference(stretch(base, start, end), stretch(tensor, start, end)))
                if shift < bits - 16:
                    magnitudes = magnitudes[magnitudes >> (shift + 16) == cut]
                counts += torch.bincount((magnitudes >> shift) & 0xFFFF, minlength=1 << 16)
            from_top = counts.flip(0).cumsum(0)
            place = int((from_top < keep - above).sum())
            above += int(from_top[place - 1]) if place else 0
            cut = cut << 16 | (0xFFFF - place)
        self._cut, self._left = cut, keep - above

    def apply(self, vector: Tensor) -> None:
        """Set to zero, in place, what is not kept of the next stretch of the vector."""
        if self._cut < 0:
            return
        magnitudes = _bits(vector)
        equal = magnitudes == self._cut
        vector[(magnitudes < self._cut) | (equal & (equal.cumsum(0) > self._left))] = 0
        self._left = max(0, self._left - int(equal.sum()))


def _bits(vector: Tensor) -> Tensor:
    """Magnitudes as integers of the same order, flat."""
    return vector.reshape(-1).abs().view(torch.int64 if vector.dtype == torch.float64 else torch.int32)


@contextmanager
def _naming(tensor: str) -> Iterator[None]:
    try:
        yield
    except MergeError as error:
        raise MergeError(f"{tensor}: {error}") from None


def _working(tensor: Tensor | FileTensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _stretches(first: int, last: int) -> Iterator[tuple[int, int]]:
    return ((start, min(start + STRETCH, last)) for start in range(first, last, STRETCH))


def _geometry(tensors: Sequence[Tensor | FileTensor], size: int | None = None) -> tuple[list[float], float]:
    """Norms of the tensors, and the cosine of the first two, over their first `size` elements; by default all."""
    squares, inner = [0.0] * len(tensors), 0.0
    for start, end in _stretches(0, tensors[0].numel() if size is None else size):
        pieces = [stretch(tensor, start, end).double() for tensor in tensors]
        squares = [square + float(torch.dot(piece, piece)) for square, piece in zip(squares, pieces, strict=True)]
        inner += float(torch.dot(*pieces[:2])) if len(pieces) > 1 else 0.0
    norms = [math.sqrt(square) for square in squares]
    a, b = norms[0], norms[min(1, len(norms) - 1)]
    if min(a, b) <= _NO_DIRECTION:
        return norms, 1.0 if max(a, b) <= _NO_DIRECTION else 0.0
    return norms, min(1.0, max(-1.0, inner / a / b))


def _report(
    name: str, size: float, norms: Sequence[float], cos: float, method: str, shares: Sequence[float]
) -> TensorReport:
    """`norms` are the parents', then the base's; `shares` the weights with which the parents' are averaged."""
    expected = sum(share * parent for share, parent in zip(shares, norms, strict=False))
    ratio = size / expected if expected else (1.0 if not size else math.nan)
    return TensorReport(name, math.degrees(math.acos(cos)), cos, method, ratio, norms[0], norms[1])


def check_arguments(mixing: Mixing, has_base: bool) -> None:
    """Raise `MergeError` for arguments that the method does not take."""
    method, parents, t, weights, *_ = mixing
    if method not in _TAKES:
        raise MergeError(f"method={method!r} is unknown; choose one of {', '.join(_TAKES)}, or merge with mergekit")
    between = parents == 2 and t is not None and weights is None
    weighted = parents > 0 and t is None and weights is not None
    if method in ("slerp", "linear"):
        fits = not has_base and (between or (method == "linear" and weighted and parents > 1))
    else:
        fits = has_base and weighted
    if not fits:
        given = f"{parents} parents, t={t}, weights={weights} and {'a' if has_base else 'no'} base"
        raise MergeError(f"{method} takes {_TAKES[method]}; given are {given}")
    if weights is not None:
        _check_weights(weights, parents, method == "linear" and mixing.normalize is not False)
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


def check_states(
    everyone: Mapping[str, Mapping[str, Tensor | FileTensor]], rows: Collection[str] = ()
) -> dict[str, str]:
    """Refuse state dicts that do not fit each other; return each tied name with the name it is tied to.

    rows: names of tensors that may have more rows in one than in another.
    """
    (here, first), *others = everyone.items()
    tied = _shared(first)
    for there, state in others:
        for name in sorted(first.keys() ^ state.keys()):
            pair = (here, there) if name in first else (there, here)
            raise MergeError(
                f"{name} is in {' but not in '.join(pair)}; merge models of one architecture (both with tied "
                "embeddings or both without)"
            )
        for name in sorted(first):
            a, b = first[name], state[name]
            if a.shape[name in rows :] != b.shape[name in rows :]:
                shapes = f"{list(a.shape)} in {here} but {list(b.shape)} in {there}"
                raise MergeError(f"{name} is {shapes}; merge models of one architecture and one vocabulary")
            if a.is_floating_point() != b.is_floating_point():
                raise MergeError(f"{name} is {a.dtype} in {here} but {b.dtype} in {there}; convert one of the models")
            if not a.is_floating_point() and not same(a, b):
                raise MergeError(
                    f"{name} holds {a.dtype} values that differ between {here} and {there}; such a buffer is copied, "
                    "not merged: make them equal"
                )
        for name, other in sorted(set(tied.items()) ^ set(_shared(state).items())):
            pair = (here, there) if name in tied else (there, here)
            raise MergeError(
                f"{name} shares its storage with {other} in {' but not in '.join(pair)}; tie both or untie both"
            )
    return tied


def _shared(state: Mapping[str, Tensor | FileTensor]) -> dict[str, str]:
    """Names of tensors that share their memory with another, each with the alphabetically first name of that one."""
    seen: dict[tuple, str] = {}
    tied = {}
    for name in sorted(state):
        tensor = state[name]
        if isinstance(tensor, FileTensor):
            continue
        key = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if tensor.numel() and seen.setdefault(key, name) != name:
            tied[name] = seen[key]
    return tied
