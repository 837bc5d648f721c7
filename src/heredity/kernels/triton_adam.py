"""New weights of an SAE on a GPU in Triton: gradient rows, Adam, unit norm and rounding of a feature in one program.

The kernels of the part of `triton_step` that writes. The plain reference is `heredity.sae.step.adam_rows`.
"""

# pyright: reportMissingImports=false
# Triton is not a dependency: see `torch_forms.has_triton`.

from __future__ import annotations

import triton.language as tl

from heredity.kernels.triton_forms import SLACK, kernel

_LR, _STEP = tl.constexpr(0), tl.constexpr(3)  # places in `triton_step.Numbers`


@kernel
def _sums(
    begin, end, order, acts, by_entry, x, output_grad, D: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
    ENTRIES: tl.constexpr
):  # fmt: skip
    """Gradients of an encoder and a decoder row from the entries from `begin` to `end`."""
    c = tl.arange(0, BLOCK)
    enc = tl.zeros([BLOCK], tl.float32)
    dec = tl.zeros([BLOCK], tl.float32)
    for first in range(begin, end, ENTRIES):
        i = first + tl.arange(0, ENTRIES)
        ok = i < end
        p = tl.load(order + i, mask=ok, other=0)
        back = tl.load(by_entry + p, mask=ok, other=0.0)
        act = tl.load(acts + p, mask=ok, other=0.0)
        at = (p // WIDTH)[:, None] * D + c[None, :]
        both = ok[:, None] & (c < D)[None, :]
        enc += tl.sum(back[:, None] * tl.load(x + at, mask=both, other=0.0), 0)
        dec += tl.sum(act[:, None] * tl.load(output_grad + at, mask=both, other=0.0), 0)
    return enc, dec


@kernel
def piece_sums(
    keys, order, acts, by_entry, x, output_grad, pieces, M: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr,
    PIECE: tl.constexpr, BLOCK: tl.constexpr, ENTRIES: tl.constexpr
):  # fmt: skip
    """Gradient rows of a whole piece of the sorted entries, if all of it is of one feature."""
    piece = tl.program_id(0)
    begin = piece * PIECE
    key = tl.load(keys + begin)
    if (key < M) & (key == tl.load(keys + begin + PIECE - 1)):
        enc, dec = _sums(begin, begin + PIECE, order, acts, by_entry, x, output_grad, D, WIDTH, BLOCK, ENTRIES)
        c = tl.arange(0, BLOCK)
        at = pieces + piece * (2 * D) + c
        tl.store(at, enc, mask=c < D)
        tl.store(at + D, dec, mask=c < D)


@kernel
def _adam(w, m, v, grad, at, mask, rate, correction, B1: tl.constexpr, B2: tl.constexpr, EPS: tl.constexpr):
    """New weights; the moments are written."""
    first = B1 * tl.load(m + at, mask=mask, other=0.0) + (1 - B1) * grad
    second = B2 * tl.load(v + at, mask=mask, other=0.0) + (1 - B2) * grad * grad
    tl.store(m + at, first, mask=mask)
    tl.store(v + at, second, mask=mask)
    return w - rate * first / (tl.sqrt(second * correction) + EPS)


@kernel
def _rates(age, numbers, L1: tl.constexpr, L2: tl.constexpr):
    """Learning rate and correction of the second moment at an age; in float64, since β₂ is close to 1."""
    age = age.to(tl.float64)
    rate = tl.load(numbers + _LR) / (1.0 - tl.exp(age * L1))
    return rate.to(tl.float32), (1.0 / (1.0 - tl.exp(age * L2))).to(tl.float32)


@kernel
def update_features(
    starts, order, acts, by_entry, x, output_grad, pieces, enc_w, enc_m, enc_v, dec_w, dec_m, dec_v, bias_w, bias_m,
    bias_v, jump_w, jump_m, jump_v, by_feature, low, norm, ratio, ages, numbers, M: tl.constexpr, WINDOW: tl.constexpr,
    B1: tl.constexpr, B2: tl.constexpr, L1: tl.constexpr, L2: tl.constexpr, EPS: tl.constexpr, D: tl.constexpr,
    WIDTH: tl.constexpr, PIECE: tl.constexpr, BLOCK: tl.constexpr, ENTRIES: tl.constexpr
):  # fmt: skip
    """Gradients, Adam and rounding of one feature: the gradients never leave the registers."""
    f = tl.program_id(0).to(tl.int64)
    begin = tl.load(starts + f)
    end = tl.load(starts + f + 1)
    c = tl.arange(0, BLOCK)
    inside = c < D
    # The pieces that lie within the feature's entries are summed already.
    first = (begin + PIECE - 1) // PIECE
    last = tl.maximum(end // PIECE, first)
    whole = last > first
    enc, dec = _sums(
        begin, tl.where(whole, first * PIECE, end), order, acts, by_entry, x, output_grad, D, WIDTH, BLOCK, ENTRIES
    )
    if whole:
        enc_rest, dec_rest = _sums(last * PIECE, end, order, acts, by_entry, x, output_grad, D, WIDTH, BLOCK, ENTRIES)
        enc += enc_rest
        dec += dec_rest
        for piece in range(first, last):
            at = pieces + piece * (2 * D) + c
            enc += tl.load(at, mask=inside, other=0.0)
            dec += tl.load(at + D, mask=inside, other=0.0)
    rate, correction = _rates(tl.load(ages + f), numbers, L1, L2)
    at = f * D + c
    w = tl.load(enc_w + at, mask=inside, other=0.0)
    w = tl.where(inside, _adam(w, enc_m, enc_v, enc, at, inside, rate, correction, B1, B2, EPS), 0.0)
    tl.store(enc_w + at, w, mask=inside)
    rounded_w = w.to(tl.bfloat16)
    lost = w - rounded_w.to(tl.float32)
    size = tl.sqrt(tl.sum(w * w, 0)) * SLACK
    tl.store(low + at, rounded_w, mask=inside)
    tl.store(norm + f, size)
    tl.store(ratio + f, tl.sqrt(tl.sum(lost * lost, 0)) * SLACK / tl.maximum(size, 1e-30))
    w = tl.load(dec_w + at, mask=inside, other=0.0)
    dec -= tl.sum(dec * w, 0) * w
    w = tl.where(inside, _adam(w, dec_m, dec_v, dec, at, inside, rate, correction, B1, B2, EPS), 0.0)
    w /= tl.maximum(tl.sqrt(tl.sum(w * w, 0)), 1e-30)
    tl.store(dec_w + at, w, mask=inside)
    grad = tl.load(by_feature + f)
    tl.store(bias_w + f, _adam(tl.load(bias_w + f), bias_m, bias_v, grad, f, f >= 0, rate, correction, B1, B2, EPS))
    if WINDOW:
        grad = tl.load(by_feature + M + f)
        tl.store(jump_w + f, _adam(tl.load(jump_w + f), jump_m, jump_v, grad, f, f >= 0, rate, correction, B1, B2, EPS))


@kernel
def update_decoder_bias(
    centers, weight, m, v, numbers, D: tl.constexpr, PROGRAMS: tl.constexpr, BLOCK: tl.constexpr, B1: tl.constexpr,
    B2: tl.constexpr, L1: tl.constexpr, L2: tl.constexpr, EPS: tl.constexpr
):  # fmt: skip
    """Adam on b_dec from the shares of its gradient, float64 [PROGRAMS, D]."""
    c = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = c < D
    at = tl.arange(0, PROGRAMS)[:, None] * D + c[None, :]
    grad = tl.sum(tl.load(centers + at, mask=inside[None, :], other=0.0), 0).to(tl.float32)
    rate, correction = _rates(tl.load(numbers + _STEP), numbers, L1, L2)
    w = tl.load(weight + c, mask=inside, other=0.0)
    tl.store(weight + c, _adam(w, m, v, grad, c, inside, rate, correction, B1, B2, EPS), mask=inside)
