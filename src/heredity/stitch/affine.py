"""Affine maps between the activations of two models, y = x weight + bias in rows, and the moments they rest on.

Means and covariances of aligned activations are the only statistics that fits, their quality and the similarity of
layers need: row t of both models' activations belongs to the same position of the text. Products of a chunk of rows are
taken in float32 about the chunk's own mean, and summed in float64 (Chan et al. 1983).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from scipy.special import entr
from torch import Tensor

from heredity.errors import reading

ROWS = 4096  # rows multiplied at a time
ALL_LAYERS = 1 << 29  # bytes of moments up to which all layers of the source are compared, not the stitched one alone

Pairs = Iterable[tuple[Sequence[Tensor], Sequence[Tensor]]]
"""Chunks of aligned activations: float rows [n, d] at each point of a model A, and at each point of a model B."""


class Affine(NamedTuple):
    """x [..., d_in] -> x weight + bias [..., d_out] (Chen et al. 2025, arXiv 2506.06609, eq. 1-2)."""

    weight: Tensor  # float32 [d_in, d_out]
    bias: Tensor  # float32 [d_out]

    def __call__(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias

    def then(self, after: Affine) -> Affine:
        """This map followed by another: x -> after(self(x))."""
        return Affine(self.weight @ after.weight, after(self.bias))

    def to(self, device: torch.device | str) -> Affine:
        """The same map on another device."""
        return Affine(self.weight.to(device), self.bias.to(device))

    @staticmethod
    def of(weight: np.ndarray, bias: np.ndarray) -> Affine:
        """From arrays [d_in, d_out] and [d_out], as float32. Raises ValueError for NaN or infinity."""
        if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
            raise ValueError("the map holds NaN or infinity; look for huge or constant activations, or raise ridge")
        return Affine(*(torch.from_numpy(np.array(part, np.float32)) for part in (weight, bias)))


class Stitch(NamedTuple):
    """Maps between a model A, the source, and a model B, the target."""

    up: Affine  # A -> B
    down: Affine  # B -> A

    def to(self, device: torch.device | str) -> Stitch:
        """The same maps on another device."""
        return Stitch(self.up.to(device), self.down.to(device))

    def save(self, folder: str | Path) -> None:
        """Write `up.safetensors` and `down.safetensors`, of `weight` and `bias` each, into a folder made if missing."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        for name, affine in self._asdict().items():
            arrays = {key: np.ascontiguousarray(part.detach().cpu()) for key, part in affine._asdict().items()}
            save_file(arrays, Path(folder) / f"{name}.safetensors")

    @staticmethod
    def load(folder: str | Path) -> Stitch:
        """Read a folder of `save`, to the CPU. Raises ValueError for missing, damaged, unrelated or unpaired files."""
        inner, maps = sorted(path.parent.name for path in Path(folder).glob("*/up.safetensors")), []
        for path in (Path(folder) / f"{name}.safetensors" for name in Stitch._fields):
            if not path.is_file():
                way_out = f"give one of its folders: {', '.join(inner)}" if inner else "give a folder of Stitch.save"
                raise ValueError(f"there is no map {path}; {way_out}")
            with reading(path, "it is damaged, or no affine map: make it again"):
                arrays = load_file(path)
                maps.append(Affine.of(arrays["weight"], arrays["bias"]))
        up, down = maps
        if up.weight.shape != down.weight.T.shape:
            shapes = f"{list(up.weight.shape)} and {list(down.weight.shape)}"
            raise ValueError(f"{folder}: up and down are {shapes}, which do not lead back; make them again")
        return Stitch(up, down)


