"""What a language model was asked about features, and what it answered, read back from a ledger: nothing is sent, and
the ledger stays as it is."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from heredity.errors import reading
from heredity.explain.language import Asked, Mode, Questions
from heredity.explain.ledger import LedgerError, answer_of
from heredity.explain.protocol import Failure, Question

_ANSWERED = "feature, question, provider, model, tokens_in, tokens_out, cost, seconds, attempts, time"
_UNANSWERED = "feature, question, provider, model, failure, detail, seconds, attempts, time"


class Sent(NamedTuple):
    """A request of a ledger, with what came back."""

    feature: str  # such as `lua/123`
    question: Question
    provider: str  # host and port, without user, path or key
    model: str
    prompt: str | None  # None where the ledger keeps none: there was no answer
    answer: str | None  # as it came; empty for an echoed prompt, None where none came
    echoed: int  # tokens of the prompt that came back with log-probabilities
    failure: str | None  # kind of failure: of the reading of the answer, or of the request
    detail: str | None  # in words
    tokens_in: int | None  # as far as reported
    tokens_out: int | None
    cost: float  # USD; 0 where no prices were given
    seconds: float
    attempts: int
    time: str  # UTC


class Recalled(Questions):
    """A `Judge` whose answers are those of a ledger, found by their prompts: what was not asked is not answered.

    met: requests that were found, in the order of the questions, with how their answers read today.
    """

    def __init__(self, answers: Mapping[str, Sequence[Mapping[str, Any]]], mode: Mode):
        """answers: rows of a ledger by prompt, the oldest first."""
        super().__init__("ledger", mode)
        self.met: list[Sent] = []
        self._rows = answers

    def _answers(self, asked: Sequence[Asked]) -> Iterator[Any]:
        for request, read in asked:
            value: Any = Failure("unreachable", "not in the ledger")
            for row in self._rows.get(request.prompt, ()):  # of several the first ones were cut by their limits
                answer = row["answer"]
                value = read(answer)
                parts = value if isinstance(value, list) else [value]
                kind, detail = next((part for part in parts if isinstance(part, Failure)), (None, None))
                told = {"answer": answer.text, "echoed": len(answer.tokens), "failure": kind, "detail": detail}
                self.met.append(Sent(**{**row, **told}))
            yield value


def answers_about(path: Path, features: Sequence[str]) -> tuple[dict[str, list[dict[str, Any]]], list[Sent]]:
    """Answered requests of a ledger about features, by prompt, and those without an answer.

    Raises `LedgerError` for a file that cannot be read.
    """
    own = ", ".join("?" * len(features))
    answered = f"SELECT {_ANSWERED}, prompt, answer FROM answers WHERE feature IN ({own}) ORDER BY rowid"
    unanswered = f"SELECT {_UNANSWERED} FROM failures WHERE feature IN ({own}) AND key NOT IN (SELECT key FROM answers)"
    by_prompt: dict[str, list[dict[str, Any]]] = {}
    none = {"prompt": None, "answer": None, "echoed": 0, "tokens_in": None, "tokens_out": None, "cost": 0.0}
    # A ledger that nobody writes is read without files beside it, which a run on a disk for reading alone cannot have.
    writing = path.with_name(f"{path.name}-wal").exists()
    address = f"{path.absolute().as_uri()}?mode=ro&immutable={int(not writing)}"
    with reading(path, "move it away", LedgerError), closing(sqlite3.connect(address, uri=True)) as file:
        file.row_factory = sqlite3.Row
        for row in file.execute(answered, features):
            answer = answer_of(row["answer"], row["tokens_in"], row["tokens_out"])
            by_prompt.setdefault(row["prompt"], []).append({**row, "answer": answer})
        failed = [Sent(**none, **dict(row)) for row in file.execute(f"{unanswered} ORDER BY rowid", features)]
    return by_prompt, failed
