"""Published figures with those of a run next to them, and agreement in words that follow from the numbers.

A figure agrees where the published value lies inside our interval or within 10 % of ours, is near within a factor of
1.5, and differs otherwise; the factor stands beside. Of a published range ours is inside, below or above, a bound is
met or not. What a paper gives in words alone is listed without a word on agreement, and what the run has not measured
says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, cast

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
        Column("value", "number", "The same as a number.", ci=True),
        Column("factor", "number", "Ours over the published value; of a range or bound, over its nearer end."),
        Column(
            "agreement",
            "text",
            "agrees, near or differs; of a range inside, below or above; of a bound met or not met; or cannot tell.",
        ),
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
        Column("about", "text", "What is counted, and by which instrument."),
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
    kind: str,
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
    known = cast(Kind, kind)
    row = {"element": element, "place": place, "what": what, "about": about, "instrument": instrument}
    shown = "" if here is None else format.value(known, here)
    low, high = ends
    if shown and low is not None and high is not None:
        shown += f" [{format.interval(known, low, high)}]"
    row |= {"published": _published(known, published), "here": shown + (f" {more}" if more and shown else "")}
    row |= {"value": here, "value_low": low, "value_high": high}
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
        sides = (published.low, "below"), (published.high, "above")
        for end, side in sides:
            if None in published and end is not None and low is not None and high is not None and low < end < high:
                return None, "cannot tell"
            if end is not None and (here < end if side == "below" else here > end):
                return (here / end if end else None), "not met" if None in published else side
        return None, "met" if None in published else "inside"
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
