"""Made-up edges with everything that is known of one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from heredity.features.fates import THRESHOLDS
from heredity.features.null import PAPER, choose_threshold
from heredity.report.distributions import edge_view, match_rows
from heredity.report.edge import (
    Angles,
    ChanceSummary,
    Corrected,
    Counts,
    EdgeSummary,
    NewnessSummary,
    OriginSummary,
    PairsSummary,
    Persisting,
    RuleSummary,
    ShiftOrder,
    ShiftSummary,
    SpliceSummary,
    StratumSummary,
)
from heredity.report.view import EdgeView

D_SAE, TOKENS = 4096, 100_000


def edge_of(
    rng: np.random.Generator,
    parent: np.ndarray,
    child: np.ndarray,
    ceiling: np.ndarray,
    floor: Sequence[np.ndarray],
    joint: bool,
) -> tuple[EdgeSummary, EdgeView]:
    """An edge with these best r; ceiling and floor: those of the parent's features without a change."""
    live, child_live = int(np.isfinite(parent).sum()), int(np.isfinite(child).sum())
    found = choose_threshold(parent, np.stack(floor), [ceiling])
    own = _counts(parent, child, ceiling, floor, found.threshold, joint)
    persist = own.persist
    summary = EdgeSummary(
        tokens=TOKENS,
        parent_live=live,
        child_live=child_live,
        curve=_curve(parent),
        parent_features=D_SAE,
        child_features=D_SAE,
        l0_parent=24.0,
        l0_child=23.7,
        threshold_by="evidence",
        one_dictionary=joint,
        **dict(own),
        paper=_counts(parent, child, ceiling, floor, PAPER, joint),
        chance=ChanceSummary(
            passes=len(floor),
            rate=0.01,
            threshold=found.chance,
            expected=0.3,
            parent_above=int((parent > found.chance).sum()),
            child_above=int((child > found.chance).sum()),
        ),
        corrected=None if joint else Corrected(persist=persist + 150, median=0.94, raw_median=0.79),
        rules=_rules(parent, persist, found.threshold, joint),
        disagreement=_disagreement(persist, joint),
        splits=round(persist * 0.03),
        merges=round(persist * 0.02),
        strata={"parent": _strata(live, persist), "child": _strata(child_live, child_live - own.emerge)},
    )
    match = np.stack([rng.permutation(D_SAE), rng.permutation(D_SAE)], axis=1)
    match[~np.isfinite(parent)] = -1
    back = np.full((D_SAE, 1), -1)
    back[match[:, 0], 0] = np.arange(D_SAE)
    r = np.stack([parent, parent * 0.6], axis=1)
    density = 10 ** rng.normal(-2.6, 0.6, D_SAE)
    rows = match_rows(match, r, back, density, density * 1.1, count=12)
    return summary, edge_view(parent, child, [ceiling], floor, rows, evidence=(found.chance, found.same))


def _curve(score: np.ndarray) -> dict[str, int]:
    return {f"{cut:.2f}": int((score > cut).sum()) for cut in THRESHOLDS}


def _counts(
    parent: np.ndarray, child: np.ndarray, ceiling: np.ndarray, floor: Sequence[np.ndarray], cut: float, joint: bool
) -> Counts:
    live, child_live = int(np.isfinite(parent).sum()), int(np.isfinite(child).sum())
    persist, inherited = int((parent > cut).sum()), int((child > cut).sum())
    reach = float((ceiling > cut).sum() / live)

    def around(count: int, whole: int) -> tuple[int, int]:
        wide = round(2 * (count * (1 - count / whole)) ** 0.5)
        return count - wide, count + wide

    low, high = around(persist, live)
    return Counts(
        threshold=cut,
        persist=persist,
        disappear=live - persist,
        emerge=child_live - inherited,
        one_to_one=round(persist * 0.94),
        ceiling=reach,
        floor=float(np.mean(np.stack(floor) > cut)),
        relative=persist / live / reach,
        intervals={
            "persist": (low, high),
            "disappear": (live - high, live - low),
            "emerge": around(child_live - inherited, child_live),
            "ceiling": (1.0, 1.0) if joint else (reach - 0.008, reach + 0.007),
            "relative": (low / live / reach, high / live / reach),
        },
    )


_FACTORS = {"existence": 1, "mutual": 0.93, "assigned": 0.95, "decoder_cosine": 0.88, "shared": 0.71}