class Moments(NamedTuple):
    """Of activations a [tokens, d_a] of one model and b [tokens, d_b] of another; all arrays float64."""

    tokens: int
    mean_a: np.ndarray  # [d_a]
    mean_b: np.ndarray  # [d_b]
    aa: np.ndarray  # [d_a, d_a]: mean of (a - mean_a)ᵀ (a - mean_a) over tokens
    ab: np.ndarray  # [d_a, d_b]: of (a - mean_a)ᵀ (b - mean_b)
    bb: np.ndarray  # [d_b, d_b]: of (b - mean_b)ᵀ (b - mean_b)

    def swapped(self) -> Moments:
        """Exchange the models."""
        return Moments(self.tokens, self.mean_b, self.mean_a, self.bb, self.ab.T, self.aa)

    def alone(self) -> Moments:
        """Of a with itself."""
        return self._replace(mean_b=self.mean_a, ab=self.aa, bb=self.aa)

    def save(self, path: Path) -> None:
        """Write one safetensors file of the fields, float64, `tokens` as int64 [1]."""
        save_file({name: np.ascontiguousarray(np.atleast_1d(part)) for name, part in self._asdict().items()}, path)

    @staticmethod
    def load(path: Path) -> Moments:
        """Read a file of `save`."""
        with reading(path, "make it again"):
            arrays = load_file(path)
            return Moments(int(arrays.pop("tokens")[0]), **arrays)


class MomentStream:
    """Moments of every point of model A with every point of model B from one pass, in memory of the result's size."""

    def __init__(self) -> None:
        self.tokens = 0
        self.widths: tuple[list[int], list[int]] = [], []  # of each point of A and of B
        self._means: list[Tensor] = []  # of the points of A, then of those of B
        self._sums: dict[tuple[int, int], Tensor] = {}  # of each point with itself, and of those of A with those of B

    def add(self, a: Sequence[Tensor], b: Sequence[Tensor]) -> MomentStream:
        """Take in aligned rows, one [n, d] per point of A and one per point of B; returns itself.

        Products are of the rows' type and on their device. Raises ValueError when points, widths or numbers of rows do
        not fit, or a value is not finite.
        """
        points = [x if x.dtype == torch.float64 else x.float() for x in (*a, *b)]
        if not a or not b or len({len(x) for x in points}) != 1 or any(x.ndim != 2 for x in points):
            shapes = f"{[list(x.shape) for x in a]} and {[list(x.shape) for x in b]}"
            raise ValueError(f"activations are {shapes}; give [n, d] with the same rows at each point of both models")
        widths = [x.shape[1] for x in a], [x.shape[1] for x in b]
        if not self._means:
            self.widths, of_a, of_b = widths, range(len(a)), range(len(a), len(points))
            self._means = [x.new_zeros(x.shape[1], dtype=torch.float64) for x in points]
            pairs = [*((p, p) for p in (*of_a, *of_b)), *((p, q) for p in of_a for q in of_b)]
            self._sums = {(p, q): torch.outer(self._means[p], self._means[q]) for p, q in pairs}
        elif widths != self.widths:
            raise ValueError(f"points are {widths} wide after {self.widths}; use one stream for one list of points")
        for start in range(0, len(points[0]), ROWS):
            chunk = [x[start : start + ROWS] for x in points]
            means = [x.mean(0, dtype=torch.float64) for x in chunk]
            if not all(bool(torch.isfinite(mean).all()) for mean in means):
                raise ValueError("activations hold NaN or infinity; find the model or token that makes them")
            # The mean subtracted is rounded to the type of the rows; its effect on the products is of second order.
            x = [rows - mean.to(rows.dtype) for rows, mean in zip(chunk, means, strict=True)]
            total = self.tokens + len(x[0])
            shifts = [new - old for old, new in zip(self._means, means, strict=True)]
            for (p, q), sums in self._sums.items():
                sums += (x[p].T @ x[q].to(x[p].dtype)).to(sums)
                sums += torch.outer(shifts[p], shifts[q]) * (self.tokens * len(x[0]) / total)
            for mean, shift in zip(self._means, shifts, strict=True):
                mean += shift * (len(x[0]) / total)
            self.tokens = total
        return self

    def extend(self, pairs: Pairs) -> MomentStream:
        """Take in chunks, as `add` does; returns itself."""
        for a, b in pairs:
            self.add(a, b)
        return self

    def pair(self, i: int = 0, j: int = 0) -> Moments:
        """Moments of point i of A with point j of B. Raises ValueError without tokens, IndexError for no such point."""
        if not self.tokens:
            raise ValueError("no activations were given; call add at least once")
        points_a = len(self.widths[0])
        p, q = range(points_a)[i], range(points_a, len(self._means))[j]
        means = (self._means[point].cpu().numpy().copy() for point in (p, q))
        sums = (self._sums[pair].cpu().numpy() / self.tokens for pair in ((p, p), (p, q), (q, q)))
        return Moments(self.tokens, *means, *sums)


