"""What stands of each paper's claims, on one screen: its number, ours, a reference, and what cannot be told.

The word follows from intervals: `yes` or `no` where a whole interval is on one side, `cannot tell` otherwise. Claims on
features are asked twice: of the paper's counts (matches at r > 0.8, which two SAEs of one model do not reach either),
and of verdicts on stable features. What is asked of several edges is one row, with a part for each.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from heredity import format
from heredity.papers.beside import Rows, ends, one, rows
from heredity.papers.stitching import pairs_of
from heredity.papers.tracking import by_paper, judge_of, roles_of
from heredity.study import Study

_HALF = 0.5


class _Part(NamedTuple):
    """The answer of one edge, model or width."""

    about: str
    here: str
    reference: str
    stands: str
    limit: str


def tracking(study: Study, tables: Rows) -> list[dict[str, Any]]:
    """Rows of `beside.CLAIMS` on arXiv 2410.12391."""
    roles, found = roles_of(study), []
    fine_tunes = (roles.first, roles.second)
    lost, new = "most features disappear in fine-tuning", "few features emerge in fine-tuning"
    asked = (
        (lost, "94 % are in neither fine-tune", (_lost, _lost_by_verdict)),
        (new, "no number by edge", (_new, _new_by_verdict)),
    )
    instruments = by_paper(study)
    for claim, published, ways in asked:
        for instrument in instruments:
            for way, by in zip(ways, ("r > 0.8", "verdicts"), strict=True):
                parts = [part for child in fine_tunes for part in way(tables, instrument, f"{roles.base}->{child}")]
                found += _row(claim, f"{by}, {instrument}", published, parts)
    for instrument in instruments:
        for rule, part in _emerged(tables, instrument, roles.merge):
            claim = "more of the merge's features emerged in a fine-tune than come from the base"
            found += _row(claim, f"{rule}, {instrument}", "60 % (729 of 1,210)", [part])
    for instrument in instruments:
        parts = [part for end in fine_tunes for part in _explained(tables, instrument, f"{end}->{roles.merge}")]
        found += _row("features that persist are explained better", instrument, "drawn (Fig 6)", parts)
    return found


def _row(claim: str, about: str, published: str, parts: list[_Part]) -> list[dict[str, Any]]:
    """One row of all parts, where there is any."""
    if not parts:
        return []
    names = ("here", "reference", "stands", "limit")
    joined = {name: _joined([(part.about, getattr(part, name)) for part in parts]) for name in names}
    return [{"claim": claim, "about": about, "published": published, **joined}]


def _joined(values: list[tuple[str, str]]) -> str:
    """`value` where all have the same, or `lua value; stories value`, the words in which all end once."""
    if len({value for _, value in values}) == 1:
        return values[0][1]
    words = [value.split(" ") for _, value in values]
    if any("," in value for _, value in values):  # of several statements, which would share the end of the last
        return "; ".join(f"{about} {value}" for about, value in values if value)
    alike = 0
    while all(len(one) > alike + 2 for one in words) and len({one[-1 - alike] for one in words}) == 1:
        alike += 1
    while alike and words[0][-alike].startswith("%"):  # belongs to its number
        alike -= 1
    parts = [f"{about} {' '.join(one[: len(one) - alike])}" for (about, value), one in zip(values, words, strict=True)]
    return " ".join(["; ".join(parts), *words[0][len(words[0]) - alike :]])


def _side(low: float | None, high: float | None, cut: float) -> str:
    """Whether a whole interval is above a cut."""
    if low is None or high is None:
        return "cannot tell: no interval"
    return "yes" if low > cut else "no" if high < cut else "cannot tell"


def _share(value: float, low: float | None, high: float | None) -> str:
    """`82 % [81–83 %]`."""
    around = "" if low is None or high is None else f" [{format.interval('share', low, high)}]"
    return f"{format.percent(value)}{around}"


def _ceiling(instrument: str, ceiling: float) -> str:
    """What the count is where nothing happened: between two SAEs of the parent, or by construction in a joint one."""
    if instrument == "joint":
        return "0 %, by construction: one SAE for all"
    return f"{format.percent(1 - ceiling)} in another seed's SAE"


def _lost(tables: Rows, instrument: str, edge: str) -> Iterator[_Part]:
    row = one(tables, "edges", instrument=instrument, edge=edge, rule="paper")
    if not row:
        return
    live, ceiling, child = row["parent_live"], row.get("ceiling"), edge.partition("->")[2]
    low, high = (None if end is None else end / live for end in ends(row, "disappear"))
    reference, word = "not measured", _side(low, high, _HALF)
    if ceiling is not None:
        reference = _ceiling(instrument, ceiling)
        if word == "yes":
            word = f"yes (beyond the ceiling: {_side(*_relative(row), _HALF)})"
    limit = "intervals cover documents, not SAE seeds"
    yield _Part(child, f"{_share(row['disappear'] / live, low, high)} of the live", reference, word, limit)


def _lost_by_verdict(tables: Rows, instrument: str, edge: str) -> Iterator[_Part]:
    row = one(tables, "verdicts", instrument=instrument, edge=edge, text="common", end="parent")
    if not row or not row["stable"]:
        return
    known = {
        one["reference"]: one
        for one in rows(tables, "references", instrument=instrument, edge=edge, text="common")
        if one["reference"] in ("unchanged", "sham", "removal")
    }
    reference = ", ".join(
        f"{one['removed_lost']:,} of {one['removed']:,} planted losses found"
        if name == "removal"
        else f"{format.percent(one['lost'] / one['stable'])} in {name}"
        for name, one in known.items()
        if one["stable"]
    )
    yield _Part(edge.partition("->")[2], _told(row, "lost"), reference, _judged(row)[0], _stable(row))


def _told(row: Mapping[str, Any], lost: str) -> str:
    shares = {name: row[name] / row["stable"] for name in ("changed", "undecided")}
    rest = ", ".join(f"{format.percent(share)} {name}" for name, share in shares.items())
    return f"{_share(row['lost'] / row['stable'], *ends(row, 'lost_share'))} {lost}, {rest}"


def _stable(row: Mapping[str, Any]) -> str:
    return f"of the {format.percent(row['stable'] / row['live'])} that are stable"


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


def _new(tables: Rows, instrument: str, edge: str) -> Iterator[_Part]:
    row = one(tables, "edges", instrument=instrument, edge=edge, rule="paper")
    if not row:
        return
    live = row["child_live"]
    low, high = (None if end is None else end / live for end in ends(row, "emerge"))
    reference = "not measured"
    if row["ceiling"] is not None:
        reference = _ceiling(instrument, row["ceiling"])
    # Asked is whether they are few, so that `yes` is below a half.
    word = {"yes": "no", "no": "yes"}.get(many := _side(low, high, _HALF), many)
    here = f"{_share(row['emerge'] / live, low, high)} of the live"
    yield _Part(edge.partition("->")[2], here, reference, word, "few: less than half")


def _new_by_verdict(tables: Rows, instrument: str, edge: str) -> Iterator[_Part]:
    row = one(tables, "verdicts", instrument=instrument, edge=edge, text="common", end="child")
    if row and row["stable"]:
        yield _Part(edge.partition("->")[2], _told(row, "new"), "", _judged(row)[1], _stable(row))


def _emerged(tables: Rows, instrument: str, merge: str) -> Iterator[tuple[str, _Part]]:
    from scipy.stats import binomtest

    for rule in dict.fromkeys(row["rule"] for row in rows(tables, "flow", instrument=instrument, model=merge)):
        flow = rows(tables, "flow", instrument=instrument, model=merge, rule=rule)
        counts = {row["origin"]: row["features"] for row in flow}
        emerged = sum(count for origin, count in counts.items() if origin.startswith("emerged_in_"))
        total = emerged + counts.get("from_base", 0)
        if not total:
            continue
        low, high = binomtest(emerged, total).proportion_ci(method="wilson")  # over features alone
        here = f"{_share(emerged / total, low, high)} of {total:,} traced"
        limit = "what misses the cut on the first edge counts as emerged"
        part = _Part(merge, here, "not measured", _side(low, high, _HALF), limit)
        yield "r > 0.8" if rule == "paper" else "each edge's own cut", part


def _explained(tables: Rows, instrument: str, subject: str) -> Iterator[_Part]:
    row = one(tables, "explained", instrument=instrument, subject=subject)
    if not row or row["effect"] is None:
        return
    here = f"{format.value('r', row['persisting_median'])} against {format.value('r', row['others_median'])}, "
    here += f"higher in {_share(row['effect'], *ends(row, 'effect'))} of pairs"
    limit = f"by {judge_of(tables, instrument)}; they fire more often, too"
    yield _Part(subject.partition("->")[0], here, "50 % by chance", _side(*ends(row, "effect"), _HALF), limit)


def stitching(study: Study, tables: Rows) -> list[dict[str, Any]]:
    """Rows of `beside.CLAIMS` on arXiv 2506.06609."""
    return [row for stitch in pairs_of(study, tables) for row in _of_stitch(tables, stitch)]


def _of_stitch(tables: Rows, stitch: str) -> Iterator[dict[str, Any]]:
    saved = [
        _saved(tables, row)
        for row in rows(tables, "savings_by_level", stitch=stitch, arm="transferred")
        if abs(row["level"] - 0.9) < 1e-9
    ]
    yield from _row("a carried start saves up to half of the FLOPs", f"{stitch}, variance of 0.90", "30 to 50 %", saved)
    test = one(tables, "transfer_class_tests", stitch=stitch, measure="attribution")
    spread = {
        one["features"]: one for one in rows(tables, "transfer_correlations", stitch=stitch, measure="attribution")
    }
    if test and "structural" in spread and "semantic" in spread:
        medians = [format.value("r", spread[name]["median"]) for name in ("structural", "semantic")]
        here, word = f"medians {medians[0]} and {medians[1]}", _side(*ends(test, "effect"), _HALF)
        part = _Part("", here, "50 %: no difference", word, "structural features are denser, which alone could do it")
        claim = "structural features carry over better than semantic ones"
        yield from _row(claim, stitch, "drawn (Fig 4b)", [part])
    above = one(tables, "feature_transfer", stitch=stitch).get("above")
    if above is not None:
        here = f"{format.percent(above)} above the random ones' 95th percentile"
        limit = "one layer; in a small model random directions carry as well"
        part = _Part("", here, "5 %", "yes" if above > _HALF else "no", limit)
        yield from _row("most features carry over better than random ones", stitch, "drawn (Fig 14)", [part])


def _saved(tables: Rows, row: Mapping[str, Any]) -> _Part:
    """The saving of a width at one level of explained variance."""
    same = {name: row[name] for name in ("stitch", "d_sae", "level")}
    turned = one(tables, "savings_by_level", arm="geometry", **same).get("saved_flops")
    saved, seconds, charged = row["saved_flops"], row["saved_seconds"], row["saved_flops_with_source"]
    here = f"{row['never']} never reached it" if saved is None else f"{format.percent(saved)} of the FLOPs"
    spent = one(tables, "warm_starts", arm="random", stitch=row["stitch"], d_sae=row["d_sae"]).get("flops")
    if saved is None and row["never"] == "random" and spent:  # what it had spent in vain is the least it needs
        here = f"more than {format.percent(1 - row['flops'] / spent)} of the FLOPs: {here}"
    stands = "cannot tell" if saved is None else "yes" if saved > 0 else "no"
    if seconds is not None:
        here += f", {format.percent(seconds)} of the time"
        if (seconds > 0) != (stands == "yes"):
            stands += f" in FLOPs, {'yes' if seconds > 0 else 'no'} in seconds"
    reference = "not run" if turned is None else f"{format.percent(turned)} from the SAE's geometry alone"
    source = "unknown" if charged is None else format.percent(charged)
    limit = f"one run of each start; with the source's SAE charged {source}"
    return _Part(f"{row['d_sae']:,} features:", here, reference, stands, limit)
