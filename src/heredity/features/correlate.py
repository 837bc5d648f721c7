"""The best partners of every feature across one edge, by the correlation of their activations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import rankdata

from heredity.features.acts import FeatureActs
from heredity.kernels.pearson import BINS, MEMORY, THRESHOLDS, TopPearson, join, top_pearson


class Matches(NamedTuple):
    """Best partners of each feature at the other end of an edge, best first, ties to the lower index.

    For a range of parent features, the parent's lists are those of the range and everything else is about it only.
    """

    parent_match: np.ndarray  # int32 [d_parent, top]: child features; -1 where there is none
    parent_r: np.ndarray  # float64 [d_parent, top]: their Pearson r, falling; nan where there is none
    child_match: np.ndarray  # int32 [d_child, top]: parent features; -1 where there is none
    child_r: np.ndarray  # float64 [d_child, top]
    parent_density: np.ndarray  # float64 [d_parent]: share of tokens on which the feature fires
    child_density: np.ndarray  # float64 [d_child]
    tokens: int  # aligned token positions compared
    parent_start: int = 0  # first parent feature of the range compared
    thresholds: tuple[float, ...] = ()  # on r; empty where pairs were not counted
    pairs_over: np.ndarray | None = None  # int64 [thresholds]: pairs of features with r above each threshold
    histogram: np.ndarray | None = None  # int64 [bins]: r of all pairs of live features, in equal bins over [-1, 1]

    def above(self, threshold: float) -> Matches:
        """Only the matches with r above a threshold; the places of the others hold -1 and nan."""
        lists = {}
        for end in ("parent", "child"):
            match, r = getattr(self, f"{end}_match"), getattr(self, f"{end}_r")
            lists[f"{end}_match"] = np.where(r > threshold, match, -1).astype(match.dtype)
            lists[f"{end}_r"] = np.where(r > threshold, r, np.nan)
        return self._replace(**lists)


_LEAST_DEVICE_MEMORY = 2**26  # bytes: below, smaller tiles are no help


def correlate(
    parent: FeatureActs,
    child: FeatureActs,
    top: int = 5,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    *,
    memory: int | None = None,
    parent_range: tuple[int, int] | None = None,
    thresholds: Sequence[float] = THRESHOLDS,
    bins: int = BINS,
    device: str = "cpu",
) -> Matches:
    """Match the features of two SAEs on the same tokens: row n of both belongs to one position of the text.

    The similarity is Pearson's r over all positions, silent ones included, with sums in float64 (Horn & Elliott,
    section 3.4; activation similarity of Bricken et al.). A feature that is constant on the sample, such as one that
    never fires, has no r: it gets match -1 and r nan and is never a match. The dictionaries may differ in size.

    top: partners kept for each feature. workers: threads, by default one per processor. progress: called with (parent
    features done, parent features to do). memory: bytes to use beside the activations and the result, as far as
    possible; by default 0.5 GiB, on a GPU 8 GiB. parent_range: match parent features start to stop only; `join_matches`
    puts ranges together. thresholds, bins: of the counts over all pairs. Neither workers nor memory nor ranges change
    a bit of the result. device: `cpu`, or a CUDA device, whose sums come in no fixed order (r within 1e-12).
    Raises `ValueError` when the samples differ in length or are empty, and for fewer than one worker.
    """
    if parent.tokens != child.tokens:
        sizes = f"the parent has {parent.tokens} token positions and the child {child.tokens}"
        raise ValueError(f"{sizes}; encode the same tokens with both SAEs")
    if workers is not None and workers < 1:
        raise ValueError(f"workers={workers}: at least one thread must do the work; leave it out for one per processor")
    if not parent.tokens:
        raise ValueError("there are no token positions to correlate over; give at least two")
    counted: dict[str, Any] = {"parent_range": parent_range, "thresholds": thresholds, "bins": bins}
    if device == "cpu":
        best = top_pearson(parent.sparse, child.sparse, top, workers, progress, memory=memory or MEMORY, **counted)
    else:
        # Torch takes a second and 0.2 GiB to load, which matching on the processor has no use for.
        import torch

        from heredity.kernels.torch_forms import DEVICE_MEMORY, top_pearson_torch

        memory, best = memory or DEVICE_MEMORY, None
        while best is None:
            try:
                best = top_pearson_torch(parent.sparse, child.sparse, top, device, progress, memory=memory, **counted)
            except torch.OutOfMemoryError:  # others are on the device: smaller tiles take longer, and nothing else
                if memory < _LEAST_DEVICE_MEMORY:
                    raise
                memory //= 2
    return _matches(best, parent.density()[slice(*best.parent_range)], child.density(), parent.tokens)


def _matches(best: TopPearson, parent_density: np.ndarray, child_density: np.ndarray, tokens: int) -> Matches:
    return Matches(*best[:4], parent_density, child_density, tokens, best.parent_range[0], *best[5:])


def join_matches(parts: Sequence[Matches]) -> Matches:
    """The matches of all parent features from the matches of ranges that follow each other, with the bits of one call.

    Raises `ValueError` when ranges leave a gap or overlap, were not counted, or come from different calls.
    """
    parts, ranged = sorted(parts, key=lambda part: part.parent_start), []
    for part in parts:
        if part.pairs_over is None or part.histogram is None:
            raise ValueError("a part without counts of pairs cannot be joined; join what `correlate` returned")
        if part.tokens != parts[0].tokens or not np.array_equal(part.child_density, parts[0].child_density):
            raise ValueError(f"parts compare {[p.tokens for p in parts]} tokens or other children; use one edge's")
        span = (part.parent_start, part.parent_start + len(part.parent_r))
        ranged.append(TopPearson(*part[:4], span, part.thresholds, part.pairs_over, part.histogram))
    density = np.concatenate([part.parent_density for part in parts]) if parts else np.empty(0)
    return _matches(join(ranged), density, parts[0].child_density, parts[0].tokens)


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float | None:
    """Spearman correlation of a and b over the places where both are finite; None where either does not vary."""
    known = np.isfinite(a) & np.isfinite(b)
    if any(len(np.unique(values[known])) < 2 for values in (a, b)):
        return None
    return float(np.corrcoef(rankdata(a[known]), rankdata(b[known]))[0, 1])


def median(values: np.ndarray) -> float:
    """Median of the finite values; nan without any."""
    known = values[np.isfinite(values)]
    return float(np.median(known)) if len(known) else float("nan")
