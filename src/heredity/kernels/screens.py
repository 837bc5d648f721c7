"""Screens: cheap products that name every feature which may be active, with bounds of what they leave out.

With x̃ and w̃ the rounded vectors, |x·w − x̃·w̃| <= ‖x − x̃‖ ‖w‖ + ‖x̃‖ ‖w − w̃‖ (Cauchy-Schwarz), and every norm on the
right is measured when the rows are rounded. A float32 product is a screen too: it rounds nothing, and its sums differ
little from those in any other order.

    int8     rows scaled by their largest element; products exact in int32, of which only the largest are kept (`tiles`)
    amx      the same, summed in registers for matrices (`squares`)
    bf16     products summed in float32 and rounded to bfloat16
    int16    as int8, in as many steps as sums of this length leave room for
    float32  the rows as they are
"""

from __future__ import annotations

import math
from functools import partial
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from heredity.kernels.sparse import FAST, compiled, in_ranges
from heredity.kernels.torch_forms import OUTPUT_ROUNDING, linear

Kind = Literal["amx", "int8", "bf16", "int16", "float32"]
IN_TILES = frozenset({"amx", "int8", "int16"})  # kinds whose products are never written

LEVELS = 127  # steps of int8 on each side of 0
WIDEST_INT8 = (2**31 - 1) // LEVELS**2  # longest rows whose products cannot overflow int32
SLACK = np.float32(1 + 1e-3)  # of every norm: its sum of squares is rounded too, and bounds must hold
SLACK_OF_STEPS = np.float32(2.0**-21)  # relative error of an element divided by its scale, twice over
_LEAST = np.float32(1e-30)  # least element that rows are scaled by, so that its inverse is finite


class Screen(NamedTuple):
    """Rows of a matrix [n, d] in the form that is multiplied, and bounds of their rounding."""

    kind: Kind
    rows: Tensor  # [n, d]: int8, bfloat16, int16, or the float32 rows themselves
    scale: np.ndarray  # float32 [n]: the value of one integer step; 1 where rows are floats
    norm: np.ndarray  # float32 [n]: at least the norm of the exact row
    rounding: np.ndarray  # float32 [n]: at least the norm of the exact row minus the rounded one
    packed: np.ndarray | None = None  # rows of a weight in the order of `Tiles`, where they are made to be kept


_DTYPES = {"amx": torch.int8, "int8": torch.int8, "bf16": torch.bfloat16, "int16": torch.int16}


