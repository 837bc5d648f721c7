"""One feature followed through the whole model graph, by its best matches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from heredity.features.correlate import Matches


class Member(NamedTuple):
    """A feature's place in one model."""

    model: str
    """The model."""
    feature: int
    """Its index there."""
    r: float | None
    """Pearson r with the member it was reached from; None for the feature the family starts with."""
    via: str | None
    """The model it was reached from."""


def family(
    model: str, feature: int, edges: Sequence[tuple[str, str]], matches: Mapping[tuple[str, str], Matches]
) -> list[Member]:
    """Follow a feature to every model that the graph connects, best match by best match.

    edges: parent -> child pairs, parents before children. A model that can be reached through several neighbors is
    entered through the one with the highest r. Descendants are followed first, then ancestors, then their other
    descendants. The members come in the order they were reached, the start first.
    """
    found = {model: Member(model, feature, None, None)}
    _descend(found, edges, matches)
    line = {model}
    for parent, child in reversed(edges):
        if child in line and parent not in found:
            match, r = matches[parent, child].child_match, matches[parent, child].child_r
            reached = _best(match, r, found[child].feature)
            if reached:
                found[parent] = Member(parent, *reached, child)
                line.add(parent)
    _descend(found, edges, matches)
    return list(found.values())


def _descend(
    found: dict[str, Member], edges: Sequence[tuple[str, str]], matches: Mapping[tuple[str, str], Matches]
) -> None:
    for child in dict.fromkeys(child for _, child in edges):
        if child in found:
            continue
        ways = [
            Member(child, *reached, parent)
            for parent, end in edges
            if end == child and parent in found
            if (
                reached := _best(
                    matches[parent, end].parent_match, matches[parent, end].parent_r, found[parent].feature
                )
            )
        ]
        if ways:
            found[child] = max(ways, key=lambda member: member.r or 0.0)


def _best(match: np.ndarray, r: np.ndarray, feature: int) -> tuple[int, float] | None:
    partner, value = int(match[feature, 0]), float(r[feature, 0])
    return (partner, value) if partner >= 0 and np.isfinite(value) else None


def persistence(
    start: str, edges: Sequence[tuple[str, str]], matches: Mapping[tuple[str, str], Matches], features: int
) -> np.ndarray:
    """For each feature of the start model the weakest r on its strongest way to the last model of the graph.

    Returns float64 [features]; 0 where a way ends. A feature that scores above the threshold persists all the way.
    """
    reached: dict[str, tuple[np.ndarray, np.ndarray]] = {start: (np.arange(features), np.ones(features))}
    for child in dict.fromkeys(child for _, child in edges):
        for parent, end in edges:
            if end != child or parent not in reached:
                continue
            index, score = reached[parent]
            step = matches[parent, end]
            alive = index >= 0
            following = np.where(alive, step.parent_match[index, 0], -1)
            r = np.where(alive, np.nan_to_num(step.parent_r[index, 0], nan=0.0), 0.0)
            weakest = np.where(following >= 0, np.minimum(score, r), 0.0)
            if child not in reached:
                reached[child] = (following, weakest)
            else:
                before, best = reached[child]
                better = weakest > best
                reached[child] = (np.where(better, following, before), np.where(better, weakest, best))
    last = edges[-1][1] if edges else start
    return reached.get(last, reached[start])[1]
