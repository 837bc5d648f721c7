"""The ledger pays once, keeps what it paid for, and its budget holds under concurrency."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from heredity.explain.ledger import FRAME, Budget, Estimate, Ledger, LedgerError, Prices, key_of
from heredity.explain.parse import read_explanation
from heredity.explain.protocol import Answer, Failure, Request

GOOD = Answer('{"explanation": "x"}', "stop", 100, 10, ("a",), ({"a": -1.0},))
COSTS = Prices(1.0, 2.0)  # a good answer costs 100 + 20 in millionths


class Asked:
    """A completer that answers by a function, and counts."""

    name, concurrency = "m", 8

    def __init__(self, answer=lambda request: GOOD, **parameters):
        self.answer, self.prompts = answer, []
        self.identity = {"provider": "here", "model": "m", "parameters": parameters}

    def complete(self, request):
        self.prompts.append(request.prompt)
        reply = self.answer(request)
        return reply if isinstance(reply, list) else (reply, 2)

    stop = None


def question(prompt="p", feature="lua/1", **rest):
    return Request(feature, "explain", prompt, 50, **rest)


def whole(answer):
    return answer


@pytest.fixture
def path(tmp_path):
    return tmp_path / "l.sqlite"


@pytest.fixture
def ledger(path):
    with Ledger(path, Budget(COSTS)) as opened:
        yield opened


def at_once(ledger, asked, prompts):
    """Answers to questions that sixteen threads ask."""
    with ThreadPoolExecutor(16) as pool:
        return list(pool.map(lambda prompt: ledger.ask(question(prompt), asked, whole), prompts))


def test_the_same_request_is_paid_once_also_by_another_process_run(path):
    asked = Asked()
    with Ledger(path) as ledger:
        assert ledger.ask(question(), asked, whole) == GOOD
        assert ledger.ask(question(feature="lua/2"), asked, whole) == GOOD
        assert ledger.summary()[:2] == (1, 1)
    with Ledger(path) as ledger:
        assert ledger.ask(question(), asked, whole) == GOOD
        assert ledger.summary()[:2] == (1, 1) and asked.prompts == ["p"]


def test_everything_that_decides_an_answer_is_in_the_key():
    keys = {
        key_of(request, completer)
        for request in (question(), question("q"), question(echo=True), question(logprobs=5))
        for completer in (Asked(), Asked(seed=1))
    }
    assert len(keys) == 8
    assert key_of(question(), Asked()) == key_of(question(feature="other"), Asked())


def test_identical_requests_at_once_are_one(ledger):
    asked = Asked(lambda request: time.sleep(0.05) or GOOD)
    assert at_once(ledger, asked, ["p0", "p1"] * 8) == [GOOD] * 16 and sorted(asked.prompts) == ["p0", "p1"]
    assert ledger.summary()[:2] == (2, 14)


def test_an_answer_is_on_disk_before_it_is_read(ledger, path):
    def crash(answer):
        with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as other:
            assert other.execute("SELECT COUNT(*) FROM answers").fetchone() == (1,)
        other.close()
        raise RuntimeError("reading went wrong")

    asked = Asked()
    with pytest.raises(RuntimeError, match="reading"):
        ledger.ask(question(), asked, crash)
    assert ledger.ask(question(), asked, whole) == GOOD and len(asked.prompts) == 1


def test_failures_stand_apart_and_are_asked_again(ledger, path):
    gone, refused = Failure("unreachable", "gone"), Failure("refused", "HTTP 500")
    replies = [[gone, 6], refused, GOOD]
    asked = Asked(lambda request: replies.pop(0))
    assert ledger.ask(question(), asked, whole) == gone
    assert ledger.summary() == (0, 0, {"unreachable": 1}, 0, 0, 0.0, {}, {"unreachable": "gone"}, {}, {})
    assert ledger.ask(question(), asked, whole) == refused and ledger.summary().failures == {"refused": 1}
    assert ledger.ask(question(), asked, whole) == GOOD
    assert ledger.summary().failures == ledger.summary().reasons == {} and ledger.summary().requests == 1
    assert [*ledger._base.execute("SELECT failure, attempts FROM failures")] == [("refused", 8)]


def test_answers_that_cannot_be_read_are_counted_until_they_can(ledger):
    asked = Asked(lambda request: GOOD._replace(text='{"explana'))
    failure, cost = ledger.ask(question(), asked, read_explanation), pytest.approx(120e-6)
    assert isinstance(failure, Failure) and failure.kind == "truncated"
    counts = (1, 0, {"truncated": 1}, 100, 10, cost, {"lua/1": cost}, {}, {"explain": 1}, {"explain": cost})
    assert ledger.summary() == counts
    assert ledger.ask(question(), asked, whole).text == '{"explana'
    assert ledger.summary().failures == {} and len(asked.prompts) == 1


def test_a_completer_that_raises_leaves_no_trace(path):
    with Ledger(path, Budget(max_requests=1)) as ledger:
        for _ in range(2):
            with pytest.raises(ZeroDivisionError):
                ledger.ask(question(), Asked(lambda request: 1 / 0), whole)
        assert ledger.ask(question(), Asked(), whole) == GOOD


def test_the_number_of_requests_is_kept_under_concurrency_and_over_runs(path):
    asked = Asked(lambda request: time.sleep(0.001) or GOOD)
    for limit in (7, 7, 12):
        with Ledger(path, Budget(max_requests=limit)) as ledger:
            found = at_once(ledger, asked, [f"p{n}" for n in range(30)])
            assert len(asked.prompts) == limit == sum(answer == GOOD for answer in found)
            assert {answer.kind for answer in found if answer != GOOD} == {"budget"}
            assert ledger.summary().failures == {"budget": 30 - limit}


def test_one_budget_opened_twice_counts_earlier_requests_once(path):
    budget = Budget(max_requests=2)
    for prompt in ("p", "q"):
        with Ledger(path, budget) as ledger:
            assert ledger.ask(question(prompt), Asked(), whole) == GOOD


def test_the_cost_is_never_above_its_limit_under_concurrency(path):
    """A first reservation is for 300 bytes, a frame and all of the answer."""
    lock, under_way = threading.Lock(), [0, 0]  # now, at most

    def answer(request):
        with lock:
            under_way[:] = under_way[0] + 1, max(under_way[1], under_way[0] + 1)
        time.sleep(0.002)
        with lock:
            under_way[0] -= 1
        return GOOD

    asked, limit = Asked(answer), 1500e-6
    with Ledger(path, Budget(COSTS, limit)) as ledger:
        found = at_once(ledger, asked, [f"{n:300}" for n in range(60)])
        spent = ledger.summary().cost
    assert spent == pytest.approx(len(asked.prompts) * 120e-6) and spent <= limit
    # No request was refused that fitted: a reservation is by then 125 + 64 + 100 millionths at most.
    assert spent > limit - (1.25 * 100 + FRAME + 100) * 1e-6
    assert under_way[1] > 1 and any(isinstance(answer, Failure) for answer in found)


def test_answers_that_do_not_tell_their_tokens_cost_what_was_reserved(ledger):
    asked = Asked(lambda request: GOOD._replace(tokens_in=None, tokens_out=None))
    ledger.ask(question("x" * 36), asked, whole)
    assert ledger.summary().cost == pytest.approx((36 + FRAME + 2 * 50) * 1e-6)


def test_estimates_learn_from_what_was_paid_and_leave_out_what_is(ledger):
    asked = Asked()
    two = [question("x" * 300), question("y" * 300), question("y" * 300)]
    assert ledger.estimate(two, asked) == Estimate(2, 200, 100, pytest.approx(400e-6))
    ledger.ask(question("z" * 50), asked, whole)  # two tokens a byte, a fifth of what it may answer
    assert ledger.estimate(two, asked) == Estimate(2, 1200, 20, pytest.approx(1240e-6))
    ledger.ask(two[0], asked, whole)
    assert ledger.estimate(two, asked).requests == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"prices": Prices(-1.0, 0.0)}, "price in=-1.0"),
        ({"prices": Prices(1.0, 1.0), "max_cost": float("nan")}, "max_cost=nan"),
        ({"max_cost": 5.0}, "prices of 0"),
        ({"max_requests": -1}, "max_requests=-1"),
    ],
)
def test_budgets_that_make_no_sense_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        Budget(**arguments)


def test_a_second_writer_and_a_foreign_file_are_refused(path):
    with Ledger(path), pytest.raises(LedgerError, match="another process"):
        Ledger(path)
    with Ledger(path):
        path.with_name("text").write_text("no ledger at all, but long enough to be taken for one" * 100)
    with pytest.raises(LedgerError, match="is no ledger"):
        Ledger(path.with_name("text"))
    with pytest.raises(LedgerError, match="cannot be written"):
        Ledger(path / "l.sqlite")


KILLED = """
import sys
from pathlib import Path
from heredity.explain.protocol import Answer, Request
from heredity.explain.ledger import Ledger

