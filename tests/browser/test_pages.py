"""Every page, in a browser, of a file and of a server: drawn without an error, reached by clicks, left by Back."""

from __future__ import annotations

import re

import pytest

from browser.visit import plain, written
from heredity.analyses.inspector import Inspector
from heredity.show import page
from show.runs import all_columns, run_of

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    """The page's data of a run with example rows of every declared table."""
    return page.page_data(run_of(tmp_path_factory.mktemp("run")), all_columns())


def test_every_page_is_reached_by_a_click_and_left_by_back(visit, home):
    there = visit(home)
    pages = there.pages()
    assert {"Overview", "Flow", "Features", "Families", "Lost and new", "Merge", "Quality"} < {
        title for title, _ in pages
    }
    assert ("Try your own text" in dict(pages)) == home.startswith("http")
    links = there.page.get_by_role("navigation", name="Pages").get_by_role("link")
    heads = []
    for number, (title, address) in enumerate(pages):
        links.nth(number).click()
        there.drawn()
        assert there.hash == address and there.page.title().startswith(f"{title} · s · heredity")
        assert there.page.locator("nav [aria-current=page]").inner_text() == title
        heads.append(there.main.locator("h1").inner_text())
    assert len(set(heads)) == len(pages)
    for (_, address), head in list(zip(pages, heads, strict=True))[-2::-1]:
        there.back()
        there.expect(there.main.locator("h1")).to_have_text(head)
        assert there.hash == address


def test_an_address_opens_the_same_view_in_a_new_window(visit, home):
    first = visit(home)
    for address in ("#/features?model=sums&verdict=kept", "#/flow?t=0.62", "#/feature?id=both/3", "#/family?id=base/4"):
        said = first.go(address)
        assert visit(home, address).text() == said, address


def test_the_ways_lead_on_from_the_overview_to_a_feature_and_its_matches(visit, home):
    there = visit(home)
    band = there.main.locator("figure a.band[href]").first
    words = band.get_attribute("aria-label")
    (count,) = re.findall(r": ([\d,]+) of ", words)
    band.focus()
    there.sees(words[:40], "main .said")
    there.page.keyboard.press("Enter")
    there.drawn()
    there.sees(re.compile(rf"^{count} of [\d,]+ features"), "main .total")
    row = there.main.get_by_role("table", name="Features").locator(".name a").first
    id_ = row.inner_text().strip()
    row.click()
    there.drawn()
    there.expect(there.main.locator("h1")).to_have_text(id_)
    match = there.main.locator(".match a").first
    other = match.inner_text()
    match.click()
    there.expect(there.main.locator("h1")).to_have_text(other)
    for head in (id_, "Features"):
        there.back()
        there.expect(there.main.locator("h1")).to_have_text(head)
    there.sees(re.compile(rf"^{count} of"), "main .total")


def test_a_feature_says_the_reason_of_every_verdict(visit, homes, lineage):
    rows = Inspector(lineage.run).shown("sums", 5)["verdicts"]
    said = visit(homes["server"], "#/feature?id=sums/5").text()
    assert rows and all(plain(row["reason"]) in said for row in rows)


def test_sentences_lead_to_their_evidence(visit, homes):
    there = visit(homes["file"])
    links = [one.get_attribute("href") for one in there.main.locator(".finding a").all()]
    assert len(links) > 5
    for address in dict.fromkeys(links):
        there.go(address)
        name = re.search(r"[?&]table=(\w+)", address)
        if name:
            there.expect(there.page.locator(f"#table-{name[1]}")).to_be_in_viewport()


def test_every_declared_table_is_drawn_on_some_page(visit, examples, tmp_path):
    there = visit(written(examples, tmp_path))
    drawn = set()
    addresses = [address for _, address in there.pages()]
    addresses += [f"#/results?part={part['kind']}" for part in examples["sections"]]
    for address in addresses:
        there.go(address)
        shows = there.main.get_by_role("group", name="Part", exact=True).get_by_role("button").all()
        for press in shows or [None]:  # the parts of a stitch
            if press:
                press.click()
                there.drawn()
            ids = there.main.evaluate("main => [...main.querySelectorAll('[id^=table-]')].map((one) => one.id)")
            drawn |= {one.removeprefix("table-") for one in ids}
    assert sorted(set(examples["tables"]) - drawn) == []


