"""A language model as a judge: what it is asked, and that no text can leave the JSON string it stands in."""

from __future__ import annotations

import json
import math
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from explain.server import HOSTILE, TEXTS, Reply, chat, excerpt, fast, knowing, serving
from heredity.explain.language import INSTRUCTIONS, LanguageJudge, echo_prompt, marks, quoted
from heredity.explain.ledger import Budget, Ledger, Prices
from heredity.explain.protocol import Failure


@pytest.fixture
def ledger(tmp_path):
    with Ledger(tmp_path / "l.sqlite") as opened:
        yield opened


@pytest.fixture
def asked(ledger):
    """The prompt of the one request that a question takes."""
    judge: Any = LanguageJudge(SimpleNamespace(name="m"), ledger)  # pyright: ignore[reportArgumentType]

    def prompt(question, *arguments):
        [request] = judge.plan(lambda planner: getattr(planner, question)("f", *arguments))
        assert request.prompt.startswith(INSTRUCTIONS[question])
        return request.prompt

    return prompt


def data(prompt: str):
    return json.loads(prompt.splitlines()[-1])


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_stays_in_its_string(text, asked):
    line = quoted({"text": text, text: [text]})
    assert json.loads(line) == {"text": text, text: [text]}
    assert line.isprintable() and len(line.splitlines()) == 1
    line.encode()
    for special in ("</s>", "<s>", "<|im", "[INST]", "[/INST]"):
        assert special not in line
    prompt = asked("detect", text, [excerpt(text), excerpt(text, "b")])
    assert prompt.count("\n") == INSTRUCTIONS["detect"].count("\n") + 1
    assert data(prompt) == {"explanation": text, "texts": [[1, text], [2, text + "b"]]}


def test_common_text_is_left_readable():
    assert quoted("if a < b and c[0] == 'é日':") == "\"if a < b and c[0] == 'é日':\""


def test_explaining_tells_active_tokens_with_levels_of_the_strongest(asked):
    shown = data(asked("explain", [excerpt("a", " b", "\n", active={1: 5.0, 2: 0.01}), excerpt("c", active={0: 10.0})]))
    assert shown == [{"text": "a b\n", "active": [[" b", 5], ["\n", 1]]}, {"text": "c", "active": [["c", 9]]}]
    assert data(asked("explain", [excerpt("a")])) == [{"text": "a", "active": []}]


def test_simulation_numbers_tokens_through_all_excerpts_and_shows_no_activation(asked):
    for value in (1, 7):
        prompt = asked("simulate", "x", [excerpt("a", "b", active={0: value}), excerpt("c", active={0: value})])
        assert data(prompt) == {"explanation": "x", "excerpts": [[[0, "a"], [1, "b"]], [[2, "c"]]]}


def test_fuzzing_marks_with_signs_that_no_text_holds(asked):
    texts = [excerpt("a", "b", "c"), excerpt("d", "e")]
    assert data(asked("intruder", [texts])) == [[1, "abc"], [2, "de"]]
    shown = data(asked("fuzz", "x", texts, [np.array([0, 1, 1], bool), np.array([0, 0], bool)]))
    assert shown["marks"] == ["«", "»"] and shown["texts"] == [[1, "a«b»«c»"], [2, "de"]]
    assert marks(["«"]) == ("⟦", "⟧")
    start, end = marks([*HOSTILE, "2"])
    joined = "".join((*HOSTILE, "2"))
    assert start not in joined and end not in joined and start != end


def test_the_echo_prompt_is_ascii_and_its_places_are_its_levels():
    prompt = echo_prompt(HOSTILE[0], [excerpt(*HOSTILE), excerpt("a")])
    assert prompt.text.isascii() and len(prompt.unknown) == len(HOSTILE) + 1
    assert {digit for _, digit in prompt.shown} == set("0123456789")
    for place, digit in prompt.shown:
        assert prompt.text[place - 1 : place + 2] == f"\t{digit}\n"
    for place, token in zip(prompt.unknown, (*HOSTILE, "a"), strict=True):
        assert prompt.text[place:].startswith("unknown\n")
        line = prompt.text[:place].rsplit("\n", 1)[1]
        assert json.loads(line.rstrip("\t")) == token


