"""Pictures of every page of a run, light, dark and on a phone, and those of docs/; needs playwright and chromium.

    python benchmarks/pages.py STUDY FOLDER [--runs RUNS]  # as PAGE-light.png, PAGE-dark.png and PAGE-phone.png
    python benchmarks/pages.py demo docs --docs            # what docs/serve.md and the README show, and docs/demo.html

The run is served, so that every feature has its text; docs/demo.html is what `heredity report` writes of it,
with fewer examples where that makes it too large.
"""

from __future__ import annotations

import argparse
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from serve import started, stopped

DOCS = {"": "overview", "flow": "flow", "feature": "feature", "family": "family"}  # pages that docs/ shows
WAITS = re.compile("Reading the features|reading the features|Reading its text|Reading …|Following it")
LOOKS = {
    "light": {"viewport": {"width": 1280, "height": 800}, "color_scheme": "light"},
    "dark": {"viewport": {"width": 1280, "height": 800}, "color_scheme": "dark"},
    "phone": {"viewport": {"width": 390, "height": 844}, "color_scheme": "light", "has_touch": True, "is_mobile": True},
}
LIMIT = 1_500_000  # bytes of docs/demo.html


@contextmanager
def chromium() -> Iterator[Any]:
    """The system's browser, without a window."""
    from playwright.sync_api import sync_playwright

    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


def drawn(page: Any) -> None:
    """Wait until what the page reads is there, and its pictures have their width."""
    from playwright.sync_api import expect

    expect(page.locator("main h1").first).to_be_visible(timeout=60_000)
    expect(page.locator("main")).not_to_contain_text(WAITS, timeout=60_000)
    page.wait_for_timeout(300)


def addresses(page: Any, url: str) -> dict[str, str]:
    """Every page by its name in the address; of the feature and the family the one that the run says most of."""
    page.goto(f"{url}#/family")
    drawn(page)
    links = page.get_by_role("navigation", name="Pages").get_by_role("link").all()
    found = {address.removeprefix("#/"): address for one in links if (address := one.get_attribute("href"))}
    case = page.locator("main .case a, main .heat tbody th a").first.get_attribute("href")
    id_ = case.partition("id=")[2].partition("&")[0]
    return found | {"family": case, "feature": f"#/feature?id={id_}"}


def pictures(url: str, folder: Path, docs: bool) -> None:
    """Write the pictures of all pages, or of those that docs/ shows."""
    folder.mkdir(parents=True, exist_ok=True)
    with chromium() as browser:
        for look in ("light",) if docs else LOOKS:
            page = browser.new_context(**LOOKS[look]).new_page()
            for name, address in addresses(page, url).items():
                if docs and name not in DOCS:
                    continue
                page.goto(f"{url}{address}")
                drawn(page)
                file = f"page-{DOCS[name]}.png" if docs else f"{name or 'overview'}-{look}.png"
                page.screenshot(path=folder / file, full_page=not docs)
                print(folder / file, (folder / file).stat().st_size)


def report(run_folder: Path, out: Path) -> None:
    """Write the page of a run with as many examples of each feature as leave it below LIMIT."""
    from heredity.analyses.feature_columns import columns_of_run
    from heredity.results import open as open_run
    from heredity.show import page

    run = open_run(run_folder)
    data = page.page_data(run, columns_of_run(run))
    cards = [card for places in data["inspector"].values() for one in places.values() for card in one["cards"]]
    text = page.render(data)
    while len(text.encode()) >= LIMIT:
        most = max(len(card["contexts"]) for card in cards) - 1
        for card in cards:
            card["contexts"] = card["contexts"][:most]
        text = page.render(data)
    out.write_text(text, encoding="utf-8")
    print(out, out.stat().st_size)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--docs", action="store_true")
    options = parser.parse_args()
    process, client, _ = started(options.study, options.runs)
    try:
        pictures(client.url, options.folder, options.docs)
    finally:
        stopped(process)
    if options.docs:
        name = Path(options.study).stem
        report(options.runs / name, options.folder / f"{name}.html")


if __name__ == "__main__":
    main()
