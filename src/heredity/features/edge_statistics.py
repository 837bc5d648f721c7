"""Everything that is said of one edge: its counts, and beside each what it is to be compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from heredity.features.acts import FeatureActs
from heredity.features.bootstrap import (
    LEAST_GROUPS,
    Counts,
    Intervals,
    bootstrap_counts,
    document_groups,
    group_moments,
    leave_one_out,
    r_intervals,
    ratio_intervals,
)
from heredity.features.correlate import Matches
from heredity.features.criteria import (
    by_parent,
    candidates,
    curves,
    disagreement,
    one_to_one,
    scores,
    splits_and_merges,
)
from heredity.features.directions import cosine_matches, shared
from heredity.features.fates import THRESHOLDS, curve, fates
from heredity.features.null import Floor, chance_threshold, p_values, q_values
from heredity.features.strata import STRATA, strata
from heredity.features.threshold import PAPER, choose_threshold, corrected
from heredity.features.token_types import token_type_correlate

COSINE = 0.7
"""Threshold on cosines of directions (Paulo & Belrose 2025)."""
TOKEN_TYPES_FLAG = (
    "correlates means over token strings on which both features fire, as the first paper's published code does: two "
    "common strings give r = 1, so it is far too high; not a Pearson r over positions"
)


class Compared(NamedTuple):
    """What was measured along one edge."""

    parent: FeatureActs
    """The parent's features on the aligned sample."""
    child: FeatureActs
    """The child's."""
    spare: Sequence[FeatureActs]
    """Those of further SAEs of the parent."""
    matches: Matches
    """Parent and child."""
    ceilings: Sequence[Matches]
    """Parent and each further SAE of it."""
    floor: Floor
    """Under shifted alignment."""
    documents: np.ndarray
    """int64 [tokens]: the document of each position."""
    ids: np.ndarray
    """int64 [tokens]: the token at each position."""
    one_dictionary: bool = False
    """One SAE reads both ends. A model compared with itself then keeps every live feature: the ceiling is 1."""


class Settings(NamedTuple):
    """How an edge is judged."""

    threshold: float | None
    """On r; None chooses it by evidence."""
    rate: float
    """False discovery rate."""
    resamples: int
    """Of the documents."""
    level: float
    """Of the intervals."""
    seed: int
    """Of groups and resamples."""


class Sureness(NamedTuple):
    """Counts at several thresholds with their intervals; None each where too few documents were read."""

    persist: Counts | None
    """Parent features with a match."""
    inherited: Counts | None
    """Child features with a match."""
    ceilings: tuple[Counts, ...]
    """Parent features with a match in each further SAE."""
    parent_r: Intervals | None
    """Best r of the parent's features."""
    child_r: Intervals | None
    """Best r of the child's."""


def judge(edge: Compared, settings: Settings) -> tuple[dict[str, Any], dict[str, dict[str, np.ndarray]]]:
    """The figures of an edge (as in `EdgeSummary`), and by end a column for each figure of a feature.

    Raises `ValueError` for activations that are not aligned.
    """
    best, ceilings = edge.matches.parent_r[:, 0], ceiling_r(edge)
    chosen = settings.threshold
    if chosen is None:
        chosen = choose_threshold(best, edge.floor.parent_r, ceilings).threshold
    sure = sureness(edge, (chosen, PAPER), settings)
    counts = counted(edge, chosen, sure, 0)
    counts |= {"parent_features": edge.parent.d_sae, "child_features": edge.child.d_sae, "tokens": edge.matches.tokens}
    counts |= {"parent_live": counts["persist"] + counts["disappear"]}
    counts |= {"child_live": int((edge.matches.child_density > 0).sum())}
    counts |= {"curve": curve(edge.matches, THRESHOLDS), "level": settings.level}
    counts |= {"threshold_by": "study" if settings.threshold is not None else "evidence"}
    counts |= {"one_dictionary": edge.one_dictionary, "l0_parent": edge.parent.l0, "l0_child": edge.child.l0}
    counts |= {"paper": counted(edge, PAPER, sure, 1)}
    columns = {end: _columns(edge, end, sure) for end in ("parent", "child")}
    counts |= {"chance": _chance(edge, chosen, settings.rate, columns)}
    if edge.ceilings:
        own = np.nanmean([np.where(np.isfinite(r), r, 0.0) for r in ceilings], axis=0)
        freed = corrected(best, own, own)
        columns["parent"] |= {"ceiling_r": own, "corrected_r": freed}
        counts |= {
            "corrected": {
                "persist": int((freed > PAPER).sum()),
                "median": float(np.nanmedian(freed)),
                "raw_median": float(np.nanmedian(best)),
            }
        }
    counts |= {"strata": {end: _strata(edge, end, chosen) for end in ("parent", "child")}}
    return counts, columns