def test_a_judge_asks_every_question_and_reads_every_answer(tmp_path):
    with serving(knowing) as server, Ledger(tmp_path / "l.sqlite", Budget(Prices(1.0, 1.0))) as ledger:
        judge = LanguageJudge(fast(server), ledger, batch=2)
        assert judge.explain("lua/1", TEXTS) == "equals signs"
        simulated = judge.simulate("lua/1", "equals signs", TEXTS)
        assert [own.tolist() for own in simulated] == [[0, 9, 0], [0, 0], [9, 9]]
        np.testing.assert_array_equal(judge.detect("lua/1", "equals signs", TEXTS), [1, 0, 1])
        marked = [np.array([0, 1, 0], bool), np.array([1, 0], bool), np.array([0, 1], bool)]
        np.testing.assert_array_equal(judge.fuzz("lua/1", "equals signs", TEXTS, marked), [1, 0, 0])
        np.testing.assert_array_equal(judge.intruder("lua/1", [TEXTS, TEXTS[1:]]), [1, 0])
        assert ledger.summary().requests == sum(server.paid.values()) == 1 + 2 + 2 + 2 + 2
        assert {body["temperature"] for body in server.bodies} == {0}
        planned = judge.plan(lambda own: (own.explain("lua/1", TEXTS), own.simulate("lua/1", "other", TEXTS)))
        assert [request.question for request in planned] == ["explain", "simulate", "simulate"]
        assert ledger.estimate(planned, judge.completer).requests == 2


def test_hostile_text_changes_no_answer(ledger):
    texts = [excerpt(*HOSTILE), excerpt(*HOSTILE, "=", active={8: 1.0}), *(excerpt(text) for text in HOSTILE)]
    with serving(knowing) as server:
        judge = LanguageJudge(fast(server), ledger, batch=20)
        for description in ("equals signs", *HOSTILE):
            np.testing.assert_array_equal(judge.detect("f", description, texts), [0, 1] + [0] * len(HOSTILE))
            simulated = np.concatenate(judge.simulate("f", description, texts))
            assert simulated.sum() == simulated[16] == 9
        assert judge.explain("f", texts) == "equals signs"


def test_results_come_in_order_and_leaving_early_asks_no_more(ledger):
    questions = [(f"f/{n}", [excerpt(f"={n}", active={0: 1.0})]) for n in range(40)]
    with serving(lambda *asked: knowing(*asked)._replace(seconds=0.02)) as server:
        judge = LanguageJudge(fast(server, concurrency=3), ledger)
        assert list(judge.over(lambda n: time.sleep((9 - n) / 500) or n, range(9))) == list(range(9))
        with pytest.raises(KeyboardInterrupt):
            for done, _ in enumerate(judge.over(lambda question: judge.explain(*question), questions)):
                if done == 4:
                    raise KeyboardInterrupt
        asked = len(server.bodies)
        assert 5 <= asked < 20 and ledger.summary().requests == asked == sum(server.paid.values())
        assert judge.explain("f", [excerpt("z")]) == Failure("unreachable", "stopped before it was asked")


def test_echoed_prompts_are_read_and_never_ask_for_no_tokens(ledger):
    def echo(path, body):
        assert path == "/v1/completions" and body["echo"] and body["max_tokens"] == 1
        tokens, top, at = [], [], 0
        for line in body["prompt"].splitlines(keepends=True):
            token, tab, level = line.partition("\t")
            for part in (token, tab, level.rstrip("\n"), "\n" * level.count("\n")) if tab else (line,):
                if part:
                    share = 0.9 if "=" in token else 0.1
                    likely = {"9": math.log(share), "0": math.log(1 - share)} if tab and part == "unknown" else None
                    tokens, top, at = [*tokens, part], [*top, likely], at + len(part)
        return Reply({"choices": [{"text": "", "logprobs": {"tokens": [*tokens, "7"], "top_logprobs": [*top, {}]}}]})

    with serving(echo) as server:
        judge = LanguageJudge(fast(server), ledger, mode="echo")
        levels = np.concatenate(judge.simulate("f", "equals signs", TEXTS))
        np.testing.assert_allclose(levels, [0.9, 8.1, 0.9, 0.9, 0.9, 8.1, 8.1])
        server.respond = lambda *_: chat("no echo here")
        [failure] = judge.simulate("f", "other", TEXTS[:1])
        assert isinstance(failure, Failure) and failure.kind == "empty"
