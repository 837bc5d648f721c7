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

Kind = Literal["count", "share", "r", "number", "nats", "degrees", "flops", "seconds", "text", "feature", "flag"]
Rows = pa.Table | Sequence[Mapping[str, Any]] | Mapping[str, Any]
"""Rows as Arrow, as dicts, or as columns by name."""

_TYPES = {"count": pa.int64(), "feature": pa.int64(), "text": pa.string(), "flag": pa.bool_()}


class TableError(ValueError):
    """Rows do not fit their declaration; the message names table, column and value."""


class Column(NamedTuple):
    """One declared column."""

    name: str
    kind: Kind  # what a value is: decides its Arrow type and how it is written
    doc: str  # one sentence: tooltip, documentation, Parquet field metadata
    of: str = ""  # column that a count is a part of; the share is shown beside it
    ci: bool = False  # whether `name_low` and `name_high` hold an interval


class Plot(NamedTuple):
    """A simple picture of a table, one for each value of the key columns that it does not name."""

    kind: Literal["histogram", "lines", "bars", "heat", "points"]  # a heat map shows `y` over x and `by`
    x: str  # column along the horizontal axis
    y: str  # column of the values
    by: str = ""  # column that tells lines, groups of bars, or rows of a heat map apart


KEYS = {
    column.name: column
    for column in (
        Column("repeat", "count", "Training repeat; 0 is the plain study."),
        Column("instrument", "text", "Origin of the SAEs: joint, parent or independent."),
        Column("site", "text", "Hook point at which activations are read."),
        Column("edge", "text", "Parent and child model, as parent->child."),
        Column(
            "text", "text", "What both models read: common (corpora of both), own (the child's alone), or a corpus."
        ),
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

    name: str  # file, key of `summary.json`, name in a `Run`, anchor in the documentation
    doc: str  # one sentence
    key: tuple[str, ...]  # columns that identify a row: of `KEYS`, or declared among `columns`
    columns: tuple[Column, ...]  # all further columns
    brief: tuple[str, ...] = ()  # shown by a terminal and a README, keys included; empty: by the page alone
    plot: Plot | None = None  # a picture for the page
    large: bool = False  # one row per feature or more: Parquet only, not in `summary.json`
    sums: tuple[tuple[str, ...], ...] = ()  # counts, the first the sum of the others in rows that have all of them

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
        for name, kind, doc, of, ci in self.all_columns:
            fields.append((name, _TYPES.get(kind, pa.float64()), {"kind": kind, "doc": doc, "of": of}))
            for end, word in (("low", "Lower"), ("high", "Upper")) if ci else ():
                meta = {"kind": kind, "doc": f"{word} end of the interval of {name}.", "of": ""}
                fields.append((f"{name}_{end}", pa.float64(), meta))
        declaration = {"name": self.name, "doc": self.doc, "key": list(self.key), "brief": list(self.brief)}
        metadata = {"heredity": json.dumps(declaration)}
        return pa.schema([pa.field(name, kind, metadata=meta) for name, kind, meta in fields], metadata=metadata)

    def check(self, rows: Rows, **constants: Any) -> pa.Table:
        """Rows as an Arrow table of exactly this schema; floats that are not finite become null.

        constants: values of key columns that hold for all rows. Raises TableError for a column that is missing or
        unknown, a value of the wrong type, a repeated key, a negative count, a count above its whole, and counts that
        do not add up.
        """
        schema, keys = self.schema, list(self.key)
        columns = _columns(rows, [name for name in schema.names if name not in constants])
        length = len(next(iter(columns.values()), ()))
        columns |= {name: [value] * length for name, value in constants.items() if name not in columns}
        if wrong := set(columns) ^ set(schema.names):
            name = sorted(wrong)[0]
            raise TableError(f"table {self.name}: column {name} is {'missing' if name in schema.names else 'unknown'}")
        arrays = []
        for field in schema:
            try:
                arrays.append(_array(columns[field.name], field.type))
            except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
                raise TableError(f"table {self.name}: column {field.name}: {error}") from None
        table = pa.Table.from_arrays(arrays, schema=schema)
        counted = [column for column in self.all_columns if column.kind == "count"]
        counts = {column.name: table[column.name].to_numpy().astype(np.float64) for column in counted}
        for column in counted:
            if (counts[column.name] < 0).any():
                raise TableError(f"table {self.name}: column {column.name} has a negative count")
            if column.of in counts and (counts[column.name] > counts[column.of]).any():
                raise TableError(f"table {self.name}: {column.name} exceeds {column.of}, the whole it is a part of")
        for total, *parts in self.sums:
            if (np.abs(sum(counts[part] for part in parts) - counts[total]) > 0).any():
                raise TableError(f"table {self.name}: {' + '.join(parts)} do not add up to {total}")
        if keys and not self.large and len(table.group_by(keys).aggregate([])) < len(table):
            raise TableError(f"table {self.name}: two rows have the same {', '.join(keys)}")
        return table


def _columns(rows: Rows, names: Sequence[str]) -> dict[str, Any]:
    """Columns by name; of dict rows a key that a row lacks is null there."""
    if isinstance(rows, pa.Table):
        return {name: rows[name] for name in rows.column_names}  # pyright: ignore[reportAttributeAccessIssue]
    if isinstance(rows, Mapping):
        return dict(rows)
    known = dict.fromkeys(name for row in rows for name in row) | dict.fromkeys(names)
    return {name: [row.get(name) for row in rows] for name in known}


def _array(values: Any, kind: pa.DataType) -> pa.Array:
    if isinstance(values, pa.ChunkedArray):
        values = values.to_numpy()
    if isinstance(values, np.ndarray) and values.dtype == object:
        values = values.tolist()
    if not pa.types.is_floating(kind):
        return pa.array(values, kind)
    if not isinstance(values, np.ndarray):
        values = [np.nan if value is None else value for value in values]
    numbers = np.asarray(values, np.float64)
    return pa.array(np.where(np.isfinite(numbers), numbers, np.nan), kind, from_pandas=True)
