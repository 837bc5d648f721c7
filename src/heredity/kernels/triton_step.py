"""The gradient step of an SAE on a GPU in Triton, with work proportional to the active entries.

The same mathematics as `step`, in an order that suits a GPU. A first part reads: active features (`triton_forms`), then
per token reconstruction, error and the derivative by each activation. A second sorts the entries by feature and sums
what the biases need. The third writes: per feature the gradient rows, projection, Adam, unit norm and the rounded copy
of the encoder that the next step is screened with, in one program. No weight changes before the host has seen the
figures of the first part, which it reads while the second runs: a batch that has no room is done some other way, and
nothing waits. Sums have a fixed order: a step gives the same bits every time.
"""

# pyright: reportMissingImports=false
# Triton is not a dependency: see `torch_forms.has_triton`.

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from heredity.kernels.step import BETAS, EPSILON
from heredity.kernels.torch_forms import CAPACITY
from heredity.kernels.triton_adam import piece_sums, update_decoder_bias, update_features
from heredity.kernels.triton_forms import (
    Chooser,
    Rows,
    kernel,
    put_dense,
    room_for,
    rounded,
    warps,
    weight_screen,
)

Moments = tuple[Tensor, Tensor, Tensor]  # a weight and Adam's running means of its gradient and of the squares

PIECE = 256  # entries of a feature that one program sums; what fires more often is split
PIECES = 2048  # of all entries at most; each has room for two rows of gradients
CENTERS = 256  # programs that sum b_dec's gradient
PLAIN_STEPS = 2  # steps before the kernels of a shape are recorded as CUDA graphs: all are compiled by then

_L1, _L0 = tl.constexpr(1), tl.constexpr(2)  # places in `Numbers`
_LOG_BETAS = tuple(math.log(beta) for beta in BETAS)
_WORK: WeakTensorKeyDictionary = WeakTensorKeyDictionary()  # by encoder weights: what the next step can use again


class Parts(NamedTuple):
    """What is trained; row-major by feature, float32, contiguous."""

    w_enc: Moments  # [d_sae, d_in] each
    b_enc: Moments  # [d_sae]
    w_dec: Moments  # [d_sae, d_in]
    b_dec: Moments  # [d_in]
    log_threshold: Moments  # [d_sae], or [0] without one


class Kind(NamedTuple):
    """How activations are chosen."""

    k: int | None = None  # the k largest of each token; None: all above a floor
    of_batch: int = 0  # and of those the so many largest of the batch; 0: all
    window: float = 0.0  # jumprelu: width of the window around a threshold in which it has a derivative; or 0


class Numbers(NamedTuple):
    """What changes from step to step without changing a shape."""

    lr: float
    l1: float  # derivative of the penalty by an activation, λ / n
    l0: float  # λ / n of the penalty on the number of active features
    step: int  # of b_dec, counted from 1
    floor: float = 0.0  # that pre-activations are to exceed; a hint with `of_batch`, unused with k or a window


class Figures(NamedTuple):
    """What a step saw before it changed the weights."""

    squared: float  # ‖x − x̂‖² over all tokens
    total: float  # sum of all activations
    active: int  # entries above 0
    least: float  # smallest activation above 0; infinity without any
    fired: Tensor  # bool [d_sae]: features active on at least one token
    seen: torch.cuda.Event | None  # on a GPU: when `fired` is known, before the weights change