def ceiling_r(edge: Compared) -> list[np.ndarray]:
    """Best r of the parent's features in each other SAE of the parent, or in the one SAE that reads both ends."""
    if edge.one_dictionary:
        return [np.where(np.isfinite(edge.matches.parent_r[:, 0]), 1.0, np.nan)]
    return [found.parent_r[:, 0] for found in edge.ceilings]


def sureness(edge: Compared, thresholds: tuple[float, ...], settings: Settings) -> Sureness:
    """Intervals of the counts at each threshold, and of every feature's best r; all rest on the same resamples."""
    if len(np.unique(edge.documents)) < LEAST_GROUPS:
        return Sureness(None, None, (), None, None)
    group = document_groups(edge.documents, seed=settings.seed)

    def counts(parent: FeatureActs, child: FeatureActs, match: np.ndarray) -> tuple[Counts, Intervals]:
        left = leave_one_out(group_moments(parent, child, match[:, :1], group))
        found = bootstrap_counts(left, thresholds, settings.resamples, settings.seed, settings.level)
        return found, r_intervals(left, settings.level)

    persist, parent_r = counts(edge.parent, edge.child, edge.matches.parent_match)
    inherited, child_r = counts(edge.child, edge.parent, edge.matches.child_match)
    ceilings = [
        counts(edge.parent, acts, found.parent_match)[0] for acts, found in zip(edge.spare, edge.ceilings, strict=True)
    ]
    return Sureness(persist, inherited, tuple(ceilings), parent_r, child_r)


def counted(edge: Compared, threshold: float, sure: Sureness, at: int) -> dict[str, Any]:
    """Fates at a threshold, with ceiling, floor and intervals; at: its place among the thresholds of `sure`.

    `ceiling` and `floor` are shares of the parent's live features that persist into another SAE of the same model (mean
    over them; None without one) and under shifted alignment (mean over the passes).
    """
    found = fates(edge.matches, threshold)
    live = max(found.parent_live, 1)
    persisting = [float((r > threshold).sum()) for r in ceiling_r(edge)]
    ceiling = float(np.mean(persisting)) / live if persisting else None
    persist = int(found.persist.sum())
    return {
        "threshold": threshold,
        "persist": persist,
        "disappear": int(found.disappear.sum()),
        "emerge": int(found.emerge.sum()),
        "one_to_one": len(found.mutual),
        "ceiling": ceiling,
        "floor": float((edge.floor.parent_r > threshold).sum()) / len(edge.floor.parent_r) / live,
        "relative": persist / live / ceiling if ceiling else None,
        "intervals": _intervals(edge, sure, at, (found.parent_live, found.child_live)),
    }


def _intervals(edge: Compared, sure: Sureness, at: int, live: tuple[int, int]) -> dict[str, tuple[float, float]]:
    if sure.persist is None or sure.inherited is None:
        return {}
    parent_live, child_live = live
    low, high = int(sure.persist.low[at]), int(sure.persist.high[at])
    known = int(sure.inherited.low[at]), int(sure.inherited.high[at])
    found: dict[str, tuple[float, float]] = {
        "persist": (low, high),
        "disappear": (parent_live - high, parent_live - low),
        "emerge": (child_live - known[1], child_live - known[0]),
    }
    if edge.one_dictionary and parent_live:
        found |= {"ceiling": (1.0, 1.0), "relative": (low / parent_live, high / parent_live)}
    elif sure.ceilings and parent_live:
        pooled = pooled_counts(sure.ceilings)
        found["ceiling"] = (float(pooled.low[at]) / parent_live, float(pooled.high[at]) / parent_live)
        ratio = ratio_intervals(sure.persist, pooled)
        found["relative"] = (float(ratio.low[at]), float(ratio.high[at]))
    return found


def pooled_counts(counts: Sequence[Counts]) -> Counts:
    """Mean counts of several comparisons on the same resamples: draws are averaged, interval ends too.

    Averaging the ends is what holds when the comparisons err together, as those on the same documents do, and is too
    wide rather than too narrow otherwise.
    """
    first = counts[0]
    return first._replace(
        **{
            name: np.mean([getattr(count, name) for count in counts], axis=0)
            for name in ("seen", "corrected", "low", "high", "draws")
        }
    )


