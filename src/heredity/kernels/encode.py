"""Sparse encoding: x [n, d_in] to the active features of an SAE as CSR arrays, to float32 rounding.

A screen's product (see `screens`) runs in chunks of rows that stay in cache. What may lie above the cut by the screen's
bounds is a candidate, picked out of each chunk before the next one is made, so the dense [n, d_sae] activations never
exist; and a candidate's pre-activation is summed anew in float32 (`candidates.pre_acts_of`). So no active feature is
missed, none is invented, and every value and every choice near the cut is the same to the bit whichever screen named
the candidates (`paths`), however rows were chunked, and whatever rows lie around a token. The plain reference is
`dense_encode`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from heredity.kernels import paths
from heredity.kernels.candidates import active_in_groups, active_of, groups_of
from heredity.kernels.screens import IN_TILES, Screen, largest_by_column, make_screen, output_rounding, products
from heredity.kernels.sparse import Sparse, in_ranges, starts_of
from heredity.kernels.tiles import Tiles, in_a_group, make_tiles, packed
from heredity.kernels.torch_forms import active_entries, key_starts

# Bytes of one chunk of products: it fits the last cache level, stays below the threshold from which malloc returns
# memory to the system, and is work enough that changing from the product to the selection costs little.
CHUNK_BYTES = 16 << 20
LEAST_ROWS, LEAST_ROWS_OF_A_PIECE = 2048, 96  # of tiles: of a chunk, and of what a thread takes at a time,
MOST_OF_A_PIECE = 32 << 20  # and the bytes that this writes
TRIAL_ROWS = 128  # rows of the first chunk of a longer call: its candidates decide which screen the others take
SCREENED_ROWS = 64  # rows of a call from which rounding the encoder's weights for it pays
TOO_MANY = 0.25  # share of the features from which a token's candidates cost more than its float32 product
MOST_CROWDED = 0.125  # share of such tokens from which a screen is of no use
OF_A_TILE = 32  # multiplications of tiles that take as long as one elementary operation
EXACT_COLUMNS = 8  # most columns of x that a screen of integers leaves to float32
OUTLYING = 8.0  # largest element of such a column relative to the median column's


_NOTHING = np.empty(0, np.int32), np.empty(0, np.float32)  # no indices, no values


class Encoder(NamedTuple):
    """What rows are encoded with, on a CPU."""

    weight: Tensor  # float32 [d_sae, d_in]
    bias: np.ndarray  # float32 [d_sae]
    floor: np.ndarray  # float32 [d_sae]: active is what lies above it; 0 with k
    plain: np.ndarray  # float32 [d_sae]: bias less floor
    sizes: np.ndarray  # float32 [d_sae]: the sum of both without their signs
    k: int  # active features per token; 0: all above the floor


class Apart(NamedTuple):
    """Columns of x that a screen leaves out because they dwarf all others: multiplied in float32."""

    columns: np.ndarray  # int64 [m]
    weight: np.ndarray  # float32 [m, d_sae]: the encoder's for these columns


class _Ready(NamedTuple):
    """What all chunks of a call need of the encoder and a screen of its weight."""

    screen: Screen
    apart: Apart  # no columns for screens of floats
    groups: np.ndarray  # float32 [3, groups], `groups_of` the screen
    tiles: Tiles | None  # of a screen of integers


def sparse_encode(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    k: int | None = None,
    threshold: Tensor | None = None,
    screen: Screen | None = None,
) -> Sparse:
    """Active features of centered inputs: tokens x features, features rising within a token, values above 0.

    x: [n, d_in], b_dec subtracted; weight: [d_sae, d_in], the encoder's transpose; bias: [d_sae]. k and threshold: as
    in `dense_encode`; of equal pre-activations at the k-th place the lower features win. screen: `weight_screen`, where
    one serves several calls. Raises ValueError when x holds NaN or infinity.
    """
    d_sae, compiled = len(weight), x.device.type == "cpu" and x.dtype == torch.float32
    x = x.contiguous()
    largest = largest_by_column(x) if compiled else x.sum(dtype=torch.float64).cpu().numpy()
    if not np.isfinite(largest).all():
        raise ValueError("x holds NaN or infinite activations; find the model or token that makes them")
    if not compiled:
        tokens, features, values = active_entries(x, weight, bias, k, threshold)
        starts = key_starts(tokens, len(x)).cpu().numpy()
        return Sparse(starts, features.to(torch.int32).cpu().numpy(), values.float().cpu().numpy(), d_sae)
    least = torch.zeros(()) if threshold is None or k is not None else threshold.detach().float().clamp(min=0)
    floor = np.ascontiguousarray(least.expand(d_sae).numpy())
    added = np.ascontiguousarray(bias.numpy())
    encoder = Encoder(weight.contiguous(), added, floor, added - floor, np.abs(added) + np.abs(floor), k or 0)
    return _encoded(x, largest, encoder, screen or weight_screen(encoder.weight, len(x)))


def keep_largest(acts: Sparse, count: int) -> Sparse:
    """The `count` largest entries over all tokens together (BatchTopK, Bussmann et al. 2024); ties: the first ones."""
    nnz = len(acts.values)
    if nnz <= count:
        return acts
    least = np.partition(acts.values, nnz - count)[nnz - count]
    keep = acts.values > least
    keep[np.flatnonzero(acts.values == least)[: count - int(keep.sum())]] = True
    return Sparse(starts_of(keep)[acts.indptr], acts.indices[keep], acts.values[keep], acts.width)


def weight_screen(weight: Tensor, rows: int = SCREENED_ROWS) -> Screen:
    """The fastest screen for an encoder's weight, float32 [d_sae, d_in] on a CPU, and calls of so many rows."""
    kinds = paths.screens(weight.shape[1], len(weight))
    screen = make_screen(weight.contiguous(), kinds[0 if rows >= SCREENED_ROWS else -1])
    return screen._replace(packed=_packed(screen)) if screen.kind in IN_TILES else screen


