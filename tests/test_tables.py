"""A declared table refuses rows that do not fit it, and its declaration travels with its file."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import examples
from heredity.analyses import TABLES
from heredity.tables import KEYS, Column, Table, TableError

TABLE = Table(
    "fates",
    "What became of features.",
    ("edge", "rule"),
    (
        Column("rule", "text", "How it is called."),
        Column("live", "count", "Live features."),
        Column("persist", "count", "Those with a match.", of="live", ci=True),
        Column("lost", "count", "Those without."),
        Column("r", "r", "Median r."),
        Column("sure", "flag", "Whether that is sure."),
    ),
    sums=(("live", "persist", "lost"),),
)
ROW = {"edge": "a->b", "rule": "own", "live": 10, "persist": 6, "lost": 4, "r": 0.5, "sure": True}
ENDS = {"persist_low": 5.0, "persist_high": 7.0}


def test_rows_columns_and_arrow_give_the_same_table():
    by_rows = TABLE.check([ROW | ENDS, ROW | ENDS | {"rule": "paper"}])
    by_columns = TABLE.check({name: [value] * 2 for name, value in (ROW | ENDS).items()} | {"rule": ["own", "paper"]})
    assert by_rows.equals(by_columns) and by_rows.equals(TABLE.check(by_rows))
    assert by_rows.column_names == [*("edge", "rule", "live", "persist", *ENDS, "lost", "r", "sure")]


def test_key_columns_of_the_item_are_filled_in():
    rows = [{name: value for name, value in (ROW | ENDS).items() if name != "edge"}]
    assert TABLE.check(rows, edge="a->b").equals(TABLE.check([ROW | ENDS]))
    assert TABLE.check([], edge="a->b").num_rows == 0 and TABLE.check([]).schema == TABLE.schema


def test_floats_that_are_not_finite_and_missing_values_are_null():
    rows = [ROW, ROW | {"rule": "paper", "r": np.nan, "persist_low": -np.inf, "sure": None}]
    table = TABLE.check(rows).to_pylist()
    assert table[0]["persist_low"] is None and table[1]["r"] is None and table[1]["sure"] is None
    array = {name: np.array([value]) for name, value in (ROW | ENDS).items()} | {"r": np.array([np.inf])}
    assert TABLE.check(array).to_pylist()[0]["r"] is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rate": 1}, "table fates: column rate is unknown"),
        ({"live": "many"}, "table fates: column live: "),
        ({"sure": 3.5}, "table fates: column sure: "),
        ({"persist": -1, "lost": 11}, "table fates: column persist has a negative count"),
        ({"persist": 11, "lost": -1}, "table fates: persist exceeds live, the whole it is a part of"),
        ({"lost": 5}, "table fates: persist [+] lost do not add up to live"),
        ({}, "table fates: two rows have the same edge, rule"),
    ],
)
def test_rows_that_do_not_fit_are_refused_by_table_and_column(change, message):
    with pytest.raises(TableError, match=message):
        TABLE.check([ROW, ROW | change])


def test_a_missing_column_is_refused_and_unknown_counts_are_not_added_up():
    with pytest.raises(TableError, match="table fates: column r is missing"):
        TABLE.check({name: [value] for name, value in (ROW | ENDS).items() if name != "r"})
    assert TABLE._replace(large=True).check([ROW, ROW]).num_rows == 2, "keys of large tables are not compared"
    assert TABLE.check([ROW | {"live": None}, ROW | {"rule": "paper", "persist": None}]).num_rows == 2


def test_the_declaration_travels_through_parquet(tmp_path):
    pq.write_table(TABLE.check([ROW | ENDS]), tmp_path / "fates.parquet")
    schema = pq.read_table(tmp_path / "fates.parquet").schema
    assert schema.equals(TABLE.schema, check_metadata=True)
    declaration = json.loads(schema.metadata[b"heredity"])
    assert declaration == {"name": "fates", "doc": TABLE.doc, "key": ["edge", "rule"], "brief": []}
    meta = {b"kind": b"count", b"doc": b"Those with a match.", b"of": b"live"}
    assert schema.field("persist").type == pa.int64() and schema.field("persist").metadata == meta
    assert schema.field("persist_high").metadata[b"doc"] == b"Upper end of the interval of persist."
    assert schema.field("edge").metadata[b"doc"].decode() == KEYS["edge"].doc


@pytest.mark.parametrize("table", TABLES.values(), ids=list(TABLES))
def test_every_declaration_is_sound(table: Table):
    names = [column.name for column in table.all_columns]
    assert len(set(names)) == len(names) and set(table.key) <= set(names), "key columns are declared"
    assert set(table.brief) <= set(names) and names[: len(table.key)] == list(table.key)
    for column in table.all_columns:
        assert column.doc.endswith(".") and (not column.of or column.of in names)
        assert not column.of or column.kind == "count"
    for group in table.sums:
        assert all(column.kind == "count" for column in table.all_columns if column.name in group)
    if table.plot:
        assert {table.plot.x, table.plot.y} <= set(names) and (not table.plot.by or table.plot.by in names)
    made = examples.example(table, np.random.default_rng(0))
    assert made.num_rows == 3 and table.check(made).equals(made)
