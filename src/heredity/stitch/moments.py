"""Means and covariances of aligned activations of two models: the only statistics that fits and similarities need.

Row t of both models' activations belongs to the same position of the text. Products of a chunk of rows are taken in
float32 about the chunk's own mean, and summed in float64 (Chan et al. 1983).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from torch import Tensor

ROWS = 4096
"""Rows multiplied at a time."""
ALL_LAYERS = 1 << 29
"""Bytes of moments up to which all layers of the source are compared, not the stitched one alone."""
KEPT = 0.99
"""Share of the variance of each side that SVCCA keeps (Raghu et al. 2017, arXiv 1706.05806)."""


class Moments(NamedTuple):
    """Of activations a [tokens, d_a] of one model and b [tokens, d_b] of another; all arrays float64."""

    tokens: int
    """Rows seen."""
    mean_a: np.ndarray
    """[d_a]."""
    mean_b: np.ndarray
    """[d_b]."""
    aa: np.ndarray
    """[d_a, d_a]: mean of (a - mean_a)ᵀ (a - mean_a) over tokens."""
    ab: np.ndarray
    """[d_a, d_b]: of (a - mean_a)ᵀ (b - mean_b)."""
    bb: np.ndarray
    """[d_b, d_b]: of (b - mean_b)ᵀ (b - mean_b)."""

    def swapped(self) -> Moments:
        """The same with the models exchanged."""
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
    """Moments of every point of model A with every point of model B from one pass, in memory of the result's size.

    One pass over several points of each model, such as its layers, serves both the choice of the layers and the fit
    between any two of them.
    """

    def __init__(self) -> None:
        """Start with no tokens."""
        self.tokens = 0
        self._means: list[list[Tensor]] = [[], []]
        self._own: list[list[Tensor]] = [[], []]
        self._cross: list[list[Tensor]] = []

    @property
    def widths(self) -> tuple[list[int], list[int]]:
        """Width of each point of A and of B; empty before the first rows."""
        of_a, of_b = ([len(mean) for mean in side] for side in self._means)
        return of_a, of_b

    def add(self, a: Sequence[Tensor], b: Sequence[Tensor]) -> MomentStream:
        """Take in aligned rows, one [n, d] per point of A and one per point of B; returns itself.

        Products are taken in float32, or in float64 where the rows are, on the device of the rows. Raises ValueError
        when points, widths or numbers of rows do not fit, or a value is not finite.
        """
        widths = [x.shape[-1] for x in a], [x.shape[-1] for x in b]
        rows = {len(x) for x in (*a, *b)}
        if not a or not b or len(rows) != 1 or any(x.ndim != 2 for x in (*a, *b)):
            shapes = f"{[list(x.shape) for x in a]} and {[list(x.shape) for x in b]}"
            raise ValueError(f"activations are {shapes}; give [n, d] with the same rows at each point of both models")
        self._start(widths, a[0].device)
        parts = [[x if x.dtype == torch.float64 else x.float() for x in side] for side in (a, b)]
        for start in range(0, rows.pop(), ROWS):
            self._add([[x[start : start + ROWS] for x in side] for side in parts])
        return self

    def merge(self, other: MomentStream) -> MomentStream:
        """Take in the tokens of another stream; returns itself. Raises ValueError when its points have other widths."""
        if other.tokens:
            self._start(other.widths, other._means[0][0].device)
            self._take(other.tokens, other._means, lambda side, i: other._own[side][i], lambda i, j: other._cross[i][j])
        return self

    def pair(self, i: int, j: int) -> Moments:
        """Moments of point i of A with point j of B. Raises ValueError without tokens, IndexError for no such point."""
        if not self.tokens:
            raise ValueError("no activations were given; call add at least once")
        sums = (part.cpu().numpy() / self.tokens for part in (self._own[0][i], self._cross[i][j], self._own[1][j]))
        return Moments(self.tokens, self._means[0][i].cpu().numpy(), self._means[1][j].cpu().numpy(), *sums)

    def _start(self, widths: tuple[list[int], list[int]], device: torch.device) -> None:
        """Create zeros for points of these widths, or check that the existing points have them."""
        if not self._cross:

            def zeros(*shape: int) -> Tensor:
                return torch.zeros(shape, dtype=torch.float64, device=device)

            self._means = [[zeros(d) for d in side] for side in widths]
            self._own = [[zeros(d, d) for d in side] for side in widths]
            self._cross = [[zeros(d, e) for e in widths[1]] for d in widths[0]]
        elif widths != self.widths:
            raise ValueError(f"points are {widths} wide after {self.widths}; use one stream for one list of points")

    def _add(self, parts: list[list[Tensor]]) -> None:
        means = [[x.mean(0, dtype=torch.float64) for x in side] for side in parts]
        if not all(bool(torch.isfinite(mean).all()) for side in means for mean in side):
            raise ValueError("activations hold NaN or infinity; find the model or token that makes them")
        # The mean subtracted is rounded to the type of the rows; its effect on the products is of second order.
        a, b = sides = [
            [x - mean.to(x.dtype) for x, mean in zip(*pair, strict=True)] for pair in zip(parts, means, strict=True)
        ]
        self._take(
            len(a[0]),
            means,
            lambda side, i: sides[side][i].T @ sides[side][i],
            lambda i, j: a[i].T @ b[j].to(a[i].dtype),
        )

    def _take(
        self,
        tokens: int,
        means: Sequence[Sequence[Tensor]],
        own: Callable[[int, int], Tensor],
        cross: Callable[[int, int], Tensor],
    ) -> None:
        """Add sums of other tokens about their own means (Chan et al. 1983), one product after the other."""
        total = self.tokens + tokens
        share = self.tokens * tokens / total
        shifts = [
            [new.to(old.device) - old for old, new in zip(*sides, strict=True)]
            for sides in zip(self._means, means, strict=True)
        ]
        for side, shift in enumerate(shifts):
            for i, moved in enumerate(shift):
                self._own[side][i] += own(side, i).to(moved) + torch.outer(moved, moved) * share
        for i, moved in enumerate(shifts[0]):
            for j, moved_b in enumerate(shifts[1]):
                self._cross[i][j] += cross(i, j).to(moved) + torch.outer(moved, moved_b) * share
        for mine, shift in zip(self._means, shifts, strict=True):
            for mean, moved in zip(mine, shift, strict=True):
                mean += moved * (tokens / total)
        self.tokens = total


def nested_moments(
    pairs: Callable[[np.ndarray], Iterable[tuple[Sequence[Tensor], Sequence[Tensor]]]],
    blocks: np.ndarray,
    halvings: int = 5,
) -> list[Moments]:
    """Moments of the first 1/2^halvings, ..., quarter, half of the blocks and of all of them, from one pass.

    pairs: gives chunks of aligned activations of token blocks [n, context], one point per model (see `aligned`).
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

    def size(widths_a: list[int], widths_b: list[int]) -> int:
        """Bytes that a `MomentStream` of points of these widths keeps, means left out."""
        return 8 * (sum(d * d for d in (*widths_a, *widths_b)) + sum(widths_a) * sum(widths_b))

    needed = size([d_a] * layers_a, [d_b] * layers_b)
    return (True, needed) if needed <= ALL_LAYERS else (False, size([d_a], [d_b] * layers_b))


