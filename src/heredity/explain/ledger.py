"""Every request that was paid for, on disk before its answer is read, so that nothing is paid for twice; and what
requests cost: estimates beforehand, and limits that hold under concurrency."""

from __future__ import annotations

import contextlib
import json
import math
import re
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from heredity.engine.store import digest
from heredity.errors import UNSUPPORTED, reading, short
from heredity.explain.protocol import Answer, Completer, Failure, Request

try:
    import fcntl
except ImportError:  # a ledger could not be locked
    raise ImportError(UNSUPPORTED) from None

Read = TypeVar("Read")
TYPICAL = 1 / 3  # assumed prompt tokens per byte until answers report theirs
MARGIN = 1.25  # a reservation is for this many times the most tokens per byte of any prompt so far
FRAME = 64  # tokens a chat template may add

_TABLES = """
CREATE TABLE IF NOT EXISTS answers (
  key TEXT PRIMARY KEY, provider TEXT, model TEXT, feature TEXT, question TEXT, prompt TEXT, parameters TEXT,
  answer TEXT, failure TEXT, tokens_in INTEGER, tokens_out INTEGER, cost REAL, prompt_bytes INTEGER, allowed INTEGER,
  seconds REAL, attempts INTEGER, time TEXT);
CREATE TABLE IF NOT EXISTS failures (
  key TEXT PRIMARY KEY, provider TEXT, model TEXT, feature TEXT, question TEXT, failure TEXT, detail TEXT,
  seconds REAL, attempts INTEGER, time TEXT);
CREATE TABLE IF NOT EXISTS dialect (
  provider TEXT, model TEXT, parameter TEXT, instead TEXT, requests INTEGER, PRIMARY KEY (provider, model, parameter));
"""
_MOVE = "move it away or name another file"
_CUT = "failure = 'truncated' AND json_extract(answer, '$[1]') = 'length' AND length(key) = 64"
_SET_APART = f"UPDATE answers SET key = key || ' cut ' || rowid WHERE {_CUT}"
"""An answer that its limit cut was paid for and counts, but answers nothing: no request has its key any more."""


class LedgerError(ValueError):
    """A ledger that cannot be used; the message names the file and the way out."""


class Prices(NamedTuple):
    """USD per million tokens of prompts and of answers."""

    tokens_in: float = 0.0
    tokens_out: float = 0.0

    def cost(self, tokens_in: float, tokens_out: float) -> float:
        """USD."""
        return (tokens_in * self.tokens_in + tokens_out * self.tokens_out) / 1e6


class Estimate(NamedTuple):
    """Expected size and cost of a set of requests."""

    requests: int
    tokens_in: int
    tokens_out: int  # all that is allowed, until answers have shown which share of it they use
    cost: float  # USD


class LedgerSummary(NamedTuple):
    """Contents of a ledger; costs in USD, tokens as far as reported."""

    requests: int  # answered, and so paid for
    cached: int  # answered from the ledger since it was opened
    failures: dict[str, int]  # unanswered requests, unreadable answers and, since it was opened, `budget`; by kind
    tokens_in: int
    tokens_out: int
    cost: float
    cost_by_feature: dict[str, float]
    reasons: dict[str, str]  # detail of the last request still unanswered since it was opened, by kind of failure
    by_question: dict[str, int]  # requests
    cost_by_question: dict[str, float]