def _packed(screen: Screen) -> np.ndarray:
    return packed(screen.rows.numpy(), screen.kind == "amx") if screen.packed is None else screen.packed


class _Chunk(NamedTuple):
    """What a screen found on some rows."""

    acts: Sparse
    candidates: int
    crowded: int  # rows with too many candidates
    overfull: np.ndarray  # int64: those of them that are empty in `acts`


def _encoded(x: Tensor, largest: np.ndarray, encoder: Encoder, screen: Screen) -> Sparse:
    """Active features of rows x [n, d_in], by this screen or the first exacter one that pays.

    largest: float32 [d_in], `largest_by_column(x)`.
    """
    d_sae, d_in = encoder.weight.shape
    exacter = paths.exacter(screen.kind, d_in, d_sae)
    ready = _ready(screen, largest, encoder)
    parts, overfull, at, trial = [], [], 0, len(x) > 4 * TRIAL_ROWS
    while at < len(x):
        rows = TRIAL_ROWS if trial and exacter else _rows_of_a_chunk(screen)
        chunk = x[at : at + rows]
        limit = max(int(TOO_MANY * d_sae), 4 * encoder.k) if exacter else d_sae
        found = _screened(chunk, ready, encoder, limit)
        useless = bool(exacter) and found.crowded > MOST_CROWDED * len(chunk)
        if not useless:
            parts.append(found.acts)
            overfull.append(at + found.overfull)
            at += len(chunk)
        # What the first chunk shows decides for the rest.
        spurious = (found.candidates - len(found.acts.values)) / (len(chunk) * d_sae)
        if exacter and (useless or (trial and paths.pays(exacter[0], screen.kind, spurious, d_in, d_sae))):
            screen, exacter, trial = make_screen(encoder.weight, exacter[0]), exacter[1:], True
            ready = _ready(screen, largest, encoder)
        else:
            trial = False
    acts, rows = _joined(parts, d_sae), np.concatenate(overfull or [np.empty(0, np.int64)])
    if not len(rows):
        return acts
    exact = make_screen(encoder.weight, "float32")
    return _filled(acts, rows, _encoded(x[torch.from_numpy(rows)], largest, encoder, exact))


def _ready(screen: Screen, largest: np.ndarray, encoder: Encoder) -> _Ready:
    columns, weight = np.empty(0, np.int64), encoder.weight.numpy()
    if screen.kind in IN_TILES:
        # The columns that would leave the others few of the steps.
        middle = len(largest) // 2
        columns = np.flatnonzero(largest / OUTLYING > np.partition(largest, middle)[middle])
        columns = np.sort(columns[np.argsort(-largest[columns], kind="stable")[:EXACT_COLUMNS]])
    apart = Apart(columns, np.ascontiguousarray(weight[:, columns].T))
    tiles = None
    if screen.kind in IN_TILES:
        tiles = make_tiles(_packed(screen), screen.scale, encoder.plain, apart.weight, screen.kind == "amx")
    return _Ready(screen, apart, groups_of(screen, encoder.sizes), tiles)


