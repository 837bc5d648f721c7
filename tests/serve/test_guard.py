"""Requests that no reader of the page makes are refused before anything is looked at."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from heredity.serve.guard import BODY, BURST, QUERY, Guard, hosts_of


async def _app(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"answer"})


def ask(
    guard: Guard, path: str = "/", method: str = "GET", query: bytes = b"", **headers: str
) -> tuple[int, bytes, Any]:
    """Status, body and headers of an answer."""
    named = [
        (name.replace("_", "-").encode(), value.encode()) for name, value in ({"host": "localhost"} | headers).items()
    ]
    scope = {"type": "http", "method": method, "path": path, "query_string": query}
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(guard(scope | {"headers": named}, send, send))  # pyright: ignore[reportArgumentType]
    return sent[0]["status"], sent[1]["body"], dict(sent[0]["headers"])


@pytest.fixture
def guard() -> Guard:
    return Guard(_app, hosts_of("127.0.0.1"), "default-src 'none'", clock=lambda: 0.0)


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8377", "127.0.0.1", "127.0.0.1:1", "[::1]", "[::1]:8377"])
def test_a_request_by_a_known_name_is_answered_with_a_policy(guard, host):
    status, body, headers = ask(guard, host=host)
    assert (status, body) == (200, b"answer")
    assert headers[b"content-security-policy"].startswith(b"default-src 'none'; base-uri 'none'")
    assert headers[b"x-content-type-options"] == b"nosniff" and headers[b"cache-control"] == b"no-store"


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "localhost.evil.example",
        "127.0.0.1.evil.example:80",
        "",
        "localhost:8a",
        "[::1",
        "::1",
        "@localhost",
    ],
)
def test_another_name_is_refused(guard, host):
    assert ask(guard, host=host)[0] == 421
    assert b"content-security-policy" in ask(guard, host=host)[2]


def test_names_of_the_address_that_is_listened_on_are_known():
    assert "192.0.2.1" in hosts_of("192.0.2.1") and "[2001:db8::1]" in hosts_of("2001:db8::1")
    assert hosts_of("0.0.0.0") > {"localhost", "0.0.0.0"} and "evil.example" not in hosts_of("0.0.0.0")


def test_methods_lengths_and_contents_are_limited(guard):
    assert ask(guard, method="PUT")[0] == ask(guard, method="OPTIONS")[0] == 405
    assert ask(guard, query=b"x" * (QUERY + 1))[0] == 414
    json_ = {"content_type": "application/json; charset=utf-8"}
    assert ask(guard, "/api/try", "POST", content_type="text/plain", content_length="2")[0] == 415
    assert ask(guard, "/api/try", "POST", **json_)[0] == 413, "a length that is not said"
    assert ask(guard, "/api/try", "POST", content_length=str(BODY + 1), **json_)[0] == 413
    assert ask(guard, "/api/try", "POST", content_length=f"{'0' * 14}{BODY + 1}", **json_)[0] == 413, "behind zeros"
    assert ask(guard, "/api/try", "POST", content_length="5", transfer_encoding="chunked", **json_)[0] == 413
    assert ask(guard, "/api/try", "POST", content_length=str(BODY), **json_)[0] == 200


def test_more_questions_than_the_rate_wait():
    now = [0.0]
    guard = Guard(_app, {"localhost"}, "", clock=lambda: now[0])
    assert [ask(guard, "/api/features")[0] for _ in range(int(BURST) + 2)] == [*[200] * int(BURST), 429, 429]
    status, body, headers = ask(guard, "/api/features")
    assert status == 429 and b"questions a second" in body and headers[b"retry-after"] == b"1"
    assert ask(guard)[0] == 200, "the page itself is no question"
    now[0] = 0.1
    assert [ask(guard, "/api/features")[0] for _ in range(3)] == [200, 200, 429]
