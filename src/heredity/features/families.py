"""One feature followed through the whole model graph by its best matches, and a hypothesis by its best feature."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from heredity.features.correlate import Matches
from heredity.features.hypothesis import LLR, best_feature

Edge = tuple[str, str]  # (parent, child) models


class Member(NamedTuple):
    """A feature's place in one model."""

    model: str
    feature: int
    r: float | None  # Pearson r with the member it was reached from; None for the feature the family starts with
    via: str | None  # the model it was reached from


def family(model: str, feature: int, edges: Sequence[Edge], matches: Mapping[Edge, Matches]) -> list[Member]:
    """Follow a feature to every model that the graph connects, best match by best match.

    edges: parent -> child pairs, parents before children. A model that can be reached through several neighbors is
    entered through the one with the highest r. Descendants are followed first, then ancestors, then their other
    descendants. The members come in the order they were reached, the start first.
    """
    members = {model: Member(model, feature, None, None)}

    def descend() -> None:
        for child in dict.fromkeys(child for _, child in edges):
            if child not in members:
                into = [edge for edge in edges if edge[1] == child and edge[0] in members]
                steps = [_step(edge[0], members[edge[0]].feature, edge, matches) for edge in into]
                ways = [step for step in steps if step is not None]
                if ways:
                    members[child] = max(ways, key=lambda member: member.r or 0.0)

    descend()
    line = {model}
    for parent, child in reversed(edges):
        if child in line and parent not in members:
            step = _step(child, members[child].feature, (parent, child), matches)
            if step is not None:
                members[parent] = step
                line.add(parent)
    descend()
    return list(members.values())


def _step(via: str, feature: int, edge: Edge, matches: Mapping[Edge, Matches]) -> Member | None:
    """The best match, at the other end of an edge, of a feature of the model `via`; None without one."""
    if via == edge[0]:
        model, match, r = edge[1], matches[edge].parent_match, matches[edge].parent_r
    else:
        model, match, r = edge[0], matches[edge].child_match, matches[edge].child_r
    partner, value = int(match[feature, 0]), float(r[feature, 0])
    return Member(model, partner, value, via) if partner >= 0 and np.isfinite(value) else None


def persistence(start: str, edges: Sequence[Edge], matches: Mapping[Edge, Matches], features: int) -> np.ndarray:
    """For each feature of the start model the weakest r on its strongest ways to every model without a child, float64
    [features]; 0 where a way ends. A feature that scores above the threshold persists all the way, to all of them."""
    nowhere = np.full(features, -1), np.full(features, -np.inf)
    reached: dict[str, tuple[np.ndarray, np.ndarray]] = {start: (np.arange(features), np.ones(features))}
    for child in dict.fromkeys(child for _, child in edges):
        for parent, end in edges:
            if end == child and parent in reached:
                (index, score), step = reached[parent], matches[parent, end]
                following = np.where(index >= 0, step.parent_match[index, 0], -1)
                weakest = np.where(following >= 0, np.minimum(score, step.parent_r[index, 0]), 0.0)
                before, best = reached.get(child, nowhere)
                better = weakest > best
                reached[child] = (np.where(better, following, before), np.where(better, weakest, best))
    ends = {child for _, child in edges} - {parent for parent, _ in edges}
    return np.min([reached[end][1] for end in ends if end in reached] or [reached[start][1]], axis=0)


# A family's place in a model: where it starts; reached by matches above the threshold alone; a child's nearest miss to
# a kept feature; a parent's; reached from a miss, and so another feature's relation.
Status = Literal["start", "kept", "lost", "absent", "beyond"]


class Place(NamedTuple):
    """A family's place in one model, whether matched or missed."""

    model: str
    feature: int  # the match, or what came nearest to one
    r: float | None  # Pearson r along the edge it was reached by; None at the start
    via: str | None  # the model it was reached from
    status: Status


