"""Products of rows in 8 or 16 bits, of which no more than the two largest of each group of features are ever written.

A product of all rows would be written to memory and read again, which with many short rows takes longer than making it.
Here a tile of `TOKENS` rows of x and of a panel of the weights is summed in registers, turned into pre-activations, and
joined to the two largest of each group so far, whose last bits tell which features they are. What is summed are
`words`; of bytes, sums begin with what raised weights add, taken away. Where there are registers for matrices, they
give the same sums (`squares`), by way of the nearest cache.

Groups are of consecutive features: `merged * VECTORS` of them, which one lane of `merged` panels holds.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from heredity.kernels.sparse import compiled, in_ranges
from heredity.kernels.squares import HAS_SQUARES, LINE, ROWS, SIDE, SUMS, add_products, configure, release
from heredity.kernels.words import LANES, RAISED, RAISING, add_words, all_lanes, load, repeat

TOKENS = 12 if LANES == 16 else 6  # a tile's sums and what they are made of fill 32 registers of 512 bits or 16 of 256
VECTORS = 2
FINISHED = 4  # rows of sums in squares that are finished at a time
PANEL = VECTORS * LANES  # features of a tile
APART = 16  # float32 between the rows of maxima, so that they do not all fall on the same places of a cache
LOWEST = -1e38  # of what is no feature: below all others, and still a number whatever its last bits
# Features of a group, and up to how many of an encoder: few groups are read fast, and in small ones a second feature is
# seldom active beside the first. What is written of a pre-activation ends in the number of its feature in the group.
GROUPS, LARGEST_GROUP = ((1 << 10, 2), (1 << 12, 4), (1 << 15, 8)), 16


class Tiles(NamedTuple):
    """The weights of an encoder, and what belongs to each feature, in the order that tiles need."""

    rows: np.ndarray  # [blocks, merged, words, VECTORS, LANES, elements of a word], int16, or uint8, raised
    scale: np.ndarray  # float32 [blocks, merged, VECTORS, LANES], of `Screen`
    plain: np.ndarray  # float32 of that shape: bias less floor; `LOWEST` for features that only fill a block
    apart: np.ndarray  # float32 [m, blocks, merged, VECTORS, LANES]: of columns that are multiplied in float32
    in_squares: bool  # whether `rows` are multiplied in registers for matrices


def in_a_group(d_sae: int) -> int:
    """Consecutive features of which the two largest stand for all."""
    return next((size for most, size in GROUPS if d_sae <= most), LARGEST_GROUP)


def packed(rows: np.ndarray, in_squares: bool = False) -> np.ndarray:
    """int8 or int16 [d_sae, d_in] in the order of `Tiles.rows`; in_squares: whole squares of words."""
    of_a_word, merged = 4 // rows.itemsize, in_a_group(len(rows)) // VECTORS
    words = np.pad(rows, ((0, 0), (0, -rows.shape[1] % (LINE if in_squares else of_a_word)))).view(np.uint32)
    made = _whole_lines((-(-len(rows) // (PANEL * merged)), merged, words.shape[1], VECTORS, LANES), np.uint32)
    raising = np.uint32(RAISING if of_a_word == 4 else 0)
    in_ranges(lambda a, b: _pack(words, raising, made, a, b), len(made), made.size)
    return made.view(np.uint8 if of_a_word == 4 else np.int16).reshape(*made.shape, of_a_word)


def _whole_lines(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """An empty array whose first element begins a line of the cache: what spans two takes twice as long to load."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    room = np.empty(size + LINE, np.uint8)
    return room[-room.ctypes.data % LINE :][:size].view(dtype).reshape(shape)


def make_tiles(
    rows: np.ndarray, scale: np.ndarray, plain: np.ndarray, apart: np.ndarray, in_squares: bool = False
) -> Tiles:
    """rows: `packed`, in whole squares where they are said to be; scale and plain: float32 [d_sae]; apart: float32
    [m, d_sae]. Raises RuntimeError where squares are missing."""
    if in_squares and not HAS_SQUARES:
        raise RuntimeError("this process has no registers for matrices")
    blocks, merged = rows.shape[:2]

    def in_order(values: np.ndarray, filling: float) -> np.ndarray:
        filled = np.full((*values.shape[:-1], blocks * PANEL * merged), filling, np.float32)
        filled[..., : len(scale)] = values
        by_lane = filled.reshape(*values.shape[:-1], blocks, LANES, merged, VECTORS)
        made = _whole_lines((*values.shape[:-1], *rows.shape[:2], VECTORS, LANES), np.float32)
        made[...] = np.moveaxis(by_lane, -3, -1)
        return made

    return Tiles(rows, in_order(scale, 0), in_order(plain, LOWEST), in_order(apart, 0), in_squares)


@compiled()
def _pack(words, raising, packed, start, stop):
    merged, d_sae = packed.shape[1], len(words)
    for block in range(start, stop):
        for m in range(merged):
            for vector in range(VECTORS):
                for lane in range(LANES):
                    j = ((block * LANES + lane) * merged + m) * VECTORS + vector
                    for c in range(words.shape[1]):
                        packed[block, m, c, vector, lane] = (words[j, c] if j < d_sae else np.uint32(0)) ^ raising


