"""A result is a table with declared columns: the one form that every medium is derived from.

An analysis declares its tables once. Terminal, `summary.json`, export, documents, report page and the Python API are
functions of (rows, declaration); the declaration travels in the metadata of each Parquet file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

Kind = Literal[
    "count", "share", "r", "number", "nats", "degrees", "flops", "seconds", "text", "feature", "flag"
]
Rows = pa.Table | Sequence[Mapping[str, Any]] | Mapping[str, Any]
"""Rows as Arrow, as dicts, or as columns by name."""

_TYPES = {"count": pa.int64(), "feature": pa.int64(), "text": pa.string(), "flag": pa.bool_()}


class TableError(ValueError):
    """Rows do not fit their declaration; the message names table, column and value."""


class Column(NamedTuple):
    """One declared column."""

    name: str
    """Its name in every medium."""
    kind: Kind
    """What a value is: decides its Arrow type and how it is written."""
    doc: str
    """One sentence: tooltip, documentation, Parquet field metadata."""
    of: str = ""
    """Column that a count is a part of; the share is shown beside it."""
    ci: bool = False
    """Whether `name_low` and `name_high` hold an interval."""

    @property
    def type(self) -> pa.DataType:
        """Arrow type of the values."""
        return _TYPES.get(self.kind, pa.float64())


class Plot(NamedTuple):
    """A simple picture of a table, one for each value of the key columns that it does not name."""

    kind: Literal["histogram", "lines", "bars", "heat"]
    """Bars over bins of x, lines over x, bars by category, or a heat map of `y` over x and `by`."""
    x: str
    """Column along the horizontal axis."""
    y: str
    """Column of the values."""
    by: str = ""
    """Column that tells lines, groups of bars, or rows of a heat map apart."""


KEYS = {
    column.name: column
    for column in (
        Column("repeat", "count", "Training repeat; 0 is the plain study."),
        Column("instrument", "text", "Origin of the SAEs: joint, parent or independent."),
        Column("site", "text", "Hook point at which activations are read."),
        Column("edge", "text", "Parent and child model, as parent->child."),
        Column("model", "text", "Model of the study."),
        Column("corpus", "text", "Corpus of the study."),
        Column("case", "text", "Case study of the study file."),
        Column("stitch", "text", "Pair of models joined by affine maps."),
        Column("d_sae", "count", "Number of SAE features."),
        Column("feature", "feature", "Index of the SAE feature."),
    )
}
"""Key columns that many tables share."""


class Table(NamedTuple):
    """The declaration of one table."""

    name: str
    """File, key of `summary.json`, name in a `Run`, anchor in the documentation."""
    doc: str
    """One sentence."""
    key: tuple[str, ...]
    """Columns that identify a row: of `KEYS`, or declared among `columns`."""
    columns: tuple[Column, ...]
    """All further columns."""
    brief: tuple[str, ...] = ()
    """What a terminal and a README show, key columns included; empty shows the table on the page alone."""
    plot: Plot | None = None
    """A picture for the page."""
    large: bool = False
    """One row per feature or more: Parquet only, not in `summary.json`."""
    sums: tuple[tuple[str, ...], ...] = ()
    """Counts that add up: the first column is the sum of the others, in every row that has all of them."""

    @property
    def all_columns(self) -> tuple[Column, ...]:
        """Key columns first."""
        declared = {column.name: column for column in self.columns}
        keys = tuple(declared.get(name) or KEYS[name] for name in self.key)
        return keys + tuple(column for column in self.columns if column.name not in self.key)

    @property
    def schema(self) -> pa.Schema:
        """Arrow schema with the declaration in its metadata."""
        fields = []
        for column in self.all_columns:
            meta = {"kind": column.kind, "doc": column.doc, "of": column.of}
            fields.append(pa.field(column.name, column.type, metadata=meta))
            if column.ci:
                ends = {"low": "Lower", "high": "Upper"}
                for end, word in ends.items():
                    meta = {"kind": column.kind, "doc": f"{word} end of the interval of {column.name}.", "of": ""}
                    fields.append(pa.field(f"{column.name}_{end}", pa.float64(), metadata=meta))
        declaration = {"name": self.name, "doc": self.doc, "key": list(self.key), "brief": list(self.brief)}
        return pa.schema(fields, metadata={"heredity": json.dumps(declaration)})

    def check(self, rows: Rows, **constants: Any) -> pa.Table:
        """Rows as an Arrow table of exactly this schema; floats that are not finite become null.

        constants: values of key columns that hold for all rows. Raises TableError for a column that is missing or
        unknown, a value of the wrong type, a repeated key, a negative count, a count above its whole, and counts that
        do not add up.
        """
        schema = self.schema
        table = rows if isinstance(rows, pa.Table) else None
        if table is None:
            columns = rows if isinstance(rows, Mapping) else _columns(rows, [f.name for f in schema if f.name not in constants])
            table = self._arrow(columns, len(next(iter(columns.values()), ())))
        for name, value in constants.items():
            if name in schema.names and name not in table.column_names:
                table = table.append_column(name, pa.array([value] * len(table), schema.field(name).type))
        if wrong := set(table.column_names) ^ set(schema.names):
            name = sorted(wrong)[0]
            raise TableError(f"table {self.name}: column {name} is {'missing' if name in schema.names else 'unknown'}")
        table = pa.table({name: _finite(table[name]) for name in schema.names}).cast(schema)
        self._check_counts(table)
        if self.key and not self.large and len(table.select(list(self.key)).group_by(list(self.key)).aggregate([])) < len(table):
            raise TableError(f"table {self.name}: two rows have the same {', '.join(self.key)}")
        return table

    def _arrow(self, columns: Mapping[str, Any], length: int) -> pa.Table:
        types, arrays = {field.name: field.type for field in self.schema}, {}
        for name, values in columns.items():
            if name not in types:
                raise TableError(f"table {self.name}: column {name} is unknown")
            values = values.tolist() if isinstance(values, np.ndarray) and values.dtype == object else values
            try:
                arrays[name] = pa.array(values, types[name], from_pandas=isinstance(values, np.ndarray))
            except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
                raise TableError(f"table {self.name}: column {name}: {error}") from None
        return pa.table(arrays) if arrays else pa.table({name: pa.array([], kind) for name, kind in types.items()})

    def _check_counts(self, table: pa.Table) -> None:
        for column in self.all_columns:
            values = table[column.name]
            if column.kind == "count" and (pc.min(values).as_py() or 0) < 0:
                raise TableError(f"table {self.name}: column {column.name} has a negative count")
            if column.of and column.of in table.column_names and pc.any(pc.greater(values, table[column.of])).as_py():
                raise TableError(f"table {self.name}: {column.name} exceeds {column.of}, the whole it is a part of")
        for total, *parts in self.sums:
            added = table[parts[0]]
            for part in parts[1:]:
                added = pc.add(added, table[part])
            if pc.any(pc.not_equal(added, table[total])).as_py():
                raise TableError(f"table {self.name}: {' + '.join(parts)} do not add up to {total}")

    def example(self, rng: np.random.Generator, rows: int = 3) -> pa.Table:
        """Rows that fit the declaration, for tests of media."""
        columns: dict[str, list[Any]] = {}
        for column in self.all_columns:
            columns[column.name] = [_example(column, row, rng) for row in range(rows)]
        for total, *parts in self.sums:
            columns[total] = [sum(columns[part][row] for part in parts) for row in range(rows)]
        for column in self.all_columns:
            if column.of in columns and not any(column.name in group for group in self.sums):
                columns[column.name] = [min(pair) for pair in zip(columns[column.name], columns[column.of], strict=True)]
            if column.ci:
                for end, factor in (("low", 0.9), ("high", 1.1)):
                    columns[f"{column.name}_{end}"] = [factor * value for value in columns[column.name]]
        return self.check(columns)


def _columns(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, list[Any]]:
    """Columns of dict rows; a key that a row lacks is null there."""
    known = dict.fromkeys(name for row in rows for name in row) | dict.fromkeys(names)
    return {name: [row.get(name) for row in rows] for name in known}


def _finite(values: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.if_else(pc.is_finite(values), values, None) if pa.types.is_floating(values.type) else values


def _example(column: Column, row: int, rng: np.random.Generator) -> Any:
    match column.kind:
        case "text":
            return f"{column.name} {row}"
        case "flag":
            return bool(row % 2)
        case "count" | "feature":
            return row + 1000 * int(rng.integers(1, 9))
        case "share" | "r":
            return float(rng.random())
    return float(rng.lognormal(3, 2))
