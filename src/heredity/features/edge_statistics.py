"""All figures of one edge: its counts, and beside each the ceiling, the floor and the interval to compare it with."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from typing import Any, Literal, NamedTuple

import numpy as np

from heredity.features import bootstrap, criteria
from heredity.features.acts import FeatureActs
from heredity.features.bootstrap import Counts, Intervals
from heredity.features.correlate import Matches
from heredity.features.directions import shared
from heredity.features.fates import STRATA, THRESHOLDS, fates, strata
from heredity.features.null import PAPER, Floor, chance_threshold, choose_threshold, corrected, p_values, q_values

COSINE = 0.7  # threshold on cosines of directions (Paulo & Belrose 2025)
TOKEN_TYPES_FLAG = (
    "correlates means over token strings on which both features fire, as the first paper's published code does: two "
    "common strings give r = 1, so it is far too high; not a Pearson r over positions"
)
ENDS = ("parent", "child")
Figures = dict[str, float | None]  # None where there is nothing to count or compare with


class Compared(NamedTuple):
    """Measurements along one edge."""

    parent: FeatureActs  # on the aligned sample
    child: FeatureActs
    spare: Sequence[FeatureActs]  # of further SAEs of the parent
    matches: Matches  # parent and child
    ceilings: Sequence[Matches]  # parent and each further SAE of it
    floor: Floor  # under shifted alignment
    documents: np.ndarray  # int64 [tokens]: the document of each position
    ids: np.ndarray  # int64 [tokens]: the token at each position
    one_dictionary: bool = False  # one SAE reads both ends: a model compared with itself then keeps every live feature


class Settings(NamedTuple):
    """How to call features of an edge, and how to estimate CIs."""

    threshold: float | None  # on r; None chooses it by evidence
    rate: float  # false discovery rate
    resamples: int  # of the documents
    level: float  # of the CIs
    seed: int  # of groups and resamples


class Directions(NamedTuple):
    """Weights of the SAEs of both ends, which read vectors of one width."""

    enc: tuple[Any, Any]  # encoders of parent and child, [d_in, d_sae]
    dec: tuple[Any, Any]  # decoders, [d_sae, d_in]

    def equal(self) -> bool:
        """Whether one SAE reads both ends."""
        return all(pair[0].shape == pair[1].shape and bool((pair[0] == pair[1]).all()) for pair in self)


class EdgeStatistics(NamedTuple):
    """All figures of one edge, as numbers, rows and columns.

    Fates rest on existence: a feature persists when any feature of the other end matches it with r above the threshold.
    Live features fired at least once on the aligned tokens; `persist + disappear = parent_live` for every rule.
    """

    threshold: float  # persisting means r above this
    threshold_by: Literal["evidence", "study"]  # chosen from floor and ceiling, or given
    chance_end: float  # lower of the two ends between which evidence chooses: `Evidence.chance`
    same_end: float  # upper end: `Evidence.same`
    counts: dict[str, Figures]
    """By rule: `threshold_by` at the edge's threshold, and `paper` at 0.8. The same names for each: threshold on r.
    persist: parent features with a match above it. disappear: live parent features without one. emerge: live child
    features without one. one_to_one: pairs above it, each other's best match. ceiling: share of live parent features
    that persist into another SAE of the same model (mean over such SAEs; 1 where one SAE reads both ends). floor: share
    that persists under shifted alignment (mean over passes). relative: share that persists over the ceiling.
    persist_low, persist_high, and the same of disappear, emerge, ceiling and relative: CI by bootstrap over documents;
    None where too few documents were read."""
    chance: Figures
    """passes, rate and threshold: as in `chance_threshold`. expected: parent features expected to persist by chance at
    the edge's threshold. parent_above, child_above: live features whose best match is more than chance at the rate."""
    corrected: Figures | None
    """r over the r of the same feature in another SAE of its own model; None without such an SAE. persist: parent
    features above the paper's threshold. median and raw_median: of corrected and raw r of live parent features."""
    rules: list[tuple[str, int, float, str]]
    """(rule, persist, threshold, flag): parent features that persist by each rule for a match, the threshold on its
    score, and a warning where one is due."""
    rule_curves: list[tuple[str, float, int]]  # (rule, threshold, persist), by threshold on the rule's score
    disagreement: list[tuple[str, str, int]]  # (rule, other, count): persist by the first and not by the second
    splits: int  # parent features that split into two or more child features (masked cosine)
    merges: int  # child features that two or more parent features merged into
    strata: list[tuple[str, str, int, int, float | None, float]]
    """(end, stratum, features, matched, of_live, of_all): features of an end that fire about as often; those with a
    match; as a share of the live features of the stratum, and of all features of the end."""
    curve: list[tuple[float, int]]  # (threshold, persist) at 0.50 to 0.95 in steps of 0.05
    parent_live: int
    child_live: int
    parent_features: int  # all features of the parent's SAE, the second denominator
    child_features: int
    l0_parent: float  # mean number of active features per token
    l0_child: float
    tokens: int  # aligned token positions of the common trace
    level: float  # nominal coverage of the CIs
    one_dictionary: bool  # whether one SAE reads both ends; the ceiling is then 1 by construction
    columns: dict[str, dict[str, np.ndarray]]
    """By end, arrays [features]: density, best_r, p and q (see `null`), stratum (see `strata`), and where CIs exist
    r_low, r_high, effective_groups; for the parent with a ceiling also ceiling_r and corrected_r."""


