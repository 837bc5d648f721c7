"""What numba has no words for: comparisons of a block of numbers as the bits of one integer, and a plain maximum."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

BLOCK = 64  # numbers that are compared together


def _above(typingctx: Any, array: Any, start: Any, cut: Any) -> Any:  # noqa: ARG001 (numba passes the context first)
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = signature.args[0]
        struct = context.make_array(kind)(context, builder, args[0])
        item = cgutils.get_item_pointer(context, builder, kind, struct, [args[1]], wraparound=False, boundscheck=False)
        number, lanes = ir.FloatType(), ir.VectorType(ir.FloatType(), BLOCK)
        block = builder.load(builder.bitcast(item, lanes.as_pointer()), align=4)
        single = builder.insert_element(ir.Constant(lanes, ir.Undefined), args[2], ir.IntType(32)(0))
        first = ir.Constant(ir.VectorType(ir.IntType(32), BLOCK), [0] * BLOCK)
        cuts = builder.shuffle_vector(single, ir.Constant(lanes, ir.Undefined), first)
        assert args[2].type == number
        return builder.bitcast(builder.fcmp_ordered(">", block, cuts), ir.IntType(BLOCK))

    return types.uint64(array, start, cut), codegen


def _lowest(typingctx: Any, mask: Any) -> Any:  # noqa: ARG001
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:  # noqa: ARG001
        return builder.cttz(args[0], ir.IntType(1)(1))

    return types.int64(mask), codegen


def _larger(typingctx: Any, a: Any, b: Any) -> Any:  # noqa: ARG001
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:  # noqa: ARG001
        number = ir.FloatType()
        maximum = builder.module.declare_intrinsic("llvm.maxnum", [number], ir.FunctionType(number, [number, number]))
        return builder.call(maximum, args, fastmath=("nnan", "nsz"))

    return types.float32(types.float32, types.float32), codegen


# above(array, start, cut): bit j of a uint64 says whether array[start + j] > cut, j < BLOCK; the array is float32 and
# contiguous, start an int64 and cut a float32. In compiled code only, as the next one.
above: Any = intrinsic(_above)
# lowest(mask): the number of the lowest bit of a uint64 that is set.
lowest: Any = intrinsic(_lowest)
# larger(a, b): the larger of two float32 that are no NaN. `a[i] = max(a[i], b[i])` becomes a store under a mask, which
# takes some processors three times as long as the whole loop.
larger: Any = intrinsic(_larger)