def test_figures_are_written_with_their_shares_and_intervals(visit, examples, tmp_path):
    there = visit(written(examples, tmp_path))
    assert "sums kept 80 of 100" in there.text() and "80 % kept" in there.text(), "in words and on the band"
    table = there.go("#/results?part=match")
    assert "90 70 %" in table and "[87–93]" in table, "a count, its share and its interval"
    features = there.go("#/features?model=base&verdict=kept")
    assert "4 of 32 features" in features and "base/3" in features and "base/4" not in features
    one = there.go("#/feature?id=base/1")
    assert "What became of it, and why" in one and "predicted" in one
    without_text = there.go("#/feature?id=base/2")
    assert "This file holds the text of chosen features only" in without_text
    assert "match r 0.80, r 0.90, strength 0.90, and no not measured." in without_text, (
        "its reason is there all the same"
    )
    assert "from base" in there.go("#/flow?t=0.8") and "0.80" in there.text()


def test_several_sites_are_shown_side_by_side(visit, examples, tmp_path):
    sites = [*examples["sites"], "blocks.1.mlp.hook_post"]
    layers = examples["tables"]["layers"]
    size = layers["rows"]
    known = {"instrument": "joint", "edge": "base->sums", "end": "parent", "verdict": "kept"}
    values = layers["values"] | {name: [value] * size for name, value in known.items()}
    values["site"] = [sites[at % 2] for at in range(size)]
    data = examples | {"sites": sites, "tables": examples["tables"] | {"layers": layers | {"values": values}}}
    there = visit(written(data, tmp_path), "#/layers")
    for drawn in (there.main.locator("figure svg"), there.main.get_by_role("table")):
        there.expect(drawn.first).to_be_visible()
    there.page.locator(".switches").get_by_label("Site").select_option(sites[1])
    there.drawn()
    assert there.hash == f"#/layers?site={sites[1]}"


@pytest.mark.parametrize("kind", ["a lineage alone", "one model and nothing measured"])
def test_less_is_drawn_of_a_run_that_has_less(kind, visit, examples, tmp_path):
    if kind == "a lineage alone":
        data = page.page_data(run_of(tmp_path / "run", whole=False), all_columns())
    else:
        empty = {"tables": {}, "sections": [], "statements": [], "notes": [], "graph": examples["graph"][:1]}
        data = examples | empty | {"inspector": {}, "features": {}}
    there = visit(written(data, tmp_path))
    assert ("80 % kept" if kind == "a lineage alone" else "This study has no parent and child") in there.text()
    for _, address in there.pages():
        there.go(address)


def test_what_is_not_there_is_said(visit, home):
    there = visit(home)
    assert "There is no feature base/99999 here" in there.go("#/feature?id=base/99999")
    assert "No feature is named" in there.go("#/feature")
    assert "base/99999" in there.go("#/family?id=base/99999") and "All families" in there.text()
    assert "No feature fits" in there.go("#/features?words=zzzz+zzzz")
    there.go("#/nowhere")
    there.expect(there.main.locator("h1")).to_have_text("s")
    if home.startswith("http"):  # a refusal of the server is logged by the browser itself
        there.logged = [line for line in there.logged if "404" not in line]


def test_the_curves_of_a_merge_stand_beside_its_parents_and_base(visit, home, lineage):
    there = visit(home, "#/merge")
    figure = there.main.get_by_role("figure", name="Accuracy of merges of sums and stories along t")
    names = figure.locator("svg text").all_text_contents()
    assert [names.count(name) for name in ("sums", "stories", "base")] == [2, 2, 2], "each on the text of both parents"
    assert {"on sums text", "on stories text"} < set(names)
    (merge,) = lineage.rows("merges", model="both")
    ring = figure.locator("svg circle[r='5.5'], svg [aria-label=dot] [stroke-width='1.8']")
    assert bool(ring.count()) == bool(merge["crossed"])
    for row in lineage.rows("merge_bases", model="both"):
        assert f"{100 * row['accuracy']:.0f} %" in there.text() or f"{100 * row['accuracy']:.1f} %" in there.text()


def test_merges_of_the_same_parents_are_shown_along_t(visit, examples, tmp_path):
    tables = dict(examples["tables"])
    merge = {"method": "slerp", "first": "sums", "second": "stories", "crossed": None, "weights": None}
    tables["merges"] = _rows(
        tables["merges"], [{**merge, "model": name, "t": t} for name, t in (("both", 0.5), ("near", 0.2))]
    )
    edges = [{"edge": f"{parent}->near", "kept_share": 0.7} for parent in ("sums", "stories")]
    verdicts = tables["verdicts"]
    judged = {"instrument": "joint", "text": "common", "end": "parent", "stable": 100, "kept": 70, "lost": 5}
    whole = [{name: verdicts["values"][name][at] for name in verdicts["values"]} for at in range(verdicts["rows"])]
    tables["verdicts"] = _rows(verdicts, [*whole, *({**whole[0], **judged, **edge} for edge in edges)])
    there = visit(written(examples | {"tables": tables}, tmp_path), "#/merge")
    there.sees("Features kept along t")
    figure = there.main.get_by_role("figure", name="Features of sums and stories that their merges keep, along t")
    there.expect(figure.locator("svg circle")).to_have_count(4)  # two parents at two t
    (alone, *_) = examples["tables"]["merges"]["values"]["model"]
    tables["merges"] = _rows(tables["merges"], [{**merge, "model": alone, "t": 0.5}])
    there = visit(written(examples | {"tables": tables}, tmp_path, "one"), "#/merge")
    assert "Features kept along t" not in there.text()


