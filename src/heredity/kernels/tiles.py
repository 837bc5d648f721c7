"""Products of rows in 16 bits, of which no more than the largest of each group of features is ever written.

A product of all rows would be written to memory and read again, which with many short rows takes longer than making it.
Here a tile of `TOKENS` rows of x and of a panel of the weights is summed in registers, turned into pre-activations, and
joined to the largest of each group so far. Its sums are those of pairs of neighboring elements, for which processors
have an instruction that multiplies twice as many numbers as one in float32 (x86's pmaddwd); elsewhere they are plain
integers, and slower.

Groups are of consecutive features: `merged * VECTORS` of them, which one lane of `merged` panels holds.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from heredity.kernels.sparse import compiled, in_ranges

TOKENS, VECTORS, LANES = 6, 2, 8  # a tile's sums: with what they are made of, they fill 16 registers of 256 bits
PANEL = VECTORS * LANES  # features of a tile
APART = 16  # float32 between the rows of maxima, so that they do not all fall on the same places of a cache
FINE = 1 << 14  # features up to which groups are of one panel, and twice as many up to which they are of two


class Tiles(NamedTuple):
    """The weights of an encoder, and what belongs to each feature, in the order that tiles need."""

    rows: np.ndarray  # int16 [blocks, merged, pairs, VECTORS, LANES, 2]
    scale: np.ndarray  # float32 [blocks, merged, VECTORS, LANES], of `Screen`
    plain: np.ndarray  # float32 of that shape: bias less floor; features that only fill a block lie below all others
    apart: np.ndarray  # float32 [m, blocks, merged, VECTORS, LANES]: of columns that are multiplied in float32


def in_a_group(d_sae: int) -> int:
    """Consecutive features of which the largest stands for all: few groups are read fast, small ones decided fast."""
    return VECTORS * (1 if d_sae <= FINE else 2 if d_sae <= 2 * FINE else 4)


def make_tiles(rows: np.ndarray, scale: np.ndarray, plain: np.ndarray, apart: np.ndarray) -> Tiles:
    """rows: int16 [d_sae, d_in]; scale and plain: float32 [d_sae]; apart: float32 [m, d_sae]."""
    d_sae, d_in = rows.shape
    merged = in_a_group(d_sae) // VECTORS
    blocks = -(-d_sae // (PANEL * merged))
    packed = np.empty((blocks, merged, (d_in + 1) // 2, VECTORS, LANES, 2), np.int16)
    in_ranges(lambda a, b: _pack(rows, packed, a, b), blocks, packed.size)

    def in_order(values: np.ndarray, filling: float) -> np.ndarray:
        filled = np.full((*values.shape[:-1], blocks * PANEL * merged), filling, np.float32)
        filled[..., :d_sae] = values
        by_lane = filled.reshape(*values.shape[:-1], blocks, LANES, merged, VECTORS)
        return np.ascontiguousarray(np.moveaxis(by_lane, -3, -1))

    return Tiles(packed, in_order(scale, 0), in_order(plain, -np.inf), in_order(apart, 0))


@compiled()
def _pack(rows, packed, start, stop):
    merged, pairs = packed.shape[1:3]
    d_sae, d_in = rows.shape
    for block in range(start, stop):
        for m in range(merged):
            for vector in range(VECTORS):
                for lane in range(LANES):
                    j = ((block * LANES + lane) * merged + m) * VECTORS + vector
                    for c in range(2 * pairs):
                        value = rows[j, c] if j < d_sae and c < d_in else np.int16(0)
                        packed[block, m, c // 2, vector, lane, c % 2] = value


def _tile(joins: bool) -> Any:
    """A tile of pre-activations, written as the largest of each group, or `joins`: joined to these."""

    # All addresses are of bytes, and strides in bytes.
    def tile(  # noqa: PLR0913
        typingctx: Any, x: Any, x_stride: Any, x_scale: Any, own: Any, own_stride: Any, weight: Any, pairs: Any,  # noqa: ARG001
        scale: Any, plain: Any, apart: Any, apart_stride: Any, columns: Any, maxima: Any, stride: Any,  # noqa: ARG001
    ) -> Any:  # fmt: skip
        return types.void(*[types.int64] * 14), _codegen(joins)

    return intrinsic(tile)


def _codegen(joins: bool) -> Any:
    word, half, number, size = ir.IntType(32), ir.IntType(16), ir.FloatType(), ir.IntType(64)
    sums, halves, floats = ir.VectorType(word, LANES), ir.VectorType(half, 2 * LANES), ir.VectorType(number, LANES)
    wide, places = ir.VectorType(word, 2 * LANES), ir.VectorType(word, LANES)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:  # noqa: ARG001
        x, x_stride, x_scale, own, own_stride, weight, pairs = args[:7]
        scale, plain, apart, apart_stride, columns, maxima, stride = args[7:]

        def address(base: Any, kind: Any, row: int = 0, row_bytes: Any = None) -> Any:
            at = base if row_bytes is None else builder.add(base, builder.mul(row_bytes, size(row)))
            return builder.inttoptr(at, kind.as_pointer())

        def load(pointer: Any, index: Any) -> Any:
            return builder.load(builder.gep(pointer, [index]), align=4)

        def all_lanes(value: Any, kind: Any) -> Any:
            nothing = ir.Constant(kind, ir.Undefined)
            single = builder.insert_element(nothing, value, word(0))
            return builder.shuffle_vector(single, nothing, ir.Constant(places, [0] * LANES))

        def of_pairs(a: Any, b: Any) -> Any:
            """Sums of the products of pairs: the form that LLVM makes one instruction of where there is one."""
            products, nothing = builder.mul(builder.sext(a, wide), builder.sext(b, wide)), ir.Constant(wide, None)
            even, odd = (ir.Constant(places, list(range(first, 2 * LANES, 2))) for first in (0, 1))
            return builder.add(*(builder.shuffle_vector(products, nothing, some) for some in (even, odd)))

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

        tokens, x_rows = range(TOKENS), [address(x, word, t, x_stride) for t in range(TOKENS)]
        panel = address(weight, halves)

        def add_pair(i: Any, kept: list[Any]) -> list[Any]:
            first = builder.mul(i, size(VECTORS))
            columns_here = [load(panel, builder.add(first, size(v))) for v in range(VECTORS)]
            made = []
            for t in tokens:
                pair = builder.bitcast(all_lanes(load(x_rows[t], i), sums), halves)
                made += [builder.add(kept[t * VECTORS + v], of_pairs(pair, columns_here[v])) for v in range(VECTORS)]
            return made

        nothing = [ir.Constant(sums, None)] * (TOKENS * VECTORS)
        total = repeat(pairs, nothing, add_pair)

        per_vector = [[load(address(each, floats), size(v)) for v in range(VECTORS)] for each in (scale, plain)]
        acts = []
        for t in tokens:
            step = all_lanes(load(address(x_scale, number), size(t)), floats)
            for v in range(VECTORS):
                product = builder.fmul(builder.sitofp(total[t * VECTORS + v], floats), per_vector[0][v])
                scaled = builder.fmul(product, step, flags=("contract",))
                acts.append(builder.fadd(scaled, per_vector[1][v], flags=("contract",)))

        own_rows = [address(own, number, t, own_stride) for t in tokens]

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
            place = address(maxima, floats, t, stride)
            largest = builder.load(place, align=4) if joins else acts[t * VECTORS]
            for act in acts[t * VECTORS + (not joins) : (t + 1) * VECTORS]:
                largest = builder.select(builder.fcmp_ordered(">", act, largest), act, largest)
            builder.store(largest, place, align=4)
        return context.get_dummy_value()

    return codegen


_first, _joined = _tile(False), _tile(True)


@compiled()
def largest_of_groups(x, x_scale, own, rows, scale, plain, apart):
    """What 16-bit products find largest in each group of pre-activations, float32 [n, groups + `APART`].

    x: int16 [n, 2 pairs], n a multiple of `TOKENS`; x_scale: float32 [n]; own: float32 [n, m], the columns of x that
    are multiplied by `apart`; the others as of `Tiles`.
    """
    n, (blocks, merged, pairs), m = len(x), rows.shape[:3], own.shape[1]
    stride = blocks * LANES + APART
    maxima = np.empty((n, stride), np.float32)
    x_at, step_at, own_at, maxima_at = x.ctypes.data, x_scale.ctypes.data, own.ctypes.data, maxima.ctypes.data
    for panel in range(blocks * merged):
        weight = rows.ctypes.data + panel * pairs * PANEL * 4
        first = panel * PANEL * 4
        a, b, c = scale.ctypes.data + first, plain.ctypes.data + first, apart.ctypes.data + first
        out = maxima_at + panel // merged * LANES * 4
        if panel % merged == 0:
            for t in range(0, n, TOKENS):
                _first(
                    x_at + t * pairs * 4, pairs * 4, step_at + t * 4, own_at + t * m * 4, m * 4, weight, pairs, a, b, c,
                    blocks * merged * PANEL * 4, m, out + t * stride * 4, stride * 4
                )  # fmt: skip
        else:
            for t in range(0, n, TOKENS):
                _joined(
                    x_at + t * pairs * 4, pairs * 4, step_at + t * 4, own_at + t * m * 4, m * 4, weight, pairs, a, b, c,
                    blocks * merged * PANEL * 4, m, out + t * stride * 4, stride * 4
                )  # fmt: skip
    return maxima
