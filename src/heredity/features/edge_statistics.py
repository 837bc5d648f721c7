"""All figures of one edge: its counts, and beside each the ceiling, the floor and the interval to compare it with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

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
    disagreement,
    one_to_one,
    scores,
    splits_and_merges,
    token_type_correlate,
)
from heredity.features.directions import cosine_matches, shared
from heredity.features.fates import STRATA, THRESHOLDS, fates, strata
from heredity.features.null import Floor, chance_threshold, p_values, q_values
from heredity.features.threshold import PAPER, choose_threshold, corrected

COSINE = 0.7
"""Threshold on cosines of directions (Paulo & Belrose 2025)."""
TOKEN_TYPES_FLAG = (
    "correlates means over token strings on which both features fire, as the first paper's published code does: two "
    "common strings give r = 1, so it is far too high; not a Pearson r over positions"
)
ENDS = ("parent", "child")

Figures = dict[str, float | None]
"""Numbers by name; None where there is nothing to count or compare with."""


class Compared(NamedTuple):
    """Measurements along one edge."""

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
    """How to call features of an edge, and how to estimate intervals."""

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


class Directions(NamedTuple):
    """Weights of the SAEs of both ends, which read vectors of one width."""

    enc: tuple[Any, Any]
    """Encoders of parent and child, [d_in, d_sae]."""
    dec: tuple[Any, Any]
    """Decoders, [d_sae, d_in]."""

    def equal(self) -> bool:
        """Whether one SAE reads both ends."""
        return all(pair[0].shape == pair[1].shape and bool((pair[0] == pair[1]).all()) for pair in self)


class EdgeStatistics(NamedTuple):
    """All figures of one edge, as numbers, rows and columns.

    Fates rest on existence: a feature persists when any feature of the other end matches it with r above the threshold.
    Live features fired at least once on the aligned tokens; `persist + disappear = parent_live` for every rule.
    """

    threshold: float
    """Persisting means r above this."""
    threshold_by: Literal["evidence", "study"]
    """Whether the threshold was chosen from floor and ceiling, or given; the rule in `counts` that goes with it."""
    chance_end: float
    """Lower of the two ends between which evidence chooses: `Evidence.chance`."""
    same_end: float
    """Upper end: `Evidence.same`."""
    counts: dict[str, Figures]
    """By rule: `threshold_by` at the edge's threshold, and `paper` at 0.8. The same names for each:

    threshold: on r. persist: parent features with a match above it. disappear: live parent features without one.
    emerge: live child features without one. one_to_one: pairs above it, each other's best match. ceiling: share of live
    parent features that persist into another SAE of the same model (mean over such SAEs; 1 where one SAE reads both
    ends); None without a second SAE. floor: share that persists under shifted alignment (mean over passes). relative:
    share that persists over the ceiling. persist_low, persist_high, and the same of disappear, emerge, ceiling and
    relative: CI by bootstrap over documents; None where too few documents were read, or without a ceiling.
    """
    chance: Figures
    """passes: comparisons under shifted alignment. rate: false discovery rate at which a match counts as more than
    chance. threshold: lowest r from which on the expected share of chance stays at or below the rate. expected: parent
    features expected to persist by chance at the edge's threshold. parent_above, child_above: live features whose best
    match is more than chance."""
    corrected: Figures | None
    """r over the r that the same feature reaches in another SAE of its own model; None without such an SAE. persist:
    parent features whose corrected r exceeds the paper's threshold. median: of live parent features. raw_median: median
    raw r."""
    rules: list[tuple[str, int, float, str]]
    """(rule, persist, threshold, flag): other rules for a match, the parent features that persist by each, the
    threshold on its score, and a warning where one is due."""
    rule_curves: list[tuple[str, float, int]]
    """(rule, threshold, persist): persisting parent features by threshold on the rule's score."""
    disagreement: list[tuple[str, str, int]]
    """(rule, other, count): parent features that persist by the first and not by the second."""
    splits: int
    """Parent features that split into two or more child features (masked cosine)."""
    merges: int
    """Child features that two or more parent features merged into."""
    strata: list[tuple[str, str, int, int, float | None, float]]
    """(end, stratum, features, matched, of_live, of_all): features of an end that fire about as often; those that
    persist (parent) or are inherited (child); matched over the live features of the stratum, None without any; matched
    over all features of the end."""
    curve: list[tuple[float, int]]
    """(threshold, persist): persisting parent features at 0.50 to 0.95 in steps of 0.05."""
    parent_live: int
    """Live parent features."""
    child_live: int
    """Live child features."""
    parent_features: int
    """All features of the parent's SAE, the second denominator."""
    child_features: int
    """All features of the child's SAE."""
    l0_parent: float
    """Mean number of active features of the parent per token."""
    l0_child: float
    """Mean number of active features of the child per token."""
    tokens: int
    """Aligned token positions of the common trace."""
    level: float
    """Nominal coverage of the CIs."""
    one_dictionary: bool
    """Whether one SAE reads both ends; the ceiling is then 1 by construction."""
    columns: dict[str, dict[str, np.ndarray]]
    """By end, arrays [features]: density, best_r, p and q (see `null`), stratum (see `strata`), and where intervals
    exist r_low, r_high, effective_groups; for the parent with a ceiling also ceiling_r and corrected_r."""


