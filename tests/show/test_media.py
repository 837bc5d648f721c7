"""Every declared table goes through every medium."""

from __future__ import annotations

import json

import numpy as np
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from rich.console import Console

import documents
import examples
from heredity import format
from heredity.analyses import ANALYSES, TABLES
from heredity.analyses.plan import PLAN_EDGES, PLAN_MODELS, PLAN_STAGES
from heredity.show import export, page, summary, terminal
from show.runs import unpacked

DECLARED = {table.name: table for table in (*TABLES.values(), PLAN_MODELS, PLAN_EDGES, PLAN_STAGES)}


@pytest.fixture(params=DECLARED)
def table(request):
    return DECLARED[request.param]


@pytest.fixture
def rows(table):
    return examples.example(table, np.random.default_rng(3))


@pytest.fixture
def screen(monkeypatch):
    console = Console(width=100, record=True, highlight=False, emoji=False, color_system=None)
    monkeypatch.setattr(terminal, "out", console)
    return console


def test_the_terminal_shows_it_within_its_width(table, rows, screen):
    terminal.print_table(table, rows.to_pylist())
    shown = screen.export_text()
    assert all(len(line.rstrip()) <= 100 for line in shown.splitlines())
    for column in table.all_columns:
        if column.name in (table.brief or table.schema.names) and column.kind == "count" and len(table.brief) < 6:
            first = format.cell(column, rows.to_pylist()[0]).split(" ")[0]
            assert first in shown or not table.brief


def test_the_summary_keeps_rows_and_declaration(table, rows):
    recorded = json.loads(json.dumps(summary.record(table, rows.to_pylist()), allow_nan=False))
    assert recorded["rows"] == rows.to_pylist()
    assert documents.declared(table.name, recorded).all_columns == table.all_columns


@pytest.mark.parametrize("format_", export.FORMATS)
def test_it_is_exported_whole_from_several_parts(table, rows, format_, tmp_path):
    path = tmp_path / f"{table.name}.{format_}"
    export.write(table, [rows, rows.slice(0, 1)], path, format_)
    if format_ == "json":
        assert json.loads(path.read_text()) == rows.to_pylist() + rows.slice(0, 1).to_pylist()
    elif format_ == "parquet":
        written = pq.read_table(path)
        assert written.schema.equals(table.schema, check_metadata=True) and len(written) == 4
    else:
        assert pyarrow.csv.read_csv(path).column_names == table.schema.names
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_document_shows_it(table, rows):
    lines = documents.markdown(table, rows.to_pylist()).splitlines()
    assert len(lines) == 5 and len({line.count("|") for line in lines}) == 1


def test_the_page_gets_its_values_and_their_text(table, rows):
    data = unpacked(page.embedded(page.table_data(table, rows.to_pylist())))
    assert data["rows"] == 3 and set(data["values"]) == set(table.schema.names)
    column = table.all_columns[-1]
    text = data["text"].get(column.name, data["values"][column.name])
    assert text == [format.cell(column, row) for row in rows.to_pylist()]


def test_a_picture_names_columns_that_exist(table):
    if table.plot:
        names = {column.name for column in table.all_columns}
        assert {table.plot.x, table.plot.y} <= names and table.plot.by in names | {""}
        assert table.plot.kind in ("histogram", "lines", "bars", "heat", "points")


def test_titles_are_told_apart():
    titles = [analysis.title for analysis in ANALYSES]
    assert len(set(titles)) == len(titles)
