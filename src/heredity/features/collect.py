"""Feature activations of one token sample: one pass through the model feeds any number of SAEs."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from heredity.activations import Progress, activations
from heredity.data.tokens import BlockSampler
from heredity.features.acts import FeatureActs
from heredity.sae.model import SAE

_BLOCKS = 2048


def collect(
    model: torch.nn.Module,
    hook_point: str,
    saes: Sequence[SAE],
    sampler: BlockSampler,
    tokens: int,
    progress: Progress | None = None,
) -> list[FeatureActs]:
    """Sparse activations of every SAE on the first `tokens` positions of the sampler's order (rounded up to a block,
    and no more than one pass over the corpora holds: nothing is counted twice).

    Two models given the same sampler see the same tokens, so that row n of one belongs to row n of the other.
    Raises ValueError when an SAE does not have the width of the hook point.
    """
    blocks = min(-(-tokens // sampler.context_size), sampler.blocks_per_pass)
    parts: list[list[FeatureActs]] = [[] for _ in saes]
    for start in range(0, blocks, _BLOCKS):
        taken = sampler.take(start, min(start + _BLOCKS, blocks))
        for x in activations(model, hook_point, taken):
            for sae, part in zip(saes, parts, strict=True):
                if x.shape[1] != sae.W_enc.shape[0]:
                    raise ValueError(
                        f"the SAE reads vectors of width {sae.W_enc.shape[0]}, but {hook_point} gives {x.shape[1]}; "
                        "use an SAE trained at this hook point"
                    )
                part.append(FeatureActs(*sae.encode_sparse(x), d_sae=sae.W_enc.shape[1]))
        if progress:
            progress(min(start + _BLOCKS, blocks), blocks)
    return [FeatureActs.concatenate(part) for part in parts]
