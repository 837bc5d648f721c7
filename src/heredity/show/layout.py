"""How a table is laid out for reading: which columns, what goes into its title, and its cells as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from heredity import format
from heredity.tables import Column, Table

Row = Mapping[str, Any]


class Layout(NamedTuple):
    """A table ready to be drawn."""

    title: str
    """What the table holds, with the key values that all of its rows share."""
    columns: tuple[Column, ...]
    """Columns that differ between rows."""
    cells: list[list[str]]
    """Rows as text."""


def laid_out(table: Table, rows: Sequence[Row], names: Sequence[str] = ()) -> Layout:
    """Lay out the named columns, by default the brief ones, or all where a table has no brief ones.

    A key column with one value throughout moves into the title (one key column always stays); a column without any
    value is left out.
    """
    known = {column.name: column for column in table.all_columns}
    columns = [known[name] for name in names or table.brief or known]
    keys = [column.name for column in columns if column.name in table.key]
    shared = [name for name in keys if len({row.get(name) for row in rows}) == 1]
    if len(shared) == len(keys):
        shared = shared[:-1]
    title = table.doc.removesuffix(".")
    if values := [format.cell(known[name], rows[0]) for name in shared]:
        title += f" ({', '.join(value for value in values if value)})"
    texts = {column: [format.cell(column, row) for row in rows] for column in columns if column.name not in shared}
    shown = tuple(column for column, cells in texts.items() if any(cells) or column.name in table.key)
    return Layout(title, shown, [list(row) for row in zip(*(texts[column] for column in shown), strict=True)])
