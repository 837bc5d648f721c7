"""`top_pearson` on a GPU, in plain torch.

The matrix of products exists for a tile of parent features at a time, in the device's memory. The pairs of entries of
each token are listed and their products scattered into it in float64: at L0 = 30 and 16,384 features that is one
multiplication where a product of dense matrices has 300,000.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from heredity.kernels.pearson import (
    BINS,
    THRESHOLDS,
    TopPearson,
    checked_range,
    empty_best,
    merged,
    stats_of,
    tiles,
    without_infinity,
)
from heredity.kernels.pearson_rows import Best, Stats
from heredity.kernels.sparse import Sparse, moments

DEVICE_MEMORY = 1 << 33
"""Bytes that a tile and what is needed around it may take on the device."""

_BYTES_A_PAIR = 80
"""Of a listed pair: positions of both entries, target and product, and what they are made with."""
_BYTES_AN_R = 48
"""Of an element of the rows that become r together: r, masks, bins, and a sort where there are ties."""


class _Side:
    """Rows of a sparse matrix, brought to the device a block of tokens at a time."""

    def __init__(self, matrix: Sparse, tokens: tuple[int, int], device: torch.device) -> None:
        start, stop = tokens
        own = slice(matrix.indptr[start], matrix.indptr[stop])
        # Copies: the arrays are read-only, which torch has no notion of.
        self.starts = torch.tensor(matrix.indptr[start : stop + 1] - matrix.indptr[start], device=device)
        self.columns = torch.tensor(matrix.indices[own], device=device)
        self.values = torch.tensor(matrix.values[own], device=device)
        self.lengths = self.starts.diff()

    def rows(self) -> Tensor:
        """The row of each entry, int64."""
        row = torch.arange(len(self.lengths), device=self.lengths.device)
        return torch.repeat_interleave(row, self.lengths, output_size=len(self.columns))


def _add_products(products: Tensor, parent: _Side, child: _Side, tile: tuple[int, int]) -> None:
    """products[p - start, c] += parent * child over all pairs of entries of one token with p in the tile."""
    start, stop = tile
    inside = ((parent.columns >= start) & (parent.columns < stop)).nonzero()[:, 0]
    row = parent.rows()[inside]
    partners = child.lengths[row]
    ends = partners.cumsum(0)
    pairs = int(ends[-1]) if len(ends) else 0
    entry = torch.repeat_interleave(torch.arange(len(row), device=row.device), partners, output_size=pairs)
    # The pairs of a parent entry are numbered through; the child's entries of its row are, too.
    other = torch.arange(pairs, device=row.device) + (child.starts[row] - ends + partners)[entry]
    entry = inside[entry]
    target = (parent.columns[entry] - start).long() * products.shape[1] + child.columns[other]
    products.view(-1).index_add_(0, target, parent.values[entry].double() * child.values[other])


def _to_r(products: Tensor, tokens: int, stats: Stats, child_stats: Stats) -> Tensor:
    """r [features, d_child] of rows of products, in place; -inf where a side is constant."""
    mean, scale, child_mean, child_scale = (torch.from_numpy(x).to(products.device) for x in (*stats, *child_stats))
    products -= tokens * (mean[:, None] * child_mean)
    products *= scale[:, None] * child_scale
    products.clamp_(-1.0, 1.0)
    return products.masked_fill_((scale[:, None] == 0) | (child_scale == 0), -torch.inf)


def _histogram(r: Tensor, bins: int) -> np.ndarray:
    """Pairs by floor((r + 1) * bins / 2), int64 [bins], without those at -inf."""
    if not bins:
        return np.zeros(0, np.int64)
    bin_of = ((r[r > -torch.inf] + 1.0) * (bins / 2)).long().clamp_(max=bins - 1)
    return torch.bincount(bin_of, minlength=bins).cpu().numpy()


def _best(r: Tensor, top: int, first: int = 0) -> Best:
    """The best of each row of r [features, partners], -inf for none; ties, whose order topk leaves open, sorted."""
    kept = min(top, r.shape[1])
    value, index = torch.topk(r, kept, dim=1)
    listed = value > -torch.inf
    tied = ((value[:, 1:] == value[:, :-1]) & listed[:, 1:]).any(1)
    tied |= listed[:, -1] & ((r >= value[:, -1:]).sum(1) > kept)
    if tied.any():
        ordered = torch.sort(r[tied], dim=1, descending=True, stable=True)
        value[tied], index[tied] = ordered.values[:, :kept], ordered.indices[:, :kept]
    best = empty_best(len(r), top)
    best.r[:, :kept] = value.cpu().numpy()
    best.match[:, :kept] = torch.where(listed, index + first, -1).cpu().numpy()
    return best


def top_pearson_torch(
    parent: Sparse,
    child: Sparse,
    top: int,
    device: str | torch.device,
    progress: Callable[[int, int], None] | None = None,
    *,
    memory: int = DEVICE_MEMORY,
    parent_range: tuple[int, int] | None = None,
    thresholds: Sequence[float] = THRESHOLDS,
    bins: int = BINS,
) -> TopPearson:
    """What `top_pearson` gives, computed on any torch device.

    Sums are float64, but a GPU adds in no fixed order: r agrees with `top_pearson` to 1e-12, and two partners whose r
    differ by less may change places. memory: bytes to take on the device, half for the products of a tile of parent
    features (one at least), half for a block of tokens (one at least) or of rows of r. progress: called with (parent
    features done, parent features to do), constant ones included.
    Raises `ValueError` for what `top_pearson` refuses.
    """
    start, stop = checked_range(parent, child, top, parent_range)
    device, tokens = torch.device(device), len(child.indptr) - 1
    stats, child_stats = stats_of(moments(parent), parent), stats_of(moments(child), child)
    sizes = np.diff(parent.indptr), np.diff(child.indptr)
    blocks = list(tiles(sizes[0] * sizes[1] + sizes[0] + sizes[1], memory // 2 // _BYTES_A_PAIR))
    best, child_best = empty_best(stop - start, top), empty_best(child.width, top)
    over, histogram = np.zeros(len(thresholds), np.int64), np.zeros(bins, np.int64)
    in_tile = max(1, memory // 2 // (8 * max(child.width, 1)))
    in_rows = max(1, memory // 2 // (_BYTES_AN_R * max(child.width, 1)))
    for a in range(start, stop, in_tile):
        b = min(a + in_tile, stop)
        products = torch.zeros(b - a, child.width, dtype=torch.float64, device=device)
        for block in blocks:
            _add_products(products, _Side(parent, block, device), _Side(child, block, device), (a, b))
        for first in range(a, b, in_rows):
            rows = slice(first, min(first + in_rows, b))
            own = Stats(stats.mean[rows], stats.scale[rows])
            r = _to_r(products[first - a : rows.stop - a], tokens, own, child_stats)
            found = _best(r, top)
            best.r[first - start : rows.stop - start] = found.r
            best.match[first - start : rows.stop - start] = found.match
            child_best = merged([child_best, _best(r.T.contiguous(), top, first)])
            over += [int((r > threshold).sum()) for threshold in thresholds]
            histogram += _histogram(r, bins)
        if progress is not None:
            progress(b - start, stop - start)
    counts = ((start, stop), tuple(thresholds), over, histogram)
    return TopPearson(best.match, without_infinity(best), child_best.match, without_infinity(child_best), *counts)
