"""Feature activations of one token sample: one pass through the model feeds any number of SAEs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from heredity.engine.workers import Here, Job, Progress
from heredity.features.acts import FeatureActs
from heredity.lm.activations import blocks_at_once, marked
from heredity.sae.model import SAE
from heredity.study import Precision
from heredity.text.tokens import BlockSampler


class Reader(NamedTuple):
    """A model and the SAEs that read it, on one device."""

    model: torch.nn.Module  # in evaluation mode
    hook_point: str  # where the SAEs read
    saes: Sequence[SAE]  # one or more
    precision: Precision = "float32"  # of the model's matrix products

    @property
    def side(self) -> tuple[torch.nn.Module, str, Precision]:
        """What of it reads the model."""
        return self.model, self.hook_point, self.precision

    @property
    def sae(self) -> SAE:
        """The only SAE; `ValueError` where there are several."""
        if len(self.saes) != 1:
            raise ValueError(f"the reader of {self.hook_point} has {len(self.saes)} SAEs; give the one to use")
        return self.saes[0]


def collect(
    model: torch.nn.Module,
    hook_point: str,
    saes: Sequence[SAE],
    sampler: BlockSampler,
    tokens: int,
    progress: Progress | None = None,
    precision: Precision = "float32",
) -> list[FeatureActs]:
    """Sparse activations of every SAE on the first `tokens` positions of the sampler's order (rounded up to a block,
    and no more than one pass over the corpora holds: nothing is counted twice).

    Two models given the same sampler see the same tokens, so that row n of one belongs to row n of the other.
    Raises ValueError when an SAE does not have the width of the hook point.
    """
    return collected(Here().job(lambda: Reader(model, hook_point, saes, precision)), sampler, tokens, progress)


def collected(
    readers: Job[Reader], sampler: BlockSampler, tokens: int, progress: Progress | None = None
) -> list[FeatureActs]:
    """Like `collect`, by the workers of a job: a unit is one forward pass, whatever the number of workers."""
    blocks = min(-(-tokens // sampler.context_size), sampler.blocks_per_pass)
    step, parts = blocks_at_once(sampler.context_size), list[list[FeatureActs]]()
    units = (sampler.take(start, min(start + step, blocks)) for start in range(0, blocks, step))
    for part in readers.map(encoded, units):
        parts.append(part)
        if progress:
            progress(min(len(parts) * step, blocks), blocks)
    return [FeatureActs.concatenate(of_one) for of_one in zip(*parts, strict=True)]


def encoded(reader: Reader, blocks: np.ndarray) -> list[FeatureActs]:
    """Activations of every SAE of a reader on token blocks [n, context], each of n · context tokens; none at positions
    that are no samples (see `lm.reading`)."""
    parts: list[list[FeatureActs]] = [[] for _ in reader.saes]
    for x, kept in marked(reader.model, reader.hook_point, blocks, reader.precision):
        for sae, part in zip(reader.saes, parts, strict=True):
            if x.shape[1] != sae.d_in:
                widths = f"the SAE reads vectors of width {sae.d_in}, but {reader.hook_point} gives {x.shape[1]}"
                raise ValueError(f"{widths}; use an SAE trained at this hook point")
            acts = FeatureActs(*sae.encode_sparse(x if kept is None else x[kept]), sae.d_sae)
            part.append(acts if kept is None else acts.spread(kept.cpu().numpy()))
    return [FeatureActs.concatenate(part) for part in parts]


def together(*sides: FeatureActs) -> tuple[list[FeatureActs], np.ndarray | None]:
    """Activations at the positions that are samples on all sides, and which of the positions these are, bool [tokens];
    None where all are."""
    masks = [side.samples for side in sides if side.samples is not None]
    if not masks:
        return list(sides), None
    kept = np.logical_and.reduce(masks)
    return [side.where(kept) for side in sides], kept