class Bootstrap(NamedTuple):
    """Counts at several thresholds with their CIs, and CIs of every feature's best r; all on the same resamples."""

    persist: Counts
    """Parent features with a match."""
    inherited: Counts
    """Child features with a match."""
    ceiling: Counts | None
    """Parent features with a match in each further SAE, mean over these; None without one."""
    r: dict[str, Intervals]
    """By end, best r of its features."""


def edge_statistics(edge: Compared, settings: Settings, directions: Directions | None = None) -> EdgeStatistics:
    """Call the features of an edge and count them by every rule.

    directions: weights of the SAEs of both ends. Rules on directions are left out without them, and where one SAE reads
    both ends, since directions say nothing then. Raises `ValueError` for activations that are not aligned.
    """
    matches, best, ceilings = edge.matches, edge.matches.parent_r[:, 0], ceiling_r(edge)
    evidence = choose_threshold(best, edge.floor.parent_r, ceilings)
    threshold = evidence.threshold if settings.threshold is None else settings.threshold
    by = "evidence" if settings.threshold is None else "study"
    bootstrap = _bootstrap(edge, (threshold, PAPER), settings)
    counts = {
        rule: _counts(edge, at, bootstrap, number)
        for number, (rule, at) in enumerate(((by, threshold), ("paper", PAPER)))
    }
    columns = {end: _columns(edge, end, bootstrap) for end in ENDS}
    freed: Figures | None = None
    if edge.ceilings:
        reliability = np.nanmean([np.where(np.isfinite(r), r, 0.0) for r in ceilings], axis=0)
        r = corrected(best, reliability, reliability)
        columns["parent"] |= {"ceiling_r": reliability, "corrected_r": r}
        medians = {"median": float(np.nanmedian(r)), "raw_median": float(np.nanmedian(best))}
        freed = {"persist": int((r > PAPER).sum()), **medians}
    by_chance = edge.floor.parent_r
    live = matches.parent_density > 0
    rule_scores, cuts = _rules(edge, threshold, directions)
    calls = {rule: (score > cuts[rule])[live] for rule, score in rule_scores.items()}
    parts = splits_and_merges(edge.parent, edge.child, candidates(matches.parent_match, matches.child_match))
    return EdgeStatistics(
        threshold=threshold,
        threshold_by=by,
        chance_end=evidence.chance,
        same_end=evidence.same,
        counts=counts,
        chance={
            "passes": len(by_chance),
            "rate": settings.rate,
            "threshold": chance_threshold(best, by_chance, settings.rate),
            "expected": float((by_chance > threshold).sum()) / len(by_chance),
            **{f"{end}_above": int((columns[end]["q"] <= settings.rate).sum()) for end in ENDS},
        },
        corrected=freed,
        rules=[
            (rule, int(call.sum()), cuts[rule], TOKEN_TYPES_FLAG if rule == "token_types" else "")
            for rule, call in calls.items()
        ],
        rule_curves=[(rule, at, int((score > at).sum())) for rule, score in rule_scores.items() for at in THRESHOLDS],
        disagreement=disagreement(calls),
        splits=len(parts.splits.wholes),
        merges=len(parts.merges.wholes),
        strata=[row for end in ENDS for row in _strata(edge, end, threshold)],
        curve=[(at, int((best > at).sum())) for at in THRESHOLDS],
        parent_live=int(live.sum()),
        child_live=int((matches.child_density > 0).sum()),
        parent_features=edge.parent.d_sae,
        child_features=edge.child.d_sae,
        l0_parent=edge.parent.l0,
        l0_child=edge.child.l0,
        tokens=matches.tokens,
        level=settings.level,
        one_dictionary=edge.one_dictionary,
        columns=columns,
    )


def ceiling_r(edge: Compared) -> list[np.ndarray]:
    """Best r of the parent's features in each other SAE of the parent, or in the one SAE that reads both ends."""
    if edge.one_dictionary:
        return [np.where(np.isfinite(edge.matches.parent_r[:, 0]), 1.0, np.nan)]
    return [matches.parent_r[:, 0] for matches in edge.ceilings]


def _bootstrap(edge: Compared, thresholds: tuple[float, ...], settings: Settings) -> Bootstrap | None:
    """None where too few documents were read."""
    if len(np.unique(edge.documents)) < LEAST_GROUPS:
        return None
    group = document_groups(edge.documents, seed=settings.seed)

    def counts(parent: FeatureActs, child: FeatureActs, match: np.ndarray) -> tuple[Counts, Intervals]:
        jackknife = leave_one_out(group_moments(parent, child, match[:, :1], group))
        above = bootstrap_counts(jackknife, thresholds, settings.resamples, settings.seed, settings.level)
        return above, r_intervals(jackknife, settings.level)

    persist, parent_r = counts(edge.parent, edge.child, edge.matches.parent_match)
    inherited, child_r = counts(edge.child, edge.parent, edge.matches.child_match)
    further = [
        counts(edge.parent, acts, matches.parent_match)[0]
        for acts, matches in zip(edge.spare, edge.ceilings, strict=True)
    ]
    ceiling: Counts | None = None
    if further:
        # Averaging the ends is what holds when the comparisons err together, as those on the same documents do, and is
        # too wide rather than too narrow otherwise.
        names = ("seen", "corrected", "low", "high", "draws")
        means = {name: np.mean([getattr(count, name) for count in further], axis=0) for name in names}
        ceiling = further[0]._replace(**means)
    return Bootstrap(persist, inherited, ceiling, {"parent": parent_r, "child": child_r})


