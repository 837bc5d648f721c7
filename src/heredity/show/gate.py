"""A limit on what the edges of a study may lose, for people who ship fine-tunes and want to be stopped in time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal, InvalidOperation
from typing import Any

from heredity.tables import Column, Table

_ROUNDING = 1e-9  # a loss of exactly the limit passes, however its quotient is rounded

GATE = Table(
    "gate",
    "Features lost along every edge, and the limit.",
    ("edge",),
    (
        Column("lost", "share", "Share of the parent's live features, or of the ceiling.", ci=True),
        Column("limit", "share", "Largest loss that passes."),
        Column("verdict", "text", "Whether the edge passes."),
    ),
    brief=("edge", "lost", "limit", "verdict"),
)


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
    limit: float,
    edges: Sequence[str] = (),
    relative: bool = False,
    only_sure: bool = False,
) -> dict[str, Any]:
    """Hold the loss along edges to a limit; the object that `heredity gate --json` prints.

    rows: of the table `edges`, one per edge. The loss of an edge is disappear / parent_live; with `relative` it is
    1 - (persist / parent_live) / ceiling, but not below 0: the loss beyond what two SAEs of one model lose already. Its
    interval is then that of `relative`, where there is one; otherwise that of `persist`, with the ceiling taken as
    known. A loss of exactly the limit passes. `edges`: names, all by default. `only_sure` lets an edge pass unless its
    whole interval is over the limit. An edge is `sure` when the whole interval is on the side of the limit that the
    loss is on; None without an interval.

    Raises ValueError for an unknown edge, for an edge without a live parent feature, without a ceiling where it is
    needed, or without an interval under `only_sure`, and for a study without edges.
    """
    by_name = {row["edge"]: row for row in rows}
    if not by_name:
        raise ValueError(f"study {study} has no parent -> child edge; there is no loss to hold to a limit")
    judged = {}
    for name in edges or by_name:
        if name not in by_name:
            raise ValueError(f"--edge {name}: is no edge of study {study}; edges are {', '.join(by_name)}")
        lost, interval = _loss(by_name[name], relative)
        if only_sure and interval is None:
            raise ValueError(f"edge {name}: has no interval of persist, so that no failure is sure; leave --sure out")
        beyond = lost > limit + _ROUNDING
        sure = None if interval is None else all((end > limit + _ROUNDING) == beyond for end in interval)
        passed = not (beyond and (sure or not only_sure))
        judged[name] = {"lost": lost, "limit": limit, "interval": interval, "passed": passed, "sure": sure}
    passed = all(verdict["passed"] for verdict in judged.values())
    options = {"max_lost": limit, "relative_to_ceiling": relative, "only_sure": only_sure}
    return {"passed": passed, **options, "edges": judged}


def row_of(edge: str, verdict: Mapping[str, Any]) -> dict[str, Any]:
    """A row of `GATE`, with the verdict as people read it."""
    doubt = {True: " (sure)", False: " (not sure)", None: ""}[verdict["sure"]]
    words = f"{'passes' if verdict['passed'] else 'FAILS'}{doubt}"
    if verdict["passed"] and verdict["lost"] > verdict["limit"] + _ROUNDING:
        words = f"passes: over the limit{doubt}"
    low, high = verdict["interval"] or (None, None)
    return {"edge": edge, **verdict, "lost_low": low, "lost_high": high, "verdict": words}


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
