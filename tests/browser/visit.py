"""A reader of the page: a browser's window, with all that it logged, asked for or tried."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from heredity.show import page

AXE = Path(__file__).parents[2] / "web" / "node_modules" / "axe-core" / "axe.min.js"
WAITS = re.compile(r"Reading the features|Explaining it|Following it|Reading its text|Reading …", re.IGNORECASE)
# Made from data these would be a way in; the page makes none of them, whatever its policy would stop.
ACTING = "script, img, iframe, object, embed, link, meta, base, video, audio, form[action], [onload], [onerror]"
ACTING += ", style:not(svg style)"  # Plot puts one into each picture


def plain(text: str) -> str:
    """Text with plain spaces, single ones."""
    return re.sub(r"\s+", " ", text.translate({0x202F: " ", 0x2060: "", 0xA0: " "})).strip()


class Visit:
    """One window at one address."""

    def __init__(self, context: Any, home: str, address: str = "#/") -> None:
        """home: the page without a hash."""
        from playwright.sync_api import expect

        expect.set_options(timeout=30_000)
        self.home, self.expect = home, expect
        self.page = context.new_page()
        self.logged: list[str] = []
        self.asked: list[str] = []
        self.dialogs: list[str] = []
        self.page.on("console", lambda message: self.logged.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.logged.append(f"error: {error}"))
        self.open = 0  # requests without an answer yet
        self.page.on("request", self._ask)
        for end in ("requestfinished", "requestfailed"):
            self.page.on(end, self._answered)
        self.page.on("dialog", self._refuse)
        self.page.goto(home + address)
        self.drawn()

    def _ask(self, request: Any) -> None:
        self.asked.append(request.url)
        self.open += 1

    def _answered(self, _: Any) -> None:
        self.open -= 1

    def _refuse(self, dialog: Any) -> None:
        self.dialogs.append(dialog.message)
        dialog.dismiss()

    @property
    def main(self) -> Any:
        """What the page says, besides its navigation."""
        return self.page.locator("main")

    @property
    def hash(self) -> str:
        """Where the reader is; browsers write `>` as an escape."""
        return "#" + self.page.url.partition("#")[2].replace("%3E", ">")

    def drawn(self) -> None:
        """Wait until what the page reads is there."""
        self.expect(self.main.locator("h1").first).to_be_visible()
        quiet, until = 0, time.monotonic() + 60
        while quiet < 2:  # what has come may still ask for more
            self.page.wait_for_timeout(25)
            waits = self.open or WAITS.search(self.main.inner_text())
            quiet = 0 if waits else quiet + 1
            assert time.monotonic() < until, f"{self.hash} still waits: {self.main.inner_text()[:200]}"

    def go(self, address: str) -> str:
        """Follow an address of the page; returns what it says there."""
        self.page.evaluate("address => { location.hash = address; }", address)
        self.page.wait_for_url(lambda url: url.replace("%3E", ">").endswith(address))
        self.drawn()
        return self.text()

    def text(self) -> str:
        """All that the page says, with plain spaces."""
        return plain(self.main.inner_text())

    def back(self) -> None:
        """Take the last step back."""
        self.page.go_back()
        self.drawn()

    def sees(self, text: str | re.Pattern[str], within: str = "main") -> None:
        """Wait until the page says it."""
        self.expect(self.page.locator(within).first).to_contain_text(text)

    def pages(self) -> list[tuple[str, str]]:
        """Title and address of every page of the navigation."""
        links = self.page.get_by_role("navigation", name="Pages").get_by_role("link").all()
        return [(link.inner_text(), link.get_attribute("href") or "") for link in links]

    def save(self, button: Any) -> tuple[str, bytes]:
        """Press what saves a file; returns its name and content."""
        with self.page.expect_download() as got:
            button.click()
        return got.value.suggested_filename, Path(got.value.path()).read_bytes()

    def flaws(self) -> list[str]:
        """What axe finds on the page that hinders somebody seriously, by rule, with the elements."""
        if not self.page.evaluate("Boolean(window.axe)"):
            self.page.evaluate(AXE.read_text(encoding="utf-8"))
        found = self.page.evaluate("async () => (await axe.run(document, {resultTypes: ['violations']})).violations")
        serious = [one for one in found if one["impact"] in ("serious", "critical")]
        return [f"{one['id']}: {json.dumps([node['html'][:160] for node in one['nodes'][:4]])}" for one in serious]

    def is_clean(self) -> None:
        """Nothing was logged or opened, and nothing was asked for but the page and its own server's answers."""
        assert self.logged == []
        assert self.dialogs == []
        own = self.home.rstrip("/") + "/"
        strange = [
            url
            for url in self.asked
            if url.partition("#")[0] != self.home and not url.startswith((f"{own}api/", "blob:", "data:image/svg"))
        ]
        assert strange == []
        assert self.main.locator(ACTING).count() == 0
        self.page.close()


@contextlib.contextmanager
def listening(app: Any) -> Iterator[str]:
    """The address of a server of this application on this machine."""
    uvicorn = pytest.importorskip("uvicorn")
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off"))
    port = socket.socket()
    port.bind(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [port]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{port.getsockname()[1]}/"
    finally:
        server.should_exit = True
        thread.join()
        port.close()


def written(data: Any, folder: Path, name: str = "page") -> str:
    """The address of the page of this data, written as a file."""
    path = folder / f"{name}.html"
    path.write_text(page.render(data), encoding="utf-8")
    return path.as_uri()
