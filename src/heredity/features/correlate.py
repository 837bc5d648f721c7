"""The best partners of every feature across one edge, by the correlation of their activations."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from heredity.features.acts import FeatureActs
from heredity.kernels.pearson import top_pearson


class Matches(NamedTuple):
    """Best partners of each feature at the other end of an edge, best first, ties to the lower index."""

    parent_match: np.ndarray
    """int32 [d_parent, top]: child features; -1 where there is none."""
    parent_r: np.ndarray
    """float64 [d_parent, top]: their Pearson r, falling; nan where there is none."""
    child_match: np.ndarray
    """int32 [d_child, top]: parent features; -1 where there is none."""
    child_r: np.ndarray
    """float64 [d_child, top]."""
    parent_density: np.ndarray
    """float64 [d_parent]: share of tokens on which the feature fires."""
    child_density: np.ndarray
    """float64 [d_child]."""
    tokens: int
    """Aligned token positions compared."""


def correlate(
    parent: FeatureActs,
    child: FeatureActs,
    top: int = 5,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Matches:
    """Match the features of two SAEs on the same tokens: row n of both belongs to one position of the text.

    The similarity is Pearson's r over all positions, silent ones included, with sums in float64 (Horn & Elliott,
    section 3.4; activation similarity of Bricken et al.). A feature that is constant on the sample, such as one that
    never fires, has no r: it gets match -1 and r nan and is nobody's match. The dictionaries may differ in size.

    top: partners kept for each feature. workers: threads, by default one a processor; the result does not depend on
    it. progress: called with (parent features done, parent features to do).
    Raises `ValueError` when the samples differ in length or are empty.
    """
    if parent.tokens != child.tokens:
        raise ValueError(
            f"the parent has {parent.tokens} token positions and the child {child.tokens}; "
            "encode the same tokens with both SAEs"
        )
    if not parent.tokens:
        raise ValueError("there are no token positions to correlate over; give at least two")
    best = top_pearson(parent.sparse, child.sparse, top, workers, progress)
    return Matches(*best, parent.density(), child.density(), parent.tokens)
