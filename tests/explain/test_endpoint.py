"""An endpoint over real HTTP, with the faults that endpoints have."""

from __future__ import annotations

import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from explain.server import TEXTS, Reply, chat, excerpt, fast, knowing, refusing, serving
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


def openai(body):
    """Reasoning models of OpenAI."""
    told = {"type": "invalid_request_error"}
    if "max_tokens" in body:
        told |= {"message": "Unsupported parameter: 'max_tokens' is not supported with this model. Use "
                 "'max_completion_tokens' instead.", "param": "max_tokens"}  # fmt: skip
    elif body.get("temperature", 1) != 1:
        told |= {"message": "Unsupported value: 'temperature' does not support 0 with this model. Only the default (1) "
                 "value is supported.", "param": "temperature"}  # fmt: skip
    return (400, {"error": told}) if "message" in told else None


def forbidding(*names, form, status=400):
    """Refuses these, one at a time, in a form of words or fields."""
    return lambda body: next(((status, form(name)) for name in names if name in body), None)


def pydantic(name):
    return {"type": "extra_forbidden", "loc": ["body", name], "msg": "not permitted", "input": 0}


VLLM = "[{{'type': 'extra_forbidden', 'loc': ('body', '{}'), 'msg': 'Extra inputs are not permitted'}}]"
GEMINI = 'Invalid JSON payload received. Unknown name "{}": Cannot find field.'
TGI = (422, {"error": "Input validation error: `temperature` must be strictly positive"})
REST = {"max_tokens", "temperature"}
DIALECTS = {
    "OpenAI": (openai, {"max_completion_tokens", "seed"}),
    "OpenAI, neither name of the limit": (
        forbidding("max_tokens", "max_completion_tokens", form=lambda n: {"error": {"message": "no", "param": n}}),
        {"temperature", "seed"},
    ),
    "an older server, asked by the newer name": (
        forbidding("max_completion_tokens", form=lambda n: f"unknown field `{n}`"),
        {*REST, "seed"},
    ),
    "FastAPI": (
        forbidding("seed", "temperature", form=lambda n: {"detail": [pydantic(n)]}, status=422),
        {"max_tokens"},
    ),
    "vLLM": (forbidding("seed", form=lambda n: {"object": "error", "message": VLLM.format(n)}), REST),
    "Mistral": (forbidding("seed", form=lambda n: {"message": {"detail": [pydantic(n)]}}, status=422), REST),
    "TGI": (lambda body: TGI if body.get("temperature") == 0 else None, {"max_tokens", "seed"}),
    "Gemini": (forbidding("seed", form=lambda n: [{"error": {"code": 400, "message": GEMINI.format(n)}}]), REST),
    "words alone": (forbidding("response_format", "stop", form=lambda n: f"{n} is not taken here"), {*REST, "seed"}),
}


@pytest.mark.parametrize("name", DIALECTS)
def test_a_refused_parameter_is_left_out_or_renamed_once_for_all(name, tmp_path):
    rule, taken = DIALECTS[name]
    options = {"extra": {"response_format": {"type": "json_object"}, "stop": ["\n"]} if name == "words alone" else {}}
    options |= {"limit": "max_completion_tokens"} if "newer" in name else {}
    with serving(refusing(rule)) as server:
        for run in range(2):  # a second run knows the dialect from the ledger
            with Ledger(tmp_path / "l.sqlite") as ledger:
                before, endpoint = len(server.bodies), fast(server, **options)
                judge = LanguageJudge(endpoint, ledger)
                found = [judge.explain("f/1", [excerpt(f"{run} {n}")]) for n in range(3)]
                assert found == ["x"] * 3
                refused = sum(requests for *_, requests in ledger.dialect(endpoint.identity))
                assert len(server.bodies) - before == 3 + (refused if run == 0 else 0)
                assert set(server.bodies[-1]) - {"model", "messages"} == taken
                assert ledger.summary().failures == {} and ledger.summary().requests == 3 * (run + 1)


def test_all_requests_at_once_learn_a_dialect_together():
    with serving(refusing(openai)) as server, ThreadPoolExecutor(8) as pool:
        endpoint = fast(server, concurrency=8)
        found = list(pool.map(endpoint.complete, [QUESTION] * 24))
        assert all(isinstance(answer, Answer) for answer, _ in found)
        assert endpoint.dialect == {"max_tokens": "max_completion_tokens", "temperature": ""}
        assert sum(attempts for _, attempts in found) == len(server.bodies)


