"""Rows that fit a declaration, for tests of every medium."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from heredity.tables import Column, Table


def example(table: Table, rng: np.random.Generator, rows: int = 3) -> pa.Table:
    """Rows made from the declaration alone."""
    columns = {column.name: [_value(column, row, rng) for row in range(rows)] for column in table.all_columns}
    for total, *parts in table.sums:
        columns[total] = [sum(columns[part][row] for part in parts) for row in range(rows)]
    for column in table.all_columns:
        if column.of in columns and not any(column.name in group for group in table.sums):
            columns[column.name] = [min(pair) for pair in zip(columns[column.name], columns[column.of], strict=True)]
        if column.ci:
            for end, factor in (("low", 0.9), ("high", 1.1)):
                columns[f"{column.name}_{end}"] = [factor * value for value in columns[column.name]]
    return table.check(columns)


def _value(column: Column, row: int, rng: np.random.Generator) -> Any:
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
