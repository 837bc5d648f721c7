"""The aligned tokens of an edge, read in both of its models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from heredity.features.collect import Reader
    from heredity.features.ends import End
    from heredity.text.tokens import BlockSampler


class Sample(NamedTuple):
    """Aligned token blocks: those on which features are judged, and as many more to fit maps on; and which positions
    of them are samples in both models."""

    blocks: np.ndarray  # int64 [blocks, context]
    fitting: np.ndarray
    documents: np.ndarray  # int64 [samples]: the document of each sample of `blocks`
    kept: np.ndarray | None = None  # bool [blocks · context]; None where all are samples
    kept_fitting: np.ndarray | None = None

    @property
    def tokens(self) -> np.ndarray:
        """The token at each sample, int64 [samples]."""
        ids = np.ma.getdata(self.blocks).ravel()
        return ids if self.kept is None else ids[self.kept]


def sample_of(sampler: BlockSampler, tokens: int) -> Sample:
    """The first blocks of a sampler's order: so many tokens to judge on, or half of what there is, and as many more."""
    count = max(2, min(tokens // sampler.context_size, sampler.blocks_per_pass // 2))
    documents = np.repeat(sampler.documents(0, count), sampler.context_size)
    return Sample(sampler.take(0, count), sampler.take(count, 2 * count), documents)


def read_ends(readers: Mapping[str, Reader], sample: Sample) -> tuple[dict[str, End], Sample]:
    """The ends of an edge at the positions that are samples in both models; and the sample, which knows these then."""
    from heredity.features.ends import end_of
    from heredity.lm.activations import aligned

    def read(blocks: np.ndarray) -> tuple[list[np.ndarray], np.ndarray | None]:
        vectors, masks = zip(*aligned([reader.side for reader in readers.values()], blocks), strict=True)
        kept = np.concatenate([mask.numpy() for mask in masks])
        sides = [np.concatenate([x.cpu().numpy() for x in side]) for side in zip(*vectors, strict=True)]
        return sides, None if kept.all() else kept

    (judged, kept), (fitting, kept_fitting) = read(sample.blocks), read(sample.fitting)
    ends = {name: end_of(readers[name].saes, *each) for name, *each in zip(readers, judged, fitting, strict=True)}
    if kept is not None:
        sample = sample._replace(documents=sample.documents[kept])
    return ends, sample._replace(kept=kept, kept_fitting=kept_fitting)


def read_again(reader: Reader, sample: Sample) -> End:
    """Another model at the same positions."""
    from heredity.features.ends import end_of
    from heredity.lm.activations import activations

    def read(blocks: np.ndarray, kept: np.ndarray | None) -> np.ndarray:
        parts = activations(reader.model, reader.hook_point, blocks, reader.precision)
        x = np.concatenate([x.cpu().numpy() for x in parts])
        return x if kept is None else x[kept]

    return end_of(reader.saes, read(sample.blocks, sample.kept), read(sample.fitting, sample.kept_fitting))
