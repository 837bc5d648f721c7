"""Fates of features along an edge, the accounting of a merge, and strata by density."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from heredity.features.correlate import Matches

THRESHOLDS = tuple(step / 100 for step in range(50, 100, 5))
"""The thresholds of the curve: 0.50 to 0.95 in steps of 0.05."""

DEAD = -1
"""Label of a merge feature that never fired."""
NOVEL = 0
"""Label of a merge feature without a match in any parent."""
FROM_BASE = 1
"""Label of a merge feature that comes from the base."""
EMERGED_IN_BOTH = 2
"""Label of a merge feature that emerged in two or more of the parents."""
EMERGED = 3
"""Label of a merge feature that emerged in the first parent; 4 for the second, and so on."""


class Fates(NamedTuple):
    """Fates of the features of an edge (Horn & Elliott, section 3.4). Live features fired at least once."""

    persist: np.ndarray
    """bool [d_parent]: some child feature has r above the threshold."""
    disappear: np.ndarray
    """bool [d_parent]: live, and does not persist."""
    emerge: np.ndarray
    """bool [d_child]: live, and no parent feature has r above the threshold."""
    inherited: np.ndarray
    """bool [d_child]: some parent feature has r above the threshold."""
    mutual: np.ndarray
    """int32 [n, 2]: pairs (parent, child feature) that are each other's best match, above the threshold; one-to-one."""

    @property
    def parent_live(self) -> int:
        """Live parent features: every one persists or disappears."""
        return int(self.persist.sum() + self.disappear.sum())

    @property
    def child_live(self) -> int:
        """Live child features: every one is inherited or emerges."""
        return int(self.inherited.sum() + self.emerge.sum())


def fates(matches: Matches, threshold: float) -> Fates:
    """Fates at a threshold on r (the paper's is 0.8), by existence of a match: many-to-many, but for `mutual`."""
    persist = matches.parent_r[:, 0] > threshold
    inherited = matches.child_r[:, 0] > threshold
    best = matches.parent_match[:, 0]
    parents = np.flatnonzero(persist)
    chosen_back = matches.child_match[best[parents], 0] == parents
    mutual = np.stack([parents[chosen_back], best[parents[chosen_back]]], axis=1).astype(np.int32)
    return Fates(
        persist=persist,
        disappear=(matches.parent_density > 0) & ~persist,
        emerge=(matches.child_density > 0) & ~inherited,
        inherited=inherited,
        mutual=mutual,
    )


def curve(matches: Matches, thresholds: Sequence[float] = THRESHOLDS) -> dict[str, int]:
    """Persisting parent features at each threshold, keyed by the threshold with two decimals."""
    return {f"{threshold:.2f}": int((matches.parent_r[:, 0] > threshold).sum()) for threshold in thresholds}


class Flow(NamedTuple):
    """Origins of the features of a merge. Every live one is counted exactly once:
    `from_base + sum(emerged.values()) + emerged_in_both + novel == live`.
    """

    from_base: int
    """Matched by a parent's feature that itself matches a feature of the base."""
    emerged: dict[str, int]
    """By parent: matched by features of this parent alone, none of which matches the base."""
    emerged_in_both: int
    """Matched by features of two or more parents, none of which matches the base."""
    novel: int
    """Live, matched by no feature of any parent."""
    live: int
    """Merge features that fired on the tokens of at least one edge."""
    labels: np.ndarray
    """int64 [d_merge]: DEAD, NOVEL, FROM_BASE, EMERGED_IN_BOTH, or EMERGED + position of the parent."""
    inherited_through: dict[str, np.ndarray]
    """By parent, bool [d_merge]: some feature of this parent matches."""
    from_base_through: dict[str, np.ndarray]
    """By parent, bool [d_merge]: one of these features matches the base."""
    undecided: int
    """Features counted as emerged although their lists of matches are full: a further match, not kept, might lead
    to the base. 0 means that the counts are exact; a larger `top` lowers it."""

    @property
    def inherited(self) -> int:
        """Features that trace to any parent."""
        return self.live - self.novel