@pytest.mark.parametrize(
    "refusal",
    [
        {"error": {"message": "'max_tokens' is too large: 50. This model's maximum context length is 40 tokens"}},
        {"error": {"message": "max_tokens (50) exceeds the context", "param": "max_tokens"}},
        {"error": {"message": "the prompt holds the seed of a temperature", "param": "messages"}},
        {"error": {"message": "bad request"}},
    ],
)
def test_a_limit_too_large_and_a_fault_of_the_prompt_change_nothing(refusal):
    with serving(lambda *_: Reply(refusal, 400)) as server:
        endpoint = fast(server)
        assert failed(endpoint) == ("refused", 1) and endpoint.dialect == {}


def thinking(room, inline):
    """A model that thinks before it answers, for so many tokens; the endpoint shows thoughts in the answer or apart."""

    def respond(path, body):
        enough = body["max_tokens"] >= room
        thoughts, answer = "hm { so " * 9, '{"explanation": "x"}' if enough else ""
        reply = chat(f"<think>{thoughts}{'</think>' if enough else ''}{answer}" if inline else answer or None,
                     "stop" if enough else "length")  # fmt: skip
        message = reply.body["choices"][0]["message"]
        message |= {} if inline is None or inline else {"reasoning_content": thoughts}
        return reply

    return respond


@pytest.mark.parametrize("inline", [True, False, None])
def test_thoughts_get_room_once_one_answer_was_cut_in_them(inline, tmp_path):
    with serving(thinking(2000, inline)) as server:
        for run in range(2):
            with Ledger(tmp_path / "l.sqlite") as ledger:
                judge = LanguageJudge(fast(server), ledger)
                assert [judge.explain("f/1", [excerpt(f"{run} {n}")]) for n in range(3)] == ["x"] * 3
                assert ledger.summary().reasons == {}
        assert [body["max_tokens"] > 2000 for body in server.bodies] == [False, *[True] * 6]


def test_an_answer_that_its_limit_cut_is_a_failure_with_its_way_out_and_no_answer_in_the_ledger(tmp_path):
    replies = {50_000: chat('{"explanation": "x"}')}
    cut = lambda _, body: replies.get(body["max_tokens"] // 50_000 * 50_000, chat('{"explanation": "and', "length"))  # noqa: E731
    with serving(cut) as server:
        for times in (1, 2):
            with Ledger(tmp_path / "l.sqlite") as ledger:
                failure = LanguageJudge(fast(server), ledger).explain("f/1", [excerpt("a")])
                assert isinstance(failure, Failure) and failure.kind == "truncated"
                assert "cut at its limit of 120 tokens; give more with --spare-tokens" in failure.detail
                assert ledger.summary().reasons == {"truncated": failure.detail}
                assert len(server.bodies) == times == ledger.summary().requests, "what was paid for counts"
        with Ledger(tmp_path / "l.sqlite") as ledger:
            judge = LanguageJudge(fast(server), ledger, spare_tokens=50_000)
            assert judge.explain("f/1", [excerpt("a")]) == "x" and ledger.summary().reasons == {}


def test_a_body_that_no_parser_takes_is_a_failure():
    for body in ("[" * 100_000, "9" * 5000, '{"choices": [{"message": {"content": "\\ud800"}}]}'):
        with serving(lambda *_, body=body: Reply(body)) as server:
            reply, _ = fast(server, retries=0).complete(QUESTION)
            assert isinstance(reply, Answer | Failure)


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
    with pytest.raises(EndpointError, match=r"pip install -c constraints.txt -e '.\[explain\]'"):
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


def test_an_answer_that_would_fill_the_memory_is_not_read(monkeypatch):
    monkeypatch.setattr("heredity.explain.endpoint._LARGEST", 10)
    for reply, words in (
        (Reply("x", headers={"Content-Encoding": "gzip"}), "is packed (gzip)"),
        (Reply("x" * 11), "has 11 bytes, and an explanation has at most 10"),
    ):
        with serving(lambda path, body, reply=reply: reply) as server:
            failure, _ = Endpoint("m", server.url, "", retries=0).complete(Request("base/1", "explain", "why?", 50))
            assert server.headers[0]["accept-encoding"] == "identity"
        assert isinstance(failure, Failure) and words in failure.detail
