"""What is chosen on the page gives what the run's tables hold: thresholds, filters, search, sorting, files, colors."""

from __future__ import annotations

import csv
import io
import json
import re
import struct
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from browser.visit import plain
from heredity.analyses.feature_columns import feature_columns
from heredity.analyses.inspector import Inspector

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def columns(lineage):
    return json.loads(json.dumps(feature_columns(Inspector(lineage.run))))


def _persisting(lineage, edge: str, threshold: float) -> tuple[int, int]:
    """Live features of the parent that persist along an edge, and those that do not."""
    r = lineage.run.matches(edge).parent_r[:, 0]
    live = ~np.isnan(r)
    persist = int((r[live] > threshold).sum())
    return persist, int(live.sum()) - persist


def test_the_slider_counts_anew_at_every_threshold(visit, home, lineage):
    there = visit(home, "#/flow")
    edges = {edge.replace("->", " → "): edge for edge in (one.name for one in lineage.run.study.edges)}

    def rows() -> dict[str, list[int]]:
        """Of each edge what persists and what disappears, as the table says."""
        cells = [row.locator("th, td").all_inner_texts() for row in there.main.locator("tbody tr").all()]
        return {
            edges[plain(head)]: [int(re.sub(r"\D.*", "", plain(one).replace(",", ""))) for one in others[1:3]]
            for head, *others in cells
        }

    own = {
        row["edge"]: row
        for row in lineage.rows("edges", instrument=lineage.run.study.instrument)
        if row["rule"] != "paper"
    }
    assert rows() == {edge: [row["persist"], row["disappear"]] for edge, row in own.items()}
    slider = there.main.get_by_role("slider")
    slider.focus()
    for key, value in (("Home", 0.0), ("End", 0.98), ("ArrowLeft", 0.97)):
        there.page.keyboard.press(key)
        there.expect(there.main.locator("output")).to_have_text(f"{value:.2f}")
        assert rows() == {edge: list(_persisting(lineage, edge, value)) for edge in own}
    there.page.wait_for_url(re.compile(r"#/flow\?t=0\.97$"))
    there.main.get_by_role("button", name="the paper’s 0.8").click()
    there.sees("0.80", "main output")
    assert rows() == {edge: list(_persisting(lineage, edge, 0.8)) for edge in own}
    assert there.hash == "#/flow?t=0.80"
    there.back()
    there.sees("0.97", "main output")
    there.main.get_by_role("button", name="only those that persist").click()
    there.drawn()
    assert there.main.locator("a.band path:not(.solid)").count() == 0, "no band that ends or begins"
    assert rows() == {edge: list(_persisting(lineage, edge, 0.97)) for edge in own}, "the table stays"
    there.back()
    for rule in there.main.get_by_role("group", name="What counts as a match").get_by_role("button").all():
        rule.click()
        there.drawn()
        assert all(persist >= 0 for persist, _ in rows().values())


def test_filters_leave_what_their_chips_said(visit, home, columns):
    there = visit(home, "#/features")
    whole = sum(len(model["firings"]) for model in columns["models"].values())
    there.sees(f"{whole:,} of {whole:,} features", "main .total")
    for facet in ("model", "edge", "verdict", "match", "class"):
        chips = there.main.get_by_role("group", name=facet, exact=True).get_by_role("button").all()
        assert chips, facet
        for chip in chips[:3]:
            count = chip.locator("b").inner_text()
            chip.click()
            there.expect(there.main.locator(".total b")).to_have_text(count)
            there.back()
            there.sees(f"{whole:,} of", "main .total")
    kept = columns["verdicts"].index("kept")
    edge = next(one for one in columns["edges"] if one["edge"] == "base->sums")
    there.go("#/features?model=base&edge=base->sums&verdict=kept")
    there.expect(there.main.locator(".total b")).to_have_text(f"{edge['ends']['parent']['verdict'].count(kept):,}")
    assert there.main.locator(".chosen").count() == 3
    there.main.get_by_role("button", name="reset").click()
    there.sees(f"{whole:,} of", "main .total")