def _counts(edge: Compared, threshold: float, bootstrap: Bootstrap | None, at: int) -> Figures:
    """The figures of `EdgeStatistics.counts`; at: the threshold's place among those of `bootstrap`."""
    fate = fates(edge.matches, threshold)
    persist, live = int(fate.persist.sum()), max(fate.parent_live, 1)
    persisting = [float((r > threshold).sum()) for r in ceiling_r(edge)]
    ceiling = float(np.mean(persisting)) / live if persisting else None
    figures: Figures = {
        "threshold": threshold,
        "persist": persist,
        "disappear": int(fate.disappear.sum()),
        "emerge": int(fate.emerge.sum()),
        "one_to_one": len(fate.mutual),
        "ceiling": ceiling,
        "floor": float((edge.floor.parent_r > threshold).sum()) / len(edge.floor.parent_r) / live,
        "relative": persist / live / ceiling if ceiling else None,
    }
    intervals: dict[str, tuple[float | None, float | None]]
    intervals = dict.fromkeys(("persist", "disappear", "emerge", "ceiling", "relative"), (None, None))
    if bootstrap is not None:
        low, high = int(bootstrap.persist.low[at]), int(bootstrap.persist.high[at])
        inherited = int(bootstrap.inherited.low[at]), int(bootstrap.inherited.high[at])
        intervals["persist"] = low, high
        intervals["disappear"] = fate.parent_live - high, fate.parent_live - low
        intervals["emerge"] = fate.child_live - inherited[1], fate.child_live - inherited[0]
        if edge.one_dictionary and fate.parent_live:
            intervals["ceiling"] = 1.0, 1.0
            intervals["relative"] = low / live, high / live
        elif bootstrap.ceiling is not None and fate.parent_live:
            intervals["ceiling"] = float(bootstrap.ceiling.low[at]) / live, float(bootstrap.ceiling.high[at]) / live
            ratio = ratio_intervals(bootstrap.persist, bootstrap.ceiling)
            intervals["relative"] = float(ratio.low[at]), float(ratio.high[at])
    for name, ends in intervals.items():
        figures |= zip((f"{name}_low", f"{name}_high"), ends, strict=True)
    return figures


def _columns(edge: Compared, end: str, bootstrap: Bootstrap | None) -> dict[str, np.ndarray]:
    matches = edge.matches
    best, density = getattr(matches, f"{end}_r")[:, 0], getattr(matches, f"{end}_density")
    p = p_values(best, getattr(edge.floor, f"{end}_r"), density)
    columns = {"density": density, "best_r": best, "p": p, "q": q_values(p), "stratum": strata(density, matches.tokens)}
    if bootstrap is not None:
        interval = bootstrap.r[end]
        columns |= {"r_low": interval.low, "r_high": interval.high, "effective_groups": interval.effective}
    return columns


def _strata(edge: Compared, end: str, threshold: float) -> list[tuple[str, str, int, int, float | None, float]]:
    label = strata(getattr(edge.matches, f"{end}_density"), edge.matches.tokens)
    matched = getattr(edge.matches, f"{end}_r")[:, 0] > threshold
    rows = []
    for number, name in enumerate(STRATA):
        size, hits = int((label == number).sum()), int((matched & (label == number)).sum())
        of_live = hits / size if size and name != "dead" else None
        rows.append((end, name, size, hits, of_live, hits / len(label)))
    return rows


def _rules(
    edge: Compared, threshold: float, directions: Directions | None
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """By rule: score of each parent feature, float64 [d_parent], nan for a dead one; and the threshold on it.

    Rules on r cut at the edge's threshold, cosines at 0.7, token types at the paper's 0.8.
    """
    matches, live = edge.matches, edge.matches.parent_density > 0
    by_rule = scores(matches, one_to_one(*matches[:4]))
    cuts = dict.fromkeys(by_rule, threshold)
    if directions is not None and not edge.one_dictionary:
        by_rule["decoder_cosine"] = cosine_matches(*directions.dec, top=1).parent_cosine[:, 0]
        agreed = shared(directions.enc[0], directions.dec[0], directions.enc[1], directions.dec[1], COSINE)
        by_rule["shared"] = by_parent(agreed.pairs, agreed.cosine, len(live))
        cuts |= {"decoder_cosine": COSINE, "shared": COSINE}
    by_rule["token_types"] = token_type_correlate(edge.parent, edge.child, edge.ids, top=1).parent_score[:, 0]
    cuts["token_types"] = PAPER
    return {rule: np.where(live, score, np.nan) for rule, score in by_rule.items()}, cuts
