"""Every request that was paid for, on disk before it is read, so that none is paid for twice."""

from __future__ import annotations

import contextlib
import fcntl
import json
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple, TypeVar

from heredity.engine.store import digest
from heredity.explain.budget import Budget, Estimate, Spent
from heredity.explain.completer import Answer, Completer, Request
from heredity.explain.protocol import Failure

Read = TypeVar("Read")

_TABLES = """
CREATE TABLE IF NOT EXISTS answers (
  key TEXT PRIMARY KEY, provider TEXT, model TEXT, feature TEXT, question TEXT, prompt TEXT, parameters TEXT,
  answer TEXT, failure TEXT, tokens_in INTEGER, tokens_out INTEGER, cost REAL, prompt_bytes INTEGER, allowed INTEGER,
  seconds REAL, attempts INTEGER, time TEXT);
CREATE TABLE IF NOT EXISTS failures (
  key TEXT PRIMARY KEY, provider TEXT, model TEXT, feature TEXT, question TEXT, failure TEXT, detail TEXT,
  seconds REAL, attempts INTEGER, time TEXT);
"""


class LedgerError(ValueError):
    """A ledger that cannot be used; the message names the file and the way out."""


class LedgerSummary(NamedTuple):
    """What a ledger holds."""

    requests: int
    """Answered, and so paid for."""
    cached: int
    """Answered from the ledger since it was opened."""
    failures: dict[str, int]
    """By kind: requests without an answer, answers that could not be read, and since the ledger was opened requests
    that the budget refused."""
    tokens_in: int
    """Of all prompts, as far as told."""
    tokens_out: int
    """Of all answers, as far as told."""
    cost: float
    """USD."""
    cost_by_feature: dict[str, float]
    """USD, by feature."""
    reasons: dict[str, str]
    """By kind of failure, why the last request without an answer got none, since the ledger was opened; empty when
    every request was answered."""
    by_question: dict[str, int]
    """Requests, by kind of question."""
    cost_by_question: dict[str, float]
    """USD, by kind of question."""