class Similarity(NamedTuple):
    """Likeness of every point of A with every point of B; nan where a side is constant."""

    svcca: np.ndarray
    """float64 [points of A, points of B], in [0, 1]: mean canonical correlation between the leading principal
    components of both sides (Raghu et al. 2017), over as many correlations as the side with fewer components has."""
    cka: np.ndarray
    """float64 [points of A, points of B], in [0, 1]: linear CKA, ‖ab‖² / (‖aa‖ ‖bb‖) in Frobenius norms of covariances
    (Kornblith et al. 2019, arXiv 1905.00414)."""
    tokens: int
    """Rows compared."""


def similarity(stream: MomentStream, kept: float = KEPT) -> Similarity:
    """SVCCA and CKA of all pairs of points, both invariant to rotations and scaling of either side.

    kept: SVCCA keeps the fewest components of each side that hold this share of its variance. With n tokens and k
    components in all, chance alone gives about sqrt(k / n). Raises ValueError without tokens, or for a share outside
    (0, 1].
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
    if not 0 < kept <= 1:
        raise ValueError(f"kept={kept} is no share of the variance; give a number above 0 and at most 1")
    values, vectors = np.linalg.eigh(square)
    values, vectors = values[::-1], vectors[:, ::-1]
    # Variance below the rounding of products in float32 has no direction to correlate.
    values = np.where(values > len(values) * np.finfo(np.float32).eps * max(values[0], 0), values, 0)
    if not values[0] > 0:
        return vectors[:, :0]
    count = 1 + int(np.searchsorted(np.cumsum(values) / values.sum(), kept * (1 - 1e-12)))
    count = min(count, int((values > 0).sum()))
    return vectors[:, :count] / np.sqrt(values[:count])