def pooled(parts: Sequence[Moments]) -> Moments:
    """Moments of the tokens of all parts together (Chan et al. 1983)."""
    tokens = sum(part.tokens for part in parts)

    def mean(values: Iterable[np.ndarray]) -> Any:
        return sum(part.tokens / tokens * value for part, value in zip(parts, values, strict=True))

    a, b = mean(part.mean_a for part in parts), mean(part.mean_b for part in parts)
    aa = mean(part.aa + np.outer(part.mean_a - a, part.mean_a - a) for part in parts)
    ab = mean(part.ab + np.outer(part.mean_a - a, part.mean_b - b) for part in parts)
    bb = mean(part.bb + np.outer(part.mean_b - b, part.mean_b - b) for part in parts)
    return Moments(tokens, a, b, aa, ab, bb)


def nested_moments(pairs: Callable[[np.ndarray], Pairs], blocks: np.ndarray, halvings: int = 5) -> list[Moments]:
    """Moments of the first 1/2^halvings, ..., quarter, half of the blocks and of all of them, from one pass.

    pairs: gives chunks of aligned activations of token blocks [n, context], one point per model.
    """
    stream, cuts = MomentStream(), sorted({len(blocks) >> step for step in range(halvings + 1)} - {0})
    return [stream.extend(pairs(blocks[a:b])).pair() for a, b in zip([0, *cuts], cuts, strict=False)]


def moment_flops(tokens: int, d_a: int, d_b: int) -> float:
    """Floating-point operations of the products of `Moments`, symmetric ones taken in full."""
    return 2.0 * tokens * (d_a**2 + d_a * d_b + d_b**2)


def all_layers(d_a: int, d_b: int, layers_a: int, layers_b: int) -> tuple[bool, int]:
    """Whether all layers of A, rather than its stitched one, are compared with B's; and the bytes of the moments."""
    every, one = (8 * (n * d_a**2 + layers_b * d_b**2 + n * d_a * layers_b * d_b) for n in (layers_a, 1))
    return (True, every) if every <= ALL_LAYERS else (False, one)


def similarity(stream: MomentStream, kept: float = 0.99) -> tuple[np.ndarray, np.ndarray]:
    """Likeness of every point of A with every point of B, float64 [points of A, points of B]; nan for constants.

    SVCCA, the mean canonical correlation of the leading principal components (Raghu et al. 2017), and linear CKA,
    ‖ab‖² / (‖aa‖ ‖bb‖) in Frobenius norms of covariances (Kornblith et al. 2019): both in [0, 1], and invariant to
    rotations and scaling of either side. kept: SVCCA keeps the fewest components of each side that hold this share of
    its variance, and averages over as many correlations as the side with fewer has. With n tokens and k components in
    all, chance alone gives about sqrt(k / n). Raises ValueError without tokens.
    """
    if not stream.tokens:
        raise ValueError("no activations were given; add some before comparing layers")
    of_a, of_b = (range(len(side)) for side in stream.widths)
    left = [_whitener(stream.pair(i, 0).aa, kept) for i in of_a]
    right = [_whitener(stream.pair(0, j).bb, kept) for j in of_b]
    svcca, cka = np.full((2, len(of_a), len(of_b)), np.nan)
    for i in of_a:
        for j in of_b:
            svcca[i, j], cka[i, j] = _likeness(stream.pair(i, j), left[i], right[j])
    return svcca, cka


def likeness(moments: Moments, kept: float = 0.99) -> tuple[float, float]:
    """SVCCA and linear CKA of the two points of some moments (see `similarity`)."""
    return _likeness(moments, _whitener(moments.aa, kept), _whitener(moments.bb, kept))


