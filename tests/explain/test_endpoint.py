"""An endpoint over real HTTP, with the faults that endpoints have."""

from __future__ import annotations

import os
import sys
import threading

import numpy as np
import pytest

from explain.server import TEXTS, Reply, chat, excerpt, fast, knowing, serving
from heredity.explain.endpoint import Endpoint, EndpointError
from heredity.explain.language import LanguageJudge
from heredity.explain.ledger import Ledger
from heredity.explain.protocol import Answer, Failure, Request

pytest.importorskip("openai")
QUESTION = Request("lua/1", "explain", "why?", 50)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def faults_then(good, *faults):
    left, lock = list(faults), threading.Lock()

    def respond(path, body):
        with lock:
            return left.pop(0) if left else good

    return respond


def failed(endpoint):
    """Kind of failure and attempts of a question."""
    failure, attempts = endpoint.complete(QUESTION)
    assert isinstance(failure, Failure)
    return failure.kind, attempts


def test_waits_as_long_as_retry_after_says():
    busy = Reply("{}", 429, {"Retry-After": "0.3"})
    with serving(faults_then(chat("x"), busy, busy, Reply("oops", 500))) as server:
        assert fast(server).complete(QUESTION) == (Answer("x", "stop", 100, 10), 4)
        assert np.diff(server.times)[:2].min() >= 0.3 and sum(server.paid.values()) == 1


def test_nothing_is_tried_again_after_a_stop():
    def failing(path, body):
        endpoint.stop()
        return Reply("{}", 500)

    with serving(failing) as server:
        endpoint = fast(server)
        failure, _ = endpoint.complete(QUESTION)
        assert failure.kind == "unreachable" and "stopped" in failure.detail and len(server.bodies) == 1


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (chat("x" * 50)._replace(cut=True), "unreachable"),
        (Reply('{"choices": [{"mess'), "truncated"),
        (Reply("{}", 503), "refused"),
        (chat("x")._replace(seconds=0.6), "unreachable"),
    ],
)
def test_passing_faults_are_tried_again_and_lasting_ones_have_a_kind(fault, kind):
    with serving(faults_then(chat("x"), fault)) as server:
        answer, attempts = fast(server, timeout=0.3).complete(QUESTION)
        assert isinstance(answer, Answer) and attempts == 2
    with serving(lambda *_: fault) as server:
        assert failed(fast(server, timeout=0.3, retries=1)) == (kind, 2)


NO = (Reply({"error": {"message": "no"}}, 400), Reply({"error": "no"}), Reply("{}", 429, {"Retry-After": "4000"}))


@pytest.mark.parametrize("fault", NO)
def test_a_no_and_too_long_a_pause_are_not_asked_again(fault):
    with serving(lambda *_: fault) as server:
        assert failed(fast(server)) == ("refused", 1)


def test_a_wrong_key_is_told_once_and_never_written(tmp_path, monkeypatch):
    monkeypatch.setenv("MY_KEY", "sk-secret-123")
    denied = lambda *_: Reply({"error": {"message": "no such key: sk-secret-123"}}, 401)  # noqa: E731
    with serving(denied) as server, Ledger(tmp_path / "l.sqlite") as ledger:
        judge = LanguageJudge(fast(server, key_variable="MY_KEY"), ledger)
        found = [judge.explain(f"f/{n}", [excerpt(str(n))]) for n in range(5)]
        assert {failure.kind for failure in found} == {"refused"} and "(key)" in found[0].detail
        assert len(server.bodies) == 1
        assert server.headers[0]["authorization"] == "Bearer sk-secret-123"
        server.respond = lambda *_: chat('{"explanation": "sk-secret-123"}')
        judge = LanguageJudge(fast(server, key_variable="MY_KEY"), ledger)
        assert judge.explain("f/1", [excerpt("a")]) == "(key)"
        server.respond = lambda *_: chat(r'{"explanation": "\u0073k-secret-123"}')
        assert isinstance(judge.explain("f/1", [excerpt("b")]), Failure)
        for file in tmp_path.iterdir():
            assert b"sk-secret" not in file.read_bytes(), file
    secret = Endpoint("m", "http://user:hunter2@127.0.0.1:9/v1?token=hunter3", key_variable="")
    assert "hunter" not in str(secret.identity) and secret.identity["provider"] == "127.0.0.1:9"


