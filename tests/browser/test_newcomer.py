"""Somebody who has never seen the page finds a feature that the merge lost, and can say what it was."""

from __future__ import annotations

import copy
import re

import pytest

from browser.visit import written
from heredity.analyses.feature_columns import columns_of_run
from heredity.show import page
from show.runs import unpacked

pytestmark = pytest.mark.browser
EDGE, REASON = "sums->both", "transmission 0.08 and r 0.11: both within the margin below 0.25, errors included"


@pytest.fixture(scope="module")
def lost(lineage, tmp_path_factory):
    """The page of the finished study in which one feature that it explains is made a lost one; and that feature."""
    run = lineage.run
    data = page.page_data(run, columns_of_run(run))
    place = run.study.instruments[0], run.study.sites[0]
    data["features"] = copy.deepcopy(data["features"])
    columns = unpacked(data["features"][place[0]][place[1]])
    cards = data["inspector"][place[1]][place[0]]["cards"]
    edge = next(one for one in columns["edges"] if one["edge"] == EDGE)
    end = edge["ends"]["parent"]
    judged = {name: columns["verdicts"].index(name) for name in ("kept", "changed")}
    stable = [at for at, verdict in enumerate(end["verdict"]) if verdict in judged.values()]
    shown = {card["feature"]: card for card in cards if card["model"] == "sums"}
    feature = next(
        at
        for at in sorted(stable, key=lambda at: (at not in shown, at))
        if columns["models"]["sums"]["top"][3 * at] >= 0
    )
    if "lost" not in columns["verdicts"]:
        columns["verdicts"].append("lost")
    before = columns["verdicts"][end["verdict"][feature]]
    end["verdict"][feature], end["r"][feature] = columns["verdicts"].index("lost"), 1_100
    columns["models"]["sums"]["text"][feature] = "fires on the sign of a sum"
    data["features"][place[0]][place[1]] = page.embedded(columns)
    for card in (card for card in cards if (card["model"], card["feature"]) == ("sums", feature)):
        card["label"] = (card["label"] or {}) | {"description": "fires on the sign of a sum", "by": "offline"}
        for row in card["verdicts"]:
            if (row["edge"], row["end"]) == (EDGE, "parent"):
                row |= {"verdict": "lost", "reason": REASON}
    table = data["tables"]["verdicts"]["values"]
    for at in range(data["tables"]["verdicts"]["rows"]):
        key = {name: table[name][at] for name in ("instrument", "edge", "end", "text")}
        if key == {"instrument": place[0], "edge": EDGE, "end": "parent", "text": "common"}:
            table[before][at] -= 1
            table["lost"][at] += 1
    token = columns["tokens"][columns["models"]["sums"]["top"][3 * feature]]
    return written(data, tmp_path_factory.mktemp("lost")), feature, token


def test_a_newcomer_finds_what_the_merge_lost_and_says_what_it_was(visit, lost):
    """One click, on the page of what was lost, which begins where something is; one more for all that is known."""
    home, feature, token = lost
    there = visit(home)
    there.page.get_by_role("navigation", name="Pages").get_by_role("link", name="Lost and new").click()
    there.drawn()
    edge = there.main.get_by_role("group", name="Edge", exact=True).get_by_role("button", name="sums → both")
    there.expect(edge).to_have_attribute("aria-pressed", "true")
    there.sees(re.compile(r"1 of \d+ stable features of sums are lost"), "main .sum")
    article = there.main.get_by_role("article")
    there.expect(article).to_have_attribute("aria-label", f"sums/{feature}")
    there.expect(article).to_contain_text("fires on the sign of a sum")
    there.expect(article.locator(".chip").first).to_contain_text(token.strip() or token)
    there.expect(article).to_contain_text("r of what comes nearest 0.11")
    article.get_by_role("link", name=f"sums/{feature}").first.click()
    there.expect(there.main.locator("h1")).to_have_text(f"sums/{feature}")
    there.expect(there.main.get_by_role("region", name="Along sums → both")).to_contain_text("lost")
    there.back()
    there.expect(article).to_have_attribute("aria-label", f"sums/{feature}")


def test_the_picture_leads_there_too(visit, lost):
    """Two clicks: the band that ends, and the row of its feature."""
    home, feature, _ = lost
    there = visit(home)
    band = there.main.get_by_role("link", name=re.compile(r"^sums → both: 1 of \d+ stable features of sums are lost"))
    band.focus()
    there.sees("are lost", "main .said")
    there.page.keyboard.press("Enter")
    there.sees(re.compile("^1 of "), "main .total")
    there.main.get_by_role("table", name="Features").locator(".name a").click()
    there.expect(there.main.locator("h1")).to_have_text(f"sums/{feature}")
    there.expect(there.main.locator("blockquote")).to_have_text("fires on the sign of a sum")
