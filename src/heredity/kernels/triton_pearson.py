"""Matching on a GPU in Triton: the products of a tile of parent features, and what becomes of them.

A program takes a few entries of the parent, sorted by feature, and adds value x the child's entries of the same token
to the feature's row, in float64 and atomically: neighbors write to one row, which stays in the cache. A second kernel
turns a row into r and counts it. The sums come in no fixed order: r agrees with `pearson` to about 1e-15.
"""

# pyright: reportMissingImports=false
# Triton is not a dependency: see `torch_forms.has_triton`.

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from heredity.kernels.sparse import Sparse
from heredity.kernels.torch_forms import Counts, PairForm, Scales, device_rows
from heredity.kernels.triton_forms import kernel

ENTRIES, PARTNERS = 16, 32  # of a tile of products: entries of the parent, and of the child at each one's token
COLUMNS = 1024  # of a row that become r together
_BYTES_PER_ENTRY = 40  # of a block: positions, values, keys and their sort
_LARGEST_GRID = 1 << 30


class Block(NamedTuple):
    """Both ends on a range of tokens, on the device."""

    starts: np.ndarray  # int64 [d_parent + 1]: where the entries of each parent feature start
    tokens: Tensor  # int32 [nnz]: of the parent's entries, by feature
    features: Tensor  # int32 [nnz]
    values: Tensor  # float32 [nnz]
    child: list[Tensor]  # starts, features and values of the child's entries, by token


def block(parent: Sparse, child: Sparse, tokens: tuple[int, int], device: torch.device) -> Block:
    """The entries of tokens first to last, the parent's sorted by feature."""
    starts, features, values = device_rows(parent, tokens, device)
    rows = torch.arange(len(starts) - 1, dtype=torch.int32, device=device)
    row = torch.repeat_interleave(rows, starts.diff(), output_size=len(features))
    sorted_features, order = torch.sort(features, stable=True)
    counts = torch.bincount(features, minlength=parent.width).cpu().numpy()
    return Block(
        np.concatenate([[0], np.cumsum(counts)]), row[order], sorted_features, values[order],
        device_rows(child, tokens, device)
    )  # fmt: skip


def add_products(products: Tensor, entries: Block, start: int, stop: int) -> None:
    """products[p - start, c] += parent x child over all pairs of entries of one token with p from start to stop."""
    begin, end = int(entries.starts[start]), int(entries.starts[stop])
    for first in range(begin, end, _LARGEST_GRID):
        last = min(end, first + _LARGEST_GRID)
        _add[(triton.cdiv(last - first, ENTRIES),)](
            entries.tokens, entries.features, entries.values, *entries.child, products, first, last, start,
            WIDTH=products.shape[1], ENTRIES=ENTRIES, PARTNERS=PARTNERS
        )  # fmt: skip


def to_r(products: Tensor, tokens: int, parent: Scales, child: Scales, counts: Counts) -> Tensor:
    """Products [features, d_child] as r, in place, -inf for constant features; r of all pairs are counted."""
    if len(products):
        bins, size = len(counts.histogram), products.new_tensor(float(tokens))
        _to_r[(len(products),)](
            products, size, *parent, *child, counts.thresholds, counts.over, counts.histogram,
            WIDTH=products.shape[1], COLUMNS=COLUMNS, BINS=bins, THRESHOLDS=len(counts.thresholds)
        )  # fmt: skip
    return products


FORM = PairForm(lambda parent, child: _BYTES_PER_ENTRY * (parent + child + 1), block, add_products, to_r)


@kernel
def _add(
    tokens, features, values, child_starts, child_features, child_values, products, begin, end, start,
    WIDTH: tl.constexpr, ENTRIES: tl.constexpr, PARTNERS: tl.constexpr
):  # fmt: skip
    i = begin + tl.program_id(0) * ENTRIES + tl.arange(0, ENTRIES)
    ok = i < end
    token = tl.load(tokens + i, mask=ok, other=0)
    row = (tl.load(features + i, mask=ok, other=start) - start).to(tl.int64) * WIDTH
    value = tl.load(values + i, mask=ok, other=0.0).to(tl.float64)
    first = tl.load(child_starts + token, mask=ok, other=0)
    count = tl.load(child_starts + token + 1, mask=ok, other=0) - first
    most = tl.max(count, 0)
    for at in range(0, most, PARTNERS):
        j = at + tl.arange(0, PARTNERS)
        there = j[None, :] < count[:, None]
        place = first[:, None] + j[None, :]
        partner = tl.load(child_features + place, mask=there, other=0)
        other = tl.load(child_values + place, mask=there, other=0.0).to(tl.float64)
        tl.atomic_add(products + row[:, None] + partner, value[:, None] * other, mask=there, sem="relaxed")


@kernel
def _to_r(
    products, tokens, mean, scale, child_mean, child_scale, thresholds, over, histogram, WIDTH: tl.constexpr,
    COLUMNS: tl.constexpr, BINS: tl.constexpr, THRESHOLDS: tl.constexpr
):  # fmt: skip
    """A row of r; nearly all lie in the two bins around 0, which are summed before they are added."""
    row = tl.program_id(0).to(tl.int64)
    own_mean = tl.load(mean + row)
    size = tl.load(tokens)
    own_scale = tl.load(scale + row)
    below = tl.zeros([COLUMNS], tl.int32)
    above = tl.zeros([COLUMNS], tl.int32)
    for at in range(0, WIDTH, COLUMNS):
        c = at + tl.arange(0, COLUMNS)
        ok = c < WIDTH
        other = tl.load(child_scale + c, mask=ok, other=0.0)
        product = tl.load(products + row * WIDTH + c, mask=ok, other=0.0)
        expected = size * (own_mean * tl.load(child_mean + c, mask=ok, other=0.0))
        both = own_scale * other
        r = (product - expected) * both
        r = tl.minimum(tl.maximum(r, -1.0), 1.0)
        live = ok & (both > 0)
        tl.store(products + row * WIDTH + c, tl.where(live, r, float("-inf")), mask=ok)
        if BINS > 0:
            bin_of = tl.minimum(((r + 1.0) * (BINS / 2)).to(tl.int32), BINS - 1)
            below += (live & (bin_of == BINS // 2 - 1)).to(tl.int32)
            above += (live & (bin_of == BINS // 2)).to(tl.int32)
            rest = live & (bin_of != BINS // 2 - 1) & (bin_of != BINS // 2)
            tl.atomic_add(histogram + bin_of, tl.full([COLUMNS], 1, tl.int64), mask=rest, sem="relaxed")
        for n in range(THRESHOLDS):
            count = tl.sum((live & (r > tl.load(thresholds + n))).to(tl.int64), 0)
            tl.atomic_add(over + n, count, mask=count > 0, sem="relaxed")
    if BINS > 0:
        if BINS > 1:
            tl.atomic_add(histogram + (BINS // 2 - 1), tl.sum(below, 0).to(tl.int64), sem="relaxed")
        tl.atomic_add(histogram + BINS // 2, tl.sum(above, 0).to(tl.int64), sem="relaxed")