def test_a_server_that_dies_and_comes_back_loses_nothing_and_is_paid_once(tmp_path):
    questions = [(f"f/{n}", [excerpt(f"={n}", active={0: 1.0})]) for n in range(24)]
    half = threading.Semaphore(10)

    def dying(path, body):
        return knowing(path, body) if half.acquire(blocking=False) else chat("x" * 99)._replace(cut=True)

    def explained(endpoint):
        with Ledger(tmp_path / "l.sqlite") as ledger:
            judge = LanguageJudge(endpoint, ledger)
            return list(judge.over(lambda question: judge.explain(*question), questions)), ledger.summary()

    with serving(dying) as first:
        before, summary = explained(fast(first, retries=1, concurrency=4))
        assert summary.failures == {"unreachable": 14} and summary.requests == 10
    gone, _ = explained(Endpoint("m", first.url, retries=0))  # nobody there at all
    assert [isinstance(own, Failure) for own in gone] == [isinstance(own, Failure) for own in before]
    assert {own.kind for own in gone if isinstance(own, Failure)} == {"unreachable"}
    with serving(knowing, first.port) as server:
        found, summary = explained(fast(server, retries=1, concurrency=4))
        assert found == ["equals signs"] * 24 and summary[:3] == (24, 10, {})
        paid = first.paid + server.paid
        assert len(paid) == 24 and set(paid.values()) == {1} and server.most_together <= 4


def test_when_nobody_answers_requests_are_tried_once_until_one_does():
    with serving(lambda *_: chat("x" * 9)._replace(cut=True)) as server:
        endpoint = fast(server, retries=2)
        assert [endpoint.complete(QUESTION)[1] for _ in range(5)] == [3, 3, 3, 1, 1]
        server.respond = lambda *_: chat("x")
        assert isinstance(endpoint.complete(QUESTION)[0], Answer)
        server.respond = faults_then(chat("x"), Reply("", 500))
        assert endpoint.complete(QUESTION)[1] == 2


def test_cut_refused_and_untold_answers():
    with serving(faults_then(chat("x"), chat("{", "length"), chat(None, "content_filter"), chat("y", usage=None))) as s:
        endpoint = fast(s)
        assert [endpoint.complete(QUESTION)[0][1] for _ in range(2)] == ["length", "refused"]
        assert endpoint.complete(QUESTION)[0][2:4] == (None, None)


def test_parameters_can_be_named_added_and_left_out():
    with serving(lambda *_: chat("x")) as server:
        extra = {"temperature": None, "reasoning_effort": "low"}
        fast(server, limit="max_completion_tokens", extra=extra).complete(QUESTION)
        assert server.bodies[0].keys() == {"model", "messages", "seed", "max_completion_tokens", "reasoning_effort"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"base_url": "https://example.com/v1"}, "OPENAI_API_KEY: is not set"),
        ({"base_url": "example.com"}, "is no http address"),
        ({"base_url": "http://127.0.0.1:99999/v1"}, "is no http address"),
        ({"concurrency": 0}, "concurrency=0"),
    ],
)
def test_endpoints_that_cannot_work_are_refused(arguments, words):
    with pytest.raises(EndpointError, match=words):
        Endpoint("m", **arguments)


def test_a_missing_client_is_told_with_the_extra_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(EndpointError, match=r"heredity\[explain\]"):
        Endpoint("m", "http://127.0.0.1:9/v1")
    asked = Endpoint("m", "http://127.0.0.1:9/v1", asks=False)
    assert asked.identity["model"] == "m", "what it would cost can be estimated without the client"


@pytest.mark.network
def test_a_real_model_behind_a_real_server(tmp_path):
    """Every answer is something or fails by kind: nothing is said of quality. HEREDITY_ENDPOINT_MODEL at
    HEREDITY_ENDPOINT, such as llama_cpp.server as docs/explain.md starts it."""
    url, model = os.environ.get("HEREDITY_ENDPOINT"), os.environ.get("HEREDITY_ENDPOINT_MODEL")
    if not url or not model:
        pytest.skip("HEREDITY_ENDPOINT and HEREDITY_ENDPOINT_MODEL are not set")
    with Ledger(tmp_path / "l.sqlite") as ledger:
        judge = LanguageJudge(Endpoint(model, url, concurrency=2), ledger, batch=3)
        found = [judge.explain("f", TEXTS), judge.detect("f", "equals signs", TEXTS)]
        found += [*judge.simulate("f", "equals signs", TEXTS), judge.intruder("f", [TEXTS])]
        assert not {own.kind for own in found if isinstance(own, Failure)} & {"unreachable", "refused"}
        assert ledger.summary().requests == 4 and ledger.summary().tokens_in > 0