def edge_statistics(edge: Compared, settings: Settings, directions: Directions | None = None) -> EdgeStatistics:
    """Call the features of an edge and count them by every rule.

    Rules on directions are left out without `directions`, and where one SAE reads both ends, since they say nothing
    then. Raises `ValueError` for activations that are not aligned.
    """
    matches, best, ceilings = edge.matches, edge.matches.parent_r[:, 0], ceiling_r(edge)
    by_chance, live = edge.floor.parent_r, matches.parent_density > 0
    evidence = choose_threshold(best, by_chance, ceilings)
    threshold = evidence.threshold if settings.threshold is None else settings.threshold
    by = "evidence" if settings.threshold is None else "study"
    rules = {by: threshold, "paper": PAPER}
    bounds, intervals = _intervals(edge, tuple(rules.values()), settings)
    ends = {end: _end(edge, end, threshold, intervals.get(end)) for end in ENDS}
    columns = {end: own for end, (own, _) in ends.items()}
    freed: Figures | None = None
    if edge.ceilings:
        reliability = np.nanmean([np.where(np.isfinite(r), r, 0.0) for r in ceilings], axis=0)
        r = corrected(best, reliability, reliability)
        columns["parent"] |= {"ceiling_r": reliability, "corrected_r": r}
        medians = {"median": float(np.nanmedian(r)), "raw_median": float(np.nanmedian(best))}
        freed = {"persist": int((r > PAPER).sum()), **medians}
    rule_scores, cuts = _rules(edge, threshold, directions)
    calls = {rule: (score > cuts[rule])[live] for rule, score in rule_scores.items()}
    pairs = criteria.candidates(matches.parent_match, matches.child_match)
    splits, merges, _ = criteria.splits_and_merges(edge.parent, edge.child, pairs)
    return EdgeStatistics(
        threshold=threshold,
        threshold_by=by,
        chance_end=evidence.chance,
        same_end=evidence.same,
        counts={rule: _counts(edge, at, bounds, number) for number, (rule, at) in enumerate(rules.items())},
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
        disagreement=[(a, b, int((calls[a] & ~calls[b]).sum())) for a, b in permutations(calls, 2)],
        splits=len(splits.wholes),
        merges=len(merges.wholes),
        strata=[row for _, rows in ends.values() for row in rows],
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


def _intervals(
    edge: Compared, thresholds: tuple[float, ...], settings: Settings
) -> tuple[dict[str, list[float]], dict[str, Intervals]]:
    """Ends of CIs of figures at each threshold, by name, and CIs of best r, by end; empty for too few documents."""
    if len(np.unique(edge.documents)) < bootstrap.LEAST_GROUPS:
        return {}, {}
    matches, group = edge.matches, bootstrap.document_groups(edge.documents, seed=settings.seed)

    def counts(parent: FeatureActs, child: FeatureActs, match: np.ndarray) -> tuple[Counts, Intervals]:
        jackknife = bootstrap.leave_one_out(bootstrap.group_moments(parent, child, match[:, :1], group))
        above = bootstrap.bootstrap_counts(jackknife, thresholds, settings.resamples, settings.seed, settings.level)
        return above, bootstrap.r_intervals(jackknife, settings.level)

    persist, parent_r = counts(edge.parent, edge.child, matches.parent_match)
    inherited, child_r = counts(edge.child, edge.parent, matches.child_match)
    spare = zip(edge.spare, edge.ceilings, strict=True)
    further = [counts(edge.parent, acts, own.parent_match)[0] for acts, own in spare]
    parents, children = int((matches.parent_density > 0).sum()), int((matches.child_density > 0).sum())
    bounds = {
        "persist": (persist.low, persist.high),
        "disappear": (parents - persist.high, parents - persist.low),
        "emerge": (children - inherited.high, children - inherited.low),
    }
    if edge.one_dictionary and parents:
        bounds["ceiling"] = np.ones(len(thresholds)), np.ones(len(thresholds))
        bounds["relative"] = persist.low / parents, persist.high / parents
    elif further and parents:
        # Averaging the ends is what holds when the comparisons err together, as those on the same documents do, and is
        # too wide rather than too narrow otherwise.
        names = ("seen", "corrected", "low", "high", "draws")
        ceiling = further[0]._replace(**{n: np.mean([getattr(count, n) for count in further], axis=0) for n in names})
        bounds["ceiling"] = ceiling.low / parents, ceiling.high / parents
        bounds["relative"] = bootstrap.ratio_intervals(persist, ceiling)[1:]
    sides = {f"{name}_low": low.tolist() for name, (low, _) in bounds.items()}
    sides |= {f"{name}_high": high.tolist() for name, (_, high) in bounds.items()}
    return sides, {"parent": parent_r, "child": child_r}


def _counts(edge: Compared, threshold: float, bounds: dict[str, list[float]], at: int) -> Figures:
    """The figures of `EdgeStatistics.counts`; at: the threshold's place in `bounds`."""
    fate = fates(edge.matches, threshold)
    persist, live = int(fate.persist.sum()), max(1, int((edge.matches.parent_density > 0).sum()))
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
    for name in ("persist", "disappear", "emerge", "ceiling", "relative"):
        for end in (f"{name}_low", f"{name}_high"):
            figures[end] = bounds[end][at] if end in bounds else None
    return figures


def _end(
    edge: Compared, end: str, threshold: float, interval: Intervals | None
) -> tuple[dict[str, np.ndarray], list[tuple[str, str, int, int, float | None, float]]]:
    """`EdgeStatistics.columns` of an end, and its rows of `EdgeStatistics.strata`."""
    best, density = getattr(edge.matches, f"{end}_r")[:, 0], getattr(edge.matches, f"{end}_density")
    p, label = p_values(best, getattr(edge.floor, f"{end}_r"), density), strata(density, edge.matches.tokens)
    columns = {"density": density, "best_r": best, "p": p, "q": q_values(p), "stratum": label}
    if interval is not None:
        columns |= {"r_low": interval.low, "r_high": interval.high, "effective_groups": interval.effective}
    rows = []
    for number, name in enumerate(STRATA):
        size, hits = int((label == number).sum()), int(((best > threshold) & (label == number)).sum())
        rows.append((end, name, size, hits, hits / size if size and name != "dead" else None, hits / len(label)))
    return columns, rows


def _rules(
    edge: Compared, threshold: float, directions: Directions | None
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """By rule: score of each parent feature, float64 [d_parent], nan for a dead one; and the threshold on it."""
    matches, live = edge.matches, edge.matches.parent_density > 0
    by_rule = criteria.scores(matches, criteria.one_to_one(*matches[:4]))
    cuts = dict.fromkeys(by_rule, threshold)
    if directions is not None and not edge.one_dictionary:
        (enc_a, enc_b), (dec_a, dec_b) = directions
        agreed = shared(enc_a, dec_a, enc_b, dec_b, COSINE)
        by_rule["decoder_cosine"] = agreed.decoders.parent_cosine[:, 0]
        by_rule["shared"] = criteria.by_parent(agreed.pairs, agreed.cosine, len(live))
        cuts |= {"decoder_cosine": COSINE, "shared": COSINE}
    by_rule["token_types"] = criteria.token_type_correlate(edge.parent, edge.child, edge.ids, top=1).parent_score[:, 0]
    cuts["token_types"] = PAPER
    return {rule: np.where(live, score, np.nan) for rule, score in by_rule.items()}, cuts
