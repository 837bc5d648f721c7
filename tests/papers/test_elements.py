"""What the list of the papers' elements refers to exists, and what is set beside the papers is on the list."""

from __future__ import annotations

import ast
import re
from importlib import import_module
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
from typer.main import get_command

from heredity.analyses import TABLES
from heredity.cli import app
from heredity.papers import beside, pictures, stitching, tracking
from heredity.papers.elements import ELEMENTS
from heredity.study import StudyConfig

ALL = {**TABLES, **{table.name: table for table in (beside.BESIDE, beside.SCALE, beside.CLAIMS)}}
PAGE = Path(__file__).parents[2] / "web" / "src"
SOURCES = {paper: Path(module.__file__).read_text() for paper, module in (("T", tracking), ("S", stitching))}


def exists(reference: str) -> bool:
    """Whether a reference of one of the forms of `heredity.papers.elements` leads to something."""
    kind, _, name = reference.rpartition(" ")
    if kind == "table":
        table, _, column = name.partition(".")
        return table in ALL and column in ("", *(one.name for one in ALL[table].all_columns))
    if kind == "key":
        return is_key(name)
    if kind == "command":
        return name in get_command(app).commands  # pyright: ignore[reportAttributeAccessIssue]
    if kind == "page":
        return (PAGE / name).is_file()
    module, _, path = name.partition(":")
    try:
        found: Any = import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError):
        return False
    return True


def is_key(path: str) -> bool:
    """Whether the study file has a key; NAME stands for a name that the study gives."""
    found: Any = StudyConfig
    for part in path.split("."):
        if get_origin(found) is dict:
            found = get_args(found)[1] if part == "NAME" else None
        else:
            fields = [getattr(one, "model_fields", {}).get(part) for one in (found, *get_args(found))]
            found = next((field.annotation for field in fields if field), None)
    return found is not None


def test_there_are_97_elements_each_once():
    assert [element.number for element in ELEMENTS] == list(range(1, 98))


def test_every_reference_leads_to_something():
    assert not [f"{one.number}: {reference}" for one in ELEMENTS for reference in one.here if not exists(reference)]


@pytest.mark.parametrize(
    "reference",
    [
        "table nothing",
        "table edges.nothing",
        "key sae.nothing",
        "key corpus.source",
        "key model.NAME.train.nothing",
        "command nothing",
        "page pages/Nothing.svelte",
        "heredity.nothing:Study",
        "heredity.study:Study.nothing",
    ],
)
def test_a_reference_to_nothing_is_found_out(reference):
    assert not exists(reference)


def test_results_are_where_the_list_says():
    drawn, wrong = Path(pictures.__file__).read_text(), []
    for one in ELEMENTS:
        told = re.findall(r"reproduce: (\w+(?: \w+)*?)(?=[,;]|$| and table)", one.result)
        wrong += [(one.number, name) for name in told if name not in ALL and f'"{name}":' not in SOURCES[one.paper]]
        titles = re.findall(r"picture (\(.*?\))", one.result)
        wrong += [(one.number, title) for title in titles if title not in drawn]
        tables = re.findall(r"(?:[Tt]able|[Tt]ables `\w+` and) `(\w+)`", one.result)
        wrong += [(one.number, name) for name in tables if name not in ALL]
    assert not wrong


def test_whatever_is_left_out_has_a_reason_and_everything_else_a_result():
    for one in ELEMENTS:
        assert one.element and one.place and one.result
        assert one.here or one.deviation, f"{one.number} is left out without a reason"


@pytest.mark.parametrize("paper", SOURCES)
def test_figures_beside_a_paper_are_elements_of_it_and_the_list_says_so(paper):
    used = numbers(SOURCES[paper])
    assert used
    elements = {one.number: one for one in ELEMENTS if one.paper == paper}
    assert used <= set(elements)
    assert not [number for number in used if "reproduce: " not in elements[number].result]


def numbers(source: str) -> set[int]:
    """First arguments of `figure`, and numbers at the head of the tuples that functions call it with in a loop."""
    found = set[int]()
    for function in (node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)):
        for node in ast.walk(function):
            head = node.elts[:2] if isinstance(node, ast.Tuple) else []
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "figure":
                head = node.args[:1]
            values = [one.value for one in head if isinstance(one, ast.Constant) and type(one.value) is int]
            found |= set(values[:1])
    return found
