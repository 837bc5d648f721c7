"""Published figures with those of a run next to them, and agreement in words that follow from the numbers.

A figure agrees where the published value lies inside our interval or within 10 % of ours, is near within a half, and
differs otherwise; the factor stands beside. A published range or bound is met or not. What a paper gives in words alone
is listed without a word on agreement, and what the run has not measured says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from heredity import format
from heredity.tables import Column, Kind, Table

SAME, NEAR = 1.1, 1.5
"""Factors up to which a value agrees with the published one, and up to which it is near."""

BESIDE = Table(
    "beside_paper",
    "Figures of the paper beside those of this run.",
    ("part", "what", "about", "instrument"),
    (
        Column("part", "text", "Part of the paper."),
        Column("element", "count", "Row of docs/papers.md."),
        Column("place", "text", "Section, figure or table of the paper."),
        Column("what", "text", "What is measured."),
        Column("about", "text", "Model, edge, corpus or setting."),
        Column("instrument", "text", "Origin of the SAEs; empty where none is involved."),
        Column("published", "text", "As published; empty where the paper gives no number."),
        Column("here", "text", "In this run, with its interval."),
        Column("factor", "number", "Ours over the published value; of a range or bound, over its nearer end."),
        Column("agreement", "text", "agrees, near, differs, met, not met, not measured; empty without a number."),
        Column("remark", "text", "What the comparison cannot carry."),
    ),
    brief=("part", "place", "what", "about", "instrument", "published", "here", "factor", "agreement", "remark"),
)
SCALE = Table(
    "scale",
    "Sizes of the paper's experiment and of this run.",
    ("size", "about"),
    (
        Column("size", "text", "What is counted."),
        Column("about", "text", "Model or stage."),
        Column("published", "number", "In the paper."),
        Column("here", "number", "In this run."),
        Column("share", "share", "Of the paper's."),
    ),
    brief=("size", "about", "published", "here", "share"),
)
CLAIMS = Table(
    "claims",
    "What stands of the paper's claims.",
    ("claim", "about"),
    (
        Column("claim", "text", "In the paper."),
        Column("about", "text", "Instrument and rule of the count."),
        Column("published", "text", "Its number."),
        Column("here", "text", "Ours."),
        Column("reference", "text", "What the number is where nothing was lost or learned."),
        Column("stands", "text", "yes, no, or cannot tell, and by which comparison."),
        Column("limit", "text", "What this run cannot say."),
    ),
    brief=("claim", "about", "published", "here", "reference", "stands", "limit"),
)
Rows = Mapping[str, Sequence[Mapping[str, Any]]]
"""Rows of every table of a run, by name."""


class Range(NamedTuple):
    """A published range or bound; None is an open end."""

    low: float | None
    high: float | None


def figure(
    element: int,
    place: str,
    what: str,
    about: str,
    kind: Kind,
    published: float | Range | str | None,
    here: float | None,
    ends: tuple[float | None, float | None] = (None, None),
    *,
    instrument: str = "",
    more: str = "",
    remark: str = "",
) -> dict[str, Any]:
    """One row of `BESIDE`, but for its part.

    published: a value, a range, words where the paper gives no number, or None. here: None where it was not measured.
    ends: interval of ours. more: words after our value.
    """
    row = {"element": element, "place": place, "what": what, "about": about, "instrument": instrument}
    shown = "" if here is None else format.value(kind, here)
    low, high = ends
    if shown and low is not None and high is not None:
        shown += f" [{format.interval(kind, low, high)}]"
    row |= {"published": _published(kind, published), "here": shown + (f" {more}" if more and shown else "")}
    factor, agreement = _agreement(published, here, low, high)
    return row | {"factor": factor, "agreement": agreement, "remark": remark}


def _published(kind: Kind, published: float | Range | str | None) -> str:
    if published is None or isinstance(published, str):
        return published or ""
    if not isinstance(published, Range):
        return format.value(kind, published)
    if published.low is None or published.high is None:
        end = published.high if published.low is None else published.low
        return f"{'below' if published.low is None else 'above'} {format.value(kind, end)}"
    return f"{format.value(kind, published.low)} to {format.value(kind, published.high)}"


def _agreement(
    published: float | Range | str | None, here: float | None, low: float | None, high: float | None
) -> tuple[float | None, str]:
    """Factor and word."""
    if here is None:
        return None, "not measured"
    if published is None or isinstance(published, str):
        return None, ""
    if isinstance(published, Range):
        for end, outside in (
            (published.low, published.low is not None and here < published.low),
            (published.high, published.high is not None and here > published.high),
        ):
            if outside:
                return (here / end if end else None), "not met"
        return None, "met"
    if here == published or (low is not None and high is not None and low <= published <= high):
        return (here / published if published else None), "agrees"
    if not published or here / published <= 0:
        return None, "differs"
    factor = here / published
    distance = max(factor, 1 / factor)
    return factor, "agrees" if distance <= SAME else "near" if distance <= NEAR else "differs"


def scale(sizes: Iterable[tuple[str, str, float, float | None]]) -> list[dict[str, Any]]:
    """Rows of `SCALE`, of (size, about, published, here)."""
    return [
        {"size": size, "about": about, "published": paper, "here": here, "share": here / paper if here else None}
        for size, about, paper, here in sizes
    ]


def rows(tables: Rows, name: str, **key: Any) -> list[Mapping[str, Any]]:
    """Rows of a table with these values; none where the run lacks the table."""
    return [row for row in tables.get(name, ()) if all(row.get(column) == value for column, value in key.items())]


def one(tables: Rows, name: str, **key: Any) -> Mapping[str, Any]:
    """The first row of a table with these values; empty where there is none."""
    return next(iter(rows(tables, name, **key)), {})


def ends(row: Mapping[str, Any], name: str) -> tuple[float | None, float | None]:
    """Interval of a column of a row."""
    return row.get(f"{name}_low"), row.get(f"{name}_high")