class Budget:
    """Limits on the cost and the number of all answered requests of one ledger, those of earlier runs included.

    Before a request is sent its highest cost is reserved: as many tokens as bytes in the prompt (`MARGIN` times the
    most tokens per byte so far, once answers report theirs), and as many in the answer as it may have. A request that
    does not fit waits while others are in flight, since they may turn out cheaper, and is refused when none is. An
    endpoint that exceeds the limit of an answer, or bills a request that timed out, can exceed the budget.

    Raises `ValueError` for limits or prices that are negative or not finite, and for `max_cost` without prices.
    """

    def __init__(self, prices: Prices | None = None, max_cost: float | None = None, max_requests: int | None = None):
        self.prices, self.max_cost, self.max_requests = prices or Prices(), max_cost, max_requests
        for name, value in (("price in", self.prices[0]), ("price out", self.prices[1]), ("max_cost", max_cost)):
            if value is not None and not (value >= 0 and math.isfinite(value)):
                raise ValueError(f"{name}={value}: must be a number of USD, 0 or more")
        if max_requests is not None and max_requests < 0:
            raise ValueError(f"max_requests={max_requests}: must be 0 or more")
        if max_cost is not None and not any(self.prices):
            raise ValueError(f"max_cost={max_cost}: has no effect at prices of 0; give USD per million tokens")
        self._held: list[float] = []  # highest costs of the requests in flight
        self._settled = threading.Condition()
        self.load(())

    def load(self, answered: Iterable[tuple[int, int, float, int | None, int | None]]) -> None:
        """Start from these answered requests; fields as the arguments of `_count`."""
        self._requests, self._cost = 0, 0.0
        # Of those that reported their tokens: bytes and tokens of prompts, tokens of answers and their limits.
        self._bytes = self._tokens_in = self._tokens_out = self._allowed = 0
        self._highest: float | None = None  # tokens per byte of a prompt
        for row in answered:
            self._count(*row)

    def _count(self, size: int, allowed: int, cost: float, tokens_in: int | None, tokens_out: int | None) -> None:
        """Count an answered request. size: of its prompt in bytes. allowed: tokens of its answer."""
        self._requests += 1
        self._cost += cost
        if tokens_in is not None and tokens_out is not None:
            self._bytes += size
            self._tokens_in += tokens_in
            self._tokens_out += tokens_out
            self._allowed += allowed
            self._highest = max(self._highest or 0.0, tokens_in / max(size, 1))

    def reserve(self, request: Request) -> float | Failure:
        """Reserve the highest cost of a request in USD, or fail as `budget`; waits for requests in flight to settle."""
        with self._settled:
            while True:
                ratio = 1.0 if self._highest is None else MARGIN * self._highest
                cost = self.prices.cost(ratio * _size(request) + FRAME, request.max_tokens)
                if self.max_requests is not None and self._requests + len(self._held) >= self.max_requests:
                    over = f"max_requests={self.max_requests} is met"
                elif self.max_cost is not None and self._cost + sum(self._held) + cost > self.max_cost:
                    spent = f"{self._cost:.4f} USD of max_cost={self.max_cost} are spent"
                    over = f"{spent} and the next request may cost {cost:.4f}"
                else:
                    self._held.append(cost)
                    return cost
                if not self._held:
                    return Failure("budget", f"{over}; raise it and run again to go on")
                self._settled.wait()

    def settle(self, request: Request, held: float, answer: Answer | None) -> float:
        """Release a reservation; count and return the cost of the answer in USD, as reserved where not reported."""
        with self._settled:
            self._held.remove(held)
            self._settled.notify_all()
            if answer is None:
                return 0.0
            cost, tokens_in, tokens_out = held, answer.tokens_in, answer.tokens_out
            if tokens_in is not None and tokens_out is not None:
                cost = self.prices.cost(tokens_in, tokens_out)
            self._count(_size(request), request.max_tokens, cost, tokens_in, tokens_out)
            return cost

    def estimate(self, requests: Iterable[Request]) -> Estimate:
        """Expected size and cost of requests, from the tokens of those before."""
        ratio = self._tokens_in / self._bytes if self._bytes else TYPICAL
        used = self._tokens_out / self._allowed if self._allowed else 1.0
        sizes = [(_size(request), request.max_tokens) for request in requests]
        tokens_in = math.ceil(ratio * sum(size for size, _ in sizes))
        tokens_out = math.ceil(used * sum(limit for _, limit in sizes))
        return Estimate(len(sizes), tokens_in, tokens_out, self.prices.cost(tokens_in, tokens_out))


