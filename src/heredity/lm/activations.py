"""Activations of a model at a hook point, in order or as shuffled batches: streamed, in bounded memory, never on disk.

Batch `number` is a function of (model, tokens, seed, number) alone, so that training can resume at any step and
several SAEs can be fed from one stream.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from heredity.lm.evaluate import arithmetic
from heredity.lm.hooks import capture_all
from heredity.lm.reading import samples
from heredity.study import Precision
from heredity.text.tokens import BlockSampler

_FORWARD_TOKENS = 12_288  # tokens per forward pass: enough to fill two cores, small enough to stay in cache


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
    ):
        """hook_point: one, or several that one forward pass serves."""
        self.hook_points = (hook_point,) if isinstance(hook_point, str) else tuple(hook_point)
        self.model, self.sampler = model, sampler
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
        group, place = divmod(number, self.buffer)
        if group != self._group:
            self._held.clear()  # before the next is read: both would be in memory
            blocks = self.batch_blocks * self.buffer
            taken = self.sampler.take(group * blocks, (group + 1) * blocks)
            parts = zip(*activations_at(self.model, self.hook_points, taken, self.precision), strict=True)
            self._held = {
                name: self._shuffled(name, own, group) for name, own in zip(self.hook_points, parts, strict=True)
            }
            self._group = group
        x, order = self._held[hook_point or self.hook_points[0]]
        return x[order[place * self.batch_size : (place + 1) * self.batch_size]]

    def _shuffled(
        self, hook_point: str, parts: Sequence[torch.Tensor], group: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The vectors of a group, and the order in which batches take them."""
        kept = [samples(self.model, part, self.sampler.context_size) for part in parts]
        x, rng = torch.cat(list(parts)), np.random.default_rng([self.seed, group])
        order = rng.permutation(len(x))
        if any(one is not None for one in kept):
            self._only(hook_point, torch.cat([one for one in kept if one is not None]).cpu().numpy(), order, rng)
        self.read += len(order)
        return x, torch.from_numpy(order).to(x.device)

    def _only(self, hook_point: str, kept: np.ndarray, order: np.ndarray, rng: np.random.Generator) -> None:
        """Put samples drawn at random in the places of the vectors that are none, so that batches keep their size."""
        if not kept.any():
            raise ValueError(f"no position at {hook_point} is a sample; take back skip or outliers of [reading]")
        others = ~kept[order]
        order[others] = rng.choice(np.flatnonzero(kept), int(others.sum()))
        self.left_out += int(others.sum())


def blocks_at_once(context_size: int) -> int:
    return max(1, _FORWARD_TOKENS // context_size)


def activations(
    model: torch.nn.Module, hook_point: str, blocks: np.ndarray, precision: Precision = "float32"
) -> Iterator[torch.Tensor]:
    """Activations of token blocks [n, context] in order, as chunks [tokens, d_in] of float32.

    `precision` is that of the model's matrix products; `bf16` rounds the activations by about 1 %.
    Raises ValueError, naming the hook point, when a value is not finite.
    """
    for (x,) in activations_at(model, (hook_point,), blocks, precision):
        yield x


def activations_at(
    model: torch.nn.Module, hook_points: Sequence[str], blocks: np.ndarray, precision: Precision = "float32"
) -> Iterator[list[torch.Tensor]]:
    """Like `activations`, at several hook points of one forward pass: a chunk for each, on the same tokens."""
    device = next(model.parameters()).device
    step = blocks_at_once(blocks.shape[1])
    for start in range(0, len(blocks), step):
        ids = torch.from_numpy(blocks[start : start + step]).to(device)
        with arithmetic(device, precision):
            chunks = [x.flatten(0, 1) for x in capture_all(model, hook_points, ids)]
        for name, x in zip(hook_points, chunks, strict=True):
            if not bool(torch.isfinite(x).all()):
                raise ValueError(f"activations at {name} are not finite; the model's weights are damaged or overflow")
        yield chunks


def sampled(
    model: torch.nn.Module, hook_point: str, blocks: np.ndarray, precision: Precision = "float32"
) -> Iterator[torch.Tensor]:
    """Like `activations`, without the positions that are no samples (see `lm.reading`)."""
    for x in activations(model, hook_point, blocks, precision):
        kept = samples(model, x, blocks.shape[1])
        yield x if kept is None else x[kept]