def flow(
    base_to_parent: Mapping[str, Matches | Sequence[Matches]],
    parent_to_merge: Mapping[str, Matches],
    threshold: float,
    bases: Collection[str] = (),
) -> Flow:
    """Account for every live feature of a merge of one or more parents (Horn & Elliott, section 4.1, figure 2).

    base_to_parent: by parent, the edge (or several edges) that lead into it; a parent without one has no base.
    parent_to_merge: by parent, the edge from it into the merge. Matches count when r > threshold.
    bases: parents that are the base themselves, as when a fine-tune is merged back into it: all they give is from it.
    Raises `ValueError` when there is no parent, a name has no edge into the merge, or edges differ in features.
    """
    if not parent_to_merge:
        raise ValueError("parent_to_merge is empty; a merge has at least one parent")
    unknown = sorted(base_to_parent.keys() - parent_to_merge.keys())
    if unknown:
        raise ValueError(f"{unknown[0]} leads to no edge into the merge; parents are {', '.join(parent_to_merge)}")
    sizes = {name: len(edge.child_match) for name, edge in parent_to_merge.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"edges into the merge have {sizes} child features; use one SAE of the merge for all of them")

    through, based, open_ended = {}, {}, {}
    for name, edge in parent_to_merge.items():
        from_base = _inherited(name, base_to_parent.get(name, ()), len(edge.parent_match), threshold)
        from_base |= name in bases
        through[name], based[name] = _through(edge, from_base, threshold)
        full = (edge.child_r[:, -1] > threshold) & (edge.child_match.shape[1] < len(edge.parent_match))
        open_ended[name] = full & from_base.any()

    live = np.any([edge.child_density > 0 for edge in parent_to_merge.values()], axis=0)
    ways = np.sum(list(through.values()), axis=0)
    labels = np.where(live, NOVEL, DEAD)
    for position, name in enumerate(parent_to_merge):
        labels[through[name]] = EMERGED + position
    labels[ways > 1] = EMERGED_IN_BOTH
    labels[np.any(list(based.values()), axis=0)] = FROM_BASE
    return Flow(
        from_base=int((labels == FROM_BASE).sum()),
        emerged={name: int((labels == EMERGED + at).sum()) for at, name in enumerate(parent_to_merge)},
        emerged_in_both=int((labels == EMERGED_IN_BOTH).sum()),
        novel=int((labels == NOVEL).sum()),
        live=int(live.sum()),
        labels=labels,
        inherited_through=through,
        from_base_through=based,
        undecided=int(((labels > FROM_BASE) & np.any(list(open_ended.values()), axis=0)).sum()),
    )


def _inherited(name: str, edges: Matches | Sequence[Matches], features: int, threshold: float) -> np.ndarray:
    """bool [features]: features of a parent that match a feature of the base."""
    inherited = np.zeros(features, bool)
    for edge in [edges] if isinstance(edges, Matches) else edges:
        if len(edge.child_r) != features:
            raise ValueError(
                f"{name} has {len(edge.child_r)} features on the edge from the base and {features} on the edge into "
                "the merge; use one SAE for both"
            )
        inherited |= edge.child_r[:, 0] > threshold
    return inherited


def _through(edge: Matches, from_base: np.ndarray, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """bool [d_merge] twice: has a match in the parent; has one that comes from the base.

    The lists of both directions are searched, so a pair is missed only when it is in the `top` of neither feature.
    """
    above = edge.child_r > threshold
    based = np.logical_or.reduce(above & from_base[edge.child_match], axis=1)
    back = edge.parent_match[(edge.parent_r > threshold) & from_base[:, None]]
    based[back] = True
    return above[:, 0].copy(), based


STRATA = ("dead", "rare", "usual", "dense")
"""Names of strata, in the order of the labels."""
RARE_FIRINGS = 30
"""A live feature with fewer firings on the sample is rare: its r rests on too few tokens to be relied on."""
DENSE_SHARE = 0.1
"""A feature that fires on more of the tokens is dense."""


def strata(density: np.ndarray, tokens: int) -> np.ndarray:
    """Label of each feature, int8 [features], from the share of the sample's `tokens` on which it fires.

    Dead: never. Rare: on fewer than 30 tokens. Dense: on more than a tenth of them. Usual: all others.
    """
    firings = np.rint(np.asarray(density, np.float64) * tokens)
    labels = np.full(len(firings), STRATA.index("usual"), np.int8)
    labels[firings > DENSE_SHARE * tokens] = STRATA.index("dense")
    labels[firings < RARE_FIRINGS] = STRATA.index("rare")
    labels[firings == 0] = STRATA.index("dead")
    return labels