# All addresses are of bytes, and strides in bytes; `rows` tells how many bits an element has. room: where the sums of
# squares are; None where they are to be made.
def _tile(  # noqa: PLR0913
    typingctx: Any, rows: Any, x: Any, x_stride: Any, x_start: Any, x_scale: Any, own: Any, own_stride: Any,  # noqa: ARG001
    weight: Any, words: Any, scale: Any, plain: Any, apart: Any, apart_stride: Any, columns: Any, maxima: Any,  # noqa: ARG001
    seconds: Any, stride: Any, panel: Any, room: Any,  # noqa: ARG001
) -> Any:  # fmt: skip
    word, number, size = ir.IntType(32), ir.FloatType(), ir.IntType(64)
    sums, floats = ir.VectorType(word, LANES), ir.VectorType(number, LANES)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:  # noqa: ARG001
        x, x_stride, x_start, x_scale, own, own_stride, weight, words = args[1:9]
        scale, plain, apart, apart_stride, columns, maxima, seconds, stride, number_of_panel, written = args[9:]
        of_a_word = 32 // signature.args[0].dtype.bitwidth

        def address(base: Any, kind: Any, row: int = 0, row_bytes: Any = None) -> Any:
            at = base if row_bytes is None else builder.add(base, builder.mul(row_bytes, size(row)))
            return builder.inttoptr(at, kind.as_pointer())

        def sums_of(tokens: range) -> list[Any]:
            """Of each row and vector of features, in registers."""
            panel, x_rows = address(weight, sums), [address(x, word, t, x_stride) for t in tokens]

            def add_word(i: Any, kept: list[Any]) -> list[Any]:
                first = builder.mul(i, size(VECTORS))
                columns_here = [load(builder, panel, builder.add(first, size(v))) for v in range(VECTORS)]
                made = []
                for t in tokens:
                    own_word = all_lanes(builder, load(builder, x_rows[t], i))
                    sums_here = kept[t * VECTORS : (t + 1) * VECTORS]
                    made += [
                        add_words(builder, total, own_word, column, of_a_word)
                        for total, column in zip(sums_here, columns_here, strict=True)
                    ]
                return made

            starts = [all_lanes(builder, load(builder, address(x_start, word), size(t))) for t in tokens]
            return repeat(builder, words, [start for start in starts for _ in range(VECTORS)], add_word)

        per_vector = [
            [load(builder, address(each, floats), size(v)) for v in range(VECTORS)] for each in (scale, plain)
        ]
        nothing, rest = ir.Constant(floats, [LOWEST] * LANES), ir.Constant(sums, [-LARGEST_GROUP] * LANES)
        is_joined = builder.icmp_signed(">", number_of_panel, size(0))
        before = builder.mul(builder.trunc(number_of_panel, word), word(VECTORS))
        members = [all_lanes(builder, builder.add(before, word(v))) for v in range(VECTORS)]

        def finish(tokens: range, first: Any, total: list[Any]) -> None:
            """Write the two largest of what the sums of these rows from the `first` on say."""

            def row(base: Any, row_bytes: Any, kind: Any, t: int) -> Any:
                return address(builder.add(base, builder.mul(first, row_bytes)), kind, t, row_bytes)

            acts = []
            for t in tokens:
                step = all_lanes(builder, builder.load(row(x_scale, size(4), number, t), align=4))
                for v in range(VECTORS):
                    product = builder.fmul(builder.sitofp(total[t * VECTORS + v], floats), per_vector[0][v])
                    scaled = builder.fmul(product, step, flags=("contract",))
                    acts.append(builder.fadd(scaled, per_vector[1][v], flags=("contract",)))
            own_rows = [row(own, own_stride, number, t) for t in tokens]

            def add_apart(i: Any, kept: list[Any]) -> list[Any]:
                column = builder.inttoptr(builder.add(apart, builder.mul(i, apart_stride)), floats.as_pointer())
                factors, made = [load(builder, column, size(v)) for v in range(VECTORS)], []
                for t in tokens:
                    value = all_lanes(builder, load(builder, own_rows[t], i))
                    for v in range(VECTORS):
                        product = builder.fmul(value, factors[v], flags=("contract",))
                        made.append(builder.fadd(kept[t * VECTORS + v], product, flags=("contract",)))
                return made

            acts = repeat(builder, columns, acts, add_apart)
            for t in tokens:
                places = [row(each, stride, floats, t) for each in (maxima, seconds)]
                largest, second = (builder.select(is_joined, builder.load(place, align=4), nothing) for place in places)
                for v in range(VECTORS):
                    bits = builder.and_(builder.bitcast(acts[t * VECTORS + v], sums), rest)
                    act = builder.bitcast(builder.or_(bits, members[v]), floats)
                    lower = builder.select(builder.fcmp_ordered("<", act, largest), act, largest)
                    second = builder.select(builder.fcmp_ordered(">", lower, second), lower, second)
                    largest = builder.select(builder.fcmp_ordered(">", act, largest), act, largest)
                for value, place in zip((largest, second), places, strict=True):
                    builder.store(value, place, align=4)

        if room == types.none:
            finish(range(TOKENS), size(0), sums_of(range(TOKENS)))
        else:

            def finish_some(i: Any, carried: list[Any]) -> list[Any]:
                first, starts, total = builder.mul(i, size(FINISHED)), address(x_start, word), []
                for t in range(FINISHED):
                    each = builder.add(first, size(t))
                    start, at = all_lanes(builder, load(builder, starts, each)), builder.mul(each, size(VECTORS))
                    of_row = [load(builder, address(written, sums), builder.add(at, size(v))) for v in range(VECTORS)]
                    total += [builder.add(one, start) for one in of_row]
                finish(range(FINISHED), first, total)
                return carried

            repeat(builder, size(ROWS // FINISHED), [], finish_some)
        return context.get_dummy_value()

    return types.void(rows, *[types.int64] * 17, room), codegen


# A tile of pre-activations, written as the two largest of each group, or, not being a block's first panel, joined to
# what is there.
_write_tile: Any = intrinsic(_tile)


def _keep(typingctx: Any, a: Any, b: Any, c: Any, d: Any, e: Any) -> Any:  # noqa: ARG001
    """Keeps arrays until here: compiled code frees one after the last use of its name, whatever has its address."""
    return types.void(a, b, c, d, e), lambda context, *_: context.get_dummy_value()


_last_used: Any = intrinsic(_keep)


@compiled()
def _room(size, dtype):
    """So many, the first of which begins a line of the cache."""
    made = np.empty(size + LINE, dtype)
    first = -made.ctypes.data % LINE // made.itemsize
    return made[first : first + size]


@compiled()
def largest_of_groups(rows, scale, own, tiles):
    """What products of integers find largest in each group of pre-activations and what second, float32 [n, groups +
    `APART`] each, and more rows of no meaning. The last bits of each are its feature's number in the group.

    rows: int8 or int16 [n, d_in]; scale: float32 [n]; own: float32 [n, m], the columns of x that are multiplied apart;
    tiles: `Tiles` of the same kind.
    """
    weight, w_scale, plain, apart, in_squares = tiles
    (n, d_in), m = rows.shape, own.shape[1]
    blocks, merged, words, of_a_word = weight.shape[0], weight.shape[1], weight.shape[2], weight.shape[5]
    height, line = (ROWS, LINE) if in_squares else (TOKENS, words * of_a_word)
    whole, width = (n + height - 1) // height * height, words * of_a_word
    # Rows of a square follow one another: all of it lies in a few lines, whatever the length of a row.
    x, factors = _room(whole * width, rows.dtype), np.zeros((whole, m), np.float32)
    start, steps = np.zeros(whole, np.int32), np.zeros(whole, np.float32)
    x[:] = 0
    for t in range(n):
        raised, steps[t] = np.int32(0), scale[t]
        first, between = t * width, line
        if in_squares:
            first, between = (t // SIDE * (width // LINE) * SIDE + t % SIDE) * LINE, SIDE * LINE
        for c in range(0, d_in, line):
            # Counted from 0, so that no place can be one from the end, which would be asked of each.
            of_row, copied = rows[t, c : c + line], x[first + c // line * between :]
            for e in range(len(of_row)):
                copied[e] = of_row[e]
                raised = np.int32(raised + np.int32(of_row[e]))
        start[t] = -RAISED * raised if of_a_word == 4 else 0
        for c in range(m):
            factors[t, c] = own[t, c]
    stride = blocks * LANES + APART
    maxima = _room(whole * stride, np.float32).reshape(whole, stride)
    seconds = _room(whole * stride, np.float32).reshape(whole, stride)
    x_at, start_at, step_at, own_at = x.ctypes.data, start.ctypes.data, steps.ctypes.data, factors.ctypes.data
    sums = _room(SUMS // 4, np.int32)
    if in_squares:
        configure()
    for together in range(blocks * whole // height):
        block, t = together // (whole // height), together % (whole // height) * height
        out = t * stride * 4 + block * LANES * 4
        for number in range(merged):
            panel = block * merged + number
            panel_at, first = weight.ctypes.data + panel * words * PANEL * 4, panel * PANEL * 4
            a, b, c = w_scale.ctypes.data + first, plain.ctypes.data + first, apart.ctypes.data + first
            tile = (
                x_at + t * words * 4, words * 4, start_at + t * 4, step_at + t * 4, own_at + t * m * 4, m * 4,
                panel_at, words, a, b, c, blocks * merged * PANEL * 4, m, maxima.ctypes.data + out,
                seconds.ctypes.data + out, stride * 4, number
            )  # fmt: skip
            if in_squares:
                add_products(tile[0], tile[6], words // SIDE, sums.ctypes.data)
                _write_tile(weight, *tile, sums.ctypes.data)
            else:
                _write_tile(weight, *tile, None)
    if in_squares:
        release()
    _last_used(x, start, steps, factors, sums)
    return maxima, seconds
