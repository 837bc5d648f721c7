"""summary.json holds a run whole, and an earlier version's is refused in words."""

from __future__ import annotations

import json

import pytest
from rich.console import Console

import documents
from heredity.show import summary, terminal
from heredity.study import Study
from show.runs import run_of


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return run_of(tmp_path_factory.mktemp("run"))


def test_it_comes_back_as_it_was_written(run):
    written = summary.write(run)
    read = summary.read(run.folder)
    assert read == json.loads(json.dumps(written)) and read["schema"] == 2 and read["study"] == "small"
    assert set(read) == {
        *(
            "heredity",
            "schema",
            "study",
            "seconds",
            "peak_memory_gib",
            "created",
            "machine",
            "config",
            "tables",
            "statements",
        ),
        "notes",
    }
    assert Study.of(read["config"]).config == run.study.config, "the study comes back from it"
    assert read["tables"]["edges"]["rows"] == run.tables["edges"].to_pylist()
    assert {"kind", "doc", "of"} == set(read["tables"]["edges"]["columns"]["persist"])
    assert set(read["statements"][0]) == {"about", "question", "text", "evidence", "instrument", "site"}
    assert not any(statement["question"] == "note" for statement in read["statements"])
    assert set(read["notes"]) == {one.text for one in run.statements if one.question == "note"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"heredity": "0.1.0", "edges": {}}', "was written by heredity 0.1.0 .*run the study again"),
        ('{"heredity": "9", "schema": 3, "tables": {}}', "was written by heredity 9 .schema 3."),
        ("[]", "is no summary of a run"),
        ("{", "is no summary"),
    ],
)
def test_what_is_no_summary_of_this_version_is_refused_by_path(text, words, tmp_path):
    path = tmp_path / "summary.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=words) as caught:
        summary.read(tmp_path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_document_is_made_anew_from_a_summary(run, tmp_path):
    summary.write(run)
    (tmp_path / "small.json").write_text((run.folder / "summary.json").read_text())
    marked = "<!-- edges small.json instrument=joint rule=evidence columns=edge,persist,ceiling -->"
    text = f"before\n{marked}\nold\n<!-- end -->\nafter"
    made = documents.refreshed(text, tmp_path)
    assert documents.refreshed(made, tmp_path) == made
    assert "| base->sums | 90 (70 %) [87–93] | 90 % |" in made and "old" not in made
    assert made.startswith("before\n<!-- edges") and made.endswith("<!-- end -->\nafter")
    first = documents.refreshed("<!-- first_row small.json -->\n<!-- end -->", tmp_path)
    assert "\nRead the first row so: of 128 live features of base's SAE, 100 are stable" in first
    for wrong, words in (("edge small.json", "has no table edge"), ("edges small.json ege=1", "no column ege")):
        with pytest.raises(ValueError, match=words):
            documents.refreshed(f"<!-- {wrong} -->\n<!-- end -->", tmp_path)


def test_the_end_of_a_run_on_the_terminal(run, monkeypatch):
    console = Console(width=100, record=True, highlight=False, emoji=False, color_system=None)
    monkeypatch.setattr(terminal, "out", console)
    terminal.print_run(run, run.folder / "report.html")
    shown = console.export_text()
    for words in ("Features along every edge", "90 (70 %)", "[87–93]", "12 s of work. The report: ", "report.html"):
        assert words in shown
    assert all(len(line.rstrip()) <= 100 for line in shown.splitlines() if "Note:" not in line and "report" not in line)


def test_control_characters_reach_no_terminal():
    assert terminal.seen("a\x1b]0;x\x07b\u202e") == "a\\x1b]0;x\\x07b\\u202e"
