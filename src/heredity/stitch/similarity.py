"""How alike the layers of two models are, from moments: the choice of the layers that a stitch connects."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from heredity.stitch.moments import Moments, MomentStream

KEPT = 0.99
"""Share of the variance of each side that SVCCA keeps (Raghu et al. 2017, arXiv 1706.05806)."""


class Similarity(NamedTuple):
    """Of every point of A with every point of B."""

    svcca: np.ndarray
    """float64 [points of A, points of B]: see `svcca`."""
    cka: np.ndarray
    """float64 [points of A, points of B]: see `linear_cka`."""
    tokens: int
    """Rows behind it."""


def similarity(stream: MomentStream, kept: float = KEPT) -> Similarity:
    """Both similarities of all pairs of points. Raises ValueError without tokens, or for a share outside (0, 1]."""
    if not stream.tokens:
        raise ValueError("no activations were given; add some before comparing layers")
    of_a, of_b = (range(len(side)) for side in stream.widths)
    left = [_whitener(stream.pair(i, 0).aa, kept) for i in of_a]
    right = [_whitener(stream.pair(0, j).bb, kept) for j in of_b]
    found = np.empty((2, len(of_a), len(of_b)))
    for i in of_a:
        for j in of_b:
            pair = stream.pair(i, j)
            found[:, i, j] = _mean_correlation(left[i], pair.ab, right[j]), linear_cka(pair)
    return Similarity(found[0], found[1], stream.tokens)


def svcca(moments: Moments, kept: float = KEPT) -> float:
    """Mean canonical correlation between the leading principal components of both sides (Raghu et al. 2017).

    Each side keeps the fewest components that hold a share `kept` of its variance; the mean is over as many
    correlations as the smaller number of components. In [0, 1], the same under rotations and scaling of either side;
    nan where a side is constant. With n tokens and k components in all, chance alone gives about sqrt(k / n).
    Raises ValueError for a share outside (0, 1].
    """
    return _mean_correlation(_whitener(moments.aa, kept), moments.ab, _whitener(moments.bb, kept))


def linear_cka(moments: Moments) -> float:
    """‖ab‖² / (‖aa‖ ‖bb‖), Frobenius norms of covariances (Kornblith et al. 2019, arXiv 1905.00414).

    In [0, 1], the same under rotations and scaling of either side; nan where a side is constant.
    """
    norms = np.linalg.norm(moments.aa) * np.linalg.norm(moments.bb)
    return float(np.sum(moments.ab**2) / norms) if norms > 0 else float("nan")


def _whitener(square: np.ndarray, kept: float) -> np.ndarray:
    """Leading eigenvectors of a covariance [d, d] over the roots of their variances, [d, components]."""
    if not 0 < kept <= 1:
        raise ValueError(f"kept={kept} is no share of the variance; give a number above 0 and at most 1")
    values, vectors = np.linalg.eigh(square)
    values, vectors = values[::-1], vectors[:, ::-1]
    # What products in float32 cannot tell from nothing has no direction to correlate.
    values = np.where(values > len(values) * np.finfo(np.float32).eps * max(values[0], 0), values, 0)
    if not values[0] > 0:
        return vectors[:, :0]
    count = 1 + int(np.searchsorted(np.cumsum(values) / values.sum(), kept * (1 - 1e-12)))
    count = min(count, int((values > 0).sum()))
    return vectors[:, :count] / np.sqrt(values[:count])


def _mean_correlation(left: np.ndarray, ab: np.ndarray, right: np.ndarray) -> float:
    if not left.shape[1] or not right.shape[1]:
        return float("nan")
    return float(np.clip(np.linalg.svd(left.T @ ab @ right, compute_uv=False), 0, 1).mean())