class Asked:
    name, concurrency, identity = "m", 1, {"provider": "here", "model": "m", "parameters": {}}
    def complete(self, request):
        return Answer(request.prompt, "stop", 1, 1), 1

ledger = Ledger(Path(sys.argv[1]))
for n in range(100000):
    ledger.ask(Request("f", "explain", str(n), 1), Asked(), lambda answer: answer)
    print(n, flush=True)
"""


def test_a_kill_loses_no_answer(path):
    with subprocess.Popen([sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE, text=True) as process:
        told = [int(process.stdout.readline()) for _ in range(20)]
        os.kill(process.pid, signal.SIGKILL)
        told += [int(line) for line in process.stdout.read().split()]
    asked = Asked()
    with Ledger(path) as ledger:
        assert ledger.summary().requests >= len(told)
        for n in told:
            assert ledger.ask(Request("f", "explain", str(n), 1), asked, whole).text == str(n)
    assert asked.prompts == []


def test_the_file_says_what_was_asked_and_answered(ledger):
    ledger.ask(question(), Asked(seed=3), whole)
    ledger._base.row_factory = sqlite3.Row
    row = dict(ledger._base.execute("SELECT * FROM answers").fetchone())
    assert json.loads(row["answer"]) == ['{"explanation": "x"}', "stop", ["a"], [{"a": -1.0}]]
    assert json.loads(row["parameters"])["set"] == {"seed": 3}
    assert row["attempts"] == 2 and row["prompt"] == "p" and row["question"] == "explain" and row["provider"] == "here"
