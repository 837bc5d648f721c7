"""The report in Markdown is whole, in order, and short."""

from __future__ import annotations

import re

import pytest

from heredity.analyses import TABLES
from heredity.show import markdown
from show.runs import EVIL, run_of


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return run_of(tmp_path_factory.mktemp("run"), EVIL)


@pytest.fixture(scope="module")
def text(run):
    return markdown.render(run)


def section(text: str, title: str) -> str:
    """A part of the text, by its heading."""
    (found,) = re.findall(rf"^## {title}.*?\n\n(.*?)(?=^## |\Z)", text, flags=re.MULTILINE | re.DOTALL)
    return found


def test_sections_stand_in_the_order_in_which_they_are_needed(text):
    assert [line.removeprefix("## ").split(",")[0] for line in text.splitlines() if line.startswith("## ")] == [
        *("What was studied", "Findings", "Limits", "Figures", "What the columns mean", "How figures are made")
    ]
    assert text.startswith("# Study small: ") and text.endswith(".\n") and "\n\n\n" not in text
    assert "- base->sums: words, code" in section(text, "What was studied")


def test_every_finding_of_the_first_instrument_is_there_the_last_child_and_verdicts_first(run, text):
    findings = section(text, "Findings")
    own = [one for one in run.statements if one.instrument in ("joint", "") and one.question != "note"]
    assert all(one.text in findings for one in own) and len(own) == findings.count("\n- ")
    assert re.findall(r"^### (.*)$", findings, flags=re.MULTILINE) == ["both", "stories", "sums"]
    sums = findings[findings.index("### sums") :].splitlines()[2:]
    questions = [line.split(":")[0].removeprefix("- ") for line in sums if line]
    assert questions[:5] == ["inherited", "lost", "new", "sure", "sure"]
    assert "sums kept 80 of 100 stable features of base (80 %, 95 % CI 78–82 % over SAE seeds and features)" in sums[0]
    assert all(line.startswith("- matches: By matches alone (r > 0.50, all live features") for line in sums[5:] if line)


def test_tables_are_brief_and_their_columns_defined(run, text):
    figures, columns = section(text, "Figures"), section(text, "What the columns mean")
    assert "Fates of features" not in figures, "where there are verdicts, sentences say what matches count"
    for name in ("verdicts", "references", "changed_most"):
        assert f"### {TABLES[name].doc.split('.')[0]}" in figures
        for column in TABLES[name].all_columns:
            assert (f"*{column.name.replace('_', ' ')}*: {column.doc}" in columns) or column.name not in TABLES[
                name
            ].brief
    assert "| base->sums | 7 |" in figures and "| base->sums | 14 |" not in figures, "a ranking is cut"
    assert figures.count("| base->sums | parent | 128 | 100 |") == 1, "one instrument"
    assert "Wilson" in section(text, "How figures are made")


def test_nothing_in_it_moves_a_cursor_or_breaks_a_table(text):
    assert all(one.isprintable() or one == "\n" for one in text)
    for row in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in row.splitlines()}) == 1


def test_a_run_without_verdicts_or_findings_is_told_as_it_is(run, tmp_path):
    bare = run_of(tmp_path, whole=False)
    bare.tables, bare.statements = {"models": bare.tables["models"]}, []
    text = markdown.render(bare)
    assert "None." in section(text, "Findings") and "The last section says how figures are made." in section(
        text, "Limits"
    )
    assert "## Figures\n\n## What" in text
