"""A processor hint for loops that gather: ask for a cache line long before it is read."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic


def _prefetch(typingctx: Any, array: Any, index: Any) -> Any:  # noqa: ARG001 (numba passes the context first)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        struct = context.make_array(signature.args[0])(context, builder, args[0])
        item = cgutils.get_item_pointer(
            context, builder, signature.args[0], struct, [args[1]], wraparound=False, boundscheck=False
        )
        byte, flag = ir.IntType(8).as_pointer(), ir.IntType(32)
        shape = ir.FunctionType(ir.VoidType(), [byte, flag, flag, flag])
        hint = builder.module.declare_intrinsic("llvm.prefetch", [byte], shape)
        # To be read, kept in every cache level, from the data cache.
        builder.call(hint, [builder.bitcast(item, byte), flag(0), flag(3), flag(1)])
        return context.get_dummy_value()

    return types.void(array, index), codegen


prefetch: Any = intrinsic(_prefetch)
"""prefetch(array, index): start loading the cache line of `array[index]` (one-dimensional); for compiled code only.

It never changes a result: an address beyond the end is ignored by the processor, and negative indices do not wrap.
"""
