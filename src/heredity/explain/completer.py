"""A question as a language model gets it, its answer, and what answers: an endpoint or a model in this process."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, Protocol

from heredity.explain.protocol import Failure

Question = Literal["explain", "simulate", "detect", "fuzz", "intruder"]


class Request(NamedTuple):
    """One question."""

    feature: str
    """What it is about, such as `lua/123`."""
    question: Question
    """Its kind."""
    prompt: str
    """The whole text."""
    max_tokens: int
    """Tokens the answer may have."""
    echo: bool = False
    """Wanted are the log-probabilities of the prompt's own tokens, not an answer."""
    logprobs: int = 0
    """Most likely tokens to be told at every place of the answer (of the prompt, if `echo`); 0 for none."""


class Answer(NamedTuple):
    """What came back."""

    text: str
    """The answer; nothing if the prompt's log-probabilities were wanted."""
    finish: Literal["stop", "length", "refused"]
    """Why it ended: by itself, at the limit of tokens, by a refusal or a filter."""
    tokens_in: int | None
    """Tokens of the prompt; None if it was not told."""
    tokens_out: int | None
    """Tokens of the answer; None if it was not told."""
    tokens: tuple[str, ...] = ()
    """Texts of the tokens (of the prompt, if `echo`)."""
    top: tuple[dict[str, float], ...] = ()
    """For each of them the log-probabilities of the tokens that were likely in its place."""
    attempts: int = 1
    """Times it was asked until it was answered."""


class Refused(NamedTuple):
    """A request that got no answer."""

    failure: Failure
    """Why."""
    attempts: int
    """Times it was asked."""


class Completer(Protocol):
    """Whatever completes prompts."""

    name: str
    """What results name it by."""
    concurrency: int
    """Requests it takes at a time."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """Provider, model and parameters: all that decides an answer beside the request. Holds no secret."""
        ...

    def complete(self, request: Request) -> Answer | Refused:
        """Answer a request; safe to call from several threads."""
        ...

    def stop(self) -> None:
        """Ask no more: requests under way may end, nothing is tried again."""
        ...
