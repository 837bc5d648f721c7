"""Notebooks show runs and features as plain HTML: no script, no request, nothing that a string in them could act by."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

import pytest

from heredity import notebook
from heredity.analyses import TABLES
from heredity.analyses.inspector import Inspector
from heredity.results import Feature
from show.runs import EVIL
from show.runs import lineage as tables_of

ALLOWED = {"h3", "h4", "p", "ul", "li", "b", "small", "span", "details", "summary", "table", "thead", "tbody", "tr"}
ALLOWED |= {"th", "td"}


def checked(html: str) -> str:
    """The text of HTML that has allowed tags alone, each closed, and no attribute but styles, titles and dir."""
    opened, texts, parser = [], [], HTMLParser()

    def start(tag: str, attributes: Any) -> None:
        assert tag in ALLOWED and {name for name, _ in attributes} <= {"style", "title", "dir"}
        assert all("url" not in value for _, value in attributes)
        opened.append(tag)

    def end(tag: str) -> None:
        assert opened.pop() == tag

    parser.handle_starttag, parser.handle_endtag, parser.handle_data = start, end, texts.append
    parser.feed(html)
    parser.close()
    assert opened == []
    return "".join(texts)


def test_a_run_is_shown_with_its_findings_and_brief_tables(lineage):
    shown = lineage.run.show()
    text = checked(shown._repr_html_())
    for statement in lineage.run.statements:
        if statement.question != "note":
            assert re.sub(r"\s", " ", statement.text) in text and statement.text in repr(shown)
    assert text.startswith("s") and repr(shown).startswith("run s\n")
    assert TABLES["verdicts"].doc.split(".")[0] in text and "http" not in shown.html


def test_a_feature_is_shown_with_verdicts_reasons_and_tokens(lineage):
    feature = lineage.run.feature("sums", 5)
    text = checked(feature._repr_html_())
    assert "sums/5" in text and all(row["reason"] in text for row in feature.values["verdicts"])
    assert feature.values["verdicts"] and repr(feature).startswith("<Feature sums/5: ")


@pytest.mark.parametrize("string", [EVIL, "\u202egnirts", "zero\u200bwidth", "\x00\x1b[31m", "'>", "half \ud83d"])
def test_hostile_strings_are_text(lineage, string):
    values = Inspector(lineage.run).show("sums", 5)
    values["explanation"]["description"] = string
    values["notes"] = [{"by": string, "text": string, "tags": [string], "written": ""}]
    values["tokens"][0]["token"] = values["top"][0]["tokens"][values["top"][0]["position"]] = string
    html = Feature(values)._repr_html_()
    text = checked(html)
    visible = "".join(one if one.isprintable() else f"⟨{ord(one):04X}⟩" for one in string)
    assert text.count(visible) >= 5
    assert not re.search("[\u0000\u001b\u200b\u202e\u2028]", html)
    rows = {"models": [row | {"parents": string} for row in tables_of()["models"].to_pylist()]}
    tables = {name: (TABLES[name], own) for name, own in rows.items()}
    assert visible in checked(notebook.overview(string, [(string, string, [string])], [string], tables))