def test_features_are_found_by_token_words_and_id(visit, home, columns):
    there = visit(home, "#/features")
    field = there.main.get_by_label("A token, words of an explanation, or an id")
    token = " ="
    code = columns["tokens"].index(token)
    tops = [np.array(model["top"]).reshape(-1, 3) for model in columns["models"].values()]
    holding = sum(int((top == code).any(axis=1).sum()) for top in tops)
    field.fill(token)
    there.expect(field).to_have_value("␣=")
    field.press("Enter")
    there.expect(there.main.locator(".total b")).to_have_text(f"{holding:,}")
    there.sees("token ␣=", "main .chosen")
    assert holding and there.hash == "#/features?token=+%3D"
    texts = [text for model in columns["models"].values() for text in model["text"] if text]
    word = next(word for word in re.findall(r"\w{4,}", " ".join(texts)))
    there.main.get_by_role("button", name="explanation").click()
    field.fill(word)
    field.press("Enter")
    there.expect(there.main.locator(".total b")).to_have_text(
        f"{sum(word.lower() in text.lower() for text in texts):,}"
    )
    field.fill(f"/^fires.*{word[:3]}/")
    field.press("Enter")
    fits = sum(bool(re.search(f"^fires.*{word[:3]}", text, re.IGNORECASE)) for text in texts)
    there.expect(there.main.locator(".total b")).to_have_text(f"{fits:,}")
    there.go("#/features?token=/^\\d$/")
    digits = [at for at, one in enumerate(columns["tokens"]) if re.fullmatch(r"\d", one, re.ASCII)]
    held = sum(int(np.isin(top, digits).any(axis=1).sum()) for top in tops)
    there.expect(there.main.locator(".total b")).to_have_text(f"{held:,}")
    assert "No feature fits" in there.go("#/features?words=/(a%2B)%2Bb/"), "no pattern, since it might never end"
    there.back()
    there.back()
    field.fill("sums/5")
    field.press("Enter")
    there.expect(there.main.locator("h1")).to_have_text("sums/5")
    there.back()
    there.sees(f"“/^fires.*{word[:3]}/”", "main .chosen")


def test_a_table_is_sorted_by_its_headings_and_shows_all_columns(visit, homes, lineage):
    there = visit(homes["file"], "#/results?part=match")
    block = there.page.locator("#table-edges")
    few = block.locator("thead th").count()
    block.get_by_role("button", name=re.compile("all .* columns")).click()
    assert block.locator("thead th").count() > few
    heading = there.page.locator("[data-column=persist]")
    for way, down in (("descending", True), ("ascending", False)):
        block.locator(heading).click()
        there.expect(block.locator("th", has=heading)).to_have_attribute("aria-sort", way)
        place = [one.get_attribute("data-column") for one in block.locator("thead button").all()].index("persist")
        cells = [row.locator("th, td").nth(place).inner_text() for row in block.locator("tbody tr").all()]
        counts = [int(re.sub(r"\D.*", "", plain(one).replace(",", ""))) for one in cells]
        assert counts == sorted(counts, reverse=down) and len(set(counts)) > 1


def test_saved_tables_hold_the_rows_of_the_run(visit, home, lineage):
    there = visit(home, "#/results?part=match")
    block = there.page.locator("#table-edges")
    block.locator("[data-column=persist]").click()
    expected = lineage.rows("edges", instrument=lineage.run.study.instrument)
    name, content = there.save(block.get_by_role("button", name="JSON"))
    assert name == "s-edges.json"
    rows = json.loads(content)
    assert len(rows) == len(expected)
    assert [row["persist"] for row in rows] == sorted((row["persist"] for row in expected), reverse=True), "as sorted"
    key = ("edge", "rule", "site")
    for row, own in zip(
        *(sorted(one, key=lambda row: [row[part] for part in key]) for one in (rows, expected)), strict=True
    ):
        assert row.keys() <= own.keys()
        for column, value in row.items():
            same = own[column] if not isinstance(value, float) else pytest.approx(own[column], rel=1e-5)
            assert value == same, column
    name, content = there.save(block.get_by_role("button", name="CSV"))
    assert name == "s-edges.csv"
    table = list(csv.DictReader(io.StringIO(content.decode())))
    assert [
        {
            column: "" if value is None else str(value)
            for column, value in row.items()
            if not isinstance(value, float | bool)
        }
        for row in rows
    ] == [
        {column: value for column, value in row.items() if not isinstance(own[column], float | bool)}
        for row, own in zip(table, rows, strict=True)
    ]
    if home.startswith("http"):
        import pyarrow.parquet as pq

        name, content = there.save(block.get_by_role("link", name="Parquet"))
        assert pq.read_table(io.BytesIO(content)).equals(lineage.run["edges"])


