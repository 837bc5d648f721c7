"""A limit on what the edges of a study may lose, for people who ship fine-tunes and want to be stopped in time.

By verdicts, an edge fails where the whole interval of its lost share is over the limit. It passes where the whole
interval is within it, the undecided features would not put it over the limit if they were lost too, and losses that
were planted are found. Otherwise it is undecided. By matches, it fails where the count itself is over the limit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from typing import Any

from heredity import format
from heredity.analyses.sae import LEAST_EXPLAINED
from heredity.analyses.verdict_findings import FEW_STABLE

_ROUNDING = 1e-9  # a loss of exactly the limit passes, however its quotient is rounded
_FEWEST = 30  # stable features whose share is held to a limit
_POWER = 0.5  # share of planted losses that must be found for an edge to pass
_MANY = 0.1  # share of stable features that the evidence leaves undecided, from which on more tokens help most
_LONGER = "train the SAEs longer (sae.tokens), so that more of their features are stable"
_TOKENS = "judge features on more tokens (verdicts.tokens), so that fewer of them are undecided"
_WORDS = {"pass": "passes", "fail": "FAILS", "undecided": "cannot tell"}


def limit_of(text: str) -> float:
    """The share that `5%`, `5 %` or `0.05` means; 0 to 1.

    Raises ValueError for anything else: no number, nan, negative, or more than the whole.
    """
    number, percent = text.strip(), text.strip().endswith("%")
    try:
        value = Decimal(number.removesuffix("%").strip()) / (100 if percent else 1)
    except InvalidOperation:
        raise ValueError(f"--max-lost {text}: is no number; give a share such as 5% or 0.05") from None
    if not value.is_finite():
        raise ValueError(f"--max-lost {text}: is not finite; give a share such as 5% or 0.05")
    if value < 0:
        raise ValueError(f"--max-lost {text}: is negative; give a share from 0% to 100%")
    if value > 1:
        meant = "" if percent else f" (for {number} percent write {number}%)"
        raise ValueError(f"--max-lost {text}: is more than 100 %{meant}; give a share from 0% to 100%")
    return float(value)


def judge(
    study: str,
    rows: Sequence[Mapping[str, Any]],
    names: Sequence[str],
    limit: float,
    edges: Sequence[str] = (),
    removals: Mapping[str, tuple[int, int]] | None = None,
) -> dict[str, Any]:
    """Hold the lost share of stable parent features to a limit; the object that `heredity gate --json` prints.

    rows: of the table `verdicts`, of parents, at most one per edge. names: edges of the study. edges: those to judge,
    all by default. removals: by edge, how many directions of features were taken out of the parent's activations, and
    how many of these are called lost; where less than half are, no edge passes. The verdict of an edge is `pass`,
    `fail` or `undecided`; an undecided one has `why` and `mend`. The verdict of all is `fail` where one edge fails,
    `undecided` where one is and none fails, and `pass` otherwise.

    Raises ValueError for an unknown edge and for a study without edges.
    """
    by_name = {row["edge"]: row for row in rows}
    known = removals or {}
    judged = {name: _by_verdicts(by_name.get(name), limit, known.get(name)) for name in _chosen(study, names, edges)}
    found = {one["verdict"] for one in judged.values()}
    verdict = next((word for word in ("fail", "undecided") if word in found), "pass")
    return {"by": "verdicts", "verdict": verdict, "passed": verdict == "pass", "max_lost": limit, "edges": judged}


def removals_of(references: Iterable[Mapping[str, Any]]) -> dict[str, tuple[int, int]]:
    """By edge, how many features were taken out of the parent on purpose, and how many of them are called lost.

    references: rows of the table `references`, of one instrument.
    """
    known = (row for row in references if (row["reference"], row["text"]) == ("removal", "common") and row["removed"])
    return {row["edge"]: (row["removed"], row["removed_lost"]) for row in known}


def _chosen(study: str, names: Sequence[str], edges: Sequence[str]) -> list[str]:
    if not names:
        raise ValueError(f"study {study} has no parent -> child edge; there is no loss to hold to a limit")
    if unknown := [name for name in edges if name not in names]:
        raise ValueError(f"--edge {unknown[0]}: is no edge of study {study}; edges are {', '.join(names)}")
    return list(dict.fromkeys(edges or names))


def _by_verdicts(row: Mapping[str, Any] | None, limit: float, removal: tuple[int, int] | None = None) -> dict[str, Any]:
    judged: dict[str, Any] = {"lost": None, "interval": None, "limit": limit, "stable": 0, "undecided": 0}
    if row is None:
        why, mend = "no verdicts were made", "set verdicts.tokens above 0 and run the study again"
        return judged | {"verdict": "undecided", "why": why, "mend": mend}
    live, stable, low, high = (row[name] for name in ("live", "stable", "lost_share_low", "lost_share_high"))
    judged |= {"stable": stable, "undecided": row["undecided"]}
    if stable:
        judged |= {"lost": row["lost_share"], "interval": (max(0.0, low), high)}
    mend = _LONGER
    if stable < FEW_STABLE * max(1, live):
        why = f"only {format.of(stable, live)} live features are stable, less than {format.percent(FEW_STABLE)}"
    elif stable < _FEWEST:
        why = f"only {stable} features are stable, fewer than {_FEWEST}"
    elif low > limit + _ROUNDING:
        return judged | {"verdict": "fail", "why": "", "mend": ""}
    elif removal is not None and removal[1] < _POWER * removal[0]:
        why = f"of {removal[0]} features taken out of the parent on purpose, only {removal[1]} are called lost"
    elif high <= limit + _ROUNDING:
        possible = row["lost_share"] + row["undecided"] / stable
        if possible <= limit + _ROUNDING:
            return judged | {"verdict": "pass", "why": "", "mend": ""}
        why = f"if the {row['undecided']:,} undecided features are lost too, it is {format.percent(possible)}"
        mend = _TOKENS
    else:
        why = "the interval includes the limit"
        mend = _TOKENS if row["undecided"] > _MANY * stable else _LONGER
        if not row["lost_share"]:
            why = f"none is lost, but {stable:,} features cannot show less than {format.percent(high)}"
            mend = "set a limit above it, or train wider SAEs"
    return judged | {"verdict": "undecided", "why": why, "mend": mend}


def line_of(edge: str, judged: Mapping[str, Any]) -> str:
    """The verdict on an edge in one line."""
    verdict, limit = _WORDS[judged["verdict"]], f"limit {format.percent(judged['limit'])}"
    if "sure" in judged:
        whole, doubt = "live features", {True: " (sure)", False: " (not sure)", None: ""}[judged["sure"]]
        if judged["verdict"] == "pass" and judged["lost"] > judged["limit"] + _ROUNDING:
            doubt = f": over the limit{doubt}"
    else:
        whole, doubt = f"{judged['stable']:,} stable features", ""
    if judged["lost"] is None:
        lost = "loss not measured"
    else:
        ends = judged["interval"]
        interval = f" (95 % CI {format.interval('share', *ends)})" if ends else ""
        lost = f"lost {format.percent(judged['lost'])}{interval} of {whole}"
        if judged.get("undecided"):
            lost += f", {judged['undecided']:,} undecided"
    reason = f": {judged['why']}; {judged['mend']}" if judged.get("why") else ""
    return f"{edge}: {verdict}{doubt}; {lost}; {limit}{reason}"


def judge_matches(
    study: str,
    rows: Sequence[Mapping[str, Any]],
    limit: float,
    edges: Sequence[str] = (),
    relative: bool = False,
    only_sure: bool = False,
    doubts: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Hold the count of live parent features without a match to a limit, unstable features included.

    rows: of the table `edges`, one per edge. The loss of an edge is disappear / parent_live; with `relative` it is
    1 - (persist / parent_live) / ceiling, but not below 0: the loss beyond what two SAEs of one model lose already. Its
    interval is then that of `relative`, where there is one; otherwise that of `persist`, with the ceiling taken as
    known. A loss of exactly the limit passes. `edges`: names, all by default. `only_sure` lets an edge pass unless its
    whole interval is over the limit. An edge is `sure` when the whole interval is on the side of the limit that the
    loss is on; None without an interval. doubts: by edge, why its SAEs can carry no count (`doubts_of`): it is not sure
    then, and has a `why`.

    Raises ValueError for an unknown edge, for an edge without a live parent feature, without a ceiling where it is
    needed, or without an interval under `only_sure`, and for a study without edges.
    """
    by_name, judged = {row["edge"]: row for row in rows}, {}
    for name in _chosen(study, list(by_name), edges):
        lost, interval = _loss(by_name[name], relative)
        if only_sure and interval is None:
            raise ValueError(f"edge {name}: has no interval of persist, so that no failure is sure; leave --sure out")
        beyond = lost > limit + _ROUNDING
        sure = None if interval is None else all((end > limit + _ROUNDING) == beyond for end in interval)
        why = (doubts or {}).get(name)
        sure = False if why else sure
        verdict = "fail" if beyond and (sure or not only_sure) else "pass"
        judged[name] = {"lost": lost, "interval": interval, "limit": limit, "verdict": verdict, "sure": sure}
        judged[name] |= {"why": why, "mend": _LONGER} if why else {}
    passed = all(one["verdict"] == "pass" for one in judged.values())
    options = {"max_lost": limit, "relative_to_ceiling": relative, "only_sure": only_sure}
    return {"by": "matches", "verdict": "pass" if passed else "fail", "passed": passed, **options, "edges": judged}