def _factors(joint: bool) -> dict[str, float]:
    """One SAE has no directions to compare."""
    return {rule: factor for rule, factor in _FACTORS.items() if not (joint and rule in ("decoder_cosine", "shared"))}


def _rules(parent: np.ndarray, persist: int, cut: float, joint: bool) -> dict[str, RuleSummary]:
    rules = {
        rule: RuleSummary(
            persist=round(factor * persist),
            threshold=0.7 if rule in ("decoder_cosine", "shared") else cut,
            curve={at: round(factor * count) for at, count in _curve(parent).items()},
        )
        for rule, factor in _factors(joint).items()
    }
    flag = "correlates means over token strings, not positions: two common strings give r = 1, so it is far too high"
    live = int(np.isfinite(parent).sum())
    curve = dict.fromkeys(_curve(parent), round(0.97 * live))
    return rules | {"token_types": RuleSummary(persist=round(0.97 * live), threshold=PAPER, curve=curve, flag=flag)}


def _disagreement(persist: int, joint: bool) -> dict[str, dict[str, int]]:
    names = (*_factors(joint), "token_types")
    shares = {**_FACTORS, "token_types": 1.1}
    return {
        a: {b: round(persist * (max(shares[a] - shares[b], 0) + 0.02)) for b in names if b != a and a != "existence"}
        | ({b: round(persist * abs(1 - shares[b])) for b in names if b != a} if a == "existence" else {})
        for a in names
    }


def _strata(live: int, matched: int) -> dict[str, StratumSummary]:
    sizes = {"rare": round(0.1 * live), "dense": round(0.01 * live), "dead": D_SAE - live}
    hits = {"rare": round(0.04 * matched), "dense": round(0.01 * matched), "dead": 0}
    sizes["usual"], hits["usual"] = live - sizes["rare"] - sizes["dense"], matched - hits["rare"] - hits["dense"]
    return {
        name: StratumSummary(
            features=sizes[name],
            matched=hits[name],
            of_live=None if name == "dead" else hits[name] / sizes[name],
            of_all=hits[name] / D_SAE,
        )
        for name in ("rare", "usual", "dense", "dead")
    }


def newness(edge: EdgeSummary) -> NewnessSummary:
    def origin(features: int, new: float, nu: float) -> OriginSummary:
        judged = round(0.9 * features)
        found = round(new * judged)
        sure, turned = round(0.8 * found), round(0.2 * found)
        missed = round(0.5 * (judged - found))
        return OriginSummary(
            features=features,
            judged=judged,
            new=found,
            surely_new=sure,
            turned=turned,
            missed=missed,
            nu=nu,
            strength=nu + 0.1,
        )

    return NewnessSummary(
        tokens=20_000,
        corpora=("english", "python", "cpp"),
        emerged=origin(edge.emerge, 0.42, 0.37),
        inherited=origin(edge.child_live - edge.emerge, 0.03, 0.93),
        unseen=origin(60, 0.5, 0.3),
        effects={
            "inherited": PairsSummary(pairs=200, logits=0.91, attribution=0.84),
            "emerged": PairsSummary(pairs=200, logits=0.31, attribution=None),
        },
        splice=SpliceSummary(
            features=edge.emerge,
            others=edge.child_live - edge.emerge,
            tokens=4_096,
            before=0.412,
            spliced=0.347,
            control=0.393,
            all=0.211,
            recovered=0.32,
            control_recovered=0.095,
            excess=0.23,
            reach=0.81,
            moved=0.3,
            control_moved=0.12,
            intervals={"recovered": (0.29, 0.35), "control_recovered": (0.08, 0.11)},
        ),
    )


def shift(edge: EdgeSummary) -> ShiftSummary:
    turn = Angles(lower=8.1, median=14.2, upper=24.9)
    more = Angles(lower=12.0, median=19.7, upper=33.1)
    order = ShiftOrder(data=turn, model=more, total=more)
    by_model = round(0.6 * edge.parent_live)
    return ShiftSummary(
        features=edge.parent_live,
        vectors=400_000,
        data_first=order,
        model_first=order,
        noise=Angles(lower=3.0, median=5.2, upper=9.0),
        by_model=by_model,
        by_data=edge.parent_live - by_model - 20,
        by_neither=20,
        threshold=edge.threshold,
        persist={kind: Persisting(share=0.9, paper=0.7) for kind in ("noise", "data", "model", "both")},
    )