class Ledger:
    """An SQLite file with a row for each answered request and, apart, one for each that got no answer.

    A request is known by the SHA-256 of its prompt and limits and the completer's provider, model and parameters. The
    same request is answered from the file; while it is under way, others like it wait for its answer. An answer is
    committed before it is read, so that neither a fault in reading nor a kill loses it. Requests without an answer are
    asked again. Threads share one ledger; a second process is refused.

    Raises `LedgerError` when the file is in use, cannot be opened, or is no ledger.
    """

    def __init__(self, path: Path, budget: Budget | None = None):
        self.path = path
        self.budget = budget or Budget()
        self._lock = threading.Lock()
        self._under_way: dict[str, Future[Answer | Failure]] = {}
        self._cached = 0
        self._refused = 0
        self._unanswered: dict[str, Failure] = {}
        with contextlib.ExitStack() as opened:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                own = opened.enter_context(open(path.with_name(f"{path.name}.lock"), "a"))
                fcntl.flock(own, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._base = opened.enter_context(
                    contextlib.closing(sqlite3.connect(path, check_same_thread=False, isolation_level=None))
                )
                self._base.execute("PRAGMA journal_mode=WAL")
                self._base.execute("PRAGMA synchronous=FULL")
                self._base.executescript(_TABLES)
                self.budget.spent = self._spent()
            except BlockingIOError:
                raise LedgerError(f"{path}: another process is writing it; wait for it, or name another file") from None
            except OSError as error:
                raise LedgerError(f"{path}: cannot be written ({error.strerror}); name another file") from None
            except sqlite3.Error as error:
                raise LedgerError(f"{path}: is no ledger ({error}); move it away or name another file") from None
            self._opened = opened.pop_all()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; nothing is lost without."""
        self._opened.close()

    def ask(self, request: Request, completer: Completer, read: Callable[[Answer], Read | Failure]) -> Read | Failure:
        """The answer to a request as `read` reads it: from the file, or from the completer and then into the file."""
        key = key_of(request, completer)
        with self._lock:
            stored = self._stored(key)
            under_way = None if stored else self._under_way.get(key)
            if stored is None and under_way is None:
                mine = self._under_way[key] = Future()
            else:
                mine = None
        if mine is not None:
            answer = self._fresh(key, request, completer, mine)
        else:
            answer = stored or (under_way.result() if under_way else None)
            assert answer is not None
            if isinstance(answer, Answer):
                with self._lock:
                    self._cached += 1
        if isinstance(answer, Failure):
            return answer
        value = read(answer)
        self._mark(key, value)
        return value

    def estimate(self, requests: Iterable[Request], completer: Completer) -> Estimate:
        """What requests will take that are not in the file yet; each counts once."""
        new: dict[str, Request] = {}
        for request in requests:
            key = key_of(request, completer)
            with self._lock:
                if key not in new and self._stored(key) is None:
                    new[key] = request
        return self.budget.estimate(new.values())

    def summary(self) -> LedgerSummary:
        """Counts and costs."""
        with self._lock:
            sums = (
                "SELECT COUNT(*), COALESCE(SUM(tokens_in), 0), COALESCE(SUM(tokens_out), 0), TOTAL(cost) FROM answers"
            )
            requests, tokens_in, tokens_out, cost = self._base.execute(sums).fetchone()
            failures = dict(
                self._base.execute(
                    "SELECT failure, COUNT(*) FROM (SELECT failure FROM answers WHERE failure IS NOT NULL UNION ALL "
                    "SELECT failure FROM failures WHERE key NOT IN (SELECT key FROM answers)) "
                    "GROUP BY failure ORDER BY failure"
                )
            )
            if self._refused:
                failures["budget"] = self._refused
            by_feature = dict(
                self._base.execute("SELECT feature, SUM(cost) FROM answers GROUP BY feature ORDER BY feature")
            )
            by_question = self._base.execute(
                "SELECT question, COUNT(*), SUM(cost) FROM answers GROUP BY question ORDER BY question"
            ).fetchall()
            reasons = {kind: detail for kind, detail in self._unanswered.values()}
        counts, costs = ({row[0]: row[at] for row in by_question} for at in (1, 2))
        return LedgerSummary(
            requests, self._cached, failures, tokens_in, tokens_out, cost, by_feature, reasons, counts, costs
        )

    def _fresh(
        self, key: str, request: Request, completer: Completer, mine: Future[Answer | Failure]
    ) -> Answer | Failure:
        try:
            answer = self._pay(key, request, completer)
        except BaseException as error:
            mine.set_exception(error)
            raise
        finally:
            with self._lock:
                del self._under_way[key]
        mine.set_result(answer)
        return answer

    def _pay(self, key: str, request: Request, completer: Completer) -> Answer | Failure:
        held = self.budget.reserve(request)
        if isinstance(held, Failure):
            with self._lock:
                self._refused += 1
                self._unanswered[key] = held
            return held
        answer, start = None, time.monotonic()
        try:
            reply = completer.complete(request)
            answer = reply if isinstance(reply, Answer) else None
        finally:
            cost = self.budget.settle(held, answer)
        seconds, now = round(time.monotonic() - start, 3), datetime.now(UTC).isoformat(timespec="seconds")
        identity = completer.identity
        about = (key, identity["provider"], identity["model"], request.feature, request.question)
        if not isinstance(reply, Answer):
            values = (*about, *reply.failure, seconds, reply.attempts, now)
            with self._lock:
                self._unanswered[key] = reply.failure
                self._base.execute(
                    "INSERT INTO failures VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (key) DO UPDATE SET "
                    "failure = excluded.failure, detail = excluded.detail, seconds = seconds + excluded.seconds, "
                    "attempts = attempts + excluded.attempts, time = excluded.time",
                    values,
                )
            return reply.failure
        kept = json.dumps([reply.text, reply.finish, reply.tokens, reply.top])
        values = (
            *about, request.prompt, json.dumps(_parameters(request, completer)), kept, None, reply.tokens_in,
            reply.tokens_out, cost, held.prompt_bytes, held.max_tokens, seconds, reply.attempts, now,
        )  # fmt: skip
        with self._lock:
            self._unanswered.pop(key, None)
            self._base.execute(f"INSERT INTO answers VALUES ({', '.join('?' * len(values))})", values)
        return reply

    def _stored(self, key: str) -> Answer | None:
        row = self._base.execute(
            "SELECT answer, tokens_in, tokens_out, attempts FROM answers WHERE key = ?", (key,)
        ).fetchone()
        if row is None:
            return None
        text, finish, tokens, top = json.loads(row[0])
        return Answer(text, finish, row[1], row[2], tuple(tokens), tuple(top), row[3])

    def _mark(self, key: str, value: object) -> None:
        parts = value if isinstance(value, list) else [value]
        failure = next((part.kind for part in parts if isinstance(part, Failure)), None)
        with self._lock:
            self._base.execute(
                "UPDATE answers SET failure = ? WHERE key = ? AND failure IS NOT ?", (failure, key, failure)
            )

    def _spent(self) -> Spent:
        told = "tokens_in IS NOT NULL AND tokens_out IS NOT NULL"
        requests, cost = self._base.execute("SELECT COUNT(*), TOTAL(cost) FROM answers").fetchone()
        rest = self._base.execute(
            "SELECT COUNT(*), COALESCE(SUM(prompt_bytes), 0), COALESCE(SUM(tokens_in), 0), "
            "COALESCE(SUM(tokens_out), 0), COALESCE(SUM(allowed), 0), "
            f"COALESCE(MAX(1.0 * tokens_in / MAX(prompt_bytes, 1)), 0.0) FROM answers WHERE {told}"
        ).fetchone()
        return Spent(requests, cost, *rest)


def key_of(request: Request, completer: Completer) -> str:
    """SHA-256 (hex) of all that decides an answer: provider, model, prompt, limits and parameters; not the feature."""
    return digest([dict(completer.identity), request.prompt, _parameters(request, completer)])


def _parameters(request: Request, completer: Completer) -> dict[str, object]:
    own: dict[str, object] = {"max_tokens": request.max_tokens, "echo": request.echo, "logprobs": request.logprobs}
    return own | {"set": completer.identity.get("parameters")}
