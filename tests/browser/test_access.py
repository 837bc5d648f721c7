"""The page can be used by the keyboard alone, and axe finds nothing that hinders anybody seriously, light and dark."""

from __future__ import annotations

import re

import pytest

from browser.visit import AXE, plain, written
from heredity.show import page
from show.runs import all_columns, run_of

pytestmark = pytest.mark.browser
MORE = ["#/feature?id=base/1", "#/family?id=base/1", "#/features?words=zzzz", "#/flow?t=0.70", "#/results?part=match"]

UNREACHABLE = """main => [...main.querySelectorAll("a[href], button, input, select, textarea, summary")]
  .filter((one) => one.checkVisibility() && one.tabIndex < 0 && !one.disabled)
  .filter((one) => !one.closest("[role=group][tabindex='0']"))  // reached through their group
  .map((one) => one.outerHTML.slice(0, 120))"""


@pytest.mark.skipif(not AXE.is_file(), reason="needs axe-core: npm ci in web/, as `make page` does")
@pytest.mark.parametrize("colors", ["light", "dark"])
def test_axe_finds_nothing_serious_on_any_page(colors, visit, home):
    there = visit(home, color_scheme=colors)
    flaws = {}
    for address in [*(address for _, address in there.pages()), *MORE]:
        there.go(address)
        flaws[address] = there.flaws()
    if home.startswith("http"):
        there.go("#/try")
        there.main.get_by_label("Your text").fill("3 plus 4 = 7;")
        there.page.keyboard.press("Control+Enter")
        there.sees("families", "main [role=status]")
        flaws["#/try, read"] = there.flaws()
    assert {address: own for address, own in flaws.items() if own} == {}


@pytest.mark.skipif(not AXE.is_file(), reason="needs axe-core: npm ci in web/, as `make page` does")
@pytest.mark.parametrize("colors", ["light", "dark"])
def test_axe_finds_nothing_serious_in_any_table_or_picture(colors, visit, tmp_path):
    """Of a run with rows in every declared table."""
    data = page.page_data(run_of(tmp_path / "run"), all_columns())
    there = visit(written(data, tmp_path), color_scheme=colors)
    flaws = {}
    for address in (
        "#/stitch",
        "#/quality",
        "#/merge",
        *(f"#/results?part={part['kind']}" for part in data["sections"][:6]),
    ):
        there.go(address)
        folds = there.main.locator("details:not([open]) > summary").all()
        for folded in reversed(folds):  # an open one no longer counts
            folded.click()
        flaws[address] = there.flaws()
    assert {address: own for address, own in flaws.items() if own} == {}


def test_the_keyboard_reaches_everything(visit, home):
    there = visit(home)
    keys, page_ = there.page.keyboard, there.page
    focused = page_.locator(":focus")
    keys.press("Tab")
    there.expect(focused).to_have_text("Skip to the content")
    there.expect(focused).to_be_in_viewport()
    keys.press("Enter")
    there.expect(focused).to_have_attribute("id", "main")
    keys.press("Tab")
    there.expect(focused).to_have_class(re.compile("^band"))
    assert plain(focused.get_attribute("aria-label")) in there.text(), "what is pointed at says its words"
    lit = there.main.locator("a.band.lit").count()
    assert 0 < lit < there.main.locator("a.band").count()
    keys.press("Enter")
    there.drawn()
    assert there.hash.startswith("#/features?model=")
    there.expect(focused).to_have_attribute("id", "main")
    keys.press("Tab")  # what to look for
    keys.press("Tab")
    keys.press("Tab")
    there.expect(focused).to_have_attribute("aria-label", "A token, words of an explanation, or an id")
    keys.type("base/4")
    keys.press("Enter")
    there.drawn()
    there.expect(there.main.locator("h1")).to_have_text("base/4")
    there.back()
    there.expect(there.main.locator("h1")).to_have_text("Features")


def test_every_control_can_be_focused_and_has_a_name(visit, homes):
    there = visit(homes["server"])
    for _, address in there.pages():
        there.go(address)
        found = there.main.evaluate(UNREACHABLE)
        assert found == [], address


def test_arrow_keys_read_the_activations_of_a_text(visit, homes, lineage):
    name = f"base/{lineage.run.acts('base').firings().argmax()}"
    there = visit(homes["server"], f"#/family?id={name}")
    panels = there.main.locator(".panels").first
    panels.focus()
    there.page.keyboard.press("ArrowRight")
    there.expect(panels.locator(":scope > .visually-hidden")).to_contain_text(f"{name} ")
    there.page.keyboard.press("Escape")
    there.expect(panels.locator(":scope > .visually-hidden")).to_be_empty()


def test_a_small_screen_needs_no_sideways_scroll(visit, home):
    there = visit(home, viewport={"width": 390, "height": 800})
    for _, address in [*there.pages(), ("", "#/feature?id=base/4"), ("", "#/family?id=base/4")]:
        there.go(address)
        wide, room = there.page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
        assert wide <= room, address
