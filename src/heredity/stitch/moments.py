"""Means and covariances of aligned activations of two models: the only statistics that fits and similarities need.

Row t of both models' activations belongs to the same position of the text. Products of a chunk of rows are taken in
float32 about the chunk's own mean, and summed in float64 (Chan et al. 1983).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from torch import Tensor

ROWS = 4096  # rows multiplied at a time
ALL_LAYERS = 1 << 29  # bytes of moments up to which all layers of the source are compared, not the stitched one alone


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

    def save(self, path: Path) -> None:
        """Write one safetensors file of the fields, float64, `tokens` as int64 [1]."""
        arrays = {name: np.ascontiguousarray(part) for name, part in self._asdict().items() if name != "tokens"}
        save_file({**arrays, "tokens": np.array([self.tokens])}, path)

    @staticmethod
    def load(path: Path) -> Moments:
        """Read a file of `save`. Raises ValueError for a damaged or unrelated file."""
        try:
            arrays = load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged ({error}); make it again") from error
        if arrays.keys() != set(Moments._fields):
            raise ValueError(f"{path} holds {sorted(arrays)}, no moments; make it again")
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

        Products are taken in float32, or in float64 where the rows are, on the device of the rows. Raises ValueError
        when points, widths or numbers of rows do not fit, or a value is not finite.
        """
        points = [x if x.dtype == torch.float64 else x.float() for x in (*a, *b)]
        if not a or not b or len({len(x) for x in points}) != 1 or any(x.ndim != 2 for x in points):
            shapes = f"{[list(x.shape) for x in a]} and {[list(x.shape) for x in b]}"
            raise ValueError(f"activations are {shapes}; give [n, d] with the same rows at each point of both models")
        self._start(([x.shape[1] for x in a], [x.shape[1] for x in b]), a[0].device)
        for start in range(0, len(points[0]), ROWS):
            chunk = [x[start : start + ROWS] for x in points]
            means = [x.mean(0, dtype=torch.float64) for x in chunk]
            if not all(bool(torch.isfinite(mean).all()) for mean in means):
                raise ValueError("activations hold NaN or infinity; find the model or token that makes them")
            # The mean subtracted is rounded to the type of the rows; its effect on the products is of second order.
            x = [rows - mean.to(rows.dtype) for rows, mean in zip(chunk, means, strict=True)]
            self._take(len(x[0]), means, lambda p, q, x=x: x[p].T @ x[q].to(x[p].dtype))
        return self

    def merge(self, other: MomentStream) -> MomentStream:
        """Take in the tokens of another stream; returns itself. Raises ValueError when its points have other widths."""
        if other.tokens:
            self._start(other.widths, other._means[0].device)
            self._take(other.tokens, other._means, lambda p, q: other._sums[p, q])
        return self

    def pair(self, i: int, j: int) -> Moments:
        """Moments of point i of A with point j of B. Raises ValueError without tokens, IndexError for no such point."""
        if not self.tokens:
            raise ValueError("no activations were given; call add at least once")
        points_a = len(self.widths[0])
        p, q = range(points_a)[i], range(points_a, len(self._means))[j]
        means = (self._means[point].cpu().numpy().copy() for point in (p, q))
        sums = (self._sums[pair].cpu().numpy() / self.tokens for pair in ((p, p), (p, q), (q, q)))
        return Moments(self.tokens, *means, *sums)

    def _start(self, widths: tuple[list[int], list[int]], device: torch.device) -> None:
        """Create zeros for points of these widths, or check that the existing points have them."""
        if self._means and widths != self.widths:
            raise ValueError(f"points are {widths} wide after {self.widths}; use one stream for one list of points")
        if not self._means:
            self.widths, every = widths, [*widths[0], *widths[1]]
            of_a, of_b = range(len(widths[0])), range(len(widths[0]), len(every))
            zeros = partial(torch.zeros, dtype=torch.float64, device=device)
            self._means = [zeros(d) for d in every]
            pairs = [*((p, p) for p in (*of_a, *of_b)), *((p, q) for p in of_a for q in of_b)]
            self._sums = {(p, q): zeros(every[p], every[q]) for p, q in pairs}

    def _take(self, tokens: int, means: Sequence[Tensor], product: Callable[[int, int], Tensor]) -> None:
        """Add sums of other tokens about their own means (Chan et al. 1983), one product after the other."""
        total = self.tokens + tokens
        share = self.tokens * tokens / total
        shifts = [new.to(old.device) - old for old, new in zip(self._means, means, strict=True)]
        for (p, q), sums in self._sums.items():
            sums += product(p, q).to(sums) + torch.outer(shifts[p], shifts[q]) * share
        for mean, shift in zip(self._means, shifts, strict=True):
            mean += shift * (tokens / total)
        self.tokens = total


