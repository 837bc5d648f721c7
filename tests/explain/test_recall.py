"""What is read back from a ledger is what was asked and answered, and reading it back asks and changes nothing."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest

from explain.server import TEXTS, Reply, chat, data_of, fast, knowing, serving
from heredity.explain.language import ECHO, INSTRUCTIONS, LanguageJudge
from heredity.explain.ledger import Budget, Ledger, LedgerError, Prices
from heredity.explain.protocol import Failure
from heredity.explain.recall import Recalled, answers_about

MARKED = [np.array([1, 0, 0], bool), np.array([0, 1], bool), np.array([1, 0], bool)]


def every(judge: Any) -> list[Any]:
    """Answers to one question of each kind."""
    description = judge.explain("f/1", TEXTS)
    levels = judge.simulate("f/1", "equals signs", TEXTS)
    verdicts = judge.detect("f/1", "equals signs", TEXTS), judge.fuzz("f/1", "equals signs", TEXTS, MARKED)
    return [description, *levels, *verdicts, judge.intruder("f/1", [TEXTS])]


def same(one: Any, other: Any) -> bool:
    return np.array_equal(one, other) if isinstance(one, np.ndarray) else one == other


def test_answers_are_those_that_came_and_nothing_is_asked_or_changed(tmp_path):
    path = tmp_path / "l.sqlite"
    with serving(knowing) as server:
        with Ledger(path, Budget(Prices(1.0, 2.0))) as ledger:
            came = every(LanguageJudge(fast(server), ledger))
            assert answers_about(path, ["f/1"])[0], "while it is written as well"
        count, content = len(server.bodies), hashlib.sha256(path.read_bytes()).hexdigest()
        answers, unanswered = answers_about(path, ["f/1"])
        judge = Recalled(answers, "sparse")
        assert all(same(*pair) for pair in zip(came, every(judge), strict=True)) and not unanswered
        assert sorted(one.name for one in tmp_path.iterdir()) == ["l.sqlite", "l.sqlite.lock"]
        assert len(server.bodies) == count and hashlib.sha256(path.read_bytes()).hexdigest() == content
    assert [one.question for one in judge.met] == ["explain", "simulate", "detect", "fuzz", "intruder"]
    for one in judge.met:
        assert one.prompt and one.prompt.startswith(INSTRUCTIONS[one.question]) and one.model == "m"
        assert (one.tokens_in, one.tokens_out, one.cost) == (100, 10, pytest.approx(120e-6))
        assert one.failure is None and one.attempts == 1 and one.provider == f"127.0.0.1:{server.port}"
    assert judge.met[0].answer == '```json\n{"explanation": "equals signs"}\n```', "as it came"
    assert answers_about(path, ["f/2"]) == ({}, []), "nothing was asked about another feature"
    assert all(isinstance(value, Failure) for value in every(Recalled({}, "sparse"))[:1])


def test_what_could_not_be_read_or_did_not_come_is_seen(tmp_path):
    def faulty(path: str, body: dict[str, Any]) -> Reply:
        prompt = body["messages"][0]["content"]
        if prompt.startswith(INSTRUCTIONS["simulate"]):
            return chat("I would rather not say.")
        return (
            Reply({"error": {"message": "no"}}, 403) if prompt.startswith(INSTRUCTIONS["fuzz"]) else knowing(path, body)
        )

    path = tmp_path / "l.sqlite"
    with serving(faulty) as server, Ledger(path) as ledger:
        every(LanguageJudge(fast(server), ledger))
    answers, unanswered = answers_about(path, ["f/1"])
    judge = Recalled(answers, "sparse")
    every(judge)
    (simulated,) = (one for one in judge.met if one.question == "simulate")
    assert simulated.failure == "unparsed" and "no JSON dict in it" in str(simulated.detail)
    assert simulated.answer == "I would rather not say." and simulated.cost == 0
    (refused,) = unanswered
    assert (refused.question, refused.failure, refused.prompt, refused.answer) == ("fuzz", "refused", None, None)
    assert "HTTP 403" in str(refused.detail) and refused.tokens_in is None


def test_an_answer_that_was_cut_stands_before_the_one_that_came_for_it(tmp_path):
    def thinking(path: str, body: dict[str, Any]) -> Reply:
        return chat("<think>hm", "length") if body["max_tokens"] < 1000 else chat('{"explanation": "x"}')

    path = tmp_path / "l.sqlite"
    with serving(thinking) as server, Ledger(path) as ledger:
        assert LanguageJudge(fast(server), ledger).explain("f/1", TEXTS) == "x"
    judge = Recalled(answers_about(path, ["f/1"])[0], "sparse")
    assert judge.explain("f/1", TEXTS) == "x"
    assert [(one.answer, one.failure) for one in judge.met] == [
        ("<think>hm", "truncated"),
        ('{"explanation": "x"}', None),
    ]


def test_an_echoed_prompt_is_read_back_as_its_levels(tmp_path):
    def echoing(path: str, body: dict[str, Any]) -> Reply:
        tokens = [*body["prompt"]]
        top = [None, *({token: -0.1} for token in tokens[1:])]
        choice = {"text": "", "logprobs": {"tokens": [*tokens, "x"], "top_logprobs": [*top, {"x": -1.0}]}}
        return Reply({"choices": [choice], "usage": {"prompt_tokens": len(tokens), "completion_tokens": 1}})

    path = tmp_path / "l.sqlite"
    with serving(echoing) as server, Ledger(path) as ledger:
        came = LanguageJudge(fast(server), ledger, mode="echo").simulate("f/1", "x", TEXTS)
    judge = Recalled(answers_about(path, ["f/1"])[0], "echo")
    assert judge.simulate("f/1", "x", TEXTS) == came
    (one,) = judge.met
    assert one.prompt and one.prompt.startswith(ECHO) and one.answer == "" and one.echoed == len(one.prompt) + 1


def test_a_key_that_an_endpoint_sends_back_is_in_nothing_that_is_read_back(tmp_path, monkeypatch):
    key = "sk-secret-0123456789"
    monkeypatch.setenv("OPENAI_API_KEY", key)

    def leaking(path: str, body: dict[str, Any]) -> Reply:
        data_of(body)
        return (
            chat(f'{{"explanation": "{key}"}} Bearer {key}') if len(server.bodies) % 2 else Reply(f"bad key {key}", 403)
        )

    path = tmp_path / "l.sqlite"
    with serving(leaking) as server, Ledger(path) as ledger:
        judge = LanguageJudge(fast(server), ledger)
        judge.explain("f/1", TEXTS)
        judge.explain("f/1", TEXTS[:1])
    answers, unanswered = answers_about(path, ["f/1"])
    found = Recalled(answers, "sparse")
    found.explain("f/1", TEXTS)
    assert any(header["authorization"] == f"Bearer {key}" for header in server.headers), "it was sent"
    assert found.met and unanswered and key not in str((answers, unanswered, found.met)) and "(key)" in str(found.met)


def test_a_file_that_is_no_ledger_is_named(tmp_path):
    (tmp_path / "l.sqlite").write_text("not a database, but a text of some length " * 40)
    for name in ("l.sqlite", "none.sqlite"):
        with pytest.raises(LedgerError, match=f"{name}: cannot be read"):
            answers_about(tmp_path / name, ["f/1"])
