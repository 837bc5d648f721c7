"""Encoding on a GPU in Triton: a product in bfloat16 names candidates, and what counts is decided in float32.

The bounds are those of `encode`: with x̃ and w̃ the rounded vectors, |x·w − x̃·w̃| <= ‖x − x̃‖ ‖w‖ + ‖x̃‖ ‖w − w̃‖, where
the last norm is at most ρ ‖w‖ with ρ the largest ‖w − w̃‖ / ‖w‖ of all features, so that one number per feature is read.
Four kernels: `_round` makes x̃ and its norms, `_select` walks a row of the product twice (for the cut, and for what may
lie above it), `_dots` decides the candidates, `_keep` ranks them. No program holds a whole row: none spills, however
wide the SAE. A row with more candidates than room is left to the caller, which does it densely.

Kernels see the pointers of contiguous tensors. Capital letters are known when a kernel is compiled. Under
`TRITON_INTERPRET=1` everything runs on a CPU.
"""

# pyright: reportMissingImports=false
# Triton is not a dependency: see `torch_forms.has_triton`.

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from heredity.kernels.torch_forms import CAPACITY, OUTPUT_ROUNDING, Entries, dense_encode

SLACK = tl.constexpr(1 + 1e-4)  # on norms, for the rounding of the sums they are made of
SUM_ROUNDING = 2.0**-22  # of one addition in a product, relative to the norms of both vectors
GROUPS = 1024  # maxima of a row that its cut is looked for among: at least four times k, and columns walked together
MOST_GROUPS = 8192
TILE = 2048  # elements of the product in registers at a time
ROUNDS = tl.constexpr(12)  # halvings of the range of a cut: to 1/4096 of the largest pre-activation, far below a bound
BITS = tl.constexpr(31)  # halvings to the exact k-th largest of positive float32
MOST_OVERFULL = 0.125  # share of the rows beyond which doing them again is slower than doing all in float32 at once
ROOM = 128  # candidates that every row has room for, at least
RANKED_ROOM = 4  # candidates per feature kept; 1.6 are usual
CANDIDATES, WIDTH = 16, 128  # of a tile of encoder rows in `_dots`


def kernel(function: Callable[..., Any]) -> Any:
    """A kernel, or a part of one, compiled by Triton when it is first called."""
    return triton.jit(function)


class WeightScreen(NamedTuple):
    """Encoder rows in bfloat16 with what bounds the error of their products."""

    rows: Tensor  # bfloat16 [d_sae, d_in]
    norm: Tensor  # float32 [d_sae]: of the exact row, from above
    ratio: Tensor  # float32 [d_sae]: norm of the exact row minus the rounded one, relative to the row's, from above


class Rows(NamedTuple):
    """Active features of n tokens, each with room for K."""

    features: Tensor  # int32 [n, K]: rising, then d_sae in the places that are free
    acts: Tensor  # float32 [n, K]: 0 in the places that are free
    kept: Tensor  # int32 [n]: places taken
    found: Tensor  # int32 [n]: candidates; a row with more than `room` is not to be trusted


def room_for(k: int | None, least: int = 0) -> int:
    """Candidates to make room for, with the k largest of a row or all above a floor; a power of two."""
    return triton.next_power_of_2(max(ROOM, least, RANKED_ROOM * (k or 0)))


def weight_screen(weight: Tensor) -> WeightScreen:
    """Round encoder rows, float32 [d_sae, d_in]."""
    rows, norm, rounding = rounded(weight)
    return WeightScreen(rows, norm, rounding / norm.clamp_min(1e-30))