def _columns(edge: Compared, end: str, sure: Sureness) -> dict[str, np.ndarray]:
    """What is known of each feature of an end."""
    matches = edge.matches
    best, density = getattr(matches, f"{end}_r")[:, 0], getattr(matches, f"{end}_density")
    p = p_values(best, getattr(edge.floor, f"{end}_r"), density)
    found = {"density": density, "best_r": best, "p": p, "q": q_values(p)}
    found["stratum"] = strata(density, matches.tokens)
    interval: Intervals | None = getattr(sure, f"{end}_r")
    if interval is not None:
        found |= {"r_low": interval.low, "r_high": interval.high, "effective_groups": interval.effective}
    return found


def _chance(
    edge: Compared, threshold: float, rate: float, columns: Mapping[str, Mapping[str, np.ndarray]]
) -> dict[str, Any]:
    return {
        "passes": len(edge.floor.parent_r),
        "rate": rate,
        "threshold": chance_threshold(edge.matches.parent_r[:, 0], edge.floor.parent_r, rate),
        "expected": float((edge.floor.parent_r > threshold).sum()) / len(edge.floor.parent_r),
        "parent_above": int((columns["parent"]["q"] <= rate).sum()),
        "child_above": int((columns["child"]["q"] <= rate).sum()),
    }


def _strata(edge: Compared, end: str, threshold: float) -> dict[str, dict[str, Any]]:
    """By stratum: features, those with a match, and their shares of both denominators."""
    matches = edge.matches
    label = strata(getattr(matches, f"{end}_density"), matches.tokens)
    matched = getattr(matches, f"{end}_r")[:, 0] > threshold
    found = {}
    for number, name in enumerate(STRATA):
        own = label == number
        size, hits = int(own.sum()), int((matched & own).sum())
        live = size if name != "dead" else 0
        found[name] = {
            "features": size,
            "matched": hits,
            "of_live": hits / live if live else None,
            "of_all": hits / len(label),
        }
    return found


class Directions(NamedTuple):
    """Weights of the SAEs of both ends, which read vectors of one width."""

    enc: tuple[Any, Any]
    """Encoders of parent and child, [d_in, d_sae]."""
    dec: tuple[Any, Any]
    """Decoders, [d_sae, d_in]."""

    def equal(self) -> bool:
        """Whether one SAE reads both ends."""
        return all(pair[0].shape == pair[1].shape and bool((pair[0] == pair[1]).all()) for pair in self)


def by_rules(edge: Compared, threshold: float, directions: Directions | None) -> dict[str, Any]:
    """`rules` and `disagreement` of an edge: what each rule for a match says of the parent's features.

    Rules on r cut at the edge's threshold, cosines at 0.7, token types at the paper's 0.8. Directions say nothing where
    one SAE reads both ends, and their rules are left out then.
    """
    matches, live = edge.matches, edge.matches.parent_density > 0
    found = scores(matches, one_to_one(*matches[:4]))
    cuts = dict.fromkeys(found, threshold)
    if directions is not None and not edge.one_dictionary:
        found["decoder_cosine"] = cosine_matches(*directions.dec, top=1).parent_cosine[:, 0]
        agreed = shared(directions.enc[0], directions.dec[0], directions.enc[1], directions.dec[1], COSINE)
        found["shared"] = by_parent(agreed.pairs, agreed.cosine, len(live))
        cuts |= {"decoder_cosine": COSINE, "shared": COSINE}
    found["token_types"] = token_type_correlate(edge.parent, edge.child, edge.ids, top=1).parent_r[:, 0]
    cuts["token_types"] = PAPER
    found = {rule: np.where(live, score, np.nan) for rule, score in found.items()}
    drawn = curves(found)
    parts = splits_and_merges(edge.parent, edge.child, candidates(matches.parent_match, matches.child_match))
    calls = {rule: (score > cuts[rule])[live] for rule, score in found.items()}
    rules = {
        rule: {
            "persist": int(calls[rule].sum()),
            "threshold": cuts[rule],
            "curve": drawn[rule],
            "flag": TOKEN_TYPES_FLAG if rule == "token_types" else "",
        }
        for rule in found
    }
    only: dict[str, dict[str, int]] = {}
    for row in disagreement(calls):
        only.setdefault(row.rule, {})[row.other] = row.only
    return {
        "rules": rules,
        "disagreement": only,
        "splits": len(parts.splits.wholes),
        "merges": len(parts.merges.wholes),
    }