def _rows_of_a_chunk(screen: Screen) -> int:
    d_sae = len(screen.scale)
    if screen.kind not in IN_TILES:
        return max(16, CHUNK_BYTES // ((2 if screen.kind == "bf16" else 4) * d_sae))
    together = torch.get_num_threads() * _rows_of_a_piece(screen)
    return max(1, LEAST_ROWS // together) * together


def _rows_of_a_piece(screen: Screen) -> int:
    """Rows of which tiles write about as much as they read, which is the weights, once for all of these rows."""
    d_sae, d_in = screen.rows.shape
    of_a_row = 2 * 4 * d_sae // in_a_group(d_sae)
    return max(LEAST_ROWS_OF_A_PIECE, min(3 * d_in * in_a_group(d_sae) // 16, MOST_OF_A_PIECE // max(of_a_row, 1)))


def _screened(x: Tensor, ready: _Ready, encoder: Encoder, limit: int) -> _Chunk:
    """Active features of a chunk of rows, none of those rows that have more than `limit` candidates; of screens of
    integers none of those only for which there is no room beside the others."""
    screen, apart, groups, tiles = ready
    n, (d_sae, d_in) = len(x), encoder.weight.shape
    own, rest = np.empty((n, 0), np.float32), x
    if len(apart.columns):
        rest = x.clone()
        rest[:, apart.columns] = 0
        own = np.ascontiguousarray(x.numpy()[:, apart.columns])
    rounded = make_screen(rest, screen.kind)
    # The sums of a float32 product, of a candidate's pre-activation and of the columns apart have errors of their own.
    norm = np.hypot(rounded.norm, np.linalg.norm(own, axis=1)).astype(np.float32) if own.size else rounded.norm
    slack = rounded.rounding + np.float32((d_in + 16) * 2.0**-22) * norm
    found, counts, rel = np.empty(n, np.int64), np.empty(n, np.int64), output_rounding(screen.kind)
    bounds = rounded.scale, rounded.norm + rounded.rounding, slack, own, x.numpy(), found, counts
    of_encoder, of_choice = (encoder.weight.numpy(), encoder.bias, encoder.plain), (encoder.floor, encoder.k, limit)
    if tiles is not None:
        per_row, work = (rounded.rows.numpy(), *bounds), active_in_groups
        of_weights = tiles, screen.rows.numpy(), rel, screen.scale, apart.weight, groups
        chosen = *of_weights, *of_encoder, *of_choice
    else:
        per_row, work = (products(rounded, screen), *bounds), active_of
        of_weights = rel, screen.scale, screen.norm, screen.rounding, apart.weight, groups
        chosen = *of_weights, *of_encoder, encoder.sizes, *of_choice
    # Tiles are made in the threads, and each piece of them reads all the weights.
    pieces, operations = 2, n * d_sae
    if tiles is not None:
        pieces = -(-n // (torch.get_num_threads() * _rows_of_a_piece(screen)))
        operations = n * d_sae * max(1, d_in // OF_A_TILE)
    parts = in_ranges(lambda a, b: work(*(each[a:b] for each in per_row), *chosen), n, operations, pieces)
    overfull = np.flatnonzero(found < 0)
    acts = Sparse(starts_of(counts), *_concatenated(parts), d_sae)
    return _Chunk(acts, int(found[found > 0].sum()), int((found > limit).sum()) + len(overfull), overfull)


def _concatenated(parts: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Indices and values of consecutive ranges of rows in one array each."""
    if len(parts) == 1:
        return parts[0]
    indices, values = zip(*parts, strict=True)
    return np.concatenate(indices), np.concatenate(values)


def _joined(parts: list[Sparse], width: int) -> Sparse:
    """The rows of several matrices one after the other."""
    counts = np.concatenate([np.diff(part.indptr) for part in parts] or [np.empty(0, np.int64)])
    arrays = [(part.indices, part.values) for part in parts] or [_NOTHING]
    return Sparse(starts_of(counts), *_concatenated(arrays), width)


def _filled(acts: Sparse, empty: np.ndarray, rows: Sparse) -> Sparse:
    """`acts` with the rows numbered `empty`, which hold nothing, replaced by `rows`."""
    counts = np.diff(acts.indptr)
    counts[empty] = np.diff(rows.indptr)
    at = np.repeat(acts.indptr[empty], counts[empty])
    indices, values = (np.insert(a, at, b) for a, b in zip(acts[1:3], rows[1:3], strict=True))
    return Sparse(starts_of(counts), indices, values, acts.width)