def nested_moments(
    pairs: Callable[[np.ndarray], Iterable[tuple[Sequence[Tensor], Sequence[Tensor]]]],
    blocks: np.ndarray,
    halvings: int = 5,
) -> list[Moments]:
    """Moments of the first 1/2^halvings, ..., quarter, half of the blocks and of all of them, from one pass.

    pairs: gives chunks of aligned activations of token blocks [n, context], one point per model.
    """
    stream, nested = MomentStream(), []
    cuts = sorted({len(blocks) >> step for step in range(1, halvings + 1)} - {0})
    for start, stop in zip([0, *cuts], [*cuts, len(blocks)], strict=True):
        for of_a, of_b in pairs(blocks[start:stop]):
            stream.add(of_a, of_b)
        nested.append(stream.pair(0, 0))
    return nested


def moment_flops(tokens: int, d_a: int, d_b: int) -> float:
    """Floating-point operations of the products of `Moments`, symmetric ones taken in full."""
    return 2.0 * tokens * (d_a**2 + d_a * d_b + d_b**2)


def all_layers(d_a: int, d_b: int, layers_a: int, layers_b: int) -> tuple[bool, int]:
    """Whether all layers of A, rather than its stitched one, are compared with B's; and the bytes of the moments."""
    every, one = (8 * (n * d_a**2 + layers_b * d_b**2 + n * d_a * layers_b * d_b) for n in (layers_a, 1))
    return (True, every) if every <= ALL_LAYERS else (False, one)


class Similarity(NamedTuple):
    """Likeness of every point of A with every point of B; float64 [points of A, points of B]; nan for constants."""

    svcca: np.ndarray  # mean canonical correlation of the leading principal components (Raghu et al. 2017)
    cka: np.ndarray  # linear CKA, ‖ab‖² / (‖aa‖ ‖bb‖) in Frobenius norms of covariances (Kornblith et al. 2019)
    tokens: int


def similarity(stream: MomentStream, kept: float = 0.99) -> Similarity:
    """SVCCA and CKA of all pairs of points, both in [0, 1], invariant to rotations and scaling of either side.

    kept: SVCCA keeps the fewest components of each side that hold this share of its variance, and averages over as many
    correlations as the side with fewer components has. With n tokens and k components in all, chance alone gives about
    sqrt(k / n). Raises ValueError without tokens.
    """
    if not stream.tokens:
        raise ValueError("no activations were given; add some before comparing layers")
    of_a, of_b = (range(len(side)) for side in stream.widths)
    left = [_whitener(stream.pair(i, 0).aa, kept) for i in of_a]
    right = [_whitener(stream.pair(0, j).bb, kept) for j in of_b]
    svcca, cka = np.full((2, len(of_a), len(of_b)), np.nan)
    for i in of_a:
        for j in of_b:
            _, _, _, aa, ab, bb = stream.pair(i, j)
            if left[i].shape[1] and right[j].shape[1]:
                correlations = np.linalg.svd(left[i].T @ ab @ right[j], compute_uv=False)
                svcca[i, j] = np.clip(correlations, 0, 1).mean()
            norms = np.linalg.norm(aa) * np.linalg.norm(bb)
            if norms > 0:
                cka[i, j] = np.sum(ab**2) / norms
    return Similarity(svcca, cka, stream.tokens)


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
