"""Products of bytes in the registers that x86's AMX has for matrices: squares of 16 rows by 16 features.

Each holds 16 lines of 64 bytes: 16 x 16 sums in int32, or 64 bytes of 16 rows of x, or 16 words (four elements each) of
16 features. One instruction adds to a square the products of two others, eight times as many as VNNI's vpdpbusd.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.registry import cpu_target
from numba.extending import intrinsic

# What code is compiled for, as numba sees and is told it: not always this processor.
_target: Any = cpu_target.target_context
INSTRUCTIONS = frozenset(_target.codegen().magic_tuple()[2].split(","))
IS_COMPILED = {"+amx-int8", "+avx512bw"} <= INSTRUCTIONS  # vectors of as many lanes as a square has columns
SIDE, LINE = 16, 64  # lines of a square, and bytes of one: 16 words
ROWS = 2 * SIDE  # of x whose sums with two vectors of features are in four squares at once,
SUMS = 4 * SIDE * LINE  # and their bytes
_SYSCALL, _REQUEST, _STATE = 158, 0x1023, 18  # Linux: arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA


def _allowed() -> bool:
    """Whether the system lets this process have the registers, which it must keep 8 KB for in every thread."""
    return sys.platform == "linux" and ctypes.CDLL(None).syscall(_SYSCALL, _REQUEST, _STATE) == 0


HAS_SQUARES = IS_COMPILED and _allowed()

_size, _byte = ir.IntType(64), ir.IntType(8)


def _call(builder: Any, name: str, *args: Any) -> None:
    shape = ir.FunctionType(ir.VoidType(), [arg.type for arg in args])
    builder.call(builder.module.declare_intrinsic(f"llvm.x86.{name}", (), shape), args)


def _at(builder: Any, base: Any, further: int = 0) -> Any:
    return builder.inttoptr(builder.add(base, _size(further)), _byte.as_pointer())


def _configure(typingctx: Any) -> Any:  # noqa: ARG001
    """Makes the calling thread's registers eight whole squares; to be called before any product."""

    def codegen(context: Any, builder: Any, *_: Any) -> Any:
        if IS_COMPILED:
            layout = np.zeros(64, np.uint8)
            layout[0], layout[48:56] = 1, SIDE  # the only palette there is; lines of each register,
            layout[16:32].view(np.uint16)[:] = LINE  # and their bytes
            given = cgutils.global_constant(builder, "squares", ir.Constant(ir.ArrayType(_byte, 64), bytearray(layout)))
            _call(builder, "ldtilecfg", builder.bitcast(given, _byte.as_pointer()))
        return context.get_dummy_value()

    return types.void(), codegen


def _release(typingctx: Any) -> Any:  # noqa: ARG001
    """Gives the calling thread's registers back, so that they need not be kept when it waits."""

    def codegen(context: Any, builder: Any, *_: Any) -> Any:
        if IS_COMPILED:
            _call(builder, "tilerelease")
        return context.get_dummy_value()

    return types.void(), codegen


def _add_products(typingctx: Any, x: Any, weight: Any, steps: Any, sums: Any) -> Any:  # noqa: ARG001
    """Sums of `ROWS` rows of x and two vectors of features, int32 [ROWS, 2, SIDE].

    All are addresses where a line of the cache begins. x: int8 [2, steps, SIDE, LINE]; weight: uint8, raised, [steps,
    SIDE, 2, LINE]; sums: written.
    """
    above, below, left, right = (_byte(register) for register in range(4, 8))
    totals = [_byte(register) for register in range(4)]

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:  # noqa: ARG001
        x, weight, steps, sums = args
        if not IS_COMPILED:
            return context.get_dummy_value()
        for total in totals:
            _call(builder, "tilezero", total)
        with cgutils.for_range(builder, steps) as loop:
            of_x = builder.add(x, builder.mul(loop.index, _size(SIDE * LINE)))
            others = builder.add(of_x, builder.mul(steps, _size(SIDE * LINE)))
            of_weight = builder.add(weight, builder.mul(loop.index, _size(2 * SIDE * LINE)))
            for register, place, apart in (
                (left, _at(builder, of_weight), 2 * LINE), (above, _at(builder, of_x), LINE),
                (right, _at(builder, of_weight, LINE), 2 * LINE), (below, _at(builder, others), LINE),
            ):  # fmt: skip
                _call(builder, "tileloadd64", register, place, _size(apart))
            for total, rows, features in zip(totals, (above, above, below, below), (left, right) * 2, strict=True):
                _call(builder, "tdpbsud", total, rows, features)
        for number, total in enumerate(totals):
            place = _at(builder, sums, (number // 2 * SIDE * 2 + number % 2) * LINE)
            _call(builder, "tilestored64", total, place, _size(2 * LINE))
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4), codegen


configure: Any = intrinsic(_configure)
release: Any = intrinsic(_release)
add_products: Any = intrinsic(_add_products)
