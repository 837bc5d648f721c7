"""A browser, and the finished study as a file and behind its server."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from browser.visit import Visit, listening
from explain.server import Reply, chat, knowing, serving
from heredity.explain.language import INSTRUCTIONS

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """The browser, without a window."""
    driver = pytest.importorskip("playwright.sync_api", reason="needs playwright; make test-browser installs it")
    if CHROMIUM is None:
        pytest.skip("needs chromium, of the system's packages")
    with driver.sync_playwright() as playwright:
        # as root there is no sandbox; what a page cannot do without one, its policy forbids anyway
        words = ["--no-sandbox", "--disable-gpu", "--font-render-hinting=none"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=words)
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium: Any) -> Iterator[Callable[..., Visit]]:
    """Opens a page in a window of its own; whatever is left open is clean when the test ends."""
    with contextlib.ExitStack() as closing:
        visits: list[Visit] = []

        def opened(home: str, address: str = "#/", **options: Any) -> Visit:
            size = {"width": 1380, "height": 900}
            context = closing.enter_context(chromium.new_context(**{"viewport": size, **options}))
            context.set_default_timeout(90_000)  # other work may keep the machine busy
            visits.append(Visit(context, home, address))
            return visits[-1]

        yield opened
        for one in visits:
            if not one.page.is_closed():
                one.is_clean()


def _mumbling(path: str, body: dict[str, Any]) -> Reply:
    """A model that answers all but what needs marks."""
    marks = body["messages"][0]["content"].startswith(INSTRUCTIONS["fuzz"])
    return chat("I would rather not say.") if marks else knowing(path, body)


@pytest.fixture(scope="session")
def homes(lineage: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The finished study's page: as a `file`, and from its `server`. A language model was `asked` about a feature of
    which the file has text, and two people have tagged two others."""
    pytest.importorskip("fastapi")
    from heredity.analyses import notes
    from heredity.analyses.explain_on_demand import Ask, explain
    from heredity.results import open as open_run
    from heredity.serve import database
    from heredity.serve.app import create_app
    from heredity.serve.explorer import Explorer
    from heredity.serve.guard import hosts_of
    from heredity.show import page

    folder = tmp_path_factory.mktemp("pages") / "s"
    shutil.copytree(lineage.run.folder, folder)
    run = open_run(folder)
    cards = run.artifact(("features", run.item())).json("features.json")
    often = run.acts("base").firings()
    asked = max((card["feature"] for card in cards if card["model"] == "base"), key=lambda feature: often[feature])
    with serving(_mumbling) as model:
        explain(run, {"base": [asked]}, Ask(model="m", base_url=model.url, prices=(1, 2)), None)
    for by, feature, tag in (("ada", 3, "code"), ("bob", 3, "code"), ("ada", 4, "code"), ("bob", 4, "prose")):
        notes.write_note(run, run.item(), "base", feature, f"{by} on {feature}", [tag], by)
    out = folder / "report.html"
    page.write(run, out)
    path = folder / database.FILE
    database.build(run, path, database.key_of(run.pipeline, folder), lambda done, total: None)
    with listening(create_app(Explorer(lambda: run, path), hosts_of("127.0.0.1"))) as url:
        yield {"file": out.as_uri(), "server": url, "asked": f"base/{asked}"}


@pytest.fixture(params=["file", "server"])
def home(request: pytest.FixtureRequest, homes: dict[str, str]) -> str:
    """The page, either way."""
    return homes[request.param]