class Ledger:
    """An SQLite file with a row per answered request and, apart, one per request without an answer; a context.

    A request is identified by the SHA-256 of its prompt and limits and the completer's provider, model and parameters.
    The same request is answered from the file; while it is in flight, others like it wait for its answer. An answer is
    committed before it is read, so that neither a fault in reading nor a kill loses it. Requests without an answer are
    asked again, and so are those whose answer was cut by its limit of tokens. Threads share one ledger; a second
    process is refused. It also remembers what parameters an endpoint does not take, by provider and model.

    Raises `LedgerError` when the file is in use, cannot be opened, or is not a ledger.
    """

    def __init__(self, path: Path, budget: Budget | None = None):
        self.budget = budget or Budget()
        self._path, self._lock = path, threading.Lock()
        self._in_flight: dict[str, Future[Answer | Failure]] = {}
        self._cached = self._refused = 0
        self._unanswered: dict[str, Failure] = {}
        with contextlib.ExitStack() as opened:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                lock = opened.enter_context(open(path.with_name(f"{path.name}.lock"), "a"))
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                base = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
                self._base = opened.enter_context(contextlib.closing(base))
                names = {name for (name,) in base.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
                if names and "answers" not in names:
                    raise LedgerError(f"{path}: holds {short(sorted(names)[0], 80)}, and no ledger; {_MOVE}")
                base.execute("PRAGMA journal_mode=WAL")
                base.execute("PRAGMA synchronous=FULL")
                base.executescript(_TABLES)
                base.execute(_SET_APART)
                self.budget.load(base.execute("SELECT prompt_bytes, allowed, cost, tokens_in, tokens_out FROM answers"))
            except LedgerError:
                raise
            except BlockingIOError:
                raise LedgerError(f"{path}: another process is writing it; wait for it, or name another file") from None
            except OSError as error:
                raise LedgerError(f"{path}: cannot be written ({error.strerror}); name another file") from None
            except (sqlite3.Error, ValueError, TypeError, OverflowError) as error:
                raise _unusable(path, error) from None
            self._opened = opened.pop_all()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def ask(self, request: Request, completer: Completer, read: Callable[[Answer], Read | Failure]) -> Read | Failure:
        """The answer to a request as `read` reads it: from the file, or from the completer and then into the file."""
        key = key_of(request, completer)
        with self._lock:
            answer, first = self._stored(key), key not in self._in_flight
            future = self._in_flight.setdefault(key, Future()) if answer is None else None
        if future and first:
            try:
                answer = self._paid(key, request, completer)
                future.set_result(answer)
            except BaseException as error:
                future.set_exception(error)
                raise
            finally:
                with self._lock:
                    del self._in_flight[key]
        else:
            answer = future.result() if future else answer
            with self._lock:
                self._cached += isinstance(answer, Answer)
        assert answer is not None
        if isinstance(answer, Failure):
            return answer
        value = read(answer)
        parts = value if isinstance(value, list) else [value]
        failure = next((part.kind for part in parts if isinstance(part, Failure)), None)
        with self._lock:
            update = "UPDATE answers SET failure = ? WHERE key = ? AND failure IS NOT ?"
            self._sql(update, (failure, key, failure))
            if answer.finish == "length" and failure == "truncated":
                self._sql(f"{_SET_APART} AND key = ?", (key,))
        return value

    def unanswered(self, request: Request, completer: Completer, failure: Failure) -> Failure:
        """Count a request whose answer was cut among those that asking again may answer."""
        with self._lock:
            self._unanswered[key_of(request, completer)] = failure
        return failure

    def dialect(self, identity: Mapping[str, Any]) -> list[tuple[str, str, int]]:
        """Parameters that an endpoint does not take, what is sent instead, and how many requests were refused."""
        query = "SELECT parameter, instead, requests FROM dialect WHERE provider = ? AND model = ? ORDER BY parameter"
        with self._lock:
            return self._sql(query, (identity["provider"], identity["model"]))

    def learn(self, identity: Mapping[str, Any], parameter: str, instead: str) -> None:
        """Remember that a request was refused for a parameter, and what is sent instead."""
        add = (
            "INSERT INTO dialect VALUES (?, ?, ?, ?, 1) ON CONFLICT (provider, model, parameter) DO UPDATE "
            "SET instead = excluded.instead, requests = requests + 1"
        )
        with self._lock:
            self._sql(add, (identity["provider"], identity["model"], parameter, instead))

    def estimate(self, requests: Iterable[Request], completer: Completer) -> Estimate:
        """Expected size and cost of the requests without an answer in the file; equal ones count once."""
        by_key = {key_of(request, completer): request for request in requests}
        with self._lock:
            return self.budget.estimate([request for key, request in by_key.items() if self._stored(key) is None])

    def summary(self) -> LedgerSummary:
        """Counts and costs."""
        totals = "SELECT COUNT(*), COALESCE(SUM(tokens_in), 0), COALESCE(SUM(tokens_out), 0), TOTAL(cost) FROM answers"
        unanswered = "SELECT failure FROM failures WHERE key NOT IN (SELECT key FROM answers)"
        unread = "SELECT failure FROM answers WHERE failure IS NOT NULL"
        by_kind = f"SELECT failure, COUNT(*) FROM ({unread} UNION ALL {unanswered}) GROUP BY failure ORDER BY failure"
        by = "SELECT {0}, {1} FROM answers GROUP BY {0} ORDER BY {0}"
        groups = [("feature", "SUM(cost)"), ("question", "COUNT(*)"), ("question", "SUM(cost)")]
        with self._lock:
            requests, tokens_in, tokens_out, cost = self._sql(totals)[0]
            failures = dict(self._sql(by_kind)) | ({"budget": self._refused} if self._refused else {})
            by_feature, *by_question = (dict(self._sql(by.format(*names))) for names in groups)
            reasons: dict[str, str] = {kind: detail for kind, detail in self._unanswered.values()}
        counts = (requests, self._cached, failures, tokens_in, tokens_out, cost)
        return LedgerSummary(*counts, by_feature, reasons, *by_question)

    def _paid(self, key: str, request: Request, completer: Completer) -> Answer | Failure:
        """The completer's answer, committed to the file."""
        held = self.budget.reserve(request)
        if isinstance(held, Failure):
            with self._lock:
                self._refused += 1
                self._unanswered[key] = held
            return held
        answer, start = None, time.monotonic()
        try:
            reply, attempts = completer.complete(request)
            answer = reply if isinstance(reply, Answer) else None
        finally:
            cost = self.budget.settle(request, held, answer)
        identity, now = completer.identity, datetime.now(UTC).isoformat(timespec="seconds")
        row = {
            "key": key, "provider": identity["provider"], "model": identity["model"], "feature": request.feature,
            "question": request.question, "seconds": round(time.monotonic() - start, 3), "attempts": attempts,
            "time": now,
        }  # fmt: skip
        if isinstance(reply, Answer):
            table, again = "answers", ""
            row |= {
                "prompt": request.prompt, "parameters": json.dumps(_parameters(request, completer)), "cost": cost,
                "answer": json.dumps([reply.text, reply.finish, reply.tokens, reply.top]), "tokens_in": reply.tokens_in,
                "tokens_out": reply.tokens_out, "prompt_bytes": _size(request), "allowed": request.max_tokens,
            }  # fmt: skip
        else:
            table, row = "failures", row | {"failure": reply.kind, "detail": reply.detail}
            again = (
                " ON CONFLICT (key) DO UPDATE SET failure = excluded.failure, detail = excluded.detail, "
                "seconds = seconds + excluded.seconds, attempts = attempts + excluded.attempts, time = excluded.time"
            )
        names, values = ", ".join(row), ", ".join(f":{name}" for name in row)
        with self._lock:
            self._unanswered.pop(key, None)
            if isinstance(reply, Failure):
                self._unanswered[key] = reply
            self._sql(f"INSERT INTO {table} ({names}) VALUES ({values}){again}", row)
        return reply

    def _sql(self, query: str, values: Sequence[Any] | Mapping[str, Any] = ()) -> list[Any]:
        """Rows of a query; the caller holds the lock. A full disk and a damaged file are told as such."""
        try:
            return self._base.execute(query, values).fetchall()
        except (sqlite3.Error, ValueError, OverflowError) as error:
            raise _unusable(self._path, error) from error

    def _stored(self, key: str) -> Answer | None:
        query = "SELECT answer, tokens_in, tokens_out FROM answers WHERE key = ?"
        if not (rows := self._sql(query, (key,))):
            return None
        with reading(f"an answer in the ledger, key {key}", "move the ledger away or name another folder", LedgerError):
            return answer_of(*rows[0])


def answer_of(written: str, tokens_in: int | None, tokens_out: int | None) -> Answer:
    """An answer from the columns of a ledger. Raises what reading another text raises."""
    text, finish, tokens, top = json.loads(written)
    return Answer(text, finish, tokens_in, tokens_out, tuple(tokens), tuple(top))


def _unusable(path: Path, error: Exception) -> LedgerError:
    full = isinstance(error, sqlite3.OperationalError) and re.search("disk|readonly|full", str(error))
    why = f"{'cannot be used' if full else 'is no ledger, or a damaged one'} ({short(str(error))})"
    return LedgerError(f"{path}: {why}; {'make room or mend its permissions' if full else _MOVE}")


def key_of(request: Request, completer: Completer) -> str:
    """SHA-256 (hex) of all that decides an answer: provider, model, prompt, limits and parameters; not the feature."""
    return digest([dict(completer.identity), request.prompt, _parameters(request, completer)])


def _size(request: Request) -> int:
    return len(request.prompt.encode())


def _parameters(request: Request, completer: Completer) -> dict[str, object]:
    limits: dict[str, object] = {"max_tokens": request.max_tokens, "echo": request.echo, "logprobs": request.logprobs}
    return limits | {"set": completer.identity.get("parameters")}
