"""A limit on what the edges of a study may lose, for people who ship fine-tunes and want to be stopped in time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal, InvalidOperation
from typing import Any, NamedTuple

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


class Verdict(NamedTuple):
    """The loss of one edge beside the limit."""

    edge: str
    """`parent->child`."""
    lost: float
    """Share of the parent's live features that disappear, or the loss relative to the ceiling; 0 to 1."""
    limit: float
    """The largest loss that passes."""
    interval: tuple[float, float] | None
    """Lower and upper end of the loss, from the interval of `persist` or `relative`; None without one."""
    passed: bool
    """Whether the edge passes."""
    sure: bool | None
    """Whether the whole interval is on the side of the limit that `lost` is on; None without an interval."""

    @property
    def words(self) -> str:
        """The verdict as people read it."""
        beyond = _beyond(self.lost, self.limit)
        doubt = {True: " (sure)", False: " (not sure)", None: ""}[self.sure]
        if beyond and self.passed:
            return f"passes: over the limit{doubt}"
        return f"{'FAILS' if beyond else 'passes'}{doubt}"

    def row(self) -> dict[str, Any]:
        """A row of `GATE`."""
        low, high = self.interval or (None, None)
        numbers = {"edge": self.edge, "lost": self.lost, "lost_low": low, "lost_high": high, "limit": self.limit}
        return numbers | {"verdict": self.words}


class Gate(NamedTuple):
    """The verdicts of a study."""

    verdicts: tuple[Verdict, ...]
    """One per edge."""
    limit: float
    """The largest loss that passes."""
    relative_to_ceiling: bool
    """Whether only the loss beyond the ceiling counts."""
    only_sure: bool
    """Whether an edge fails only when its whole interval is over the limit."""

    @property
    def passed(self) -> bool:
        """Whether every edge passes."""
        return all(verdict.passed for verdict in self.verdicts)

    def as_json(self) -> dict[str, Any]:
        """The object that `heredity gate --json` prints, without the study's name."""
        return {
            "passed": self.passed,
            "max_lost": self.limit,
            "relative_to_ceiling": self.relative_to_ceiling,
            "only_sure": self.only_sure,
            "edges": {row.edge: {k: v for k, v in row._asdict().items() if k != "edge"} for row in self.verdicts},
        }


def limit_of(text: str, option: str = "--max-lost") -> float:
    """The share that `5%`, `5 %` or `0.05` means; 0 to 1.

    Raises ValueError, by the option's name, for anything else: no number, nan, negative, or more than the whole.
    """
    number, percent = text.strip(), text.strip().endswith("%")
    try:
        value = Decimal(number.removesuffix("%").strip()) / (100 if percent else 1)
    except InvalidOperation:
        raise ValueError(f"{option} {text}: is no number; give a share such as 5% or 0.05") from None
    if not value.is_finite():
        raise ValueError(f"{option} {text}: is not finite; give a share such as 5% or 0.05")
    if value < 0:
        raise ValueError(f"{option} {text}: is negative; give a share from 0% to 100%")
    if value > 1:
        meant = "" if percent else f" (for {number} percent write {number}%)"
        raise ValueError(f"{option} {text}: is more than 100 %{meant}; give a share from 0% to 100%")
    return float(value)


def judge(
    study: str,
    rows: Sequence[Mapping[str, Any]],
    limit: float,
    edges: Sequence[str] = (),
    relative_to_ceiling: bool = False,
    only_sure: bool = False,
) -> Gate:
    """Hold the loss along edges to a limit.

    rows: of the table `edges`, one per edge. The loss of an edge is disappear / parent_live; with
    `relative_to_ceiling` it is 1 - (persist / parent_live) / ceiling, but not below 0: the loss beyond what two SAEs of
    one model lose already. Its interval is then that of `relative`, where there is one; otherwise that of `persist`,
    with the ceiling taken as known. A loss of exactly the limit passes. `edges`: names, all by default. `only_sure`
    lets an edge pass unless its whole interval is over the limit.

    Raises ValueError for an unknown edge, for an edge without a live parent feature, without a ceiling where it is
    needed, or without an interval under `only_sure`, and for a study without edges.
    """
    by_name = {row["edge"]: row for row in rows}
    if not by_name:
        raise ValueError(f"study {study} has no parent -> child edge; there is no loss to hold to a limit")
    for name in edges:
        if name not in by_name:
            raise ValueError(f"--edge {name}: is no edge of study {study}; edges are {', '.join(by_name)}")
    verdicts = []
    for name in dict.fromkeys(edges or by_name):
        lost, interval = _loss(by_name[name], relative_to_ceiling)
        if only_sure and interval is None:
            raise ValueError(f"edge {name}: has no interval of persist, so that no failure is sure; leave --sure out")
        beyond = _beyond(lost, limit)
        sure = None if interval is None else all(_beyond(end, limit) == beyond for end in interval)
        verdicts.append(Verdict(name, lost, limit, interval, not (beyond and (sure or not only_sure)), sure))
    return Gate(tuple(verdicts), limit, relative_to_ceiling, only_sure)


def _loss(row: Mapping[str, Any], relative: bool) -> tuple[float, tuple[float, float] | None]:
    """The loss of an edge, and its interval."""
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
    counts, shares = _ends(row, "persist"), _ends(row, "relative") if relative else None
    if shares is not None:
        interval = _share(shares[1], 1.0), _share(shares[0], 1.0)
    else:
        interval = None if counts is None else (_share(counts[1], whole), _share(counts[0], whole))
    return _share(row["persist"], whole), interval


def _share(persist: float, whole: float) -> float:
    """The part of the whole that does not persist; none when more persists than the whole."""
    return min(1.0, max(0.0, (whole - persist) / whole))


def _ends(row: Mapping[str, Any], name: str) -> tuple[float, float] | None:
    low, high = row.get(f"{name}_low"), row.get(f"{name}_high")
    return None if low is None or high is None else (low, high)


def _beyond(lost: float, limit: float) -> bool:
    return lost > limit + _ROUNDING
