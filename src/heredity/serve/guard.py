"""What stands before every answer: which requests are taken, how many, and what a browser may do with an answer."""

from __future__ import annotations

import ipaddress
import json
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from typing import Any

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
BODY = 16_384  # bytes of a request at most
QUERY = 4_096  # characters of a query string at most
RATE, BURST = 20.0, 60.0  # questions a second that are taken for long, and at once

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]


def hosts_of(host: str) -> set[str]:
    """Names by which a server that listens on `host` may be asked for: loopback, and those that reach it.

    Of an address that stands for all of this machine's (`0.0.0.0`, `::`) these are the machine's names.
    """
    names = {*LOOPBACK, f"[{host}]" if ":" in host else host.lower()}
    try:
        everywhere = ipaddress.ip_address(host).is_unspecified
    except ValueError:
        everywhere = False
    return names | ({socket.gethostname().lower(), socket.getfqdn().lower()} if everywhere else set())


class Guard:
    """Refuses requests that no reader of the page makes, and says what the page may do.

    A page of another site that resolves its own name to this machine sends that name as the host: refused. One that
    posts here cannot name JSON as its content without asking first, which nothing here allows.
    """

    def __init__(
        self, app: App, hosts: Collection[str], policy: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """hosts: names, without ports, by which requests may call this server. policy: of the page's content."""
        self.app, self.hosts, self.clock = app, hosts, clock
        self.headers = [
            (
                b"content-security-policy",
                f"{policy}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'".encode(),
            ),
            (b"x-content-type-options", b"nosniff"),
            (b"x-frame-options", b"DENY"),
            (b"referrer-policy", b"no-referrer"),
            (b"cross-origin-resource-policy", b"same-origin"),
            (b"cache-control", b"no-store"),
        ]
        self._left, self._since, self._lock = BURST, clock(), threading.Lock()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *self.headers]
            await send(message)

        refusal = self._refusal(scope)
        if refusal is None:
            await self.app(scope, receive, answer)
            return
        status, reason = refusal
        body = json.dumps({"error": reason}).encode()
        head = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        head += [(b"retry-after", b"1")] if status == 429 else []
        await answer({"type": "http.response.start", "status": status, "headers": head})
        await answer({"type": "http.response.body", "body": body})

    def _refusal(self, scope: Message) -> tuple[int, str] | None:
        """Status and reason of a request that is not taken."""
        given: dict[bytes, list[bytes]] = {}
        for name, value in scope["headers"]:
            given.setdefault(name.lower(), []).append(value)
        named = [_without_port(value.decode("latin-1")) for value in given.get(b"host", [])]
        if len(named) != 1 or named[0] not in self.hosts:
            return 421, "this server is not known by that host name; use the address that it printed"
        if scope["method"] not in ("GET", "HEAD", "POST"):
            return 405, f"method {scope['method'][:20]} is not served; use GET, or POST to /api/try"
        if len(scope.get("query_string", b"")) > QUERY:
            return 414, f"the query is longer than {QUERY:,} characters; shorten what is looked for"
        if scope["method"] == "POST":
            length = b"".join(given.get(b"content-length", []))
            kind = b"".join(given.get(b"content-type", [])).partition(b";")[0].strip().lower()
            if kind != b"application/json":
                return 415, "a text is posted as application/json"
            # Zeros before a length would hide it, and a body in chunks has none.
            if not length.isdigit() or len(length) > 12 or int(length) > BODY or b"transfer-encoding" in given:
                return 413, f"a request has to say its length, and has at most {BODY:,} bytes; shorten the text"
        if scope["path"].startswith("/api/") and not self._taken():
            return 429, f"more than {RATE:g} questions a second; wait a moment"
        return None

    def _taken(self) -> bool:
        """Whether one more question fits the rate."""
        with self._lock:
            now = self.clock()
            self._left, self._since = min(BURST, self._left + RATE * (now - self._since)), now
            if self._left < 1:
                return False
            self._left -= 1
            return True


def _without_port(host: str) -> str:
    """`[::1]:8000` and `LOCALHOST:8000` as `[::1]` and `localhost`."""
    end = host.find("]") + 1 if host.startswith("[") else host.find(":") if ":" in host else len(host)
    name, port = host[:end], host[end:]
    return name.lower() if not port or (port[:1] == ":" and port[1:].isdigit()) else ""
