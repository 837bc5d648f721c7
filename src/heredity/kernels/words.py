"""Sums of products of rows in 8 or 16 bits, of which words of 32 bits, two or four elements, are multiplied at once.

For pairs in 16 bits processors have an instruction that multiplies twice as many numbers as one in float32 (x86's
pmaddwd); elsewhere they are plain integers, and slower. For fours in 8 bits some have one that multiplies twice as many
again (VNNI's vpdpbusd), of numbers without a sign by numbers with one: weights are raised by `RAISED`, and what that
adds to a sum is taken away. Elsewhere these are plain integers, too, the slowest of all, which `paths` leaves out.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from heredity.kernels.sparse import compiled
from heredity.kernels.squares import INSTRUCTIONS

LANES = 16 if "+avx512bw" in INSTRUCTIONS else 8  # words of a vector
HAS_FOURS = bool(INSTRUCTIONS & {"+avx512vnni", "+avxvnni"})
RAISED, RAISING = 128, 0x80808080  # and what flips the bits of four of them

_word, _size = ir.IntType(32), ir.IntType(64)
_sums = ir.VectorType(_word, LANES)


def load(builder: Any, pointer: Any, index: Any, align: int = 4) -> Any:
    """What is `index` places behind a pointer."""
    return builder.load(builder.gep(pointer, [index]), align=align)


def all_lanes(builder: Any, value: Any) -> Any:
    """A vector of one value."""
    nothing = ir.Constant(ir.VectorType(value.type, LANES), ir.Undefined)
    single = builder.insert_element(nothing, value, _word(0))
    return builder.shuffle_vector(single, nothing, ir.Constant(_sums, [0] * LANES))


def add_words(builder: Any, total: Any, of_x: Any, weights: Any, of_a_word: int) -> Any:
    """`total` and the products of the elements of each word; of four elements, weights are raised."""
    if of_a_word == 4 and HAS_FOURS:
        name, shape = f"llvm.x86.avx512.vpdpbusd.{32 * LANES}", ir.FunctionType(_sums, [_sums] * 3)
        return builder.call(builder.module.declare_intrinsic(name, (), shape), [total, weights, of_x])
    count = of_a_word * LANES
    narrow, wide = ir.VectorType(ir.IntType(32 // of_a_word), count), ir.VectorType(_word, count)
    extend = builder.zext if of_a_word == 4 else builder.sext
    products = builder.mul(
        builder.sext(builder.bitcast(of_x, narrow), wide), extend(builder.bitcast(weights, narrow), wide)
    )
    # Of pairs this is the form that LLVM makes one or two instructions of where it can.
    some = (ir.Constant(_sums, list(range(e, count, of_a_word))) for e in range(of_a_word))
    parts = [builder.shuffle_vector(products, ir.Constant(wide, None), each) for each in some]
    return builder.add(total, reduce(builder.add, parts))


def repeat(builder: Any, times: Any, carried: list[Any], body: Callable[[Any, list[Any]], list[Any]]) -> list[Any]:
    """`body(i, carried)` for i from 0; what it returns is carried on."""
    before, head = builder.block, builder.append_basic_block("head")
    inside, after = builder.append_basic_block("inside"), builder.append_basic_block("after")
    builder.branch(head)
    builder.position_at_end(head)
    i, kept = builder.phi(_size), [builder.phi(value.type) for value in carried]
    for phi, value in zip([i, *kept], [_size(0), *carried], strict=True):
        phi.add_incoming(value, before)
    builder.cbranch(builder.icmp_signed("<", i, times), inside, after)
    builder.position_at_end(inside)
    made = body(i, kept)
    for phi, value in zip([i, *kept], [builder.add(i, _size(1)), *made], strict=True):
        phi.add_incoming(value, builder.block)
    builder.branch(head)
    builder.position_at_end(after)
    return kept


def _dot(typingctx: Any, x: Any, weight: Any, i: Any, j: Any, vectors: Any) -> Any:  # noqa: ARG001
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        i, j, vectors = args[2:]
        of_a_word = 32 // signature.args[0].dtype.bitwidth
        starts = []
        for kind, each, row in zip(signature.args[:2], args[:2], (i, j), strict=True):
            array = context.make_array(kind)(context, builder, each)
            first = builder.mul(row, builder.extract_value(array.shape, 1))
            starts.append(builder.bitcast(builder.gep(array.data, [first]), _sums.as_pointer()))
        raising = ir.Constant(_sums, [RAISING if of_a_word == 4 else 0] * LANES)

        def add(step: Any, kept: list[Any]) -> list[Any]:
            of_x, of_weight = (load(builder, start, step, 1) for start in starts)
            return [add_words(builder, kept[0], of_x, builder.xor(of_weight, raising), of_a_word)]

        [total] = repeat(builder, vectors, [ir.Constant(_sums, [0] * LANES)], add)
        name, shape = f"llvm.vector.reduce.add.v{LANES}i32", ir.FunctionType(_word, [_sums])
        return builder.call(builder.module.declare_intrinsic(name, (), shape), [total])

    return types.int32(x, weight, i, j, vectors), codegen


# Sum of the products of the first `vectors` vectors of x[i] and of weight[j], which is raised here if it is of bytes.
_dot_of_vectors: Any = intrinsic(_dot)


@compiled()
def dots(x, i, weight, start, sums):
    """Products of row i of x [n, d_in] and as many rows of weight [d_sae, d_in] from `start` on as there are sums.

    x and weight: int8 or int16, contiguous; sums: int32, written.
    """
    d_in, of_a_word = x.shape[1], 4 // x.itemsize
    vectors, raised = d_in // (of_a_word * LANES), np.int32(0)
    whole = vectors * of_a_word * LANES
    if of_a_word == 4:
        for c in range(whole):
            raised = np.int32(raised + np.int32(x[i, c]))
        raised = np.int32(RAISED * raised)
    for p in range(len(sums)):
        total = np.int32(_dot_of_vectors(x, weight, i, start + p, vectors) - raised)
        for c in range(whole, d_in):
            total = np.int32(total + np.int32(np.int32(x[i, c]) * np.int32(weight[start + p, c])))
        sums[p] = total
