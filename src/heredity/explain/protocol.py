"""What is asked about a feature, and of whom: excerpts with activations, judges, answers and failures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol

import numpy as np

LEVELS = 10
"""Activations are told as whole numbers from 0 to 9 (Bricken et al. 2023): one digit, one token in every tokenizer."""

Kind = Literal["top", "interval", "random", "elsewhere", "silent"]
"""Why an excerpt was drawn: a strongest activation, one of a lower interval of activation, any place, a place where a
token that activates the feature elsewhere stands, a place where the feature is silent."""

FailureKind = Literal["unparsed", "wrong_length", "empty", "truncated", "refused", "unreachable", "budget"]
"""Why there is no answer: it could not be read; it was about another number of tokens or texts; it held nothing; it
broke off; the endpoint said no; the endpoint could not be reached; the limit of costs or requests was met."""


class Excerpt(NamedTuple):
    """A few tokens of one block of the sample, with one feature's activations on them."""

    tokens: tuple[str, ...]
    """Their texts, each decoded alone."""
    ids: np.ndarray
    """int64 [n]: the same tokens by number."""
    values: np.ndarray
    """float64 [n]: activations."""
    kind: Kind
    """Why it was drawn."""
    block: int
    """Number of its block in the sample."""
    center: int
    """Place, among these tokens, of the one it was drawn for."""


class Failure(NamedTuple):
    """A question without an answer. It is counted as what it is, never as a score."""

    kind: FailureKind
    """Why."""
    detail: str
    """What was wrong, in words."""


class Judge(Protocol):
    """Whoever explains features and predicts their activations: an endpoint, a local model, or statistics.

    Every method answers or gives a `Failure`; none raises for what an answer holds. `feature` names the feature for the
    ledger, such as `lua/123`.
    """

    name: str
    """What results name it by."""

    def explain(self, feature: str, excerpts: Sequence[Excerpt]) -> str | Failure:
        """A description of what the feature responds to."""
        ...

    def simulate(
        self, feature: str, description: str, excerpts: Sequence[Excerpt]
    ) -> list[np.ndarray | Failure] | Failure:
        """Expected level, 0 to 9, of every token of every excerpt; float64 [n] for each. Activations are not shown."""
        ...

    def detect(self, feature: str, description: str, excerpts: Sequence[Excerpt]) -> np.ndarray | Failure:
        """Whether the feature is active anywhere in each excerpt: float64 [n], 0 to 1."""
        ...

    def fuzz(
        self, feature: str, description: str, excerpts: Sequence[Excerpt], marked: Sequence[np.ndarray]
    ) -> np.ndarray | Failure:
        """Whether the tokens marked in each excerpt (bool [tokens] each) are those the feature is active on: float64
        [n], 0 to 1."""
        ...

    def intruder(self, feature: str, groups: Sequence[Sequence[Excerpt]]) -> np.ndarray | Failure:
        """In each group of excerpts, which all activate the feature but for one: the place of that one, int64 [n]. No
        description is given."""
        ...


def quantized(values: np.ndarray, highest: float) -> np.ndarray:
    """Levels 0 to 9 of activations, int64: floor(10 a / highest), the highest itself in 9, silence in 0."""
    levels = np.floor(LEVELS * np.maximum(values, 0) / highest) if highest > 0 else np.zeros(np.shape(values))
    return np.minimum(levels, LEVELS - 1).astype(np.int64)
