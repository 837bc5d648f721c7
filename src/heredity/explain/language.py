"""A language model as a judge: questions put into prompts, put on the ledger, and read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Literal, TypeVar

import numpy as np

from heredity.explain import parse, prompts
from heredity.explain.budget import Estimate
from heredity.explain.completer import Answer, Completer, Question, Request
from heredity.explain.ledger import Ledger
from heredity.explain.protocol import Excerpt, Failure

SENTENCE = 120
"""Tokens that an explanation may have, its JSON included."""
ECHOED = 15
"""Most likely tokens asked for at each place of an echoed prompt (Bills et al. 2023)."""
LIKELY = 5
"""Most likely tokens asked for at each place of an answer."""

Mode = Literal["sparse", "echo"]
"""How activations are simulated."""

Item = TypeVar("Item")
Result = TypeVar("Result")
Read = TypeVar("Read")


class LanguageJudge:
    """A `Judge` that asks a language model, an `Endpoint` or a `Local` one, and pays for each answer once.

    mode: how activations are simulated. `sparse` asks for the levels of the tokens that are not silent; `echo` reads
    the log-probabilities of a prompt in which all levels are unknown, and takes expected values (Bills et al. 2023); it
    needs a completer that can echo prompts. batch: excerpts in one request. probabilities: detection and fuzzing take
    P(1) / (P(0) + P(1)) from the answer's log-probabilities instead of its verdicts. spare_tokens: further tokens that
    every answer may have, for models that think before they answer.

    Raises `ValueError` for a batch below 1 or spare tokens below 0.
    """

    def __init__(
        self,
        completer: Completer,
        ledger: Ledger,
        *,
        mode: Mode = "sparse",
        batch: int = 10,
        probabilities: bool = False,
        spare_tokens: int = 0,
    ):
        if batch < 1 or spare_tokens < 0:
            raise ValueError(f"batch={batch}, spare_tokens={spare_tokens}: must be at least 1 and at least 0")
        self.name = completer.name
        self.completer = completer
        self.ledger = ledger
        self._mode = mode
        self._batch = batch
        self._probabilities = probabilities
        self._spare = spare_tokens
        self._stopped = False

    def explain(self, feature: str, excerpts: Sequence[Excerpt]) -> str | Failure:
        """A sentence that says what the feature responds to."""
        return self._ask(self.to_explain(feature, excerpts), parse.read_explanation)

    def simulate(
        self, feature: str, description: str, excerpts: Sequence[Excerpt]
    ) -> list[np.ndarray | Failure] | Failure:
        """Expected level of every token, float64 [n] for each excerpt. A request that fails fails its excerpts only."""
        found: list[np.ndarray | Failure] = []
        requests = self.to_simulate(feature, description, excerpts)
        for own, request in zip(self._batches(excerpts), requests, strict=True):
            value = self._ask(request, self._reader(description, own))
            found += [value] * len(own) if isinstance(value, Failure) else value
        return found

    def detect(self, feature: str, description: str, excerpts: Sequence[Excerpt]) -> np.ndarray | Failure:
        """Whether the feature is active in each excerpt, float64 [n]; the first request that fails fails all."""
        return self._verdicts(self.to_detect(feature, description, excerpts), len(excerpts))

    def fuzz(
        self, feature: str, description: str, excerpts: Sequence[Excerpt], marked: Sequence[np.ndarray]
    ) -> np.ndarray | Failure:
        """Whether the right tokens are marked in each excerpt, float64 [n]; the first request that fails fails all."""
        return self._verdicts(self.to_fuzz(feature, description, excerpts, marked), len(excerpts))

    def intruder(self, feature: str, groups: Sequence[Sequence[Excerpt]]) -> np.ndarray | Failure:
        """The place of the excerpt that does not belong, int64 [n]; the first request that fails fails all."""
        places = []
        for group, request in zip(groups, self.to_intruder(feature, groups), strict=True):
            place = self._ask(request, partial(parse.read_intruder, texts=len(group)))
            if isinstance(place, Failure):
                return place
            places.append(place)
        return np.array(places, np.int64)

    def to_explain(self, feature: str, excerpts: Sequence[Excerpt]) -> Request:
        """The request that `explain` makes."""
        return self._request(feature, "explain", prompts.explain_prompt(excerpts), SENTENCE)

    def to_simulate(self, feature: str, description: str, excerpts: Sequence[Excerpt]) -> list[Request]:
        """The requests that `simulate` makes."""
        if self._mode == "echo":
            return [
                Request(feature, "simulate", prompts.echo_prompt(description, own).text, 1, True, ECHOED)
                for own in self._batches(excerpts)
            ]
        return [
            self._request(
                feature,
                "simulate",
                prompts.simulate_prompt(description, own),
                16 + 8 * sum(len(excerpt.tokens) for excerpt in own),
            )
            for own in self._batches(excerpts)
        ]

    def to_detect(self, feature: str, description: str, excerpts: Sequence[Excerpt]) -> list[Request]:
        """The requests that `detect` makes."""
        return [
            self._verdict_request(feature, "detect", prompts.detect_prompt(description, own), len(own))
            for own in self._batches(excerpts)
        ]

    def to_fuzz(
        self, feature: str, description: str, excerpts: Sequence[Excerpt], marked: Sequence[np.ndarray]
    ) -> list[Request]:
        """The requests that `fuzz` makes."""
        return [
            self._verdict_request(feature, "fuzz", prompts.fuzz_prompt(description, own, marks), len(own))
            for own, marks in zip(self._batches(excerpts), self._batches(marked), strict=True)
        ]

    def to_intruder(self, feature: str, groups: Sequence[Sequence[Excerpt]]) -> list[Request]:
        """The requests that `intruder` makes."""
        return [self._request(feature, "intruder", prompts.intruder_prompt(group), 24) for group in groups]

    def estimate(self, requests: Iterable[Request]) -> Estimate:
        """What requests will take; those already answered in the ledger take nothing."""
        return self.ledger.estimate(requests, self.completer)

    def stop(self) -> None:
        """Ask nothing more; what is under way may end and goes into the ledger."""
        self._stopped = True
        self.completer.stop()

    def over(self, ask: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """As `map`, but several items at a time, as many as the completer takes; results come in order.

        When the caller leaves early, by Ctrl-C or any other exception, nothing more is asked; requests under way end
        first and are in the ledger.
        """
        with ThreadPoolExecutor(self.completer.concurrency) as pool:
            waiting: list[Future[Result]] = [pool.submit(ask, item) for item in items]
            try:
                for future in waiting:
                    yield future.result()
            except BaseException:
                self.stop()
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _ask(self, request: Request, read: Callable[[Answer], Read | Failure]) -> Read | Failure:
        if self._stopped:
            return Failure("unreachable", "stopped before it was asked")
        return self.ledger.ask(request, self.completer, read)

    def _reader(
        self, description: str, excerpts: Sequence[Excerpt]
    ) -> Callable[[Answer], list[np.ndarray | Failure] | Failure]:
        lengths = [len(excerpt.tokens) for excerpt in excerpts]
        if self._mode == "sparse":
            return partial(parse.read_levels, lengths=lengths)
        return partial(parse.read_echo, prompt=prompts.echo_prompt(description, excerpts), lengths=lengths)

    def _verdicts(self, requests: Sequence[Request], texts: int) -> np.ndarray | Failure:
        read = parse.read_probabilities if self._probabilities else parse.read_verdicts
        found, left = [np.zeros(0)], texts
        for request in requests:
            size = min(self._batch, left)
            value = self._ask(request, partial(read, texts=size))
            if isinstance(value, Failure):
                return value
            found.append(value)
            left -= size
        return np.concatenate(found)

    def _request(self, feature: str, question: Question, prompt: str, max_tokens: int) -> Request:
        return Request(feature, question, prompt, max_tokens + self._spare)

    def _verdict_request(self, feature: str, question: Question, prompt: str, texts: int) -> Request:
        request = self._request(feature, question, prompt, 16 + 4 * texts)
        return request._replace(logprobs=LIKELY if self._probabilities else 0)

    def _batches(self, items: Sequence[Item]) -> list[Sequence[Item]]:
        return [items[start : start + self._batch] for start in range(0, len(items), self._batch)]
