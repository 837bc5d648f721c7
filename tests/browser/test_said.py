"""What language models and people said of features: what was asked and answered, and how far people agree."""

from __future__ import annotations

import re

import pytest

from browser.visit import AXE

pytestmark = pytest.mark.browser


def test_prompts_answers_and_what_could_not_be_read_are_shown(visit, homes):
    there = visit(homes["server"], f"#/feature?id={homes['asked']}")
    said = there.main.get_by_role("region", name="What m says")
    there.expect(said).to_contain_text("equals signs")
    there.expect(said).to_contain_text("$0.0")
    assert said.locator("details").count() == 0, "asked for when it is wanted"
    there.main.get_by_role("button", name="show prompts and answers").click()
    there.expect(said.locator("details").first).to_be_visible()
    found = re.search(r"(\d+) requests, ([\d,]+) tokens in and (\d+) out", said.inner_text())
    assert found and int(found[1]) > 4 and int(found[2].replace(",", "")) == 100 * int(found[1])
    assert "without a readable answer: 1 unparsed" in said.inner_text(), "before anything is opened"
    explain, simulate, fuzz = (
        said.locator(":scope > details").filter(has_text=words)
        for words in ("explain it", "predict its activations", "judge marked tokens")
    )
    explain.locator("summary").click()
    there.expect(explain.get_by_role("region", name="Prompt")).to_contain_text(
        "A feature is a detector inside a language"
    )
    answer = re.compile(r'^```json\s*{"explanation": "equals signs"}\s*```$')
    there.expect(explain.get_by_role("region", name="Answer")).to_have_text(answer)
    there.expect(explain).to_contain_text(re.compile(r"m at 127\.0\.0\.1:\d+, about base/"))
    there.expect(explain).to_contain_text("100 tokens in and 10 out, $0.00012.")
    simulate.locator("summary").click()
    simulate.locator("details > summary").first.click()
    there.expect(simulate.get_by_role("region", name="Prompt")).to_contain_text('{"explanation":"equals signs"')
    there.expect(fuzz.locator("summary")).to_contain_text("1 unparsed")
    fuzz.locator("summary").click()
    there.expect(fuzz.get_by_role("region", name="Answer")).to_have_text("I would rather not say.")
    there.expect(fuzz).to_contain_text("Not counted: unparsed. no JSON list in it")
    assert said.get_by_text("predicted", exact=True).count() > 0
    if AXE.exists():
        assert there.flaws() == []
    there.page.get_by_role("navigation", name="Neighbours").get_by_role("link").last.click()
    there.drawn()
    assert there.main.get_by_role("region", name="What m says").count() == 0


def test_a_file_says_what_models_said_and_where_the_prompts_are(visit, homes):
    there = visit(homes["file"], f"#/feature?id={homes['asked']}")
    there.expect(there.main.get_by_role("region", name="What m says")).to_contain_text("equals signs")
    there.sees("Prompts, answers, tokens and predictions are shown by heredity serve.")
    assert there.main.get_by_role("button", name="show prompts and answers").count() == 0
    assert "Notes" not in dict(there.pages())


def test_people_are_compared_and_where_they_differ_is_a_link(visit, homes):
    there = visit(homes["server"], "#/notes")
    agreement = there.main.get_by_role("region", name=re.compile("^How far people agree on tags"))
    rows = agreement.locator("tbody tr")
    there.expect(rows).to_have_count(2)
    for row, tag in zip(rows.all(), ("code", "prose"), strict=True):
        there.expect(row).to_contain_text(tag)
        there.expect(row).to_contain_text(re.compile(r"2\s*50\s*%"))  # of two features they agree on one
    apart = there.main.get_by_role("table", name="Features on which two people differ")
    there.expect(apart.locator("tbody tr")).to_have_count(2)
    there.main.get_by_role("group", name="tag", exact=True).get_by_role("button", name="prose").click()
    there.expect(apart.locator("tbody tr")).to_have_count(1)
    assert there.hash == "#/notes?tag=prose"
    there.expect(there.main.get_by_role("table", name="Notes", exact=True).locator("tbody tr")).to_have_count(1)
    apart.get_by_role("link", name="base/4").click()
    there.expect(there.main.locator("h1")).to_have_text("base/4")
    there.sees("ada: ada on 4 #code")
    there.back()
    there.expect(apart.locator("tbody tr")).to_have_count(1)
    assert there.main.locator("a[href$='.parquet']").count() == 0, "no table of the run"
