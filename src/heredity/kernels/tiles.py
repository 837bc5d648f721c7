"""Products of rows in 8 or 16 bits, of which no more than the largest of each group of features is ever written.

A product of all rows would be written to memory and read again, which with many short rows takes longer than making it.
Here a tile of `TOKENS` rows of x and of a panel of the weights is summed in registers, turned into pre-activations, and
joined to the largest of each group so far. What is summed are words of 32 bits, two or four elements of a row. For
pairs in 16 bits processors have an instruction that multiplies twice as many numbers as one in float32 (x86's
pmaddwd); elsewhere they are plain integers, and slower. For fours in 8 bits some have one that multiplies twice as many
again (VNNI's vpdpbusd), of numbers without a sign by numbers with one: weights are raised by `RAISED`, and sums begin
with what that adds, taken away. Elsewhere these are plain integers, too, the slowest of all, which `paths` leaves out.
Where there are registers for matrices, they give the same sums (`squares`), by way of the nearest cache.

Groups are of consecutive features: `merged * VECTORS` of them, which one lane of `merged` panels holds.
"""

from __future__ import annotations

import math
from functools import reduce
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from heredity.kernels.sparse import compiled, in_ranges
from heredity.kernels.squares import HAS_SQUARES, INSTRUCTIONS, LINE, ROWS, SIDE, SUMS, add_products, configure, release

# A tile's sums: with what they are made of, they fill 32 registers of 512 bits or 16 of 256.
LANES, TOKENS = (16, 12) if "+avx512bw" in INSTRUCTIONS else (8, 6)
VECTORS = 2
FINISHED = 4  # rows of sums in squares that are finished at a time
HAS_FOURS = bool(INSTRUCTIONS & {"+avx512vnni", "+avxvnni"})
RAISED, RAISING = 128, 0x80808080  # and what flips the bits of four of them
PANEL = VECTORS * LANES  # features of a tile
APART = 16  # float32 between the rows of maxima, so that they do not all fall on the same places of a cache
FINE = 1 << 14  # features up to which groups are of one panel, and twice as many up to which they are of two


class Tiles(NamedTuple):
    """The weights of an encoder, and what belongs to each feature, in the order that tiles need."""

    rows: np.ndarray  # [blocks, merged, words, VECTORS, LANES, elements of a word], int16, or uint8, raised
    scale: np.ndarray  # float32 [blocks, merged, VECTORS, LANES], of `Screen`
    plain: np.ndarray  # float32 of that shape: bias less floor; features that only fill a block lie below all others
    apart: np.ndarray  # float32 [m, blocks, merged, VECTORS, LANES]: of columns that are multiplied in float32
    in_squares: bool  # whether `rows` are multiplied in registers for matrices


