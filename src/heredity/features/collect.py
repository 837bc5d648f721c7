"""Feature activations of one token sample: one pass through the model feeds any number of SAEs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from heredity.engine.workers import Here, Job, Progress
from heredity.features.acts import FeatureActs
from heredity.lm.activations import activations, blocks_at_once
from heredity.lm.reading import samples
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
    for x in activations(reader.model, reader.hook_point, blocks, reader.precision):
        for sae, part in zip(reader.saes, parts, strict=True):
            if x.shape[1] != sae.d_in:
                widths = f"the SAE reads vectors of width {sae.d_in}, but {reader.hook_point} gives {x.shape[1]}"
                raise ValueError(f"{widths}; use an SAE trained at this hook point")
            part.append(_of_samples(sae, x, samples(reader.model, x, blocks.shape[1])))
    return [FeatureActs.concatenate(part) for part in parts]


def _of_samples(sae: SAE, x: torch.Tensor, kept: torch.Tensor | None) -> FeatureActs:
    """Activations on vectors x [n, d_in], with empty rows for those that are not kept."""
    if kept is None:
        return FeatureActs(*sae.encode_sparse(x), sae.d_sae)
    indptr, indices, values = sae.encode_sparse(x[kept])
    lengths = np.zeros(len(x), np.int64)
    lengths[kept.cpu().numpy()] = np.diff(indptr)
    return FeatureActs(np.concatenate([[0], np.cumsum(lengths)]), indices, values, sae.d_sae)
