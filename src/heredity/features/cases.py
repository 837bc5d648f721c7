"""A hypothesis followed through the model graph: the feature that stands for it, and what becomes of that feature."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from heredity.features.correlate import Matches
from heredity.features.families import Member, family
from heredity.features.hypothesis import LLR, best_feature

Status = Literal["start", "kept", "lost", "absent", "beyond"]
"""Of a family's place in a model: where it starts; reached by matches above the threshold alone; a child's nearest miss
to a kept feature; a parent's; reached from a miss, and so another feature's relation."""


class Place(NamedTuple):
    """A family's place in one model."""

    model: str
    """The model."""
    feature: int
    """Its feature: the match, or what came nearest to one."""
    r: float | None
    """Pearson r along the edge it was reached by; None at the start."""
    via: str | None
    """The model it was reached from."""
    status: Status
    """Whether it is the same feature still."""


class Course(NamedTuple):
    """What becomes of a hypothesis along the lineage."""

    start: str | None
    """The model the family starts in; None where no feature of any model fits."""
    emerges: bool
    """Whether no feature of a start model of the graph fits, but one of this later model does."""
    places: dict[str, Place]
    """By model, in the order of the models; models that the start is not connected with are left out."""
    best: dict[str, int | None]
    """The feature of each model that fits the hypothesis best, whatever it matches."""
    mean_r: float | None
    """Mean r over the places; None when none was reached."""
    verdict: str
    """persists, disappears on EDGE, emerges in MODEL; in words."""


def follow(
    order: Sequence[str],
    edges: Sequence[tuple[str, str]],
    matches: Mapping[tuple[str, str], Matches],
    thresholds: Mapping[tuple[str, str], float],
    found: Mapping[str, LLR],
) -> Course:
    """Follow the best feature for a hypothesis through every model (the case studies of Horn & Elliott, section 4.2).

    The family starts at the model without parents whose best feature has the highest sensitivity, ties in order; when
    none of these has one, at the first model that does. Wherever matches above the threshold lead it is the same
    feature still. Where they end, the best match below the threshold is the nearest miss.

    order: models, parents before children. edges: parent -> child. thresholds: on r, by edge. found: of each model.
    """
    best = {model: best_feature(found[model]) for model in order}
    children = {child for _, child in edges}
    fitting = [model for model in order if best[model] is not None]
    roots = [model for model in fitting if model not in children]
    start = max(roots, key=lambda model: _sensitivity(found, best, model)) if roots else next(iter(fitting), None)
    if start is None:
        return Course(None, False, {}, best, None, "no feature of any model fits")
    places = _places(start, best[start] or 0, order, edges, matches, thresholds)
    reached = [place.r for place in places.values() if place.r is not None]
    mean_r = float(np.mean(reached)) if reached else None
    return Course(start, not roots, places, best, mean_r, _verdict(start, not roots, places, children))


def _sensitivity(found: Mapping[str, LLR], best: Mapping[str, int | None], model: str) -> float:
    feature = best[model]
    return -np.inf if feature is None else float(found[model].sensitivity[feature])


def _places(
    start: str,
    feature: int,
    order: Sequence[str],
    edges: Sequence[tuple[str, str]],
    matches: Mapping[tuple[str, str], Matches],
    thresholds: Mapping[tuple[str, str], float],
) -> dict[str, Place]:
    """First all that matches above the threshold, then what is nearest to it, then what is nearest to that."""
    kept = family(start, feature, edges, {edge: matches[edge].above(thresholds[edge]) for edge in edges})
    places = {member.model: Place(*member, "kept" if member.via else "start") for member in kept}
    same = set(places)
    while ways := _ways(places, edges, matches):
        # From a kept feature rather than from a miss, and to children first: they are what lost it.
        way = max(ways, key=lambda member: (member.via in same, (member.via, member.model) in edges, member.r or 0.0))
        missed: Status = "lost" if (way.via, way.model) in edges else "absent"
        places[way.model] = Place(*way, missed if way.via in same else "beyond")
    return {model: places[model] for model in order if model in places}


def _ways(
    places: Mapping[str, Place], edges: Sequence[tuple[str, str]], matches: Mapping[tuple[str, str], Matches]
) -> list[Member]:
    """One step from the models reached to those that are not, along every edge between them."""
    ways = []
    for parent, child in edges:
        step = matches[parent, child]
        down = (parent, child, step.parent_match, step.parent_r)
        for via, model, match, r in (down, (child, parent, step.child_match, step.child_r)):
            if via in places and model not in places:
                partner, value = int(match[places[via].feature, 0]), float(r[places[via].feature, 0])
                if partner >= 0 and np.isfinite(value):
                    ways.append(Member(model, partner, value, via))
    return ways


def _verdict(start: str, emerges: bool, places: Mapping[str, Place], children: set[str]) -> str:
    lost = ", ".join(f"{place.via}->{place.model}" for place in places.values() if place.status == "lost")
    if not emerges:
        absent = ", ".join(place.model for place in places.values() if place.status == "absent")
        said = f"disappears on {lost}" if lost else "persists"
        return f"{said}; starts in {start}, has no match in {absent}" if absent else said
    before = [place for place in places.values() if place.status == "kept" and place.model not in children]
    origin = ", ".join(f"{place.model}/{place.feature}" for place in before)
    said = f"emerges in {start}" + (f" from {origin}, which fits too little" if origin else "")
    return f"{said}; disappears on {lost}" if lost else said