def _rows(table, rows):
    """A table of the page with other rows."""
    values = {name: [row.get(name) for row in rows] for name in table["values"]}
    return table | {"rows": len(rows), "values": values, "text": {}}


def test_numbers_have_one_minus(visit, examples, tmp_path):
    """U+2212, in words, in tables and in pictures; what a corpus or a person wrote stays as it is."""
    text = {
        name: {
            column["name"]: [re.sub(r"(^|\[)(?=\d)", r"\1-", cell) for cell in table["text"][column["name"]]]
            for column in table["columns"]
            if column["kind"] not in ("text", "feature", "flag") and column["name"] in table["text"]
        }
        for name, table in examples["tables"].items()
    }
    tables = {name: table | {"text": table["text"] | text[name]} for name, table in examples["tables"].items()}
    said = [one | {"text": f"It is -3.1 points (95 % CI -4 to -2). {one['text']}"} for one in examples["statements"]]
    there = visit(written(examples | {"tables": tables, "statements": said}, tmp_path))
    seen = 0
    for address in [
        *(address for _, address in there.pages()),
        *(f"#/results?part={one['kind']}" for one in examples["sections"]),
    ]:
        there.go(address)
        for text in there.main.evaluate(TEXTS):
            assert not re.search(r"(^|[\s(\[])-\d", text), (address, text)
            seen += "\u2212" in text
    assert seen > 200


TEXTS = """main => {
  const [walker, found] = [document.createTreeWalker(main, NodeFilter.SHOW_TEXT), []];
  while (walker.nextNode()) {
    const text = walker.currentNode;
    if (!text.parentElement.closest('pre, code, title, style, .line')) found.push(text.data);
  }
  return found;
}"""


def test_a_verdict_has_one_color_wherever_it_is_a_series(visit, home):
    there = visit(home, "#/lost")
    bars = there.main.locator("#table-newness svg [aria-label=bar] [fill]")
    names = there.main.locator("#table-newness svg").first.locator("text").all_text_contents()
    assert "inherited" in names and bars.count()
    assert "var(--v-kept)" in {bar.get_attribute("fill") for bar in bars.all()}


def test_headings_stand_above_their_columns(visit, home):
    there = visit(home, "#/features")
    rows = [there.main.locator(f"{name} .row").first for name in (".head", ".body")]
    head, body = ([cell.bounding_box()["x"] for cell in row.locator(":scope > div").all()] for row in rows)
    assert head == pytest.approx(body, abs=0.5)


def test_words_and_pictures_stay_within_a_phone(visit, home):
    there = visit(home, viewport={"width": 390, "height": 844})
    for address in ("#/", "#/flow", "#/merge"):
        there.go(address)
        out = there.main.evaluate(OUTSIDE)
        assert out == [], address
    there.go("#/")
    captions = there.main.locator("figure svg .words").all_text_contents()
    assert captions and not any("\u2026" in one for one in captions)
    made = " ".join(captions)
    assert "trained from scratch" in made and "slerp" in made


OUTSIDE = """main => {
  const [style, box] = [getComputedStyle(main), main.getBoundingClientRect()];
  const [left, right] = [box.left + parseFloat(style.paddingLeft), box.right - parseFloat(style.paddingRight)];
  const texts = [...main.querySelectorAll('figure svg text')].filter((one) => !one.closest('.scroll'));
  const places = texts.map((one) => [one.textContent, one.getBoundingClientRect()]);
  const out = places.filter(([, own]) => own.width && (own.left < left - 0.5 || own.right > right + 0.5));
  return out.map(([text, own]) => `${text}: ${own.left} to ${own.right}`);
}"""


def test_back_returns_to_the_place_that_was_left(visit, home):
    there = visit(home, "#/results")
    there.page.mouse.move(700, 400)
    there.page.mouse.wheel(0, 300)
    there.page.wait_for_timeout(600)  # the page remembers a place once it is stayed at
    left = there.page.evaluate("scrollY")
    assert left > 200
    there.page.get_by_role("navigation", name="Pages").get_by_role("link", name="Quality").click()
    there.drawn()
    assert there.page.evaluate("scrollY") == 0
    there.back()
    there.page.wait_for_timeout(600)
    assert abs(there.page.evaluate("scrollY") - left) < 2