def in_a_group(d_sae: int) -> int:
    """Consecutive features of which the largest stands for all: few groups are read fast, small ones decided fast."""
    return VECTORS * (1 if d_sae <= FINE else 2 if d_sae <= 2 * FINE else 4)


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

    return Tiles(rows, in_order(scale, 0), in_order(plain, -np.inf), in_order(apart, 0), in_squares)


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
    stride: Any, joins: Any, room: Any,  # noqa: ARG001
) -> Any:  # fmt: skip
    word, number, size = ir.IntType(32), ir.FloatType(), ir.IntType(64)
    sums, floats, places = ir.VectorType(word, LANES), ir.VectorType(number, LANES), ir.VectorType(word, LANES)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:  # noqa: ARG001
        x, x_stride, x_start, x_scale, own, own_stride, weight, words = args[1:9]
        scale, plain, apart, apart_stride, columns, maxima, stride, joins, written = args[9:]
        of_a_word = 32 // signature.args[0].dtype.bitwidth

        def address(base: Any, kind: Any, row: int = 0, row_bytes: Any = None) -> Any:
            at = base if row_bytes is None else builder.add(base, builder.mul(row_bytes, size(row)))
            return builder.inttoptr(at, kind.as_pointer())

        def load(pointer: Any, index: Any) -> Any:
            return builder.load(builder.gep(pointer, [index]), align=4)

        def all_lanes(value: Any, kind: Any) -> Any:
            nothing = ir.Constant(kind, ir.Undefined)
            single = builder.insert_element(nothing, value, word(0))
            return builder.shuffle_vector(single, nothing, ir.Constant(places, [0] * LANES))

        def elements(words_of_some: Any, extend: Any) -> Any:
            count = of_a_word * LANES
            narrow = builder.bitcast(words_of_some, ir.VectorType(ir.IntType(32 // of_a_word), count))
            return extend(narrow, ir.VectorType(word, count))

        def add(total: Any, of_x: Any, weights: Any) -> Any:
            """`total` and the products of the elements of each word."""
            if of_a_word == 4 and HAS_FOURS:
                name, shape = f"llvm.x86.avx512.vpdpbusd.{32 * LANES}", ir.FunctionType(sums, [sums] * 3)
                return builder.call(builder.module.declare_intrinsic(name, (), shape), [total, weights, of_x])
            extend = builder.zext if of_a_word == 4 else builder.sext
            products = builder.mul(elements(of_x, builder.sext), elements(weights, extend))
            # Of pairs this is the form that LLVM makes one or two instructions of where it can.
            some = (ir.Constant(places, list(range(e, of_a_word * LANES, of_a_word))) for e in range(of_a_word))
            parts = [builder.shuffle_vector(products, ir.Constant(products.type, None), each) for each in some]
            return builder.add(total, reduce(builder.add, parts))

        def repeat(times: Any, carried: list[Any], body: Any) -> list[Any]:
            """`body(i, carried)` for i from 0; what it returns is carried on."""
            before, head = builder.block, builder.append_basic_block("head")
            inside, after = builder.append_basic_block("inside"), builder.append_basic_block("after")
            builder.branch(head)
            builder.position_at_end(head)
            i, kept = builder.phi(size), [builder.phi(value.type) for value in carried]
            for phi, value in zip([i, *kept], [size(0), *carried], strict=True):
                phi.add_incoming(value, before)
            builder.cbranch(builder.icmp_signed("<", i, times), inside, after)
            builder.position_at_end(inside)
            made = body(i, kept)
            for phi, value in zip([i, *kept], [builder.add(i, size(1)), *made], strict=True):
                phi.add_incoming(value, builder.block)
            builder.branch(head)
            builder.position_at_end(after)
            return kept

        def sums_of(tokens: range) -> list[Any]:
            """Of each row and vector of features, in registers."""
            panel, x_rows = address(weight, sums), [address(x, word, t, x_stride) for t in tokens]

            def add_word(i: Any, kept: list[Any]) -> list[Any]:
                first = builder.mul(i, size(VECTORS))
                columns_here = [load(panel, builder.add(first, size(v))) for v in range(VECTORS)]
                made = []
                for t in tokens:
                    own_word = all_lanes(load(x_rows[t], i), sums)
                    made += [add(kept[t * VECTORS + v], own_word, columns_here[v]) for v in range(VECTORS)]
                return made

            starts = [all_lanes(load(address(x_start, word), size(t)), sums) for t in tokens]
            return repeat(words, [start for start in starts for _ in range(VECTORS)], add_word)

        per_vector = [[load(address(each, floats), size(v)) for v in range(VECTORS)] for each in (scale, plain)]
        nothing, is_joined = ir.Constant(floats, [-math.inf] * LANES), builder.trunc(joins, ir.IntType(1))

        def finish(tokens: range, first: Any, total: list[Any]) -> None:
            """Write the largest of what the sums of these rows from the `first` on say."""

            def row(base: Any, row_bytes: Any, kind: Any, t: int) -> Any:
                return address(builder.add(base, builder.mul(first, row_bytes)), kind, t, row_bytes)

            acts = []
            for t in tokens:
                step = all_lanes(builder.load(row(x_scale, size(4), number, t), align=4), floats)
                for v in range(VECTORS):
                    product = builder.fmul(builder.sitofp(total[t * VECTORS + v], floats), per_vector[0][v])
                    scaled = builder.fmul(product, step, flags=("contract",))
                    acts.append(builder.fadd(scaled, per_vector[1][v], flags=("contract",)))
            own_rows = [row(own, own_stride, number, t) for t in tokens]

            def add_apart(i: Any, kept: list[Any]) -> list[Any]:
                column = builder.inttoptr(builder.add(apart, builder.mul(i, apart_stride)), floats.as_pointer())
                factors, made = [load(column, size(v)) for v in range(VECTORS)], []
                for t in tokens:
                    value = all_lanes(load(own_rows[t], i), floats)
                    for v in range(VECTORS):
                        product = builder.fmul(value, factors[v], flags=("contract",))
                        made.append(builder.fadd(kept[t * VECTORS + v], product, flags=("contract",)))
                return made

            acts = repeat(columns, acts, add_apart)
            for t in tokens:
                place = row(maxima, stride, floats, t)
                largest = builder.select(is_joined, builder.load(place, align=4), nothing)
                for act in acts[t * VECTORS : (t + 1) * VECTORS]:
                    largest = builder.select(builder.fcmp_ordered(">", act, largest), act, largest)
                builder.store(largest, place, align=4)

        if room == types.none:
            finish(range(TOKENS), size(0), sums_of(range(TOKENS)))
        else:

            def finish_some(i: Any, carried: list[Any]) -> list[Any]:
                first, starts, total = builder.mul(i, size(FINISHED)), address(x_start, word), []
                for t in range(FINISHED):
                    each = builder.add(first, size(t))
                    start, at = all_lanes(load(starts, each), sums), builder.mul(each, size(VECTORS))
                    of_row = [load(address(written, sums), builder.add(at, size(v))) for v in range(VECTORS)]
                    total += [builder.add(one, start) for one in of_row]
                finish(range(FINISHED), first, total)
                return carried

            repeat(size(ROWS // FINISHED), [], finish_some)
        return context.get_dummy_value()

    return types.void(rows, *[types.int64] * 16, room), codegen


# A tile of pre-activations, written as the largest of each group, or, `joins` being 1, joined to what is there.
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
    """What products of integers find largest in each group of pre-activations, float32 [n, groups + `APART`], and more
    rows of no meaning.

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
    x_at, start_at, step_at, own_at = x.ctypes.data, start.ctypes.data, steps.ctypes.data, factors.ctypes.data
    sums = _room(SUMS // 4, np.int32)
    if in_squares:
        configure()
    for together in range(blocks * whole // height):
        block, t = together // (whole // height), together % (whole // height) * height
        out = maxima.ctypes.data + block * LANES * 4
        for panel in range(block * merged, (block + 1) * merged):
            panel_at = weight.ctypes.data + panel * words * PANEL * 4
            first, joins = panel * PANEL * 4, np.int64(panel % merged > 0)
            a, b, c = w_scale.ctypes.data + first, plain.ctypes.data + first, apart.ctypes.data + first
            tile = (
                x_at + t * words * 4, words * 4, start_at + t * 4, step_at + t * 4, own_at + t * m * 4, m * 4,
                panel_at, words, a, b, c, blocks * merged * PANEL * 4, m, out + t * stride * 4, stride * 4, joins
            )  # fmt: skip
            if in_squares:
                add_products(tile[0], tile[6], words // SIDE, sums.ctypes.data)
                _write_tile(weight, *tile, sums.ctypes.data)
            else:
                _write_tile(weight, *tile, None)
    if in_squares:
        release()
    _last_used(x, start, steps, factors, sums)
    return maxima