def _likeness(moments: Moments, left: np.ndarray, right: np.ndarray) -> tuple[float, float]:
    svcca = cka = float("nan")
    if left.shape[1] and right.shape[1]:
        svcca = float(np.clip(np.linalg.svd(left.T @ moments.ab @ right, compute_uv=False), 0, 1).mean())
    norms = np.linalg.norm(moments.aa) * np.linalg.norm(moments.bb)
    return svcca, float(np.sum(moments.ab**2) / norms) if norms > 0 else cka


def _whitener(square: np.ndarray, kept: float) -> np.ndarray:
    """Leading eigenvectors of a covariance [d, d] over the roots of their variances, [d, components]."""
    values, vectors = np.linalg.eigh(square)
    values, vectors = values[::-1], vectors[:, ::-1]
    # Variance below the rounding of products in float32 has no direction to correlate.
    values = np.where(values > len(values) * np.finfo(np.float32).eps * max(values[0], 0), values, 0)
    if not values[0] > 0:
        return vectors[:, :0]
    count = 1 + int(np.searchsorted(np.cumsum(values) / values.sum(), kept * (1 - 1e-12)))
    count = min(count, int((values > 0).sum()))
    return vectors[:, :count] / np.sqrt(values[:count])


class MapQuality(NamedTuple):
    """How well a map predicts y from x."""

    r2: float  # 1 - Σ ‖y - ŷ‖² / Σ ‖y - mean y‖², pooled over dimensions and tokens; nan where y is constant
    r2_by_dim: np.ndarray  # float64 [d_out]: the same of each dimension; nan for a constant one
    mse: float  # mean squared error over tokens and elements, in the units of y


class StitchQuality(NamedTuple):
    """Figures of both maps and both round trips."""

    up: MapQuality  # b from up(a)
    down: MapQuality  # a from down(b)
    there_and_back: MapQuality  # a from down(up(a)): through the target
    back_and_there: MapQuality  # b from up(down(b)): through the source
    loss: float  # joint loss: MSE of both maps plus alpha times that of both round trips (Chen et al. 2025, eq. 3)
    condition: tuple[float, float]  # of up and down: largest over least singular value; inf where a direction is lost
    effective_rank: tuple[float, float]
    """Of up and down: exp of the entropy of the singular values as shares of their sum (Roy & Vetterli 2007)."""
    tokens: int  # tokens behind the moments


def stitch_quality(
    stitch: Stitch, moments: Moments, alpha: float = 1.0, units: tuple[float, float] = (1.0, 1.0)
) -> StitchQuality:
    """Quality on the tokens of some moments; equal, up to rounding, to an evaluation token by token.

    units: of squared errors in A and in B, in the joint loss.
    """
    up, down = (Affine(*(part.double().cpu() for part in each)) for each in stitch)
    back = moments.swapped()
    ways = (up, moments), (down, back), (up.then(down), moments.alone()), (down.then(up), back.alone())
    there, here, round_a, round_b = (map_quality(*way) for way in ways)
    loss = (there.mse + alpha * round_b.mse) / units[1] + (here.mse + alpha * round_a.mse) / units[0]
    u, d = (np.linalg.svd(part.weight.numpy(), compute_uv=False) for part in (up, down))
    conditions = [float(values[0] / values[-1]) if values[-1] > 0 else float("inf") for values in (u, d)]
    ranks = [float(np.exp(entr(v / max(v.sum(), np.finfo(float).tiny)).sum())) for v in (u, d)]
    return StitchQuality(
        there, here, round_a, round_b, loss, (conditions[0], conditions[1]), (ranks[0], ranks[1]), moments.tokens
    )


def map_quality(to: Affine, moments: Moments) -> MapQuality:
    """Quality of a map from a to b [d_a, d_b] on the tokens of some moments."""
    weight, bias = (part.double().cpu().numpy() for part in to)
    spread = np.diag(moments.bb)
    off = moments.mean_b - moments.mean_a @ weight - bias
    error = spread - 2 * np.sum(weight * moments.ab, 0) + np.sum(weight * (moments.aa @ weight), 0)
    error = np.maximum(error, 0) + off**2  # rounding may take the error of an exact map below 0
    by_dim, total = 1 - error / np.where(spread > 0, spread, np.nan), float(spread.sum())
    return MapQuality(1 - float(error.sum()) / total if total > 0 else float("nan"), by_dim, float(error.mean()))