def rounded(x: Tensor, into: tuple[Tensor, Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """x [n, d] as bfloat16, norms of the exact rows and of what rounding took away, float32 [n] from above."""
    n, d = x.shape
    into = into or (torch.empty_like(x, dtype=torch.bfloat16), x.new_empty(n), x.new_empty(n))
    if n:
        block = triton.next_power_of_2(d)
        _round[(n,)](x, *into, D=d, BLOCK=block, num_warps=warps(block))
    return into


def warps(block: int) -> int:
    """Warps for a program that holds a few arrays of `block` elements: never more threads than elements, so that no
    element is held twice and what a program has written it does not read in another thread."""
    return max(1, min(16, block // 256))


def product(x: Tensor, weight: Tensor, out: Tensor | None = None) -> Tensor:
    """bfloat16 x [n, d] @ weight [m, d].T, summed in float32 and rounded to bfloat16 once."""
    settings = torch.backends.cuda.matmul
    before, settings.allow_bf16_reduced_precision_reduction = settings.allow_bf16_reduced_precision_reduction, False
    try:
        return torch.mm(x, weight.T, out=out) if out is not None else x @ weight.T
    finally:
        settings.allow_bf16_reduced_precision_reduction = before


class Chooser:
    """Buffers for choosing the active features of n tokens, used again by every call of the same shape.

    k: the k largest positive pre-activations of a token; None for those above a floor. room: candidates per token.
    """

    def __init__(self, n: int, d_sae: int, d_in: int, k: int | None, room: int, device: torch.device) -> None:
        def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.empty(shape, dtype=dtype, device=device)

        self.k, self.room, kinds = k, room, {"dtype": torch.int32}
        self.x = empty(n, d_in, dtype=torch.bfloat16), empty(n), empty(n)
        self.products = empty(n, d_sae, dtype=torch.bfloat16)
        self.candidates, self.values = empty(n, room, **kinds), empty(n, room)
        width = room if k is None else min(k, d_sae)
        self.rows = Rows(empty(n, width, **kinds), empty(n, width), empty(n, **kinds), empty(n, **kinds))

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor, screen: WeightScreen, floor: Tensor) -> Rows:
        """Active features of centered rows x [n, d_in]; weight, bias: the encoder's; floor: float32 [1] or [d_sae],
        at least 0, which pre-activations are to exceed (unused with k). The result is overwritten by the next call."""
        n, (d_sae, d_in) = len(x), weight.shape
        rounded(x, self.x)
        product(self.x[0], screen.rows, self.products)
        groups = min(MOST_GROUPS, triton.next_power_of_2(max(GROUPS, 4 * (self.k or 0))))
        together, ranked, rows = max(1, TILE // groups), self.k is not None, self.rows
        bounds = (bias, screen.norm, screen.ratio.amax(), *self.x[1:], floor)
        wide = {"K": self.k or 0, "M": d_sae, "ROOM": self.room, "RANKED": ranked, "FLOORS": len(floor) > 1}
        _select[(triton.cdiv(n, together),)](
            self.products, *bounds, self.candidates, rows.found, n,
            SUMS=d_in * SUM_ROUNDING, ROUNDING=OUTPUT_ROUNDING, ROWS=together, GROUPS=groups, **wide
        )  # fmt: skip
        shape = {"D": d_in, "ROOM": self.room, "CANDIDATES": CANDIDATES, "WIDTH": WIDTH}
        blocks = (n, triton.cdiv(self.room, CANDIDATES))
        _dots[blocks](x, weight, bias, self.candidates, rows.found, self.values, **shape)
        width = rows.features.shape[1]
        _keep[(n,)](
            self.candidates, self.values, floor, rows.features, rows.acts, rows.kept, rows.found,
            WIDTH=width, BLOCK=triton.next_power_of_2(width), **wide, num_warps=warps(self.room)
        )  # fmt: skip
        return rows


def put_dense(rows: Rows, x: Tensor, weight: Tensor, bias: Tensor, k: int | None, floor: Tensor, room: int) -> bool:
    """Do the rows with more than `room` candidates again in float32, in place; False for many, or without room.

    Arguments as for `Chooser`.
    """
    over = (rows.found > room).nonzero()[:, 0]
    if not len(over):
        return True
    if len(over) > MOST_OVERFULL * len(x):
        return False
    acts = dense_encode(torch.nn.functional.linear(x[over], weight, bias), k, floor)
    counts, width = (acts > 0).sum(1, dtype=torch.int32), rows.features.shape[1]
    if int(counts.max()) > width:
        return False
    # Active features first, in their order; then as many others as fill the places.
    order = (acts <= 0).to(torch.int8).argsort(dim=1, stable=True)[:, :width]
    values = acts.gather(1, order)
    rows.features[over] = torch.where(values > 0, order, len(weight)).int()
    rows.acts[over], rows.kept[over] = values, counts
    return True


def chosen_entries(
    x: Tensor, weight: Tensor, bias: Tensor, screen: WeightScreen, k: int | None, floor: Tensor
) -> Entries | None:
    """`torch_forms.screened_entries` for a given screen; None for too many candidates."""
    (d_sae, d_in), room = weight.shape, room_for(k)
    while True:
        rows = Chooser(len(x), d_sae, d_in, k, room, x.device)(x, weight, bias, screen, floor.reshape(-1))
        if put_dense(rows, x, weight, bias, k, floor, room):
            break
        room *= 4
        if room > CAPACITY * d_sae:
            return None
    tokens, places = (rows.acts > 0).nonzero(as_tuple=True)
    return Entries(tokens, rows.features[tokens, places].long(), rows.acts[tokens, places])


@kernel
def _round(x, low, norm, rounding, D: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, BLOCK)
    v = tl.load(x + row * D + c, mask=c < D, other=0.0)
    r = v.to(tl.bfloat16)
    lost = v - r.to(tl.float32)
    tl.store(low + row * D + c, r, mask=c < D)
    tl.store(norm + row, tl.sqrt(tl.sum(v * v, 0)) * SLACK)
    tl.store(rounding + row, tl.sqrt(tl.sum(lost * lost, 0)) * SLACK)


@kernel
def _bounded(products, bias, w_norm, row, inside, c, reach, M: tl.constexpr, ROUNDING: tl.constexpr):
    """Pre-activations of a tile of rows and columns, and how far the exact ones may be from them; -inf outside."""
    ok = c < M
    at = row.to(tl.int64)[:, None] * M + c[None, :]
    p = tl.load(products + at, mask=inside[:, None] & ok[None, :], other=0.0).to(tl.float32)
    b = tl.load(bias + c, mask=ok, other=float("-inf"))
    size = tl.load(w_norm + c, mask=ok, other=0.0)
    error = ROUNDING * (tl.abs(p) + tl.where(ok, tl.abs(b), 0.0)[None, :]) + reach[:, None] * size[None, :]
    return p + b[None, :], error


@kernel
def _select(
    products, bias, w_norm, ratio, x_norm, x_rounding, floor, candidates, found, n, SUMS: tl.constexpr,
    ROUNDING: tl.constexpr, ROWS: tl.constexpr, GROUPS: tl.constexpr, K: tl.constexpr, M: tl.constexpr,
    ROOM: tl.constexpr, RANKED: tl.constexpr, FLOORS: tl.constexpr
):  # fmt: skip
    """Candidates of a few rows, in rising order, and how many there are, be it more than have room."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = row < n
    norm = tl.load(x_norm + row, mask=inside, other=0.0)
    # The sums of the product and of the dots are float32 and add an error of their own.
    rounding = tl.load(x_rounding + row, mask=inside, other=0.0) + SUMS * norm
    reach = rounding + (norm + rounding) * tl.load(ratio)
    cut = tl.zeros([ROWS], tl.float32)
    if RANKED:
        # The largest lower bound of every GROUPS-th feature. When K of them exceed a cut, so do K features: what cannot
        # reach the cut is not among the K largest.
        best = tl.full([ROWS, GROUPS], float("-inf"), tl.float32)
        for first in range(0, M, GROUPS):
            c = first + tl.arange(0, GROUPS)
            middle, error = _bounded(products, bias, w_norm, row, inside, c, reach, M, ROUNDING)
            best = tl.maximum(best, middle - error)
        high = tl.maximum(tl.max(best, 1), 0.0)
        for _ in range(ROUNDS):
            half = 0.5 * (cut + high)
            enough = tl.sum((best > half[:, None]).to(tl.int32), 1) >= K
            cut = tl.where(enough, half, cut)
            high = tl.where(enough, high, half)
    count = tl.zeros([ROWS], tl.int32)
    for first in range(0, M, GROUPS):
        c = first + tl.arange(0, GROUPS)
        middle, error = _bounded(products, bias, w_norm, row, inside, c, reach, M, ROUNDING)
        limit = cut[:, None]
        if not RANKED:
            limit = tl.load(floor + (c if FLOORS else c * 0), mask=c < M, other=0.0)[None, :]
        hit = (middle + error > limit) & inside[:, None]
        place = count[:, None] + tl.cumsum(hit.to(tl.int32), 1) - 1
        where = row.to(tl.int64)[:, None] * ROOM + place
        tl.store(candidates + where, c[None, :], mask=hit & (place < ROOM))
        count += tl.sum(hit.to(tl.int32), 1)
    tl.store(found + row, count, mask=inside)


@kernel
def _dots(
    x, weight, bias, candidates, found, values, D: tl.constexpr, ROOM: tl.constexpr, CANDIDATES: tl.constexpr,
    WIDTH: tl.constexpr
):  # fmt: skip
    """Float32 pre-activations of a few candidates of a row."""
    row = tl.program_id(0).to(tl.int64)
    first = tl.program_id(1) * CANDIDATES
    count = tl.minimum(tl.load(found + row), ROOM)
    if first < count:
        j = first + tl.arange(0, CANDIDATES)
        ok = j < count
        f = tl.load(candidates + row * ROOM + j, mask=ok, other=0).to(tl.int64)
        total = tl.zeros([CANDIDATES, WIDTH], tl.float32)
        for at in range(0, D, WIDTH):
            c = at + tl.arange(0, WIDTH)
            w = tl.load(weight + f[:, None] * D + c[None, :], mask=ok[:, None] & (c < D)[None, :], other=0.0)
            total += w * tl.load(x + row * D + c, mask=c < D, other=0.0)[None, :]
        v = tl.sum(total, 1) + tl.load(bias + f, mask=ok, other=0.0)
        tl.store(values + row * ROOM + j, v, mask=ok)


@kernel
def _keep(
    candidates, values, floor, features, acts, kept, found, K: tl.constexpr, M: tl.constexpr, ROOM: tl.constexpr,
    RANKED: tl.constexpr, FLOORS: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """The active ones of a row's candidates, in rising order; of equal ones at the K-th place the lower features."""
    row = tl.program_id(0).to(tl.int64)
    j = tl.arange(0, ROOM)
    there = j < tl.minimum(tl.load(found + row), ROOM)
    f = tl.load(candidates + row * ROOM + j, mask=there, other=0)
    v = tl.load(values + row * ROOM + j, mask=there, other=0.0)
    keep = there & (v > 0)
    if RANKED:
        # Positive floats have the order of their bits. Below: at least K lie above `low`, fewer than K above `high`.
        bits = tl.where(keep, v.to(tl.int32, bitcast=True), 0)
        low = 0
        high = tl.max(bits, 0)
        for _ in range(BITS):
            half = low + (high - low) // 2
            enough = tl.sum((bits > half).to(tl.int32), 0) >= K
            low = tl.where(enough, half, low)
            high = tl.where(enough, high, half)
        above = bits > high
        equal = keep & (bits == high)
        free = K - tl.sum(above.to(tl.int32), 0)
        some = above | (equal & (tl.cumsum(equal.to(tl.int32), 0) <= free))
        keep = tl.where(tl.sum(keep.to(tl.int32), 0) > K, some, keep)
    else:
        limit = tl.load(floor + (f if FLOORS else f * 0), mask=there, other=0.0)
        keep = there & (v > limit)
    place = tl.cumsum(keep.to(tl.int32), 0) - 1
    count = tl.sum(keep.to(tl.int32), 0)
    tl.store(features + row * WIDTH + place, f, mask=keep)
    tl.store(acts + row * WIDTH + place, v, mask=keep)
    free_places = tl.arange(0, BLOCK)
    rest = (free_places >= count) & (free_places < WIDTH)
    tl.store(features + row * WIDTH + free_places, tl.full([BLOCK], M, tl.int32), mask=rest)
    tl.store(acts + row * WIDTH + free_places, tl.zeros([BLOCK], tl.float32), mask=rest)
    tl.store(kept + row, count)