def doubts_of(tables: Iterable[Sequence[Mapping[str, Any]]]) -> dict[str, str]:
    """Why counts by matches of an edge mean little, by edge: few of the parent's features are stable, or an SAE of
    either end explains too little. tables: rows of `verdicts` and of `saes`, of one instrument."""
    judged, saes = tables
    explained = {row["model"]: row["explained_variance"] for row in saes}
    doubts = {}
    for row in (row for row in judged if row["end"] == "parent" and row["text"] == "common"):
        poor = [end for end in row["edge"].split("->") if (explained.get(end) or 1) < LEAST_EXPLAINED]
        if poor:
            doubts[row["edge"]] = f"the SAE of {poor[0]} explains only {explained[poor[0]]:.2f} of the variance"
        elif row["stable"] < FEW_STABLE * max(1, row["live"]):
            doubts[row["edge"]] = f"only {format.of(row['stable'], row['live'])} live features are stable"
    return doubts


def _loss(row: Mapping[str, Any], relative: bool) -> tuple[float, tuple[float, float] | None]:
    """The loss of an edge as a share, 0 to 1, and its interval."""
    name, whole = row["edge"], float(row["parent_live"])
    if not whole:
        raise ValueError(
            f"edge {name}: no feature of the parent fired, so that there is no share to lose; look at the parent's SAE "
            "(`heredity report`) and train it longer, or raise lineage.tokens"
        )
    if relative:
        if not row["ceiling"]:
            fault = "has no ceiling" if row["ceiling"] is None else "has a ceiling of 0"
            raise ValueError(
                f"edge {name}: {fault}, which --relative-to-ceiling divides by; set controls.seeds = 2 (and name the "
                "parent in controls.models, if it is given) and run the study again, or leave the option out"
            )
        whole *= row["ceiling"]

    def lost(persist: float, all_: float) -> float:
        return min(1.0, max(0.0, (all_ - persist) / all_))

    for column, all_ in (("relative", 1.0), ("persist", whole)) if relative else (("persist", whole),):
        low, high = row.get(f"{column}_low"), row.get(f"{column}_high")
        if low is not None and high is not None:
            return lost(row["persist"], whole), (lost(high, all_), lost(low, all_))
    return lost(row["persist"], whole), None
