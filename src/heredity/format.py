"""How a value is written, by the kind of its column, and how a table is laid out: the one formatter of terminal,
documents and page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from heredity.tables import Column, Kind, Table

_UNITS = ((1e15, "PFLOP"), (1e12, "TFLOP"), (1e9, "GFLOP"), (1e6, "MFLOP"))


def value(kind: Kind, given: Any) -> str:
    """One value as text; empty for a value that is not known."""
    if given is None or given != given:
        return ""
    match kind:
        case "text" | "feature":
            return str(given)
        case "flag":
            return "yes" if given else "no"
        case "count":
            return f"{given:,.0f}"
        case "share":
            return percent(given)
        case "r" | "nats":
            return f"{given:.3f}"
        case "degrees":
            return f"{given:.1f}°"
        case "seconds":
            return duration(given)
        case "flops":
            size, unit = next(((size, unit) for size, unit in _UNITS if abs(given) >= size), (1.0, "FLOP"))
            return f"{given / size:,.3g} {unit}"
    return f"{given:,.0f}" if abs(given) >= 10_000 else f"{given:.4g}"


def percent(share: float) -> str:
    """A share as `74 %`, `4.3 %` or `<0.1 %`."""
    points = 100 * share if abs(share) > 1e-12 else 0.0  # a zero with an error of rounding has no sign
    if 0 < points < 0.1:
        return "<0.1 %"
    if 99.5 <= points < 100:  # not all
        return f"{points:.1f} %" if points < 99.95 else ">99.9 %"
    return f"{points:.1f} %" if abs(points) < 10 and round(points, 1) % 1 else f"{points:.0f} %"


def below(share: float, limit: float) -> str:
    """A share that is less than a limit, in as many digits as tell it from the limit: `29.7 %` below 30 %."""
    texts = [percent(share), *(f"{100 * share:.{digits}f} %" for digits in (1, 2, 3))]
    return next((text for text in texts if float(text.split()[0].lstrip("<>")) < 100 * limit), texts[-1])


def duration(seconds: float) -> str:
    """Seconds in a unit of the right size."""
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 10 or seconds == 0 else f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def cell(column: Column, row: Mapping[str, Any]) -> str:
    """A value of a row with the share it is of its whole and with its interval: `1,517 (74 %) [1,506–1,542]`."""
    given = row.get(column.name)
    text, whole = value(column.kind, given), row.get(column.of) if column.of else None
    if text and whole:
        text += f" ({percent(given / whole)})"
    low, high = (row.get(f"{column.name}_{end}") for end in ("low", "high"))
    return f"{text} [{interval(column.kind, low, high)}]" if text and low is not None and high is not None else text


def interval(kind: Kind, low: float, high: float) -> str:
    """`1,506–1,542`, `72–75 %`, `-3 to 2 %`: the unit once, where both ends share it."""
    first, last = value(kind, low), value(kind, high)
    unit = f" {last.split(' ')[-1]}" if " " in last else ""
    between = " to " if low < 0 or high < 0 else "–"  # a dash before a minus cannot be read
    return last if first == last else f"{first.removesuffix(unit)}{between}{last}"


def of(count: int, whole: int, low: float | None = None, high: float | None = None, level: float = 0.95) -> str:
    """A count in prose: `1,517 of 2,048 (74 %, 95 % CI 1,506–1,542)`."""
    if not whole:
        return f"{count:,} of none"
    ends = "" if low is None or high is None else f", {percent(level)} CI {interval('count', low, high)}"
    return f"{count:,} of {whole:,} ({percent(count / whole)}{ends})"


def listed(words: Sequence[str]) -> str:
    """`a, b and c`."""
    return "".join(words) if len(words) < 2 else f"{', '.join(words[:-1])} and {words[-1]}"


class Layout(NamedTuple):
    """A table ready to be drawn."""

    title: str  # what the table holds, with the key values that all of its rows share
    columns: tuple[Column, ...]  # those that differ between rows
    cells: list[list[str]]  # rows as text


def laid_out(table: Table, rows: Sequence[Mapping[str, Any]], names: Sequence[str] = ()) -> Layout:
    """Lay out the named columns, by default the brief ones, or all where a table has no brief ones.

    A key column with one value throughout moves into the title (one key column always stays); a column without any
    value is left out. Rows of several sites say theirs, whether it is named or not.
    """
    known = {column.name: column for column in table.all_columns}
    names = list(names or table.brief or known)
    if "site" in table.key and "site" not in names and len({row.get("site") for row in rows}) > 1:
        names.insert(int(names[0] == "instrument"), "site")
    columns = [known[name] for name in names]
    keys = [column.name for column in columns if column.name in table.key]
    shared = [name for name in keys if len({row.get(name) for row in rows}) == 1]
    if len(shared) == len(keys):
        shared = shared[:-1]
    title = table.doc.removesuffix(".")
    if values := [cell(known[name], rows[0]) for name in shared]:
        title += f" ({', '.join(filter(None, values))})"
    texts = {column: [cell(column, row) for row in rows] for column in columns if column.name not in shared}
    shown = tuple(column for column, cells in texts.items() if any(cells) or column.name in table.key)
    return Layout(title, shown, [list(row) for row in zip(*(texts[column] for column in shown), strict=True)])
