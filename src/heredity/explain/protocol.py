"""The questions about a feature, who answers them, and what comes back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

LEVELS = 10  # activations are shown as integers 0 to 9 (Bricken et al. 2023): one digit, one token in every tokenizer

Kind = Literal["top", "interval", "random", "elsewhere", "silent"]
"""Why an excerpt was drawn: a strongest activation, a lower interval of activation, a random position, another
occurrence of a token that activates the feature, a position where the feature is silent."""
FailureKind = Literal["unparsed", "wrong_length", "empty", "truncated", "refused", "unreachable", "budget"]
"""Why there is no answer: not readable; about another number of tokens or texts; nothing in it; broken off; declined by
the endpoint; no connection; a limit of cost or requests reached."""
Question = Literal["explain", "simulate", "detect", "fuzz", "intruder"]


class Excerpt(NamedTuple):
    """A few tokens of one block of the sample, with one feature's activations on them."""

    tokens: tuple[str, ...]  # texts, which joined are the excerpt
    ids: np.ndarray  # int64 [n], the same tokens
    values: np.ndarray  # float64 [n], activations
    kind: Kind
    block: int  # its index in the sample
    center: int  # index, among these tokens, of the one the excerpt was drawn for


class Failure(NamedTuple):
    """A question without an answer; counted by its kind, never scored."""

    kind: FailureKind
    detail: str


Levels = list[np.ndarray | Failure] | Failure
"""Expected level, 0 to 9, of every token: float64 [n] for each excerpt."""


class Judge(Protocol):
    """Explains features and predicts their activations: an endpoint, a local model, or statistics.

    explain: describe what the feature responds to. simulate: predict the level of every token; activations are not
    shown. detect: whether the feature is active anywhere in each excerpt, float64 [n], 0 to 1. fuzz: whether the marked
    tokens (bool [tokens] per excerpt) are the active ones, likewise. intruder: index, in each group of excerpts, of the
    only one that does not activate the feature, int64 [n]. `feature` names the feature for the ledger, such as
    `lua/123`. Every method answers or returns a `Failure`; none raises for the content of an answer.
    """

    name: str  # in results

    def explain(self, feature: str, excerpts: Sequence[Excerpt]) -> str | Failure: ...

    def simulate(self, feature: str, description: str, excerpts: Sequence[Excerpt]) -> Levels: ...

    def detect(self, feature: str, description: str, excerpts: Sequence[Excerpt]) -> np.ndarray | Failure: ...

    def fuzz(
        self, feature: str, description: str, excerpts: Sequence[Excerpt], marked: Sequence[np.ndarray]
    ) -> np.ndarray | Failure: ...

    def intruder(self, feature: str, groups: Sequence[Sequence[Excerpt]]) -> np.ndarray | Failure: ...


class Request(NamedTuple):
    """One question to a language model."""

    feature: str  # such as `lua/123`
    question: Question
    prompt: str
    max_tokens: int  # limit of the answer
    echo: bool = False  # return log-probabilities of the prompt's tokens instead of an answer
    logprobs: int = 0  # most likely tokens to return per token of an echoed prompt


class Answer(NamedTuple):
    """The response to a request; tokens as far as reported."""

    text: str  # empty for an echo
    finish: Literal["stop", "length", "refused"]  # by itself, at the limit of tokens, by a refusal or a filter
    tokens_in: int | None  # of the prompt
    tokens_out: int | None
    tokens: tuple[str, ...] = ()  # texts of the tokens of an echoed prompt
    top: tuple[dict[str, float], ...] = ()  # log-probabilities of likely tokens, for each of `tokens`


class Completer(Protocol):
    """Completes prompts.

    identity: provider, model and parameters, all that decides an answer besides the request; holds no secret. complete:
    the reply to a request and the number of attempts; safe to call from several threads. stop: requests in flight may
    end, nothing is retried.
    """

    name: str  # in results
    concurrency: int  # requests at a time

    @property
    def identity(self) -> Mapping[str, Any]: ...

    def complete(self, request: Request) -> tuple[Answer | Failure, int]: ...

    def stop(self) -> None: ...


def quantized(values: np.ndarray, highest: float) -> np.ndarray:
    """Levels 0 to 9 of activations, int64: floor(10 a / highest), with the highest itself in 9 and silence in 0."""
    levels = np.floor(LEVELS * np.maximum(values, 0) / highest) if highest > 0 else np.zeros(np.shape(values))
    return np.minimum(levels, LEVELS - 1).astype(np.int64)
