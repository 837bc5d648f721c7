"""What stands of each paper's claims, on one screen: its number, ours, a reference, and what cannot be told.

The word follows from intervals: `yes` or `no` where a whole interval is on one side, `cannot tell` otherwise. Claims on
features are asked twice: of the paper's counts (matches at r > 0.8, which two SAEs of one model do not reach either),
and of verdicts on stable features.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from heredity import format
from heredity.papers.beside import Rows, ends, one, rows
from heredity.papers.stitching import pairs_of
from heredity.papers.tracking import by_paper, judge_of, roles_of
from heredity.study import Study

_HALF = 0.5
_NULL = "an SAE of another seed of the same model"


def tracking(study: Study, tables: Rows) -> list[dict[str, Any]]:
    """Rows of `beside.CLAIMS` on arXiv 2410.12391."""
    roles, found = roles_of(study), []
    instruments, fine_tunes = by_paper(study), (roles.first, roles.second)
    for asked in (_lost, _new):
        for instrument in instruments:
            found += [row for child in fine_tunes for row in asked(tables, instrument, f"{roles.base}->{child}")]
    for instrument in instruments:
        found += _emerged(tables, instrument, roles.merge)
    for instrument in instruments:
        found += [row for end in fine_tunes for row in _explained(tables, instrument, f"{end}->{roles.merge}")]
    return found


def _row(claim: str, about: str, published: str, here: str, reference: str, stands: str, limit: str) -> dict[str, Any]:
    return {
        "claim": claim,
        "about": about,
        "published": published,
        "here": here,
        "reference": reference,
        "stands": stands,
        "limit": limit,
    }


def _side(low: float | None, high: float | None, cut: float) -> str:
    """Whether a whole interval is above a cut."""
    if low is None or high is None:
        return "cannot tell: no interval"
    return "yes" if low > cut else "no" if high < cut else "cannot tell"


def _lost(tables: Rows, instrument: str, edge: str) -> Iterator[dict[str, Any]]:
    claim, published = "most features disappear in fine-tuning", "15,425 of 16,384 (94 %) persist in neither fine-tune"
    row = one(tables, "edges", instrument=instrument, edge=edge, rule="paper")
    if row:
        live = row["parent_live"]
        low, high = (None if end is None else end / live for end in ends(row, "disappear"))
        ceiling, reference = row.get("ceiling"), "not measured"
        word = _side(low, high, _HALF)
        if ceiling is not None:
            gone = 1 - ceiling  # share that an SAE of another seed of the base itself lacks
            reference = f"{format.percent(gone)} in {_NULL}"
            if word == "yes":
                most = _side(*_relative(row), _HALF)
                word = f"yes by the count; of what two SAEs of the parent share, {most}"
        here = format.of(row["disappear"], live, *ends(row, "disappear"))
        limit = "intervals cover documents, not SAE seeds"
        yield _row(claim, f"{edge}, {instrument}, r > 0.8", published, here, reference, word, limit)
    row = one(tables, "verdicts", instrument=instrument, edge=edge, text="common", end="parent")
    if row and row["stable"]:
        here = (
            f"{format.of(row['lost'], row['stable'])} lost, {row['changed']:,} changed, {row['undecided']:,} undecided"
        )
        known = [
            one
            for one in rows(tables, "references", instrument=instrument, edge=edge, text="common")
            if one["reference"] in ("unchanged", "sham", "removal")
        ]
        reference = ", ".join(
            f"{one['removed_lost']:,} of {one['removed']:,} planted losses found"
            if one["reference"] == "removal"
            else f"{format.of(one['lost'], one['stable'])} lost in {one['reference']}"
            for one in known
        )
        limit = f"stable features only: {format.of(row['stable'], row['live'])} live ones"
        stands = _judged(row)[0]
        yield _row(claim, f"{edge}, {instrument}, verdicts", published, here, reference, stands, limit)


def _judged(row: Mapping[str, Any]) -> tuple[str, str]:
    """Whether more than half of the stable features are lost (new), and whether less than half are: undecided ones
    count for what they could be."""
    low, high = ends(row, "lost_share")
    if low is None or high is None:
        return "cannot tell: no interval", "cannot tell: no interval"
    most = max(high, (row["lost"] + row["undecided"]) / row["stable"])
    many = _side(low, most, _HALF)
    return many, {"yes": "no", "no": "yes"}.get(many, many)


def _relative(row: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """Interval of the share lost beyond the ceiling."""
    low, high = ends(row, "relative")
    return (None, None) if low is None or high is None else (1 - high, 1 - low)


def _new(tables: Rows, instrument: str, edge: str) -> Iterator[dict[str, Any]]:
    claim, published = "few features emerge in fine-tuning", "no number by edge"
    row = one(tables, "edges", instrument=instrument, edge=edge, rule="paper")
    if row:
        live = row["child_live"]
        low, high = (None if end is None else 1 - end / live for end in ends(row, "emerge"))
        here = format.of(row["emerge"], live, *ends(row, "emerge"))
        reference = "not measured" if row["ceiling"] is None else f"{format.percent(1 - row['ceiling'])} in {_NULL}"
        yield _row(
            claim,
            f"{edge}, {instrument}, r > 0.8",
            published,
            here,
            reference,
            _side(high, low, _HALF),
            "few: less than half of the child's live features",
        )
    row = one(tables, "verdicts", instrument=instrument, edge=edge, text="common", end="child")
    if row and row["stable"]:
        here = (
            f"{format.of(row['lost'], row['stable'])} new, {row['changed']:,} changed, {row['undecided']:,} undecided"
        )
        stands = _judged(row)[1]
        yield _row(
            claim,
            f"{edge}, {instrument}, verdicts",
            published,
            here,
            "",
            stands,
            f"stable features only: {format.of(row['stable'], row['live'])} live ones",
        )


def _emerged(tables: Rows, instrument: str, merge: str) -> Iterator[dict[str, Any]]:
    from scipy.stats import binomtest

    for rule in dict.fromkeys(row["rule"] for row in rows(tables, "flow", instrument=instrument, model=merge)):
        flow = rows(tables, "flow", instrument=instrument, model=merge, rule=rule)
        counts = {row["origin"]: row["features"] for row in flow}
        emerged = sum(count for origin, count in counts.items() if origin.startswith("emerged_in_"))
        total = emerged + counts.get("from_base", 0)
        if not total:
            continue
        low, high = binomtest(emerged, total).proportion_ci(method="wilson")  # over features alone
        here = f"{format.of(emerged, total)} emerged, {counts['from_base']:,} from the base"
        cut = "r > 0.8" if rule == "paper" else "each edge's own cut"
        yield _row(
            "more of the merge's features emerged in a fine-tune than come from the base",
            f"{merge}, {instrument}, {cut}",
            "729 of 1,210 (60 %)",
            here,
            "not measured",
            _side(low, high, _HALF),
            "a feature that misses the cut on the first edge counts as emerged",
        )


def _explained(tables: Rows, instrument: str, subject: str) -> Iterator[dict[str, Any]]:
    row = one(tables, "explained", instrument=instrument, subject=subject)
    if not row or row["effect"] is None:
        return
    judge = judge_of(tables, instrument)
    here = f"{format.value('r', row['persisting_median'])} against {format.value('r', row['others_median'])}; "
    here += f"in {format.percent(row['effect'])} of pairs the one that persists scores higher"
    yield _row(
        "features that persist are explained better",
        f"{subject}, {instrument}",
        "drawn (Fig 6), no number",
        here,
        "50 % by chance",
        _side(*ends(row, "effect"), _HALF),
        f"explained by {judge}; persisting features fire more often, too",
    )


def stitching(study: Study, tables: Rows) -> list[dict[str, Any]]:
    """Rows of `beside.CLAIMS` on arXiv 2506.06609."""
    found = []
    for stitch in pairs_of(study, tables):
        for row in rows(tables, "savings_by_level", stitch=stitch, arm="transferred"):
            if abs(row["level"] - 0.9) > 1e-9:
                continue
            saved = row["saved_flops"]
            other = one(
                tables, "savings_by_level", stitch=stitch, arm="geometry", d_sae=row["d_sae"], level=row["level"]
            )
            turned = other.get("saved_flops")
            here = "level not reached" if saved is None else f"{format.percent(saved)} of the FLOPs"
            if row["saved_seconds"] is not None:
                here += f", {format.percent(row['saved_seconds'])} of the time"
            reference = "" if turned is None else f"{format.percent(turned)} from the SAE's geometry alone"
            stands = "cannot tell" if saved is None else "yes" if saved > 0 else "no"
            if row["saved_seconds"] is not None and (row["saved_seconds"] > 0) != (stands == "yes"):
                stands += f" in FLOPs, {'yes' if row['saved_seconds'] > 0 else 'no'} in seconds"
            limit = "one run of each start; with the source's SAE charged "
            charged = row["saved_flops_with_source"]
            limit += "unknown" if charged is None else format.percent(charged)
            found.append(
                _row(
                    "a carried start saves up to half of the FLOPs",
                    f"{stitch}, {row['d_sae']:,} features, variance of 0.90",
                    "30 to 50 %",
                    here,
                    reference,
                    stands,
                    limit,
                )
            )
        spread = {
            one["features"]: one for one in rows(tables, "transfer_correlations", stitch=stitch, measure="attribution")
        }
        test = one(tables, "transfer_class_tests", stitch=stitch, measure="attribution")
        if test and "structural" in spread and "semantic" in spread:
            medians = [format.value("r", spread[name]["median"]) for name in ("structural", "semantic")]
            found.append(
                _row(
                    "structural features carry over more steadily than semantic ones",
                    stitch,
                    "drawn (Fig 4b), no number",
                    f"medians {medians[0]} and {medians[1]}",
                    "50 %: no difference",
                    _side(*ends(test, "effect"), _HALF),
                    "structural features are denser, which alone helps",
                )
            )
        above = one(tables, "feature_transfer", stitch=stitch).get("above")
        if above is not None:
            word = "yes" if above > _HALF else "no"
            found.append(
                _row(
                    "most features carry over better than random ones",
                    stitch,
                    "drawn (Fig 14), no number",
                    f"{format.percent(above)} above the random ones' 95th percentile",
                    "5 %",
                    word,
                    "in a small model random directions carry as well",
                )
            )
    return found