def test_the_table_of_features_is_saved_as_it_is_filtered(visit, home, columns):
    there = visit(home, "#/features?model=sums&verdict=kept")
    total = int(there.main.locator(".total b").inner_text().replace(",", ""))
    _, content = there.save(there.main.locator(".bar button.save"))
    rows = list(csv.DictReader(io.StringIO(content.decode())))
    assert len(rows) == total > 0
    own = columns["models"]["sums"]
    kept = columns["verdicts"].index("kept")
    for row in rows:
        assert row["model"] == "sums" and "kept" in row["verdicts"]
        feature = int(row["feature"])
        assert float(row["density"]) == pytest.approx(own["firings"][feature] / own["counted"], rel=1e-4)
        assert any(
            edge["ends"][end]["verdict"][feature] == kept
            for edge in columns["edges"]
            for end in ("parent", "child")
            if edge[end] == "sums"
        )


def test_a_picture_is_saved_as_a_file_that_stands_by_itself(visit, home):
    there = visit(home, "#/flow?t=0.50")
    figure = there.main.locator("figure").first
    figure.hover()
    name, content = there.save(figure.get_by_role("button", name="SVG"))
    assert name.endswith(".svg")
    root = ET.fromstring(content)
    texts = " ".join("".join(one.itertext()) for one in root.iter("{http://www.w3.org/2000/svg}text"))
    assert "Flow of features" in texts and "base" in texts and "0.50" in texts
    assert b"var(--" not in content and b"<script" not in content and b"href" not in content
    name, content = there.save(figure.get_by_role("button", name="PNG"))
    assert name.endswith(".png") and content.startswith(b"\x89PNG") and len(content) > 5_000
    width, height = (int(float(root.get(side, 0))) for side in ("width", "height"))
    assert struct.unpack(">II", content[16:24]) == (2 * width, 2 * height), "at twice its size"
    there.go("#/family?id=base/4")
    heat = there.main.locator(".heat").first
    heat.hover()
    _, content = there.save(heat.get_by_role("button", name="SVG"))
    assert "base/4" in "".join(ET.fromstring(content).itertext())


@pytest.mark.parametrize("system", ["light", "dark"])
def test_colors_follow_the_system_until_they_are_chosen(system, visit, homes):
    there = visit(homes["file"], color_scheme=system)
    shade = lambda: there.page.evaluate("getComputedStyle(document.body).backgroundColor")  # noqa: E731
    html, before = there.page.locator("html"), shade()
    there.expect(html).to_have_attribute("data-theme", system)
    other = {"light": "dark", "dark": "light"}[system]
    there.page.get_by_role("group", name="Colors").get_by_role("button", name=other).click()
    there.expect(html).to_have_attribute("data-theme", other)
    assert shade() != before
    there.page.reload()
    there.drawn()
    there.expect(html).to_have_attribute("data-theme", other)


def test_a_text_is_read_by_every_model(visit, homes):
    there = visit(homes["server"], "#/try")
    there.main.get_by_label("Your text").fill("3 plus 4 = 7;")
    there.page.keyboard.press("Control+Enter")
    there.sees(re.compile(r"tokens.*, \d+ families"), "main [role=status]")
    families = there.main.get_by_role("region", name=re.compile("^Family of"))
    assert families.count() > 1
    there.main.get_by_role("group", name="Model", exact=True).get_by_role("button", name="sums").click()
    there.expect(families.first).to_contain_text("sums/")
    families.first.get_by_role("link").first.click()
    there.drawn()
    assert there.hash.startswith("#/family?id=")


def test_a_feature_says_what_it_predicts_when_its_model_is_asked(visit, homes):
    there = visit(homes["server"], "#/feature?id=sums/5")
    there.main.get_by_role("button", name="ask its model").click()
    there.expect(there.main.get_by_role("table", name="Tokens it makes likelier")).to_be_visible()


@pytest.mark.parametrize("address", ["#/flow", "#/flow?t=0.60", "#/flow?t=0.50&rule=mutual"])
def test_every_band_leads_to_as_many_features_as_it_says(visit, homes, address):
    there = visit(homes["file"], address)
    bands = there.main.locator("a.band").evaluate_all(
        "all => all.map(one => [one.ariaLabel, one.getAttribute('href')])"
    )
    assert len(bands) > 3
    for words, href in bands:
        said = re.match(r".*?: ([\d,]+) of ", plain(words))
        assert said, words
        there.go(href)
        shown = re.match(r"([\d,]+) of ", plain(there.main.locator(".total").inner_text()))
        assert shown and shown[1] == said[1], f"{words}: {href}"