def take_step(parts: Parts, ages: Tensor, x: Tensor, target: Tensor, kind: Kind, numbers: Numbers) -> Figures | None:
    """One step on centered inputs; None, with no weight changed, for a batch that these kernels have no room for.

    x, target: float32 [n, d_in], contiguous; ages: int32 [d_sae], steps of a feature, this one included.
    """
    weight = parts.w_enc[0]
    work = _WORK.get(weight)
    pointers = tuple(part.data_ptr() for moments in parts for part in moments) + (ages.data_ptr(),)
    if work is None or work.key != (len(x), kind, pointers):
        known = work.room if work is not None and work.key[1] == kind else 0
        room = known or room_for(kind.k, 4 * (kind.of_batch // len(x)))
        work = _WORK[weight] = Work((len(x), kind, pointers), weight, room)
    figures = work.take(parts, ages, x, target, numbers)
    if figures is None and work.room < CAPACITY * len(weight):
        _WORK[weight] = Work(work.key, weight, room_for(kind.k, 2 * work.room))  # the next batch will be like this one
    return figures


class Work:
    """Buffers of a shape, the rounded encoder, and on a GPU recorded graphs."""

    def __init__(self, key: tuple[int, Kind, tuple[int, ...]], weight: Tensor, room: int) -> None:
        self.key, self.room, (n, self.kind, _) = key, room, key
        (d_sae, d_in), device = weight.shape, weight.device

        def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.empty(shape, dtype=dtype, device=device)

        self.choose = Chooser(n, d_sae, d_in, self.kind.k, room, device)
        self.rows: Rows = self.choose.rows
        self.x, self.target, self.output_grad = empty(n, d_in), empty(n, d_in), empty(n, d_in)
        self.numbers = torch.zeros(5, dtype=torch.float64, device=device)
        self.by_entry = empty(2 if self.kind.window else 1, *self.rows.acts.shape)  # by activation; by threshold
        self.by_token = empty(4, n)  # squared error, sum, number and smallest of the activations
        self.figures = empty(6, dtype=torch.float64)
        self.by_feature = empty(2, d_sae)  # gradients of b_enc and log_threshold
        self.fired = empty(d_sae, dtype=torch.int32)
        entries = self.rows.acts.numel()
        self.piece = max(PIECE, triton.next_power_of_2(triton.cdiv(entries, PIECES)))
        self.pieces = empty(entries // self.piece, 2, d_in)
        self.centers = empty(CENTERS, d_in, dtype=torch.float64)
        self.acts = self.rows.acts  # of them, those that the batch keeps
        self.keys = empty(entries, dtype=torch.int32)  # features of the entries, d_sae where there is no derivative
        self.fires = empty(*self.acts.shape) if self.kind.window else self.acts  # activations, 0 below a threshold
        self.sorted = self.order = self.starts = torch.empty(0)
        self.on_gpu = device.type == "cuda"
        self.host = torch.empty(6, dtype=torch.float64, pin_memory=self.on_gpu)
        self.screen, self.version = weight_screen(weight), weight._version
        self.steps, self.graphs = 0, dict[str, torch.cuda.CUDAGraph]()

    def take(self, parts: Parts, ages: Tensor, x: Tensor, target: Tensor, numbers: Numbers) -> Figures | None:
        """See `take_step`."""
        weight, given = parts.w_enc[0], torch.tensor(numbers, dtype=torch.float64)
        # Pinned memory is not used again before the copy is done.
        self.numbers.copy_(given.pin_memory() if self.on_gpu else given, non_blocking=True)
        self.x.copy_(x)
        self.target.copy_(target)
        if weight._version != self.version:  # changed by others; these kernels round what they write
            rows, norm, rounding = rounded(weight)
            for held, new in zip(self.screen, (rows, norm, rounding / norm.clamp_min(1e-30)), strict=True):
                held.copy_(new)
            self.version = weight._version
        if self.on_gpu and self.steps == PLAIN_STEPS:
            self._record(parts, ages)
        self.steps += 1
        self._run("read", parts, ages)
        read = self._event()
        self._run("sort", parts, ages)
        fired, seen = self.fired.bool(), self._event()
        if read is not None:
            read.synchronize()  # a GPU sorts meanwhile
        over = int(self.host[4]) > self.room
        if over:
            if not self._again(parts):
                return None
            self.sort(parts, ages)
            fired, seen = self.fired.bool(), self._event()
            if seen is not None:
                seen.synchronize()
        squared, total, active, least, _, kept = self.host.tolist()
        if numbers.floor > 0 and kept < self.kind.of_batch:  # the cut lies lower
            return self.take(parts, ages, x, target, numbers._replace(floor=0.0))
        if over:  # what was recorded writes what it has sorted itself
            self.write(parts, ages)
        else:
            self._run("write", parts, ages)
        return Figures(squared, total, int(active), least, fired, seen)

    def _again(self, parts: Parts) -> bool:
        """Errors once more, with the rows that had no room done densely; False where that does not pay or not fit."""
        encoder, floor = (parts.w_enc[0], parts.b_enc[0]), self._floor(parts)
        if not put_dense(self.rows, self.x, *encoder, self.kind.k, floor, self.room):
            return False
        self._errors(parts)
        return True

    def _event(self) -> torch.cuda.Event | None:
        if not self.on_gpu:
            return None
        event = torch.cuda.Event()
        event.record()
        return event

    def _run(self, name: str, parts: Parts, ages: Tensor) -> None:
        if name in self.graphs:
            self.graphs[name].replay()
        else:
            getattr(self, name)(parts, ages)

    def _record(self, parts: Parts, ages: Tensor) -> None:
        """Record the three parts, which then cost one launch each; where that fails they stay as they are."""
        graphs = {}
        try:
            for name in ("read", "sort", "write"):
                graphs[name] = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graphs[name], capture_error_mode="thread_local"):
                    getattr(self, name)(parts, ages)
        except RuntimeError:
            return
        self.graphs = graphs

    def _floor(self, parts: Parts) -> Tensor:
        """What pre-activations are to exceed to be looked at, float32 [1] or [d_sae]."""
        if self.kind.window:
            return (parts.log_threshold[0].exp() - self.kind.window / 2).clamp_(min=0)
        return self.numbers[4:].float()

    def read(self, parts: Parts, ages: Tensor) -> None:  # noqa: ARG002
        """Active features, errors and derivatives by activations; the figures, on their way to the host."""
        self.choose(self.x, parts.w_enc[0], parts.b_enc[0], self.screen, self._floor(parts))
        self._errors(parts)

    def _errors(self, parts: Parts) -> None:
        rows, (n, d_in) = self.rows, self.x.shape
        self.figures[5] = rows.kept.sum()
        if self.kind.of_batch:
            acts = rows.acts.view(-1)
            top = acts.topk(min(self.kind.of_batch, len(acts)), sorted=False)
            self.fires = self.acts = torch.zeros_like(acts).scatter_(0, top.indices, top.values).view_as(rows.acts)
        self.keys.fill_(len(parts.b_enc[0]))
        block, width, log_threshold = triton.next_power_of_2(d_in), rows.acts.shape[1], parts.log_threshold[0]
        theta = log_threshold.exp() if self.kind.window else log_threshold
        _errors[(n,)](
            rows.features, self.acts, rows.kept, self.target, parts.w_dec[0], theta, self.numbers, self.output_grad,
            self.keys, self.fires, self.by_entry, self.by_token, 2 / (n * d_in), N=n, D=d_in, WIDTH=width, BLOCK=block,
            ENTRIES=_together(block), WINDOW=self.kind.window, num_warps=warps(block)
        )  # fmt: skip
        _figures[(1,)](self.by_token, rows.found, self.figures, N=n, BLOCK=1024)
        self.host.copy_(self.figures, non_blocking=True)

    def sort(self, parts: Parts, ages: Tensor) -> None:  # noqa: ARG002
        """The entries by feature, and all that is known before a weight changes."""
        d_sae, d_in = parts.w_enc[0].shape
        self.sorted, self.order = torch.sort(self.keys, stable=True)
        features = torch.arange(d_sae + 1, dtype=torch.int32, device=self.keys.device)
        self.starts = torch.searchsorted(self.sorted, features, out_int32=True)
        entries, window = len(self.keys), self.kind.window > 0
        _biases[(d_sae,)](
            self.order, self.starts, self.fires, self.by_entry, self.by_feature, self.fired, COUNT=entries, M=d_sae,
            BLOCK=128, WINDOW=window, num_warps=1
        )  # fmt: skip
        block = triton.next_power_of_2(d_in)
        _centers[(CENTERS,)](
            self.output_grad, self.by_feature, parts.w_enc[0], self.centers, N=len(self.x), D=d_in, M=d_sae,
            PROGRAMS=CENTERS, ROWS=_together(block), BLOCK=block, num_warps=warps(block)
        )  # fmt: skip
        if len(self.pieces):
            piece_sums[(len(self.pieces),)](self.sorted, *self._summed(), M=d_sae, **self._shape(block))

    def write(self, parts: Parts, ages: Tensor) -> None:
        """New weights and moments, and the encoder's rounding."""
        (d_sae, d_in), window = parts.w_enc[0].shape, self.kind.window > 0
        block = triton.next_power_of_2(d_in)
        rates = {"B1": BETAS[0], "B2": BETAS[1], "L1": _LOG_BETAS[0], "L2": _LOG_BETAS[1], "EPS": EPSILON}
        jumps = parts.log_threshold if window else parts.b_enc
        update_features[(d_sae,)](
            self.starts, *self._summed(), *parts.w_enc, *parts.w_dec, *parts.b_enc, *jumps, self.by_feature,
            *self.screen, ages, self.numbers, M=d_sae, WINDOW=window, **rates, **self._shape(block)
        )  # fmt: skip
        update_decoder_bias[(triton.cdiv(d_in, 32),)](
            self.centers, *parts.b_dec, self.numbers, D=d_in, PROGRAMS=CENTERS, BLOCK=32, **rates
        )

    def _summed(self) -> tuple[Tensor, ...]:
        """What gradient rows are summed from, and the sums of pieces."""
        return self.order, self.fires, self.by_entry, self.x, self.output_grad, self.pieces

    def _shape(self, block: int) -> dict[str, int]:
        return {
            "D": self.x.shape[1], "WIDTH": self.rows.acts.shape[1], "PIECE": self.piece, "BLOCK": block,
            "ENTRIES": _together(block), "num_warps": warps(block)
        }  # fmt: skip


def _together(block: int) -> int:
    """Rows of `block` elements that a program loads at a time."""
    return max(1, min(8, 4096 // block))


@kernel
def _errors(
    features, acts, kept, target, w_dec, theta, numbers, output_grad, keys, fires, by_entry, by_token, scale,
    N: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, ENTRIES: tl.constexpr,
    WINDOW: tl.constexpr
):  # fmt: skip
    """Error of one token and derivatives by its activations; entries without any get no key."""
    row = tl.program_id(0).to(tl.int64)
    count = tl.load(kept + row)
    c = tl.arange(0, BLOCK)
    inside = c < D
    error = -tl.load(target + row * D + c, mask=inside, other=0.0)
    total = 0.0
    active = 0.0
    least = float("inf")
    for first in range(0, count, ENTRIES):
        j = first + tl.arange(0, ENTRIES)
        ok = j < count
        f = tl.load(features + row * WIDTH + j, mask=ok, other=0).to(tl.int64)
        v = tl.load(acts + row * WIDTH + j, mask=ok, other=0.0)
        if WINDOW > 0:
            v = tl.where(v > tl.load(theta + f, mask=ok, other=0.0), v, 0.0)
        on = v > 0
        w = tl.load(w_dec + f[:, None] * D + c[None, :], mask=on[:, None] & inside[None, :], other=0.0)
        error += tl.sum(w * v[:, None], 0)
        total += tl.sum(v, 0)
        active += tl.sum(on.to(tl.float32), 0)
        least = tl.minimum(least, tl.min(tl.where(on, v, float("inf")), 0))
    tl.store(by_token + row, tl.sum(error * error, 0))
    tl.store(by_token + N + row, total)
    tl.store(by_token + 2 * N + row, active)
    tl.store(by_token + 3 * N + row, least)
    grad = error * scale
    tl.store(output_grad + row * D + c, grad, mask=inside)
    l1 = tl.load(numbers + _L1).to(tl.float32)
    l0 = tl.load(numbers + _L0).to(tl.float32)
    for first in range(0, count, ENTRIES):
        j = first + tl.arange(0, ENTRIES)
        ok = j < count
        at = row * WIDTH + j
        f = tl.load(features + at, mask=ok, other=0).to(tl.int64)
        v = tl.load(acts + at, mask=ok, other=0.0)
        on = v > 0
        counts = on
        near = on
        cut = v
        if WINDOW > 0:
            cut = tl.load(theta + f, mask=ok, other=0.0)
            on = v > cut
            near = ok & (tl.abs(v - cut) < WINDOW / 2)
            counts = on | near
            tl.store(fires + at, tl.where(on, v, 0.0), mask=ok)
        w = tl.load(w_dec + f[:, None] * D + c[None, :], mask=counts[:, None] & inside[None, :], other=0.0)
        by_act = tl.sum(w * grad[None, :], 1)
        if WINDOW > 0:
            by_log = tl.where(near, -(cut / WINDOW) * (cut * by_act + l0), 0.0)
            tl.store(by_entry + N * WIDTH + at, by_log, mask=ok)
        tl.store(by_entry + at, tl.where(on, by_act + l1, 0.0), mask=ok)
        tl.store(keys + at, f.to(tl.int32), mask=counts)


@kernel
def _figures(by_token, found, figures, N: tl.constexpr, BLOCK: tl.constexpr):
    """Sums over all tokens, in float64."""
    i = tl.arange(0, BLOCK)
    squared = tl.zeros([BLOCK], tl.float64)
    total = tl.zeros([BLOCK], tl.float64)
    active = tl.zeros([BLOCK], tl.float64)
    least = tl.full([BLOCK], float("inf"), tl.float32)
    most = tl.zeros([BLOCK], tl.int32)
    for first in range(0, N, BLOCK):
        ok = first + i < N
        at = by_token + first + i
        squared += tl.load(at, mask=ok, other=0.0).to(tl.float64)
        total += tl.load(at + N, mask=ok, other=0.0).to(tl.float64)
        active += tl.load(at + 2 * N, mask=ok, other=0.0).to(tl.float64)
        least = tl.minimum(least, tl.load(at + 3 * N, mask=ok, other=float("inf")))
        most = tl.maximum(most, tl.load(found + first + i, mask=ok, other=0))
    tl.store(figures, tl.sum(squared, 0))
    tl.store(figures + 1, tl.sum(total, 0))
    tl.store(figures + 2, tl.sum(active, 0))
    tl.store(figures + 3, tl.min(least, 0).to(tl.float64))
    tl.store(figures + 4, tl.max(most, 0).to(tl.float64))


@kernel
def _biases(
    order, starts, acts, by_entry, by_feature, fired, COUNT: tl.constexpr, M: tl.constexpr, BLOCK: tl.constexpr,
    WINDOW: tl.constexpr
):  # fmt: skip
    """Gradients of b_enc and log_threshold of one feature, and whether it fired."""
    f = tl.program_id(0)
    begin = tl.load(starts + f)
    end = tl.load(starts + f + 1)
    bias = tl.zeros([BLOCK], tl.float32)
    jump = tl.zeros([BLOCK], tl.float32)
    most = tl.zeros([BLOCK], tl.float32)
    for first in range(begin, end, BLOCK):
        i = first + tl.arange(0, BLOCK)
        ok = i < end
        p = tl.load(order + i, mask=ok, other=0)
        bias += tl.load(by_entry + p, mask=ok, other=0.0)
        most = tl.maximum(most, tl.load(acts + p, mask=ok, other=0.0))
        if WINDOW:
            jump += tl.load(by_entry + COUNT + p, mask=ok, other=0.0)
    tl.store(by_feature + f, tl.sum(bias, 0))
    tl.store(by_feature + M + f, tl.sum(jump, 0))
    tl.store(fired + f, (tl.max(most, 0) > 0).to(tl.int32))


@kernel
def _centers(
    output_grad, by_feature, w_enc, centers, N: tl.constexpr, D: tl.constexpr, M: tl.constexpr,
    PROGRAMS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """A share of b_dec's gradient, Σ G − W_enc Σ H, in float64 because the two nearly cancel."""
    program = tl.program_id(0)
    c = tl.arange(0, BLOCK)
    inside = c < D
    total = tl.zeros([BLOCK], tl.float64)
    for first in range(0, N, PROGRAMS * ROWS):
        row = first + program * ROWS + tl.arange(0, ROWS)
        at = row.to(tl.int64)[:, None] * D + c[None, :]
        g = tl.load(output_grad + at, mask=(row < N)[:, None] & inside[None, :], other=0.0)
        total += tl.sum(g.to(tl.float64), 0)
    for first in range(0, M, PROGRAMS * ROWS):
        f = first + program * ROWS + tl.arange(0, ROWS)
        h = tl.load(by_feature + f, mask=f < M, other=0.0)
        at = f.to(tl.int64)[:, None] * D + c[None, :]
        w = tl.load(w_enc + at, mask=(h != 0)[:, None] & inside[None, :], other=0.0)
        total -= tl.sum(h.to(tl.float64)[:, None] * w.to(tl.float64), 0)
    tl.store(centers + program * D + c, total, mask=inside)
