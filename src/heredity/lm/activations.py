"""Activations of a model at a hook point, in order or as shuffled batches: streamed, in bounded memory, never on disk.

Batch `number` is a function of (model, tokens, seed, number) alone, so that training can resume at any step and
several SAEs can be fed from one stream.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from heredity.engine.ranks import ALONE, Ranks
from heredity.lm.evaluate import arithmetic, blocks_that_fit
from heredity.lm.hooks import capture_all
from heredity.lm.reading import samples
from heredity.study import Precision
from heredity.text.tokens import BlockSampler

_CHUNK_TOKENS = 12_288  # of a chunk that is handed on
_PASS_TOKENS = 4096  # of a forward pass on a CPU: enough to fill its cores, few enough to stay in cache


class ActivationStore:
    """Shuffled batches of activations: `buffer` batches at a time are run through the model and their positions
    permuted, so that the positions of one block, drawn from all over the corpora, spread over many batches."""

    def __init__(
        self,
        model: torch.nn.Module,
        hook_point: str | Sequence[str],
        sampler: BlockSampler,
        batch_blocks: int,
        seed: int,
        buffer: int = 16,
        precision: Precision = "float32",
        ranks: Ranks | None = None,
    ):
        """hook_point: one, or several that one forward pass serves. ranks: share the passes, on a CPU; each has all."""
        self.hook_points = (hook_point,) if isinstance(hook_point, str) else tuple(hook_point)
        self.model, self.sampler, self.ranks = model, sampler, ranks or ALONE
        self.precision: Precision = precision
        self.batch_blocks, self.seed, self.buffer = batch_blocks, seed, buffer
        self.left_out, self.read = 0, 0  # vectors that are no samples (see `lm.reading`), and all
        self._group, self._held = -1, dict[str, tuple[torch.Tensor, torch.Tensor]]()

    @property
    def batch_size(self) -> int:
        """Vectors per batch."""
        return self.batch_blocks * self.sampler.context_size

    def batch(self, number: int, hook_point: str | None = None) -> torch.Tensor:
        """Batch `number` of the stream at a hook point, by default the first, [batch_size, d_in], float32, on the
        model's device. What the stream gives at one does not depend on the others."""
        group, within = divmod(number, self.buffer)
        if group != self._group:
            self._held.clear()  # before the next is read: both would be in memory
            blocks = self.batch_blocks * self.buffer
            taken = self.sampler.take(group * blocks, (group + 1) * blocks)
            chunks = self._chunks(taken)
            for place, name in enumerate(self.hook_points):
                self._held[name] = self._shuffled(name, [(xs[place], part) for xs, part in chunks], group)
            self._group = group
        x, order = self._held[hook_point or self.hook_points[0]]
        return x[order[within * self.batch_size : (within + 1) * self.batch_size]]

    def _chunks(self, blocks: np.ndarray) -> list[tuple[list[torch.Tensor], np.ndarray]]:
        """What `_read` gives of token blocks [n, context]; of several ranks, each has read a share of the chunks."""
        if self.ranks.count == 1:
            return list(_read(self.model, self.hook_points, blocks, self.precision))
        each, context = blocks_at_once(blocks.shape[1]), blocks.shape[1]
        edges = [min(each * edge, len(blocks)) for edge in self.ranks.edges(-(-len(blocks) // each))]
        first, stop = edges[self.ranks.number : self.ranks.number + 2]
        own = list(_read(self.model, self.hook_points, blocks[first:stop], self.precision))
        widths = self.ranks.told([x.shape[1] for x in own[0][0]] if own else None, by=self.ranks.count - 1)
        read = []
        for place, width in enumerate(widths):
            x = np.empty((blocks.size, width), np.float32)
            x[first * context : stop * context] = np.concatenate([xs[place] for xs, _ in own] or [x[:0]])
            self.ranks.fill(x, [edge * context for edge in edges])
            read.append(torch.from_numpy(x).split(each * context))
        parts = [blocks[at : at + each] for at in range(0, len(blocks), each)]
        return [(list(xs), part) for *xs, part in zip(*read, parts, strict=True)]

    def _shuffled(
        self, hook_point: str, chunks: Sequence[tuple[torch.Tensor, np.ndarray]], group: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The vectors of a group, and the order in which batches take them."""
        kept = [samples(self.model, x, part) for x, part in chunks]
        x, rng = torch.cat([x for x, _ in chunks]), np.random.default_rng([self.seed, group])
        order = rng.permutation(len(x))
        if any(one is not None for one in kept):
            pairs = zip(chunks, kept, strict=True)
            masks = [torch.ones(part.size, dtype=torch.bool) if own is None else own.cpu() for (_, part), own in pairs]
            self._only(hook_point, torch.cat(masks).numpy(), order, rng)
        self.read += len(order)
        return x, torch.from_numpy(order).to(x.device)

    def _only(self, hook_point: str, kept: np.ndarray, order: np.ndarray, rng: np.random.Generator) -> None:
        """Put samples drawn at random in the places of the vectors that are none, so that batches keep their size."""
        if not kept.any():
            raise ValueError(
                f"no position at {hook_point} is a sample; lower skip_positions, or raise outliers, of [reading]"
            )
        others = ~kept[order]
        order[others] = rng.choice(np.flatnonzero(kept), int(others.sum()))
        self.left_out += int(others.sum())


def blocks_at_once(context_size: int) -> int:
    """Blocks of tokens in a chunk of activations."""
    return max(1, _CHUNK_TOKENS // context_size)


def activations(
    model: torch.nn.Module, hook_point: str, blocks: np.ndarray, precision: Precision = "float32"
) -> Iterator[torch.Tensor]:
    """Activations of token blocks [n, context] in order, as chunks [tokens, d_in] of float32.

    `precision` is that of the model's matrix products; `bf16` rounds the activations by about 1 %.
    Raises ValueError, naming the hook point, when a value is not finite.
    """
    return (x for (x,), _ in _read(model, (hook_point,), blocks, precision))


def sampled(
    model: torch.nn.Module, hook_point: str, blocks: np.ndarray, precision: Precision = "float32"
) -> Iterator[torch.Tensor]:
    """Like `activations`, without the positions that are no samples (see `lm.reading.samples`)."""
    for x, kept in marked(model, hook_point, blocks, precision):
        yield x if kept is None else x[kept]


def marked(
    model: torch.nn.Module, hook_point: str, blocks: np.ndarray, precision: Precision = "float32"
) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
    """Like `activations`, each chunk with which of its vectors are samples, bool [tokens]; None where all are."""
    return (one for (one,) in marked_at(model, (hook_point,), blocks, precision))


def marked_at(
    model: torch.nn.Module, hook_points: Sequence[str], blocks: np.ndarray, precision: Precision = "float32"
) -> Iterator[list[tuple[torch.Tensor, torch.Tensor | None]]]:
    """Like `marked`, at several hook points that one forward pass serves."""
    for xs, part in _read(model, hook_points, blocks, precision):
        yield [(x, samples(model, x, part)) for x in xs]


def aligned(
    sides: Sequence[tuple[torch.nn.Module, str, Precision]], blocks: np.ndarray
) -> Iterator[tuple[list[torch.Tensor], torch.Tensor]]:
    """Vectors of several (model, hook point, precision) at the positions of token blocks [n, context] that are samples
    in all of them, a chunk at a time: float32 [samples, d] of each, and which of the chunk's positions these are, bool
    [tokens]."""
    for chunks in zip(*(marked(model, place, blocks, precision) for model, place, precision in sides), strict=True):
        kept = torch.ones(len(chunks[0][0]), dtype=torch.bool)
        for _, own in chunks:
            kept &= True if own is None else own.cpu()
        yield [x if kept.all() else x[kept.to(x.device)] for x, _ in chunks], kept


def _read(
    model: torch.nn.Module, hook_points: Sequence[str], blocks: np.ndarray, precision: Precision
) -> Iterator[tuple[list[torch.Tensor], np.ndarray]]:
    """Chunks of activations at several hook points of one forward pass, and the blocks of each chunk."""
    device = next(model.parameters()).device
    step = blocks_at_once(blocks.shape[1])
    for start in range(0, len(blocks), step):
        part = blocks[start : start + step]
        ids = torch.from_numpy(np.ma.getdata(part)).to(device)
        passes = ids.split(blocks_that_fit(model, blocks.shape[1]) or max(1, _PASS_TOKENS // blocks.shape[1]))
        with arithmetic(device, precision):
            made = [[x.flatten(0, 1) for x in capture_all(model, hook_points, some)] for some in passes]
        chunks = made[0] if len(made) == 1 else [torch.cat(xs) for xs in zip(*made, strict=True)]
        for name, x in zip(hook_points, chunks, strict=True):
            if not bool(torch.isfinite(x).all()):
                raise ValueError(f"activations at {name} are not finite; the model's weights are damaged or overflow")
        yield chunks, part
