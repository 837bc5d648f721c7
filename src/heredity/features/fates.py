"""Fates of features along an edge, the accounting of a merge, and strata by density."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from heredity.features.correlate import Matches
from heredity.kernels.pearson import THRESHOLDS

# Labels of the features of a merge (`Flow.labels`).
DEAD = -1  # never fired
NOVEL = 0  # without a match in any parent
FROM_BASE = 1  # comes from the base
EMERGED_IN_BOTH = 2  # emerged in two or more of the parents
EMERGED = 3  # emerged in the first parent; 4 for the second, and so on


class Fates(NamedTuple):
    """Fates of the features of an edge (Horn & Elliott, section 3.4). Live features fired at least once."""

    persist: np.ndarray  # bool [d_parent]: some child feature has r above the threshold
    disappear: np.ndarray  # bool [d_parent]: live, and does not persist
    emerge: np.ndarray  # bool [d_child]: live, and no parent feature has r above the threshold
    inherited: np.ndarray  # bool [d_child]: some parent feature has r above the threshold
    mutual: np.ndarray  # int32 [n, 2]: (parent, child) pairs of each other's best match, above the threshold


def fates(matches: Matches, threshold: float) -> Fates:
    """Fates at a threshold on r (the paper's is 0.8), by existence of a match: many-to-many, but for `mutual`."""
    persist = matches.parent_r[:, 0] > threshold
    inherited = matches.child_r[:, 0] > threshold
    best = matches.parent_match[:, 0]
    parents = np.flatnonzero(persist)
    parents = parents[matches.child_match[best[parents], 0] == parents]
    disappear, emerge = (matches.parent_density > 0) & ~persist, (matches.child_density > 0) & ~inherited
    mutual = np.stack([parents, best[parents]], axis=1).astype(np.int32)
    return Fates(persist, disappear, emerge, inherited, mutual)


def curve(matches: Matches, thresholds: Sequence[float] = THRESHOLDS) -> dict[str, int]:
    """Persisting parent features at each threshold, keyed by the threshold with two decimals."""
    return {f"{threshold:.2f}": int((matches.parent_r[:, 0] > threshold).sum()) for threshold in thresholds}


class Flow(NamedTuple):
    """Origins of the features of a merge. Every live one is counted exactly once:
    `from_base + sum(emerged.values()) + emerged_in_both + novel == live`.
    """

    from_base: int  # matched by a parent's feature that itself matches a feature of the base
    emerged: dict[str, int]  # by parent: matched by features of this parent alone, none of which matches the base
    emerged_in_both: int  # matched by features of two or more parents, none of which matches the base
    novel: int  # live, matched by no feature of any parent
    live: int  # fired on the tokens of at least one edge
    labels: np.ndarray  # int64 [d_merge]: DEAD, NOVEL, FROM_BASE, EMERGED_IN_BOTH, or EMERGED + position of the parent
    inherited_through: dict[str, np.ndarray]  # by parent, bool [d_merge]: some feature of this parent matches
    from_base_through: dict[str, np.ndarray]  # by parent, bool [d_merge]: one of these features matches the base
    undecided: int
    """Features counted as emerged although their lists of matches are full: a further match, not kept, might lead
    to the base. 0 means that the counts are exact; a larger `top` lowers it."""


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

    through, based, open_ended = {}, {}, []
    for name, edge in parent_to_merge.items():
        from_base = np.full(len(edge.parent_match), name in bases)
        before = base_to_parent.get(name, ())
        for into in [before] if isinstance(before, Matches) else before:
            if len(into.child_r) != len(from_base):
                sizes = f"{name} has {len(into.child_r)} features on the edge from the base and {len(from_base)}"
                raise ValueError(f"{sizes} on the edge into the merge; use one SAE for both")
            from_base |= into.child_r[:, 0] > threshold
        # The lists of both directions are searched: a pair is missed only when it is in the `top` of neither feature.
        above = edge.child_r > threshold
        through[name], based[name] = above[:, 0], (above & from_base[edge.child_match]).any(1)
        based[name][edge.parent_match[(edge.parent_r > threshold) & from_base[:, None]]] = True
        open_ended.append(above[:, -1] & (above.shape[1] < len(from_base)) & from_base.any())

    live = np.any([edge.child_density > 0 for edge in parent_to_merge.values()], axis=0)
    labels = np.where(live, NOVEL, DEAD)
    for position, name in enumerate(parent_to_merge):
        labels[through[name]] = EMERGED + position
    labels[np.sum(list(through.values()), axis=0) > 1] = EMERGED_IN_BOTH
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
        undecided=int(((labels > FROM_BASE) & np.any(open_ended, axis=0)).sum()),
    )


STRATA = ("dead", "rare", "usual", "dense")  # in the order of the labels
RARE_FIRINGS = 30  # a live feature with fewer firings is rare: its r rests on too few tokens to be relied on


def strata(density: np.ndarray, tokens: int) -> np.ndarray:
    """Label of each feature, int8 [features], from its density, the share of the sample's `tokens` on which it fires:
    dead never, rare on fewer than 30 tokens, dense on more than a tenth of them, usual all others."""
    firings = np.rint(np.asarray(density, np.float64) * tokens)
    kinds = {"dead": firings == 0, "rare": firings < RARE_FIRINGS, "dense": firings > 0.1 * tokens}
    numbers = [STRATA.index(name) for name in kinds]
    return np.select(list(kinds.values()), numbers, STRATA.index("usual")).astype(np.int8)