class Course(NamedTuple):
    """What becomes of a hypothesis along the lineage."""

    start: str | None  # the model the family starts in; None where no feature of any model fits
    emerges: bool  # no feature of a start model of the graph fits, but one of this later model does
    places: dict[str, Place]  # by model, in the order of the models; without those not connected with the start
    best: dict[str, int | None]  # the feature of each model that fits the hypothesis best, whatever it matches
    mean_r: float | None  # mean r over the places; None when none was reached
    verdict: str  # persists, disappears on EDGE, emerges in MODEL; in words


def follow(
    order: Sequence[str],
    edges: Sequence[Edge],
    matches: Mapping[Edge, Matches],
    thresholds: Mapping[Edge, float],
    ratios: Mapping[str, LLR],
) -> Course:
    """Follow the best feature for a hypothesis through every model (the case studies of Horn & Elliott, section 4.2).

    The family starts at the model without parents whose best feature has the highest sensitivity, ties in order, one
    with children before one without (another training of a recipe); when none of these has one, at the first model that
    does. Wherever matches above the threshold lead it is the same
    feature still. Where they end, the best match below the threshold is the nearest miss.

    order: models, parents before children. edges: parent -> child. thresholds: on r, by edge. ratios: of each model.
    """
    best = {model: best_feature(ratios[model]) for model in order}
    fitting = {model: feature for model, feature in best.items() if feature is not None}
    children = {child for _, child in edges}
    parents = {parent for parent, _ in edges}
    roots = [model for model in fitting if model not in children]
    roots = [model for model in roots if model in parents] or roots
    if not fitting:
        return Course(None, False, {}, best, None, "no feature of any model fits")
    sensitivity = {model: float(ratios[model].sensitivity[feature]) for model, feature in fitting.items()}
    start = max(roots, key=lambda model: sensitivity[model]) if roots else next(iter(fitting))
    kept = family(start, fitting[start], edges, {edge: matches[edge].above(thresholds[edge]) for edge in edges})
    places = {member.model: Place(*member, "kept" if member.via else "start") for member in kept}
    _add_misses(places, edges, matches)
    places = {model: places[model] for model in order if model in places}
    reached = [place.r for place in places.values() if place.r is not None]
    mean_r = float(np.mean(reached)) if reached else None
    return Course(start, not roots, places, best, mean_r, _verdict(start, not roots, places, children))


def _add_misses(places: dict[str, Place], edges: Sequence[Edge], matches: Mapping[Edge, Matches]) -> None:
    """Add what is nearest to the kept features, then what is nearest to that."""
    same = set(places)

    def preference(way: Member) -> tuple[bool, bool, float]:
        # From a kept feature rather than from a miss, and to children first: they are what lost it.
        return way.via in same, (way.via, way.model) in edges, way.r or 0.0

    while True:
        ends = [(edge, via, model) for edge in edges for via, model in (edge, edge[::-1])]
        near = [(edge, via) for edge, via, model in ends if via in places and model not in places]
        steps = [_step(via, places[via].feature, edge, matches) for edge, via in near]
        ways = [step for step in steps if step is not None]
        if not ways:
            return
        way = max(ways, key=preference)
        missed: Status = "lost" if (way.via, way.model) in edges else "absent"
        places[way.model] = Place(*way, missed if way.via in same else "beyond")


def _verdict(start: str, emerges: bool, places: Mapping[str, Place], children: set[str]) -> str:
    lost = ", ".join(f"{place.via}->{place.model}" for place in places.values() if place.status == "lost")
    if not emerges:
        absent = ", ".join(place.model for place in places.values() if place.status == "absent")
        verdict = f"disappears on {lost}" if lost else "persists"
        return f"{verdict}; starts in {start}, has no match in {absent}" if absent else verdict
    before = [place for place in places.values() if place.status == "kept" and place.model not in children]
    origin = ", ".join(f"{place.model}/{place.feature}" for place in before)
    verdict = f"emerges in {start}" + (f" from {origin}, which fits too little" if origin else "")
    return f"{verdict}; disappears on {lost}" if lost else verdict
