"""What the features of every model do on a text that somebody typed, family by family."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from heredity.analyses.query import verdicts_of
from heredity.text.letters import letters

if TYPE_CHECKING:
    from heredity.analyses.inspector import Inspector
    from heredity.features.acts import FeatureActs
    from heredity.features.correlate import Matches
    from heredity.features.families import Edge, Member

LONGEST = 2_000  # characters of a text
_FAMILIES = 40  # at a site, at most
_OF_EACH = 12  # features of each model that families are begun with


def tried(inspectors: Sequence[Inspector], text: str) -> dict[str, Any]:
    """The strongest features of every model on a text, at the site of each inspector.

    - `tokens`: the text as the models read it; `cut`: whether it had more, which are left out: a text is one block.
    - `sites`: by site, `families`, the strongest first, each with `members` (`model`, `feature`, `r` with the member of
      `via` that leads to it, `values` by token, `strength`: their maximum over the highest of the sample, `density`,
      `max`) and `verdicts` on its first member. Members are joined by matches above the thresholds of their edges.

    Raises ValueError for a text that is empty or longer than LONGEST; as `Inspector.reader` does for what is not there.
    """
    if not text or len(text) > LONGEST:
        raise ValueError(f"the text has {len(text):,} characters; give 1 to {LONGEST:,}")
    sample = inspectors[0].sample
    ids = np.asarray(sample.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], np.int64)
    longest = sample.ids.shape[1]
    read = ids[:longest]
    pieces = letters([sample.text(token) for token in read.tolist()])
    sites = {one.place["site"]: {"families": _families(one, read[None])} for one in inspectors}
    return {"tokens": pieces, "cut": len(ids) > longest, "sites": sites}


def _families(inspector: Inspector, block: np.ndarray) -> list[dict[str, Any]]:
    """Families of the features that fire most strongly on a block of tokens, int [1, n]."""
    from heredity.features.collect import encoded
    from heredity.features.families import family

    sample = inspector.sample
    acts = {model: encoded(inspector.reader(model), block)[0] for model in sample.models}
    matches: Mapping[Edge, Matches] = sample.above
    starts = sorted(
        (strength, model, feature) for model in acts for strength, feature in _strongest(inspector, acts, model)
    )
    rows, seen = [], set[tuple[str, int]]()
    for _, model, feature in reversed(starts):
        if (model, feature) in seen or len(rows) == _FAMILIES:
            continue
        members = family(model, feature, sample.edges, matches)
        seen |= {(member.model, member.feature) for member in members}
        ordered = sorted(members, key=lambda member: sample.models.index(member.model))
        known = [_member(inspector, acts[member.model], member) for member in ordered]
        verdicts = verdicts_of(inspector.run, inspector.place, model, feature)
        rows.append({"model": model, "feature": feature, "members": known, "verdicts": verdicts})
    return rows


def _strongest(inspector: Inspector, acts: Mapping[str, FeatureActs], model: str) -> list[tuple[float, int]]:
    """The features of a model that come nearest to their highest activation: how near, and which."""
    own = acts[model]
    firing = np.unique(own.indices)
    strength = [(_strength(inspector, model, feature, own), feature) for feature in firing.tolist()]
    return sorted(strength, reverse=True)[:_OF_EACH]


def _strength(inspector: Inspector, model: str, feature: int, acts: FeatureActs) -> float:
    """Highest activation over that on the sample, at most 1: a feature that the sample hardly has is not the first."""
    _, values = inspector.columns[model].of(feature)
    here = float(acts.values[acts.indices == feature].max(initial=0))
    highest = float(values.max(initial=0))
    return min(here / highest, 1.0) if highest > 0 else 0.0


def _member(inspector: Inspector, acts: FeatureActs, member: Member) -> dict[str, Any]:
    values = np.zeros(acts.tokens)
    places, found = acts.of(member.feature)
    values[places] = found
    strength = _strength(inspector, member.model, member.feature, acts)
    return inspector.member(member) | {"values": [round(one, 4) for one in values.tolist()], "strength": strength}
