"""The aligned tokens of an edge, read in both of its models.

Edges that compare on the same text read the same blocks, so that what one of them read of a model is held for the next;
and one pass of a model serves all sites of the study.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from heredity.analyses.held import HELD

if TYPE_CHECKING:
    from heredity.engine.workers import Progress
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


class Known(NamedTuple):
    """What makes a reading the same as another one."""

    names: Mapping[str, str]
    """Of every model, by its role, a name that no model of other weights or rules of reading has."""
    sites: Sequence[str] = ()
    """Places that one pass reads; others read alone."""


def sample_of(sampler: BlockSampler, tokens: int) -> Sample:
    """The first blocks of a sampler's order: so many tokens to judge on, or half of what there is, and as many more."""
    count = max(2, min(tokens // sampler.context_size, sampler.blocks_per_pass // 2))
    documents = np.repeat(sampler.documents(0, count), sampler.context_size)
    return Sample(sampler.take(0, count), sampler.take(count, 2 * count), documents)


def read_ends(
    readers: Mapping[str, Reader], sample: Sample, known: Known | None = None, progress: Progress | None = None
) -> tuple[dict[str, End], Sample]:
    """The ends of an edge at the positions that are samples in both models; and the sample, which knows these then.

    progress: called with the blocks read and all, of both models.
    """
    from heredity.features.ends import end_of

    total, done = len(readers) * (len(sample.blocks) + len(sample.fitting)), 0

    def step(blocks: int) -> None:
        nonlocal done
        done += blocks
        if progress:
            progress(done, total)

    def read(blocks: np.ndarray) -> tuple[list[np.ndarray], np.ndarray | None]:
        read = (_read(one, role, blocks, known, step=step) for role, one in readers.items())
        vectors, masks = zip(*read, strict=True)
        kept = np.logical_and.reduce(masks)
        return (list(vectors), None) if kept.all() else ([x[kept] for x in vectors], kept)

    (judged, kept), (fitting, kept_fitting) = read(sample.blocks), read(sample.fitting)
    ends = {name: end_of(readers[name].saes, *each) for name, *each in zip(readers, judged, fitting, strict=True)}
    if kept is not None:
        sample = sample._replace(documents=sample.documents[kept])
    return ends, sample._replace(kept=kept, kept_fitting=kept_fitting)


def read_again(
    reader: Reader, sample: Sample, make: Callable[[], Any], role: str = "", known: Known | None = None
) -> End:
    """Another model at the same positions, in place of the reader's. make: makes it, where it is not held."""
    from heredity.features.ends import end_of

    made = cache(make)

    def read(blocks: np.ndarray, kept: np.ndarray | None) -> np.ndarray:
        x, _ = _read(reader, role, blocks, known, made)
        return x if kept is None else x[kept]

    return end_of(reader.saes, read(sample.blocks, sample.kept), read(sample.fitting, sample.kept_fitting))


def _read(
    reader: Reader,
    role: str,
    blocks: np.ndarray,
    known: Known | None,
    make: Callable[[], Any] | None = None,
    step: Callable[[int], None] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Activations at the reader's place, float32 [tokens, d], and which are samples, bool [tokens].

    step: called with the blocks of every chunk that is read.
    """
    from heredity.lm.activations import marked_at

    def read(places: Sequence[str]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        parts: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {place: [] for place in places}
        for chunk in marked_at(make() if make else reader.model, places, blocks, reader.precision):
            for place, (x, kept) in zip(places, chunk, strict=True):
                all_kept = np.ones(len(x), bool)
                parts[place].append((x.cpu().numpy(), all_kept if kept is None else kept.cpu().numpy()))
            if step:
                step(len(chunk[0][0]) // blocks.shape[1])
        return {
            place: (np.concatenate([x for x, _ in of]), np.concatenate([k for _, k in of]))
            for place, of in parts.items()
        }

    own = reader.hook_point
    if known is None or role not in known.names:
        return read([own])[own]
    text = _digest(blocks), blocks.shape, reader.precision

    def key(place: str) -> Any:
        return known.names[role], place, text

    def all_sites() -> tuple[tuple[np.ndarray, np.ndarray], int]:
        each = 4 * blocks.size * reader.saes[0].d_in
        places = [one for one in known.sites if one == own or key(one) not in HELD]
        # What would be gone before another site asks for it is not worth the deeper pass.
        found = read(places if own in places and 4 * each * len(places) <= HELD.budget else [own])
        for place, value in found.items():
            if place != own:
                HELD.put(key(place), value, sum(one.nbytes for one in value))
        return found[own], sum(one.nbytes for one in found[own])

    return HELD.get(key(own), all_sites)


def _digest(blocks: np.ndarray) -> bytes:
    from hashlib import blake2b

    made = blake2b(np.ascontiguousarray(np.ma.getdata(blocks)).tobytes(), digest_size=16)
    made.update(np.packbits(np.ma.getmaskarray(blocks)).tobytes())
    return made.digest()