def levels_of(d_in: int) -> int:
    """Steps of int16 on each side of 0 with which products of rows of this length cannot overflow int32."""
    return min(math.isqrt((2**31 - 1) // (d_in + 1)), 2**15 - 1)


def make_screen(x: Tensor, kind: Kind) -> Screen:
    """Round rows x [n, d], float32 and contiguous on a CPU."""
    scale, norm, rounding = np.ones(len(x), np.float32), np.empty(len(x), np.float32), np.zeros(len(x), np.float32)
    rows = x if kind == "float32" else torch.empty(x.shape, dtype=_DTYPES[kind])
    if kind in IN_TILES:
        levels = np.float32(levels_of(x.shape[1]) if kind == "int16" else LEVELS)
        measure, arrays = partial(_to_integers, levels), (rows.numpy(), scale, norm, rounding)
    elif kind == "bf16":
        measure, arrays = _to_bfloat16, (rows.view(torch.uint16).numpy(), norm, rounding)
    else:
        measure, arrays = _norms, (norm,)
    given = x.numpy(), x.view(torch.uint32).numpy(), *arrays
    in_ranges(lambda a, b: measure(*(array[a:b] for array in given)), len(x), x.numel())
    return Screen(kind, rows, scale, norm, rounding)


def products(x: Screen, weight: Screen) -> np.ndarray:
    """x [n, d] times the transpose of weight [m, d]: float32, or the uint16 bits of bfloat16, [n, m].

    Raises RuntimeError where torch has no such product for this processor.
    """
    if x.kind == "bf16":
        return bfloat16_product(x.rows, weight.rows).view(torch.uint16).numpy()
    return linear(x.rows, weight.rows).numpy()


def bfloat16_product(x: Tensor, weight: Tensor) -> Tensor:
    """bfloat16 x @ weight.T, summed in float32. Raises RuntimeError where oneDNN has no such product."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")


def output_rounding(kind: Kind) -> np.float32:
    """Bound of the relative error of one of `products` after the float32 operations that scale it and add a bias."""
    return np.float32(OUTPUT_ROUNDING if kind == "bf16" else 2.0**-20)


def largest_by_column(x: Tensor) -> np.ndarray:
    """Largest absolute value of each column of x, float32 [n, d] on a CPU."""
    largest = np.zeros(x.shape[1], np.uint32)
    _largest_by_column(x.contiguous().view(torch.uint32).numpy(), largest)
    return largest.view(np.float32)


@compiled()
def widen(bits):
    """The float32 of a bfloat16, given as its uint16 bits."""
    return np.uint32(np.uint32(bits) << np.uint32(16)).view(np.float32)


@compiled()
def narrow(value):
    """Bits of the bfloat16 nearest to a finite float32, ties to even."""
    bits = np.float32(value).view(np.uint32)
    odd = np.uint32(np.uint32(bits >> np.uint32(16)) & np.uint32(1))
    return np.uint16(np.uint32(np.uint32(bits + odd) + np.uint32(0x7FFF)) >> np.uint32(16))


@compiled()
def float_of(bits):
    return np.uint32(bits).view(np.float32)


@compiled()
def _magnitude(bits):
    """Bits of the absolute value of a float32: unsigned integers that are ordered as the values are."""
    return np.uint32(np.uint32(bits) & np.uint32(0x7FFFFFFF))


@compiled()
def _largest(bits):
    # Compared as integers, because the largest of floats is found one by one.
    most = np.uint32(0)
    for c in range(len(bits)):
        most = max(most, _magnitude(bits[c]))
    return float_of(most)


@compiled()
def _largest_by_column(bits, largest):
    for i in range(len(bits)):
        row = bits[i]
        for c in range(len(largest)):
            largest[c] = max(largest[c], _magnitude(row[c]))


@compiled(FAST)
def _norms(x, bits, norm):
    for i in range(len(x)):
        row, unit = x[i], max(_largest(bits[i]), _LEAST)
        inverse, square = np.float32(1) / unit, np.float32(0)
        for c in range(len(row)):
            relative = row[c] * inverse
            square += relative * relative
        norm[i] = SLACK * unit * np.sqrt(square)


@compiled(FAST)
def _to_bfloat16(x, bits, rounded, norm, rounding):
    for i in range(len(x)):
        row, low, unit = x[i], rounded[i], max(_largest(bits[i]), _LEAST)
        inverse, square, lost = np.float32(1) / unit, np.float32(0), np.float32(0)
        for c in range(len(row)):
            low[c] = narrow(row[c])
            relative, difference = row[c] * inverse, (row[c] - widen(low[c])) * inverse
            square += relative * relative
            lost += difference * difference
        norm[i], rounding[i] = SLACK * unit * np.sqrt(square), SLACK * unit * np.sqrt(lost)


@compiled(FAST)
def _to_integers(levels, x, bits, rounded, scale, norm, rounding):
    for i in range(len(x)):
        row, low, unit = x[i], rounded[i], max(_largest(bits[i]), _LEAST) / levels
        inverse, square, lost = np.float32(1) / unit, np.float32(0), np.float32(0)
        for c in range(len(row)):
            steps = row[c] * inverse
            nearest = np.rint(steps)
            low[c] = np.int32(nearest)
            square += steps * steps
            lost += (steps - nearest) * (steps - nearest)
        scale[i], norm[i] = unit, SLACK * unit * np.sqrt(square)
        # `steps` is off by its own rounding, which is not in `lost`.
        rounding[i] = SLACK * unit * np.sqrt(lost) + SLACK_OF_STEPS * norm[i]
